"""What of a board's numbers can be drawn."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from mpeval.errors import DataError, shown
from mpeval.leaderboard.boards import Board, Row
from mpeval.leaderboard.records import Record
from mpeval.plot import COLOURS
from mpeval.results import Metric

LONGEST = 30
"""Characters of a name."""
LARGEST = 1e100
"""Where an axis ends: of larger numbers matplotlib has no powers."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """What of a number can be drawn; accuracies in percent."""

    name: str
    rank: str
    value: float
    low: float
    high: float
    """Equal to the value where there is no interval."""
    parameters: float | None
    date: datetime.date | None
    measured: bool
    iteration: int | None
    middle: float | None
    upper: float | None
    """Accuracy on RACE's high part."""

    @property
    def colour(self) -> str:
        """The colour of its kind."""
        return COLOURS[0] if self.measured else COLOURS[1]


def point_of(row: Row) -> Point:
    """Return what of a row can be drawn."""
    entry = row.entry
    metric = entry.metric
    value = _shown(metric, metric.value)
    others = {other.name: _shown(other, other.value) for other in entry.other_metrics}
    return Point(
        name=flat(entry.model.name),
        rank=row.cells["rank"],
        value=value,
        low=value if metric.low is None else _shown(metric, metric.low),
        high=value if metric.high is None else _shown(metric, metric.high),
        parameters=_size(entry.model.parameters),
        date=_day(entry.date),
        measured=isinstance(entry, Record),
        iteration=entry.model.iteration if isinstance(entry, Record) and not entry.members else None,
        middle=others.get("accuracy_middle"),
        upper=others.get("accuracy_high"),
    )


def _shown(metric: Metric, value: float) -> float:
    return 100 * value if metric.unit == "proportion" else max(-LARGEST, min(LARGEST, value))


def _size(parameters: float | None) -> float | None:
    """Return a size that an axis can have; None for what no model has."""
    return parameters if parameters and 1 <= parameters <= LARGEST else None


def _day(text: str) -> datetime.date | None:
    """Return the day of a number, None where it has none.

    Raises:
        DataError: it is no day.
    """
    try:
        return datetime.date.fromisoformat(text) if text else None
    except ValueError as error:
        raise DataError(
            f"a record has the date `{shown(text)}`", "mend or retract the record: dates are YYYY-MM-DD"
        ) from error


def flat(text: str) -> str:
    """Return a name as one short line of printable characters, which is all that SVG can hold."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + "…"


def swept(board: Board, fewest: int) -> list[Point]:
    """Return the numbers of models that have `fewest` iterations, flagged ones too: each is compared with itself.

    Of several of one checkpoint it is the newest, which unlike the best is not chosen by its luck.
    """
    runs: dict[str, dict[int, Point]] = defaultdict(dict)
    for row in sorted(board.rows, key=lambda row: row.entry.created_at):
        point = point_of(row)
        if point.iteration is not None:
            runs[point.name][point.iteration] = point
    long = {name: run for name, run in sorted(runs.items()) if len(run) >= fewest}
    return [run[iteration] for run in list(long.values())[: len(COLOURS)] for iteration in sorted(run)]


def over_time(points: Sequence[Point], direction: str, most: int) -> list[Point]:
    """Return at most about `most` dated points by date, but every one that was the best of its time.

    Args:
        points: best first.
        direction: whether more is better or less.
        most: points that need not have been the best.
    """
    dated = [point for point in points if point.date]
    kept = {id(point) for point in dated[:most]}
    order = sorted(dated, key=lambda point: point.date or datetime.date.min)
    best: float | None = None
    for point in order:
        if best is None or (point.value > best if direction == "max" else point.value < best):
            best = point.value
            kept.add(id(point))
    return [point for point in order if id(point) in kept]
