"""Reported numbers as CSV, one on each line: the project's own form, in which `published.csv` is written."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping

from mpeval.errors import DataError, suggest
from mpeval.leaderboard.entries import is_date
from mpeval.leaderboard.importing.benchmarks import title_of, unit_of
from mpeval.leaderboard.importing.cleaning import clean_size
from mpeval.leaderboard.importing.drafts import Draft, Given, Reading, given_source, is_address, is_protocol
from mpeval.leaderboard.reported import ReportedModel, Source

REQUIRED = ("task", "protocol", "split", "metric", "value", "model")
COLUMNS = (
    *REQUIRED,
    *("title", "n", "others", "family", "parameters", "shots", "flags"),
    *("source", "url", "locator", "date", "evidence", "quote", "note"),
)
"""Columns that a file may have, in any order.

* task: of a card, or any other in lower case; title: the benchmark's name where there is no card
* protocol: TASK/PROTOCOL; split: set of the benchmark
* metric, value, n: the primary metric, as printed (accuracies in percent), and the items it is of
* others: more metrics of the same unit, `NAME=VALUE/N; NAME=VALUE`, `/N` where it is known
* model, family, parameters (`8.3B`), shots (`0`, `15`, `few`, `finetuned`, `trained`)
* flags: between semicolons
* source, url, locator, date (YYYY-MM-DD), evidence, quote: where it is printed
* note: what a reader must know
"""


def read(text: str, given: Given) -> Reading:
    """Read a CSV file.

    Raises:
        DataError: no CSV, a column that is unknown, or one that is missing.
    """
    lines = csv.reader(io.StringIO(text), strict=True)
    reading = Reading()
    try:
        header = next(lines, [])
        _check_header(header)
        for cells in lines:
            if cells:
                reading.rows += 1
                _row(header, cells, f"line {lines.line_num}", given, reading)
    except csv.Error as error:
        raise DataError(f"line {lines.line_num} is no CSV: {error}", "quote cells as RFC 4180 says") from error
    return reading


def _check_header(header: list[str]) -> None:
    for name in header:
        if name not in COLUMNS:
            raise DataError(f"the file has a column `{name}`", suggest(name, list(COLUMNS)))
    for name in COLUMNS:
        if header.count(name) > 1 or (name in REQUIRED and name not in header):
            what = "more than one column" if name in header else "no column"
            raise DataError(f"the file has {what} `{name}`", f"columns are {', '.join(f'`{one}`' for one in COLUMNS)}")


def _row(header: list[str], cells: list[str], place: str, given: Given, reading: Reading) -> None:
    if len(cells) != len(header):
        reading.say(place, "", [("cells", f"{len(cells)} cells under {len(header)} columns: left out")], kept=False)
        return
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    name = reading.name(place, row["model"])
    if name is None:
        return
    values, items, remarks = _values(row, place, name.text, reading)
    source = _source(row, given)
    unit = unit_of(row["metric"])
    problems = list(_problems(row))
    if source is None:
        problems.append(("no-source", "no address of a source: left out"))
    if problems:
        reading.say(place, name.text, problems, kept=False)
    if problems or source is None or unit is None or row["metric"] not in values:
        return
    size, found = clean_size(row.get("parameters", ""))
    reading.say(place, name.text, found)
    draft = Draft(
        place=place,
        task=row["task"],
        title=row.get("title") or title_of(row["task"]),
        protocol=row["protocol"],
        split=row["split"],
        unit=unit,
        values=values,
        items=items,
        model=ReportedModel(
            name=name.text, family=row.get("family", ""), parameters=size, shots=row.get("shots") or name.shots
        ),
        source=source,
        flags=tuple(flag.strip() for flag in row.get("flags", "").split(";") if flag.strip()),
        note=row.get("note", ""),
    )
    reading.drafts.append(draft.noted(*remarks))


def _problems(row: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what keeps a line from being a number at all."""
    found = [("missing", f"no {name}: left out") for name in ("task", "protocol", "split") if not row[name]]
    if row["protocol"] and not is_protocol(row["protocol"]):
        found.append(("protocol", f"`{row['protocol']}` is no TASK/PROTOCOL: left out"))
    if unit_of(row["metric"]) is None:
        found.append(("unknown-metric", f"which way `{row['metric']}` goes is not known: left out"))
    date = row.get("date", "")
    if date and not is_date(date):
        found.append(("date", f"`{date}` is no date: left out"))
    return found


def _values(
    row: Mapping[str, str], place: str, model: str, reading: Reading
) -> tuple[dict[str, str], dict[str, int], list[str]]:
    """Return the printed value and the items of each metric, the primary one first, and remarks beside them."""
    values: dict[str, str] = {}
    items: dict[str, int] = {}
    remarks: list[str] = []
    cells = [(row["metric"], row["value"], row.get("n", ""))]
    for other in filter(None, map(str.strip, row.get("others", "").split(";"))):
        name, _, rest = other.partition("=")
        value, _, count = rest.rpartition("/") if "/" in rest else (rest, "", "")
        if name in values or unit_of(name) is None or unit_of(name) != unit_of(row["metric"]):
            reading.say(place, model, [("others", f"`{other}` is no further metric of its unit: left out")], kept=False)
        else:
            cells.append((name, value, count))
    for metric, value, count in cells:
        cleaned = reading.value(place, model, value, metric)
        if cleaned is None or cleaned.printed is None:
            continue
        values[metric] = cleaned.printed
        remarks += [f"printed as {cleaned.remark}"] if cleaned.remark else []
        if re.fullmatch(r"[1-9]\d{0,8}", count):
            items[metric] = int(count)
        elif count:
            reading.say(place, model, [("items", f"`{count}` is no number of items: not used")])
    return values, items, remarks


def _source(row: Mapping[str, str], given: Given) -> Source | None:
    url, locator = row.get("url", ""), row.get("locator", "")
    if not is_address(url):
        return given_source(given, locator or "file")
    date = row.get("date", "")
    return Source(
        title=row.get("source") or url,
        url=url,
        locator=locator or "page",
        date=date if is_date(date) else "",
        quote=row.get("quote", ""),
        evidence=row.get("evidence", ""),
    )
