"""What a test set resolves: the published table, power solved numerically, and power found by drawing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from mpeval.errors import UsageError
from mpeval.leaderboard.power import items_needed, items_of, resolution

USUAL = {"correlation": 0.5, "power": 0.8}


@pytest.mark.parametrize(
    ("n", "accuracy", "stderr", "half_width", "unpaired", "paired"),
    [
        (5153, 0.664, 0.66, 1.29, 2.61, 1.84),  # LAMBADA
        (1838, 0.82, 0.90, 1.76, 3.55, 2.51),  # PIQA validation
        (3084, 0.77, 0.76, 1.49, 3.00, 2.12),  # PIQA test
        (3498, 0.90, 0.51, 0.99, 2.01, 1.42),  # RACE high
        (1436, 0.93, 0.67, 1.32, 2.67, 1.89),  # RACE middle
        (4934, 0.909, 0.41, 0.80, 1.62, 1.15),  # RACE
        (1045, 0.54, 1.54, 3.02, 6.11, 4.32),  # lm-eval's race
    ],
)
def test_the_table_of_what_test_sets_resolve(
    n: int, accuracy: float, stderr: float, half_width: float, unpaired: float, paired: float
) -> None:
    found = resolution(n, accuracy=accuracy, **USUAL)
    shown = [round(100 * value, 2) for value in (found.stderr, found.half_width, found.unpaired, found.paired)]
    assert shown == [stderr, half_width, unpaired, paired]


@pytest.mark.parametrize("power", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("correlation", [-0.2, 0.0, 0.9])
def test_the_smallest_difference_has_the_power(power: float, correlation: float) -> None:
    """Solve for the difference at which both tails of the z-test together have that power."""
    found = resolution(2000, accuracy=0.7, correlation=correlation, power=power)
    error = math.sqrt(2 * (1 - correlation) * 0.7 * 0.3 / 2000)

    def missing(effect: float) -> float:
        reach = stats.norm.ppf(0.975)
        return float(stats.norm.sf(reach - effect / error) + stats.norm.cdf(-reach - effect / error)) - power

    assert found.paired == pytest.approx(optimize.brentq(missing, 1e-9, 1.0, xtol=1e-14), rel=1e-4)
    assert found.unpaired == pytest.approx(found.paired / math.sqrt(1 - correlation), rel=1e-12)


def test_drawn_pairs_of_models_are_told_apart_as_often_as_was_said() -> None:
    n, accuracy, correlation = 1500, 0.7, 0.5
    found = resolution(n, accuracy=accuracy, correlation=correlation, power=0.8)
    first, second = accuracy + found.paired / 2, accuracy - found.paired / 2
    both = first * second + correlation * math.sqrt(first * (1 - first) * second * (1 - second))
    shares = [both, first - both, second - both, 1 - first - second + both]
    draws = np.random.default_rng(3).multinomial(n, shares, 4000)
    only_first, only_second = draws[:, 1] / n, draws[:, 2] / n
    difference = only_first - only_second
    stderr = np.sqrt((only_first + only_second - difference**2) / (n - 1))
    share = float((np.abs(difference / stderr) > stats.norm.ppf(0.975)).mean())
    assert share == pytest.approx(0.8, abs=0.025)


@pytest.mark.parametrize("effect", [0.005, 0.01, 0.05])
@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_the_items_needed_are_the_fewest_that_resolve_an_effect(effect: float, correlation: float) -> None:
    asked = {"accuracy": 0.8, "correlation": correlation, "power": 0.9}
    needed = items_needed(effect, **asked)
    assert resolution(needed, **asked).paired <= effect < resolution(needed - 1, **asked).paired


@pytest.mark.parametrize(
    ("protocol", "items"),
    [
        ("lambada/megatron-strict", 5153),
        ("lambada", 5153),
        ("piqa/lm-eval", 1838),
        ("race/megatron", 4934),
        ("race/lm-eval", 1045),
        ("mnli/megatron", 9815),
    ],
)
def test_a_protocols_number_of_items_is_the_published_one(protocol: str, items: int) -> None:
    assert items_of(protocol) == items


@pytest.mark.parametrize("protocol", ["wikitext103/megatron", "squad/v1"])
def test_a_protocol_without_right_and_wrong_answers_is_refused(protocol: str) -> None:
    with pytest.raises(UsageError, match="whose spread no number of items tells") as raised:
        items_of(protocol)
    assert "mpeval leaderboard compare" in raised.value.hint


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"accuracy": 1.0}, "--accuracy 1"),
        ({"accuracy": 70.0}, "--accuracy 70"),
        ({"accuracy": math.nan}, "--accuracy nan"),
        ({"correlation": 1.0}, "--correlation 1"),
        ({"correlation": -1.5}, "--correlation -1.5"),
        ({"power": 1.0}, "--power 1"),
        ({"power": 0.02}, "--power 0.02"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, float], option: str) -> None:
    with pytest.raises(UsageError, match=f"`{option}` is out of range"):
        resolution(100, **{"accuracy": 0.7, **USUAL, **changes})


@pytest.mark.parametrize("effect", [0.0, -0.01, 1.0, math.nan, 1e-200])
def test_an_effect_that_cannot_be_is_refused(effect: float) -> None:
    with pytest.raises(UsageError, match="is none that accuracies have"):
        items_needed(effect, accuracy=0.7, **USUAL)


@pytest.mark.parametrize("n", [-1, 1, 10**400])
def test_of_one_item_or_without_end_nothing_can_be_said(n: int) -> None:
    with pytest.raises(UsageError, match="nothing can be said"):
        resolution(n, accuracy=0.7, **USUAL)
