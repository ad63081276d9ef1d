"""The boards as Papers With Code's evaluation tables, with a second file for what these cannot hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mpeval.leaderboard.boards import Board
from mpeval.leaderboard.exports.export import (
    Export,
    left_out,
    metrics,
    percent,
    pretty,
    printed,
    rows,
    shots,
    whole_benchmark,
)
from mpeval.leaderboard.exports.papers_names import PARAMETERS, TABLES, Table
from mpeval.leaderboard.published import card_of
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.store import Number
from mpeval.results import Metric

FILE = "evaluation-tables.json"
SIDECAR = "evaluation-tables.sidecar.json"
SIDECAR_SCHEMA = "mpeval.evaluation-tables-sidecar/1"


@dataclass(frozen=True, kw_only=True)
class _Line:
    """One row of a table: the lines of a store that it is made of, and their metrics by column."""

    entries: list[Number]
    cells: dict[str, tuple[Number, Metric]]

    @property
    def first(self) -> Number:
        return self.entries[0]


def export(content: Sequence[Board]) -> Export:
    """Return `evaluation-tables.json` in the site's own byte form, and its sidecar.

    The tables have no field for flags, so that unranked lines stay out of them.  The sidecar has kind, protocol, set,
    items and interval of every row, by the row's place in the tables.
    """
    reasons: list[str] = []
    found: dict[str, dict[tuple[Any, ...], _Line]] = {table.dataset: {} for table in TABLES}
    for _, row in rows(content):
        reason = _place(found, row.entry)
        reasons += [reason] if reason else []
    document: list[dict[str, Any]] = []
    beside: list[dict[str, Any]] = []
    for table in TABLES:
        lines = _sorted(table, list(found[table.dataset].values()))
        if not lines:
            continue
        if not document or document[-1]["task"] != table.task:
            document.append(_task(table.task))
        names = _names(lines)
        document[-1]["datasets"].append(_dataset(table, lines, names))
        for place, (name, line) in enumerate(zip(names, lines, strict=True)):
            where = {"task": table.task, "dataset": table.dataset, "row": place, "model_name": name}
            beside += [{**where, "records": [_record(table, entry) for entry in line.entries]}]
    return Export(
        files={
            FILE: json.dumps(document, indent=2, sort_keys=True, allow_nan=False),
            SIDECAR: pretty({"schema": SIDECAR_SCHEMA, "rows": beside}),
        },
        notes=left_out(reasons, FILE),
    )


def _place(found: dict[str, dict[tuple[Any, ...], _Line]], entry: Number) -> str:
    """Put a line into the row of its model, or say why it has none.

    Lines of one model under one protocol from one source share a row as long as none has a metric of another.
    """
    if not whole_benchmark(entry):
        return "flagged, or of other questions than the benchmark's"
    cells: dict[str, tuple[Number, Metric]] = {}
    for table in TABLES:
        if table.card == entry.task:
            for metric in metrics(entry):
                column = table.column(entry, metric)
                if column:
                    cells.setdefault(column, (entry, metric))
        if cells:
            break
    if not cells:
        return "of a task, set or metric that Papers With Code had no name for"
    origin = entry.model.digest if isinstance(entry, Record) else entry.source.url
    number = 0
    while True:
        key = (entry.kind, entry.model.name, shots(entry), entry.protocol, origin, number)
        line = found[table.dataset].setdefault(key, _Line(entries=[], cells={}))
        if not line.cells.keys() & cells.keys():
            line.entries.append(entry)
            line.cells.update(cells)
            return ""
        number += 1


def _sorted(table: Table, lines: list[_Line]) -> list[_Line]:
    """Return rows with the best value of the first column first, rows without one by the next column."""

    def order(line: _Line) -> tuple[Any, ...]:
        at, (_, metric) = min((table.order.index(column), cell) for column, cell in line.cells.items())
        value = -metric.value if metric.direction == "max" else metric.value
        return at, value, line.first.model.name, line.first.identity()

    return sorted(lines, key=order)


def _names(lines: Sequence[_Line]) -> list[str]:
    """Return a name for each row, no two alike: the model's, with shots, protocol and number where it takes these."""
    names = [line.first.model.name for line in lines]
    for more in (lambda line: shots(line.first), lambda line: line.first.protocol):
        counts = Counter(names)
        names = [
            f"{name} ({more(line)})" if counts[name] > 1 and more(line) else name
            for name, line in zip(names, lines, strict=True)
        ]
    made: dict[str, None] = {}
    for name in names:
        number = 2
        unique = name
        while unique in made:
            unique = f"{name} #{number}"
            number += 1
        made[unique] = None
    return list(made)


def _task(name: str) -> dict[str, Any]:
    return {
        "categories": ["Natural Language Processing"],
        "datasets": [],
        "description": "",
        "source_link": None,
        "subtasks": [],
        "synonyms": [],
        "task": name,
    }


def _dataset(table: Table, lines: Sequence[_Line], names: Sequence[str]) -> dict[str, Any]:
    card = card_of(table.card)
    shown = [_row(table, line, name) for line, name in zip(lines, names, strict=True)]
    columns = [column for column in table.order if any(column in row["metrics"] for row in shown)]
    return {
        "dataset": table.dataset,
        "dataset_citations": [],
        "dataset_links": [{"title": table.dataset, "url": card.homepage}] if card else [],
        "description": "",
        "sota": {"metrics": columns, "rows": shown},
        "subdatasets": [],
    }


def _row(table: Table, line: _Line, name: str) -> dict[str, Any]:
    first = line.first
    source = None if isinstance(first, Record) else first.source
    cells = {column: _value(entry, metric) for column, (entry, metric) in line.cells.items()}
    if table.parameters and first.model.parameters:
        cells[PARAMETERS] = f"{first.model.parameters / 1e6:.0f}M"
    return {
        "code_links": [],
        "metrics": cells,
        "model_links": [],
        "model_name": name,
        "paper_date": (source.date or None) if source else None,
        "paper_title": source.title if source else "",
        "paper_url": source.url if source else "",
        "uses_additional_data": False,
    }


def _value(entry: Number, metric: Metric) -> str:
    """Return a value as its source prints it, else with two decimals, accuracies in percent."""
    said = printed(entry, metric)
    return said or f"{percent(metric.value) if metric.unit == 'proportion' else metric.value:.2f}"


def _record(table: Table, entry: Number) -> dict[str, Any]:
    """Return what the row cannot hold of one of its lines."""
    said: dict[str, Any] = {
        "record_id": entry.identity(),
        "kind": entry.kind,
        "protocol": entry.protocol,
        "split": entry.part,
        "shots": shots(entry),
        "flags": entry.flags,
        "n": entry.n or None,
        "metrics": dict(_details(table, entry)),
    }
    if isinstance(entry, Record):
        return {**said, "protocol_version": entry.protocol_version, "checkpoint": entry.model.digest}
    return {**said, "locator": entry.source.locator}


def _details(table: Table, entry: Number) -> Iterator[tuple[str, dict[str, Any]]]:
    for metric in metrics(entry):
        column = table.column(entry, metric)
        if column:
            yield column, metric.model_dump(mode="json")
