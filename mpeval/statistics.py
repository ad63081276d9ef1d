"""Error bars: intervals and standard errors of the numbers in a result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mpeval.results import Metric

LEVEL = 0.95


def accuracy_metric(correct: int, n: int) -> Metric:
    """Return accuracy with the binomial standard error (n - 1) and Wilson's interval.

    Items are treated as independent (LAMBADA's file does not say which passages share a novel).
    """
    from scipy.stats import binomtest

    value = correct / n
    interval = binomtest(correct, n).proportion_ci(LEVEL, method="wilson")
    return Metric(
        name="accuracy",
        value=value,
        unit="proportion",
        direction="max",
        stderr=math.sqrt(value * (1 - value) / (n - 1)) if n > 1 else None,
        low=float(interval.low),
        high=float(interval.high),
        interval="wilson",
    )


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
    total = math.fsum(weights)
    ratio = math.fsum(losses) / total
    count = len(losses)
    spread = None
    if count > 1:
        squares = math.fsum((loss - ratio * weight) ** 2 for loss, weight in zip(losses, weights, strict=True))
        spread = math.sqrt(count / (count - 1) * squares) / total
    return [
        _perplexity(name, ratio * scale, None if spread is None else spread * scale, count, "student-t of articles")
        for name, scale in scales.items()
    ]


def _perplexity(name: str, loss: float, spread: float | None, units: int, interval: str) -> Metric:
    """Exponentiate a mean loss in nats; the standard error of the perplexity is by the delta method."""
    from scipy.stats import t

    value = _exp(loss)
    if spread is None:
        return Metric(name=name, value=value, unit="perplexity", direction="min", loss=loss)
    reach = float(t.ppf(0.5 + LEVEL / 2, units - 1)) * spread
    return Metric(
        name=name,
        value=value,
        unit="perplexity",
        direction="min",
        loss=loss,
        stderr=min(value * spread, _LARGEST),
        low=_exp(loss - reach),
        high=_exp(loss + reach),
        interval=interval,
    )


_LARGEST = 1e300


def _exp(loss: float) -> float:
    """Exponentiate; a loss of more than 690 nats, which no float holds, stays at the largest round number."""
    return math.exp(loss) if loss < math.log(_LARGEST) else _LARGEST
