"""The boards as CSV in long form: one line for each metric of each record, numbers in full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from mpeval.leaderboard.boards import Board, Row
from mpeval.leaderboard.exports.export import Export, metrics, printed, rows, shots
from mpeval.leaderboard.records import Record
from mpeval.results import Metric
from mpeval.statistics import exact_interval

COLUMNS = (
    *("record_id", "kind", "task", "title", "split", "protocol", "protocol_version", "metric", "primary", "rank"),
    *("value", "unit", "direction", "stderr", "low", "high", "interval", "printed", "n", "n_correct", "model"),
    *("family", "parameters", "iteration", "shots", "dtype", "tp", "dp", "flags", "date", "source", "locator", "url"),
    *("note", "checkpoint", "data", "command", "mpeval_version", "rank_best", "rank_worst", "exact_low", "exact_high"),
)
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Beginnings of a cell that a spreadsheet would compute, some also in their wide forms."""


def export(content: Sequence[Board]) -> Export:
    """Return `leaderboard.csv`, as RFC 4180 has it.

    Ranks, `n` and `n_correct` are those of the primary metric; what a group's accuracy is of, a record does not say.
    `exact_low` and `exact_high` are the interval of Clopper and Pearson, for independent items of which it is known how
    many are right.
    Text that a spreadsheet would take for a formula gets an apostrophe in front; numbers are left as they are.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    for _, row in rows(content):
        for metric in metrics(row.entry):
            values = _values(row, metric)
            writer.writerow([_cell(values.get(column)) for column in COLUMNS])
    return Export(files={"leaderboard.csv": text.getvalue()})


def _values(row: Row, metric: Metric) -> dict[str, Any]:
    entry = row.entry
    primary = metric is entry.metric
    shared = {
        **{name: getattr(entry, name) for name in ("kind", "task", "title", "protocol", "date")},
        **{name: getattr(metric, name) for name in ("value", "unit", "direction", "stderr", "low", "high", "interval")},
        "record_id": entry.identity(),
        "split": entry.part,
        "metric": metric.name,
        "primary": "yes" if primary else "no",
        "printed": printed(entry, metric),
        "rank": row.rank if primary else None,
        **(dict(zip(("rank_best", "rank_worst"), row.ranks, strict=True)) if primary and row.ranks else {}),
        "n": entry.n if primary and entry.n else None,
        "model": entry.model.name,
        "parameters": entry.model.parameters,
        "shots": shots(entry),
        "flags": "; ".join(entry.flags),
    }
    if isinstance(entry, Record):
        own = {
            **{name: getattr(entry, name) for name in ("protocol_version", "dtype", "command", "mpeval_version")},
            "n_correct": entry.n_correct if primary else None,
            "iteration": None if entry.members else entry.model.iteration,
            "tp": entry.layout.tp,
            "dp": entry.layout.dp,
            "checkpoint": entry.model.digest,
            "data": entry.data.digest,
            "note": row.cells["notes"],
        }
        if primary and metric.interval == "wilson" and entry.n_correct is not None:
            own |= dict(zip(("exact_low", "exact_high"), exact_interval(entry.n_correct, entry.n), strict=True))
    else:
        source = entry.source
        own = {"source": source.title, "locator": source.locator, "url": source.url, "note": entry.note}
        own |= {"family": entry.model.family}
    return shared | own


def _cell(value: Any) -> str:
    """Return a cell: empty, the shortest text that gives the number back, or text that nothing computes."""
    if value is None:
        return ""
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    return f"'{text}" if text.startswith(FORMULA) else text
