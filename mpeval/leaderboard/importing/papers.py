"""Papers with Code's evaluation tables: which model, which score, which paper, and nothing on how it was measured."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mpeval.errors import DataError
from mpeval.leaderboard.entries import is_date
from mpeval.leaderboard.importing.benchmarks import (
    PARAMETERS,
    PROTOCOL_UNKNOWN,
    Table,
    table_of,
    title_of,
    unit_of,
)
from mpeval.leaderboard.importing.cleaning import clean_size
from mpeval.leaderboard.importing.documents import json_of, mapping, sequence, words
from mpeval.leaderboard.importing.drafts import Draft, Given, Reading, given_source, is_address, shots_suffix
from mpeval.leaderboard.published import published_items
from mpeval.leaderboard.reported import ReportedModel, Source

WHAT = "a file of Papers with Code's tasks, such as evaluation-tables.json"
LISTED = "as listed by Papers with Code"


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One row of a table, cleaned."""

    place: str
    model: ReportedModel
    source: Source
    cells: dict[tuple[str, str], str]
    """Printed value by split and metric."""
    flags: tuple[str, ...] = ()
    remarks: tuple[str, ...] = field(default=())

    @property
    def key(self) -> tuple[str, str, str]:
        return self.model.name.casefold(), self.model.shots, self.source.url


def read(text: str, given: Given) -> Reading:
    """Read a file of tasks with their tables.

    Raises:
        DataError: another kind of file.
    """
    document = json_of(text, WHAT)
    reading = Reading()
    for task in document if isinstance(document, list) else [document]:
        if not isinstance(task, dict) or "task" not in task:
            raise DataError("the file holds something that is no task with tables", f"give {WHAT}")
        _task(task, given, reading)
    return reading


def _task(task: Mapping[str, Any], given: Given, reading: Reading) -> None:
    link = mapping(task.get("source_link"))
    fallback = None
    if is_address(link.get("url")):
        fallback = Source(title=words(link.get("title")) or link["url"], url=link["url"], locator=LISTED)
    for name, table in _tables(task):
        _table(name, table, fallback or given_source(given, LISTED), reading)
    for part in sequence(task.get("subtasks")):
        _task(mapping(part), given, reading)


