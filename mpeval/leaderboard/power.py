"""What a test set can show: the smallest difference that a comparison is likely to find, and the items it takes.

The test is the two-sided z-test of the difference of two accuracies, of equal size n, at a level of 5 %:
difference >= (z of level + z of power) x error of the difference, where that error is sqrt(2) times one accuracy's for
models measured apart, and sqrt(2 (1 - correlation)) times it for models measured on the same items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mpeval.errors import UsageError, shown
from mpeval.statistics import LEVEL, normal_quantile, proportion_error
from mpeval.tasks.cards import load_card

MOST = 10**12
"""More items than any set has."""
LEAST = 1e-6
"""The smallest effect that is looked for: one item in a million."""


@dataclass(frozen=True, kw_only=True)
class Power:
    """What `n` items can resolve; all but `n` as proportions."""

    n: int
    accuracy: float
    correlation: float
    power: float
    stderr: float
    half_width: float
    """Of the 95 % interval of one accuracy (normal)."""
    unpaired: float
    """The smallest difference that a comparison of two separate measurements finds with this power."""
    paired: float
    """Of one on the same items."""


def resolution(n: int, *, accuracy: float, correlation: float, power: float) -> Power:
    """Return what a set of `n` independent items can resolve.

    Args:
        n: items.
        accuracy: about that of both models.
        correlation: of the two models' right answers over items.
        power: the probability of finding a difference of that size.

    Raises:
        UsageError: numbers with which nothing can be said.
    """
    _check(accuracy=accuracy, correlation=correlation, power=power)
    if not 2 <= n < MOST:
        raise UsageError(f"of {shown(n)} items nothing can be said", f"give `--n` between 2 and {MOST:,}")
    stderr = proportion_error(accuracy, n)
    reach = _quantiles(power)
    return Power(
        n=n,
        accuracy=accuracy,
        correlation=correlation,
        power=power,
        stderr=stderr,
        half_width=normal_quantile() * stderr,
        unpaired=reach * math.sqrt(2) * stderr,
        paired=reach * math.sqrt(2 * (1 - correlation)) * stderr,
    )


def items_needed(effect: float, *, accuracy: float, correlation: float, power: float) -> int:
    """Return how many items it takes to find a difference of `effect`, a proportion; `correlation` 0 for unpaired.

    Raises:
        UsageError: as `resolution`, or an effect that no two accuracies have.
    """
    _check(accuracy=accuracy, correlation=correlation, power=power)
    if not LEAST <= effect < 1:
        raise UsageError(
            f"an effect of {100 * effect:g} points is none that accuracies have",
            f"give one below 100, of {100 * LEAST:g} or more",
        )
    variance = 2 * (1 - correlation) * accuracy * (1 - accuracy)
    return max(2, math.ceil(variance * (_quantiles(power) / effect) ** 2))


def items_of(protocol: str) -> int:
    """Return the published number of items of a protocol whose metric is an accuracy, on its usual split.

    Raises:
        UsageError: no such protocol, or one of another metric.
    """
    task, slash, short = protocol.partition("/")
    card = load_card(task)
    chosen = card.protocol(short if slash else card.default_for())
    if chosen.metric != "accuracy":
        raise UsageError(
            f"`{chosen.id}` measures {chosen.metric.replace('_', ' ')}, whose spread no number of items tells",
            "give a protocol of accuracy, such as `--protocol race/megatron`; two runs are compared by "
            "`mpeval leaderboard compare A B`",
        )
    return card.items_of(chosen)


def _check(*, accuracy: float, correlation: float, power: float) -> None:
    for option, value, fits, range_ in (
        ("--accuracy", accuracy, 0 < accuracy < 1, "between 0 and 1, such as 0.7"),
        ("--correlation", correlation, -1 <= correlation < 1, "of -1 or more and below 1, such as 0.5"),
        ("--power", power, (1 - LEVEL) / 2 < power < 1, "above 0.025, which is chance, and below 1, such as 0.8"),
    ):
        if not fits:
            raise UsageError(f"`{option} {value:g}` is out of range", f"give a number {range_}")


def _quantiles(power: float) -> float:
    """Return how many errors away a difference must be; the other tail's share of the power is left out."""
    from scipy.stats import norm

    return normal_quantile() + float(norm.ppf(power))
