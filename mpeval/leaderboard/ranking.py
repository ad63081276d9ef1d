"""Which rank a score may have, which models tie, and whether two numbers differ of which no items are known.  No torch.

The rules are those of boards: ranks are ranges, and a model is behind another only where their intervals say so.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

T = TypeVar("T")
Interval = tuple[float, float]


def rank_ranges(
    values: Sequence[float], intervals: Sequence[Interval | None], direction: Literal["max", "min"]
) -> list[tuple[int, int]]:
    """Return the best and the worst rank that each model may have, in the order given.

    The best is 1 + how many are surely better, whose interval lies beyond this one's; the worst is n - how many are
    surely worse.  Overlapping intervals are a cautious test: two models may differ although theirs overlap.

    Args:
        values: scores of models that were measured alike.
        intervals: low and high of each; None where none is known: such a score stands for itself, and ties with no
            other but one that is equal, or whose interval holds it.
        direction: whether more is better or less.
    """
    bounds = [interval or (value, value) for value, interval in zip(values, intervals, strict=True)]
    if direction == "min":
        bounds = [(-high, -low) for low, high in bounds]
    lows, highs = sorted(low for low, _ in bounds), sorted(high for _, high in bounds)
    count = len(bounds)
    return [(1 + count - bisect_right(lows, high), count - bisect_left(highs, low)) for low, high in bounds]


def tie_groups(order: Sequence[T], separable: Callable[[T, T], bool]) -> list[list[T]]:
    """Return models in groups, best first: a group ends before the first model that can be told from its best.

    Every model is compared with the best of its group only, so that a long chain of small steps is not one tie.

    Args:
        order: models from best to worst.
        separable: whether a test tells a group's best from another model.
    """
    groups: list[list[T]] = []
    for model in order:
        if not groups or separable(groups[-1][0], model):
            groups.append([])
        groups[-1].append(model)
    return groups


@dataclass(frozen=True, kw_only=True)
class Unpaired:
    """Two scores that were measured apart: `first` minus `second`."""

    difference: float
    stderr: float
    z: float
    p_value: float
    """Two-sided; larger than that of the same models on joined items, which share their errors."""


def unpaired(first: float, first_error: float, second: float, second_error: float) -> Unpaired:
    """Compare two scores by their standard errors alone, as one must where a score was only reported.

    Both errors 0 leave nothing to compare by: then z is infinite, or 0 for equal scores.
    """
    from scipy.stats import norm

    difference, stderr = first - second, math.hypot(first_error, second_error)
    z = difference / stderr if stderr else math.copysign(math.inf, difference) if difference else 0.0
    return Unpaired(difference=difference, stderr=stderr, z=z, p_value=float(2 * norm.sf(abs(z))))