def _tables(task: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each table of a task by its data set's name; a task may hold one itself, or data sets within data sets."""
    if "sota" in task:
        yield words(task.get("subdataset") or task.get("dataset")), mapping(task["sota"])
    for key in ("datasets", "subdatasets"):
        for part in sequence(task.get(key)):
            yield from _tables(mapping(part))


def _table(name: str, table: Mapping[str, Any], fallback: Source | None, reading: Reading) -> None:
    entries = sequence(table.get("rows"))
    reading.rows += len(entries)
    known = table_of(name)
    if not entries:
        return
    if known is None:
        done = f"{len(entries)} rows left out: what its metrics are is not known"
        reading.say(name, "", [("unknown-benchmark", done)], kept=False)
        return
    done = f"its {len(entries)} rows do not say how they were measured: kept, not ranked"
    reading.say(name, "", [(PROTOCOL_UNKNOWN, done)])
    if known.mixed:
        done = "its rows are of the validation or of the test set, and do not say which: kept as either"
        reading.say(name, "", [("mixed-splits", done)])
    columns = {column for entry in entries for column in mapping(mapping(entry).get("metrics"))}
    strange = sorted(column for column in columns if column.casefold() not in {*known.columns, *PARAMETERS})
    reading.say(name, "", [("unknown-column", f"column `{column}` left out") for column in strange], kept=False)
    rows: list[_Row] = []
    for number, entry in enumerate(entries, start=1):
        row = _row(f"{name}, row {number}", mapping(entry), known, fallback, reading)
        if row is not None:
            rows.append(row)
    for row in _joined(rows, reading):
        reading.drafts += _drafts(row, known)


def _row(place: str, entry: Mapping[str, Any], table: Table, fallback: Source | None, reading: Reading) -> _Row | None:
    said = entry.get("model_name")
    name = reading.name(place, said)
    model = words(said)
    metrics = mapping(entry.get("metrics"))
    cells: dict[tuple[str, str], str] = {}
    remarks: list[str] = []
    for column, raw in metrics.items():
        meant = table.columns.get(column.casefold())
        cleaned = reading.value(place, model, raw, column) if meant else None
        if meant and cleaned and cleaned.printed is not None:
            cells[meant] = cleaned.printed
            remarks += [f"printed as {cleaned.remark}"] if cleaned.remark else []
    size, found = clean_size(next((raw for column, raw in metrics.items() if column.casefold() in PARAMETERS), None))
    reading.say(place, model, found)
    source = _source(place, model, entry, fallback, reading)
    if not name or source is None or not cells:
        return None
    flags = [PROTOCOL_UNKNOWN, *(["ensemble"] if re.search(r"\bensemble\b", model, re.IGNORECASE) else [])]
    flags += ["additional-data"] if entry.get("uses_additional_data") is True else []
    return _Row(
        place=place,
        model=ReportedModel(name=name.text, parameters=size, shots=name.shots),
        source=source,
        cells=cells,
        flags=tuple(flags),
        remarks=tuple(remarks),
    )


def _source(
    place: str, model: str, entry: Mapping[str, Any], fallback: Source | None, reading: Reading
) -> Source | None:
    """Return the paper of a row, or what its whole table is from."""
    date = words(entry.get("paper_date"))
    if date and not is_date(date):
        reading.say(place, model, [("date", f"`{date}` is no date: not used")])
        date = ""
    url = words(entry.get("paper_url"))
    if is_address(url):
        return Source(title=words(entry.get("paper_title")) or url, url=url, locator=LISTED, date=date)
    if fallback is None:
        reading.say(place, model, [("no-source", "no paper and no other source: left out")], kept=False)
        return None
    return fallback.model_copy(update={"date": date or fallback.date})


def _joined(rows: list[_Row], reading: Reading) -> list[_Row]:
    """Return rows, those of one model joined whose scores stand in different columns."""
    made: dict[tuple[str, ...], _Row] = {}
    for number, row in enumerate(rows):
        other = made.get(row.key)
        if other is None:
            made[row.key] = row
        elif not other.cells.keys() & row.cells.keys():
            reading.say(row.place, row.model.name, [("split-row", f"joined with {other.place}: the same model")])
            flags = tuple(dict.fromkeys((*other.flags, *row.flags)))
            made[row.key] = replace(
                other, cells=other.cells | row.cells, flags=flags, remarks=(*other.remarks, *row.remarks)
            )
        else:
            made[*row.key, str(number)] = row
    return list(made.values())


def _drafts(row: _Row, table: Table) -> Iterator[Draft]:
    """Yield a draft for each set and kind of metric; a group's score stands beside that on all, or by itself."""
    order = list(table.columns.values())
    cells = dict(sorted(row.cells.items(), key=lambda cell: order.index(cell[0])))
    for split in dict.fromkeys(split for split, _ in cells):
        shares = {metric: value for (part, metric), value in cells.items() if part == split and _is_share(metric)}
        others = {metric: value for (part, metric), value in cells.items() if part == split and not _is_share(metric)}
        primary = next(metric for part, metric in order if part == split)
        together = [shares] if primary in shares else [{metric: value} for metric, value in shares.items()]
        for values in (*together, *({metric: value} for metric, value in others.items())):
            if values:
                yield _draft(row, table.task, split, values)


def _is_share(metric: str) -> bool:
    return unit_of(metric) == "proportion"


def _draft(row: _Row, task: str, split: str, values: dict[str, str]) -> Draft:
    unit = unit_of(next(iter(values)))
    assert unit is not None
    items = {metric: count for metric in values if (count := published_items(task, split, metric))}
    return Draft(
        place=row.place,
        task=task,
        title=title_of(task),
        protocol=f"{task}/papers-with-code{shots_suffix(row.model.shots)}",
        split=split,
        unit=unit,
        values=values,
        items=items,
        model=row.model,
        source=row.source,
        flags=row.flags,
    ).noted(*row.remarks)
