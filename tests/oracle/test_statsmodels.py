"""Error bars, tests and power agree with statsmodels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mpeval.leaderboard.power import items_needed, resolution
from mpeval.predictions.paired import compare, holm
from mpeval.statistics import clustered_error, exact_interval, mean_metric, proportion_interval

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
statsmodels: Any = pytest.importorskip("statsmodels.api", reason="needs statsmodels, which the extra `test` has")


def passages(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Draw right answers to questions of passages that are easy or hard as a whole, and each question's passage."""
    random = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(count), random.integers(1, 6, count))
    ease = random.uniform(0.2, 0.95, count)[clusters]
    return (random.random(len(clusters)) < ease).astype(float), clusters


@pytest.mark.parametrize("seed", range(5))
def test_clustered_errors_are_those_of_a_regression_on_a_constant(seed: int) -> None:
    values, clusters = passages(seed)
    fit = statsmodels.OLS(values, np.ones(len(values))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    count = len(set(clusters))
    expected = float(fit.bse[0]) * math.sqrt(count / (count - 1))
    names = [str(cluster) for cluster in clusters]
    assert clustered_error(values.tolist(), names) == pytest.approx(expected, rel=1e-12)
    metric = mean_metric("accuracy", values.tolist(), names)
    assert metric.stderr == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(0, 9), (3, 9), (9, 9), (2319, 5153), (1500, 1838)])
def test_intervals_of_proportions(correct: int, n: int) -> None:
    from statsmodels.stats.proportion import proportion_confint

    for method, found in (("wilson", proportion_interval(correct / n, n)), ("beta", exact_interval(correct, n))):
        assert found == pytest.approx(proportion_confint(correct, n, alpha=0.05, method=method), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_holm_corrects_as_statsmodels_does(seed: int) -> None:
    from statsmodels.stats.multitest import multipletests

    p_values = np.random.default_rng(seed).random(12) ** 3
    assert holm(p_values.tolist()) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


@pytest.mark.parametrize("seed", range(3))
def test_paired_tests_are_those_of_tables_and_of_regressions(seed: int) -> None:
    from statsmodels.stats.contingency_tables import mcnemar

    first, clusters = passages(seed)
    second = np.where(np.random.default_rng(seed + 100).random(len(first)) < 0.7, first, 1 - first)
    lines = [
        [
            {"task": "t", "id": str(n), "target": 0, "correct": bool(right), "passage": str(clusters[n])}
            for n, right in enumerate(side)
        ]
        for side in (first, second)
    ]
    found = compare(lines[0], lines[1])
    table = [[int(((first == a) & (second == b)).sum()) for b in (1, 0)] for a in (1, 0)]
    assert (found.only_first, found.only_second) == (table[0][1], table[1][0])
    assert found.mcnemar == pytest.approx(float(mcnemar(table, exact=True).pvalue))
    fit = statsmodels.OLS(first - second, np.ones(len(first))).fit(
        cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False}
    )
    count = len(set(clusters))
    assert found.difference == pytest.approx(float(fit.params[0]))
    assert found.stderr == pytest.approx(float(fit.bse[0]) * math.sqrt(count / (count - 1)))


@pytest.mark.parametrize("accuracy", [0.54, 0.7, 0.9])
def test_power_is_that_of_the_normal_test(accuracy: float) -> None:
    from statsmodels.stats.power import NormalIndPower

    spread = math.sqrt(accuracy * (1 - accuracy))
    n = 1838
    found = resolution(n, accuracy=accuracy, correlation=0.0, power=0.8)
    effect = NormalIndPower().solve_power(nobs1=n, alpha=0.05, power=0.8, alternative="two-sided")
    assert found.unpaired == pytest.approx(effect * spread, rel=1e-3)
    needed = NormalIndPower().solve_power(effect_size=0.02 / spread, alpha=0.05, power=0.8, alternative="two-sided")
    assert items_needed(0.02, accuracy=accuracy, correlation=0.0, power=0.8) == pytest.approx(needed, rel=2e-3)
