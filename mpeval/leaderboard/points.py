"""What of a board's numbers can be drawn."""

from __future__ import annotations

import datetime
from collections import defaultdict
from dataclasses import dataclass

from mpeval.leaderboard.boards import Board, Row
from mpeval.leaderboard.records import Record
from mpeval.plot import COLOURS
from mpeval.results import Metric

LONGEST = 30
"""Characters of a name."""


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
        parameters=entry.model.parameters or None,
        date=datetime.date.fromisoformat(entry.date) if entry.date else None,
        measured=isinstance(entry, Record),
        iteration=entry.model.iteration if isinstance(entry, Record) and not entry.members else None,
        middle=others.get("accuracy_middle"),
        upper=others.get("accuracy_high"),
    )


def _shown(metric: Metric, value: float) -> float:
    return 100 * value if metric.unit == "proportion" else value


def flat(text: str) -> str:
    """Return a name as one short line of printable characters, which is all that SVG can hold."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return plain if len(plain) <= LONGEST else plain[: LONGEST - 1] + "…"


def swept(board: Board, fewest: int) -> list[Point]:
    """Return the numbers of models that have `fewest` iterations, flagged ones too: each is compared with itself."""
    runs: dict[str, dict[int, Point]] = defaultdict(dict)
    for row in board.rows:
        point = point_of(row)
        if point.iteration is not None:
            runs[point.name].setdefault(point.iteration, point)
    long = {name: run for name, run in sorted(runs.items()) if len(run) >= fewest}
    return [run[iteration] for run in list(long.values())[: len(COLOURS)] for iteration in sorted(run)]
