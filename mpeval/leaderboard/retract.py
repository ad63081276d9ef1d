"""Take a record back: a line more, which says why."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpeval.errors import DataError
from mpeval.leaderboard.entries import Line, Retraction
from mpeval.leaderboard.store import Number, append, scan, standing
from mpeval.leaderboard.verify import pick
from mpeval.results import now


def retract(store: Path, name: str, reason: str) -> Number:
    """Append that a record no longer counts; return it.

    Args:
        store: the leaderboard.
        name: the record's id or the beginning of it, as `pick` takes it.
        reason: why.

    Raises:
        DataError: no such record, several, or one that was taken back already.
        OutputError: the store cannot be written.
    """
    if not reason.strip():
        raise DataError("`--reason` says nothing", "say why the record no longer counts")
    lines = list(scan(store))
    there = standing(lines)
    written = [line for _, line in lines if isinstance(line, Line) and not isinstance(line, Retraction)]
    chosen = pick(written, name)
    for _, number in there:
        if number.record_id == chosen.record_id:
            line = Retraction(created_at=now(), retracts=number.record_id, reason=reason.strip())
            if append(store, [line], "--store"):
                return number
    raise DataError(f"`{chosen.record_id[:19]}` was taken back already{_why(lines, chosen)}", "there is nothing to do")


def _why(lines: Sequence[tuple[int, Line | DataError]], chosen: Line) -> str:
    reasons = [
        f" by line {number}: {line.reason}"
        for number, line in lines
        if isinstance(line, Retraction) and line.retracts == chosen.record_id
    ]
    return reasons[-1] if reasons else ""
