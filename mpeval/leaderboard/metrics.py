"""The metrics that are known by name: unit, direction, and what a unit can be."""

from __future__ import annotations

import math
from collections.abc import Iterator

from mpeval.results import Metric

BOUNDS = {
    "proportion": (0.0, 1.0),
    "perplexity": (1.0, math.inf),
    "bits": (0.0, math.inf),
    "number": (-math.inf, math.inf),
}
"""The least and the largest value of each unit."""
_ACCURACIES = ("accuracy", "accuracy_middle", "accuracy_high", "accuracy_norm", "f1", "exact")
_PERPLEXITIES = ("target", "adjusted", "token", "word", "byte", "masked")
KNOWN: dict[str, tuple[str, str]] = {
    **dict.fromkeys(_ACCURACIES, ("proportion", "max")),
    **{f"{part}_{name}": ("proportion", "max") for part in ("HasAns", "NoAns") for name in ("f1", "exact")},
    **{f"{name}_perplexity": ("perplexity", "min") for name in _PERPLEXITIES},
    "bits_per_byte": ("bits", "min"),
    **dict.fromkeys(("acc", "acc_norm", "exact_match"), ("proportion", "max")),
    "perplexity": ("perplexity", "min"),
}
"""Unit and direction of what mpeval's tasks compute, and below them the names that lm-eval gives the same things."""
_CLOSE = 1e-9
"""How far a perplexity may be from the exponential of its loss, relatively."""
_LARGEST = 1e300
"""What stands for a perplexity that no float holds."""


def name_of(metric: Metric) -> str:
    """Return a metric's name without the filter of lm-eval behind it."""
    return metric.name.partition("/")[0]


def wrong_with(metric: Metric) -> Iterator[tuple[str, str]]:
    """Yield a code and a message for whatever cannot be about a metric, but that its name is unknown."""
    name, (low, high) = f"`{metric.name}`", BOUNDS[metric.unit]
    known = KNOWN.get(name_of(metric))
    if known is not None and known[1] != metric.direction:
        yield "direction", f"of {name} the {_better(known[1])} is better, the line says the {_better(metric.direction)}"
    if known is not None and known[0] != metric.unit:
        yield "unit", f"{name} is a {known[0]}, the line says {metric.unit}"
    if metric.unit == "proportion" and 1 < metric.value <= 100:
        meant = f"did you mean percent? {metric.value:g} % is {metric.value / 100:g}"
        yield "unit", f"{name} is {metric.value:g}, more than 1: {meant}"
    elif not low <= metric.value <= high:
        yield "bounds", f"{name} is {metric.value:g}, which no {metric.unit} can be"
    if metric.low is not None and metric.high is not None:
        within = metric.low <= metric.value <= metric.high or (metric.interval or "").startswith("bootstrap")
        if not (within and metric.low <= metric.high):
            yield "interval", f"{name} is {metric.value:g}, its interval {metric.low:g} to {metric.high:g}"
    if metric.stderr is not None and metric.stderr < 0:
        yield "interval", f"{name} has a standard error of {metric.stderr:g}"
    if metric.loss is not None and metric.value < _LARGEST and not _is_exponential(metric.value, metric.loss):
        yield "loss", f"{name} is {metric.value!r}, which is not the exponential of its loss {metric.loss!r}"


def _is_exponential(value: float, loss: float) -> bool:
    return value > 0 and math.isclose(math.log(value), loss, rel_tol=_CLOSE, abs_tol=_CLOSE)


def _better(direction: str) -> str:
    return "higher" if direction == "max" else "lower"
