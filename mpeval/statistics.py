"""Error bars: intervals and standard errors of the numbers in a result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from mpeval.results import Metric

LEVEL = 0.95
SIGNIFICANCE = 0.05
"""Of a test: an interval at LEVEL leaves out as much."""
BOOTSTRAP_DRAWS, BOOTSTRAP_SEED = 10_000, 1234


def accuracy_metric(correct: int, n: int, name: str = "accuracy") -> Metric:
    """Return accuracy with the binomial standard error (n - 1) and Wilson's interval.

    Items are treated as independent (LAMBADA's file does not say which passages share a novel).
    """
    from scipy.stats import binomtest

    value = correct / n
    interval = binomtest(correct, n).proportion_ci(LEVEL, method="wilson")
    return Metric(
        name=name,
        value=value,
        unit="proportion",
        direction="max",
        stderr=math.sqrt(value * (1 - value) / (n - 1)) if n > 1 else None,
        low=float(interval.low),
        high=float(interval.high),
        interval="wilson",
    )


def clustered_accuracy_metric(correct: Sequence[bool], clusters: Sequence[str], name: str = "accuracy") -> Metric:
    """Return accuracy of items that share passages; `clusters` names each item's.

    Its standard error is that of `mean_metric`.  Where no two items share a passage it is `accuracy_metric`.
    """
    if len(set(clusters)) == len(clusters):
        return accuracy_metric(sum(correct), len(correct), name)
    return mean_metric(name, [float(right) for right in correct], clusters)


def mean_metric(name: str, values: Sequence[float], clusters: Sequence[str]) -> Metric:
    """Return the mean of proportions, one an item (all within 0 and 1), whose errors go by cluster.

    The interval is Student's with clusters - 1 degrees of freedom, clipped to what a proportion can be.  Clusters that
    do not differ at all (every item right) would leave it without width: then it is Wilson's with each cluster as one
    observation.  One cluster has no error bar.
    """
    count = len(set(clusters))
    value = math.fsum(values) / len(values)
    metric = Metric(name=name, value=value, unit="proportion", direction="max")
    if count == 1:
        return metric
    unit = "items" if count == len(clusters) else "passages"
    stderr = clustered_error(values, clusters)
    if stderr > _NOTHING:
        reach = student_reach(stderr, count)
        low, high, interval = max(0.0, value - reach), min(1.0, value + reach), f"student-t of {unit}"
    else:
        low, high, interval = *proportion_interval(value, count), f"wilson of {unit}"
    return metric.model_copy(update={"stderr": stderr, "low": low, "high": high, "interval": interval})


def number_metric(name: str, values: Sequence[float], direction: Literal["max", "min"]) -> Metric:
    """Return the mean of numbers of any size, one an item; the interval is Student's."""
    n = len(values)
    value = math.fsum(values) / n
    metric = Metric(name=name, value=value, unit="number", direction=direction)
    if n == 1:
        return metric
    stderr = math.sqrt(math.fsum((item - value) ** 2 for item in values) / (n - 1) / n)
    reach = student_reach(stderr, n)
    bars = {"stderr": stderr, "low": value - reach, "high": value + reach, "interval": "student-t of items"}
    return metric.model_copy(update=bars)


def student_reach(stderr: float, units: int) -> float:
    """Return how far Student's interval reaches to either side, with units - 1 degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf(0.5 + LEVEL / 2, units - 1)) * stderr


def normal_quantile() -> float:
    """Return how many standard errors the normal interval reaches to either side."""
    from scipy.stats import norm

    return float(norm.ppf(0.5 + LEVEL / 2))


def clustered_error(values: Sequence[float], clusters: Sequence[str]) -> float:
    """Return the standard error of a mean over items of which some share a cluster (two clusters at least).

    It is equation 4 of Miller, "Adding Error Bars to Evals" (2024), sqrt(sum over clusters of the squared sum of
    deviations) / n, times sqrt(C / (C - 1)) for C clusters; with one item a cluster that is the usual n - 1 form.
    """
    sums = cluster_sums(values, clusters)
    return math.sqrt(len(sums) / (len(sums) - 1) * math.fsum(each**2 for each in sums)) / len(values)


def cluster_sums(values: Sequence[float], clusters: Sequence[str]) -> list[float]:
    """Return each cluster's sum of deviations from the mean of all values, clusters as they first appear."""
    mean = math.fsum(values) / len(values)
    sums: dict[str, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums.setdefault(cluster, []).append(value - mean)
    return [math.fsum(deviations) for deviations in sums.values()]


_NOTHING = 1e-12
"""A standard error of proportions below this is none: what rounding left of deviations that cancel."""


def proportion_error(share: float, n: int) -> float:
    """Return the standard error of a share of `n` independent observations, sqrt(share (1 - share) / n)."""
    return math.sqrt(share * (1 - share) / n)


def proportion_interval(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's interval for a share of `n` observations, which need not be a whole number of them.

    It is for an accuracy that was only reported, rounded to a digit or two, as for one that was counted.
    """
    z = normal_quantile()
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return min(share, max(0.0, middle - reach)), max(share, min(1.0, middle + reach))  # rounding may pass the share


def exact_interval(correct: int, n: int) -> tuple[float, float]:
    """Return the interval of Clopper and Pearson (1934) for `correct` of `n` independent items.

    It holds the true share at least as often as it says, which for few items makes it wider than Wilson's.
    """
    from scipy.special import betaincinv

    tail = 0.5 - LEVEL / 2
    low = float(betaincinv(correct, n - correct + 1, tail)) if correct else 0.0
    high = float(betaincinv(correct + 1, n - correct, 1 - tail)) if correct < n else 1.0
    return low, high


def f1_metric(targets: Sequence[int], predictions: Sequence[int], name: str = "f1") -> Metric:
    """Return F1 of class 1 against class 0; standard error and interval (percentiles) come from resampled items.

    Items are drawn with replacement 10,000 times from a fixed seed.  Where nobody says 1, F1 is 0.
    """
    import numpy as np
    from sklearn.metrics import confusion_matrix, f1_score

    value = float(f1_score(targets, predictions, labels=[0, 1], zero_division=0.0))
    metric = Metric(name=name, value=value, unit="proportion", direction="max")
    if len(targets) == 1:
        return metric
    # F1 depends on the four counts alone, and the counts of items drawn with replacement are multinomial
    counts = confusion_matrix(targets, predictions, labels=[0, 1]).ravel()
    random = np.random.default_rng(BOOTSTRAP_SEED)
    draws = random.multinomial(len(targets), counts / len(targets), BOOTSTRAP_DRAWS)
    said = 2 * draws[:, 3] + draws[:, 1] + draws[:, 2]
    resampled = np.divide(2 * draws[:, 3], said, out=np.zeros(BOOTSTRAP_DRAWS), where=said > 0)
    if not resampled.std() > _NOTHING:  # every item in one cell of the table: resampling says nothing
        return metric
    low, high = np.quantile(resampled, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    bars = {"stderr": float(resampled.std(ddof=1)), "low": float(low), "high": float(high)}
    return metric.model_copy(update={**bars, "interval": f"bootstrap of items, {BOOTSTRAP_DRAWS:,} draws"})


def mean_perplexity_metric(name: str, losses: Sequence[float]) -> Metric:
    """Return exp of the mean of per-item losses; the interval is Student's on the mean, then exponentiated."""
    n = len(losses)
    mean = math.fsum(losses) / n
    spread = math.sqrt(math.fsum((loss - mean) ** 2 for loss in losses) / (n - 1) / n) if n > 1 else None
    return _perplexity(name, mean, spread, n, "student-t of items")


def ratio_perplexity_metrics(
    losses: Sequence[float], weights: Sequence[float], scales: Mapping[str, float]
) -> list[Metric]:
    """Return exp(scale x sum of losses / sum of weights) for each named scale, clusters being documents.

    The standard error is the ratio estimator's, sqrt(D / (D - 1) x sum (loss - L x weight)^2) / sum of weights,
    with Student's t at D - 1 degrees of freedom; independent tokens would make it far too small.
    """
    count = len(losses)
    ratio, spread = ratio_of_sums(losses, weights)
    return [
        _perplexity(name, ratio * scale, None if spread is None else spread * scale, count, "student-t of articles")
        for name, scale in scales.items()
    ]


def bits_metric(name: str, losses: Sequence[float], weights: Sequence[float]) -> Metric:
    """Return the sum of losses (nats) / sum of weights in bits, with the errors of `ratio_perplexity_metrics`."""
    ratio, spread = (None if nats is None else nats / math.log(2) for nats in ratio_of_sums(losses, weights))
    assert ratio is not None
    metric = Metric(name=name, value=ratio, unit="bits", direction="min")
    if spread is None:
        return metric
    reach = student_reach(spread, len(losses))
    bars = {"stderr": spread, "low": max(0.0, ratio - reach), "high": ratio + reach}
    return metric.model_copy(update={**bars, "interval": "student-t of articles"})


def ratio_of_sums(losses: Sequence[float], weights: Sequence[float]) -> tuple[float, float | None]:
    """Return sum of losses / sum of weights, and its standard error where there are two documents or more.

    Losses may be differences between two models: then it is the paired error of the difference of their ratios.
    """
    total, count = math.fsum(weights), len(losses)
    ratio = math.fsum(losses) / total
    if count == 1:
        return ratio, None
    squares = math.fsum((loss - ratio * weight) ** 2 for loss, weight in zip(losses, weights, strict=True))
    return ratio, math.sqrt(count / (count - 1) * squares) / total


def _perplexity(name: str, loss: float, spread: float | None, units: int, interval: str) -> Metric:
    """Exponentiate a mean loss in nats; the standard error of the perplexity is by the delta method."""
    value = bounded_exp(loss)
    if spread is None:
        return Metric(name=name, value=value, unit="perplexity", direction="min", loss=loss)
    reach = student_reach(spread, units)
    return Metric(
        name=name,
        value=value,
        unit="perplexity",
        direction="min",
        loss=loss,
        stderr=min(value * spread, _LARGEST),
        low=bounded_exp(loss - reach),
        high=bounded_exp(loss + reach),
        interval=interval,
    )


_LARGEST = 1e300


def bounded_exp(loss: float) -> float:
    """Exponentiate; a loss of more than 690 nats, which no float holds, stays at the largest round number."""
    return math.exp(loss) if loss < math.log(_LARGEST) else _LARGEST
