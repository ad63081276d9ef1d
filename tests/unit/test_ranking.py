"""Ranks from intervals, ties, and numbers without items: against their definitions, scipy, and coverage."""

from __future__ import annotations

import itertools
import math
import operator
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mpeval.leaderboard.ranking import rank_ranges, tie_groups, unpaired
from mpeval.statistics import clustered_accuracy_metric, proportion_error, proportion_interval

BOUNDS = st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 9), st.integers(0, 4))), min_size=1, max_size=12)


def made(drawn: list[tuple[int, int] | None]) -> tuple[list[float], list[tuple[float, float] | None]]:
    """Return values with intervals about them, all of whole numbers, so that many touch."""
    values = [float(number % 7) if pair is None else float(pair[0]) for number, pair in enumerate(drawn)]
    return values, [
        None if pair is None else (value - pair[1], value + pair[1]) for value, pair in zip(values, drawn, strict=True)
    ]


# ---- rank ranges ----


def test_ranks_of_a_worked_example() -> None:
    values = [0.90, 0.89, 0.80, 0.70]
    intervals = [(0.88, 0.92), (0.87, 0.91), (0.78, 0.82), (0.69, 0.79)]
    assert rank_ranges(values, intervals, "max") == [(1, 2), (1, 2), (3, 4), (3, 4)]
    assert rank_ranges(values, intervals, "min") == [(3, 4), (3, 4), (1, 2), (1, 2)]


def test_a_score_without_an_interval_ties_with_equal_scores_only() -> None:
    assert rank_ranges([10.8, 17.5, 17.5, 20.0], [None] * 4, "min") == [(1, 1), (2, 3), (2, 3), (4, 4)]
    assert rank_ranges([0.5, 0.6, 0.7], [(0.4, 0.6), None, None], "max") == [(2, 3), (2, 3), (1, 1)]


def test_nobody_has_no_ranks() -> None:
    assert rank_ranges([], [], "max") == []


@given(drawn=BOUNDS, direction=st.sampled_from(["max", "min"]))
def test_ranks_are_counts_of_who_is_surely_better_and_worse(
    drawn: list[tuple[int, int] | None], direction: Literal["max", "min"]
) -> None:
    values, intervals = made(drawn)
    bounds = [interval or (value, value) for value, interval in zip(values, intervals, strict=True)]

    def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return one[0] > other[1] if direction == "max" else one[1] < other[0]

    found = rank_ranges(values, intervals, direction)
    assert found == [
        (1 + sum(beats(other, own) for other in bounds), len(bounds) - sum(beats(own, other) for other in bounds))
        for own in bounds
    ]
    order = sorted(values, reverse=direction == "max")
    for value, (best, worst) in zip(values, found, strict=True):
        places = {place for place, other in enumerate(order, start=1) if other == value}
        assert places & set(range(best, worst + 1))


def test_ten_thousand_ranks_are_quick_and_right_at_both_ends() -> None:
    values = [float(number) for number in range(10_000)]
    found = rank_ranges(values, [(value - 1.5, value + 1.5) for value in values], "max")
    assert found[0] == (9_997, 10_000)
    assert found[-1] == (1, 4)


# ---- groups of ties ----


def test_a_chain_of_small_steps_is_not_one_tie() -> None:
    groups = tie_groups([9.0, 8.5, 8.0, 7.5, 7.0], lambda best, other: best - other > 1)
    assert groups == [[9.0, 8.5, 8.0], [7.5, 7.0]]


def test_groups_of_none_and_one() -> None:
    assert tie_groups([], operator.ne) == []
    assert tie_groups(["a"], operator.ne) == [["a"]]


@given(order=st.lists(st.integers(0, 20), max_size=15), table=st.randoms(use_true_random=False))
def test_a_group_holds_what_its_best_ties_with_and_ends_at_the_first_that_it_does_not(
    order: list[int], table: Any
) -> None:
    apart: dict[tuple[int, int], bool] = {}

    def separable(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return apart.setdefault((one[0], other[0]), table.random() < 0.4)

    groups = tie_groups(list(enumerate(order)), separable)
    assert list(itertools.chain.from_iterable(groups)) == list(enumerate(order))
    for group in groups:
        assert not any(separable(group[0], other) for other in group[1:])
    for group, following in itertools.pairwise(groups):
        assert separable(group[0], following[0])


# ---- intervals of shares ----


@pytest.mark.parametrize(("correct", "n"), [(0, 50), (50, 50), (1, 30), (27, 30), (3427, 5153)])
def test_the_interval_of_a_reported_share_is_wilsons(correct: int, n: int) -> None:
    expected = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert proportion_interval(correct / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_a_share_of_nothing_begins_at_nothing() -> None:
    low, high = proportion_interval(0.0, 50)
    assert low == 0.0
    assert high == pytest.approx(0.071, abs=5e-4)


def test_a_rounded_share_has_nearly_the_interval_of_the_count() -> None:
    """66.51 % of 5,153, as printed, is no whole number of items."""
    assert proportion_interval(0.6651, 5153) == pytest.approx(proportion_interval(3427 / 5153, 5153), abs=1e-4)


@pytest.mark.parametrize(
    ("n", "share", "wald", "wilson"), [(30, 0.9, 0.81, 0.97), (100, 0.95, 0.87, 0.96), (1838, 0.82, 0.95, 0.95)]
)
def test_wilson_covers_where_the_normal_interval_does_not(n: int, share: float, wald: float, wilson: float) -> None:
    """The probability that the interval of a drawn count holds the true share, summed over all counts."""
    counts = np.arange(n + 1)
    mass = stats.binom.pmf(counts, n, share)
    found = {
        "wilson": [proportion_interval(count / n, n) for count in counts],
        "wald": [
            (
                count / n - 1.959964 * proportion_error(count / n, n),
                count / n + 1.959964 * proportion_error(count / n, n),
            )
            for count in counts
        ],
    }
    cover = {
        name: sum(weight for weight, (low, high) in zip(mass, bounds, strict=True) if low <= share <= high)
        for name, bounds in found.items()
    }
    assert cover["wald"] == pytest.approx(wald, abs=1e-2)
    assert cover["wilson"] == pytest.approx(wilson, abs=1e-2)


def test_the_clustered_interval_covers_where_that_of_independent_items_does_not() -> None:
    """Passages are hard or easy: questions of one go together."""
    random = np.random.default_rng(7)
    clusters = [str(number) for number in range(80) for _ in range(5)]
    names = [str(number) for number in range(400)]
    inside = {"clustered": 0, "independent": 0}
    for _ in range(400):
        hard = random.beta(2, 1, 80).repeat(5)  # its mean is 2 / 3
        right = [bool(value) for value in random.random(400) < hard]
        for kind, named in (("clustered", clusters), ("independent", names)):
            metric = clustered_accuracy_metric(right, named)
            assert metric.low is not None
            assert metric.high is not None
            inside[kind] += metric.low <= 2 / 3 <= metric.high
    assert 0.92 <= inside["clustered"] / 400 <= 0.98
    assert inside["independent"] / 400 < 0.90


# ---- two reported scores ----


@pytest.mark.parametrize(
    ("first", "second", "n", "p_value"),
    [
        (66.51, 63.24, 5153, 0.0005),  # LAMBADA, Megatron-LM 8.3B and GPT-2
        (67.98, 66.51, 5153, 0.11),  # Turing-NLG and Megatron-LM 8.3B
        (76.56, 76.2, 5153, 0.67),  # Megatron-Turing NLG and GPT-3
        (81.99, 81.0, 1838, 0.44),  # PIQA, the same two
        (90.9, 89.4, 4934, 0.012),  # RACE, Megatron-BERT's ensemble and ALBERT's
        (90.0, 88.6, 3498, 0.058),  # RACE high, Megatron-BERT's ensemble and one model
    ],
)
def test_published_gaps_tested_by_what_was_published(first: float, second: float, n: int, p_value: float) -> None:
    found = unpaired(first / 100, proportion_error(first / 100, n), second / 100, proportion_error(second / 100, n))
    assert found.p_value == pytest.approx(p_value, rel=0.05)
    assert found.difference == pytest.approx((first - second) / 100)
    if n == 5153 and second == 63.24:
        assert found.z == pytest.approx(3.5, abs=0.05)


def test_an_unpaired_test_is_welchs_with_many_items() -> None:
    n = 10**8
    for one, other in itertools.product([(0.5, 0.02), (0.9, 0.001)], [(0.47, 0.01), (0.899, 0.002)]):
        found = unpaired(*one, *other)
        expected = stats.ttest_ind_from_stats(
            one[0], one[1] * math.sqrt(n), n, other[0], other[1] * math.sqrt(n), n, equal_var=False
        )
        assert (found.z, found.p_value) == pytest.approx((expected.statistic, expected.pvalue), rel=1e-6)


def test_scores_without_errors_differ_or_do_not() -> None:
    assert unpaired(0.5, 0.0, 0.5, 0.0).p_value == 1.0
    found = unpaired(0.4, 0.0, 0.5, 0.0)
    assert (found.z, found.p_value) == (-math.inf, 0.0)
