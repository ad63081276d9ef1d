"""Find what is wrong or odd in a leaderboard's lines: damage, impossible numbers, contradictions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mpeval.leaderboard.entries import Entry, Line, Retraction
from mpeval.leaderboard.metrics import KNOWN, name_of, wrong_with
from mpeval.leaderboard.published import RACE_TEST, ROUNDING, card_of, pooled, published_items, unlike_pooled
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.reported import Reported, attainable
from mpeval.leaderboard.store import DamagedLine, Number, scan, standing
from mpeval.results import Metric

Severity = Literal["error", "warning"]
Found = tuple[str, Severity, str]
"""A code, how bad it is, and what it is."""
OTHER_ITEMS = ("partial", "sample-rows", "modified-data", "rows-left-out")
"""Flags of a result that is not of all items of the published set."""
COUNTED = ("accuracy", "exact")
"""Metrics that are the share of right answers."""
LAYOUT_TOLERANCE = {"float32": 1e-6, "": 1e-3}
"""How far losses (nats) of the same weights may differ between layouts, by dtype, and in any other."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong or odd, and on which line of which store."""

    store: Path
    line: int
    code: str
    severity: Severity
    message: str
    record_id: str = ""
    """Of the line, where it has one."""


def lint(stores: Sequence[Path]) -> list[Finding]:
    """Look at every line of some stores by itself and beside the others.

    What was taken back is only looked at for damage.

    Returns:
        Findings in the order of the lines, those that need several lines at the later one.

    Raises:
        DataError: a store that is not there.
    """
    found: list[Finding] = []
    places: list[tuple[Path, int, Number]] = []
    for path in stores:
        lines = list(scan(path))
        found += _damage(path, lines)
        found += _retractions(path, lines)
        places += [(path, number, one) for number, one in standing(lines)]
    for path, number, one in places:
        found += [_finding(path, number, one, *item) for item in (*_of_entry(one), *_of_kind(one))]
    found += _contradictions(places)
    found += _race_of_sources(places)
    order = {path: place for place, path in enumerate(stores)}
    return sorted(found, key=lambda item: (order[item.store], item.line))


def _finding(path: Path, number: int, line: Line, code: str, severity: Severity, message: str) -> Finding:
    return Finding(store=path, line=number, code=code, severity=severity, message=message, record_id=line.record_id)


def _damage(path: Path, lines: Sequence[tuple[int, Line | DamagedLine]]) -> Iterator[Finding]:
    for number, line in lines:
        if isinstance(line, DamagedLine):
            yield Finding(store=path, line=number, code=line.code, severity="error", message=line.message)


def _retractions(path: Path, lines: Sequence[tuple[int, Line | DamagedLine]]) -> Iterator[Finding]:
    ids: set[str] = set()
    for number, line in lines:
        if isinstance(line, Retraction) and line.retracts not in ids:
            message = f"no line before it has the id `{line.retracts}`, so nothing is taken back"
            yield _finding(path, number, line, "retraction", "error", message)
        elif isinstance(line, Entry):
            ids.add(line.record_id)


# ---- one line ----


def _of_entry(one: Number) -> Iterator[Found]:
    """Check what is the same for measured and reported numbers."""
    for metric in (one.metric, *one.other_metrics):
        yield from ((code, "error", message) for code, message in wrong_with(metric))
        # lm-eval says itself which way its metrics go, and has more of them than anybody knows
        if name_of(metric) not in KNOWN and not (isinstance(one, Record) and one.harness):
            yield "metric", "warning", f"`{metric.name}` is no metric that is known, nor whether it should be high"
    if one.n < 0:
        yield "n", "error", f"it is of {one.n:,} items"


def _of_kind(one: Number) -> Iterator[Found]:
    if isinstance(one, Record):
        yield from _count(one)
        yield from _items(one)
        if one.task == "race" and one.harness is None:
            yield from _race_measured(one)
    else:
        yield from _printed(one)


def _count(record: Record) -> Iterator[Found]:
    """Compare a share of right answers with their count."""
    if record.n_correct is None:
        return
    if not 0 <= record.n_correct <= record.n:
        yield "count", "error", f"{record.n_correct:,} of {record.n:,} items are right"
        return
    share = record.n_correct / record.n if record.n else math.nan
    metrics = [metric for metric in (record.metric, *record.other_metrics) if _is_counted(metric, record)]
    for metric in metrics[:1]:
        if not math.isclose(metric.value, share, rel_tol=1e-12, abs_tol=1e-12):
            said = f"{record.n_correct:,} of {record.n:,} right is {share!r}"
            yield "count", "error", f"`{metric.name}` is {metric.value!r}, but {said}"


def _is_counted(metric: Metric, record: Record) -> bool:
    if record.harness:
        return metric is record.metric and metric.interval == "wilson"
    return metric.name in COUNTED


def _items(record: Record) -> Iterator[Found]:
    """Compare the number of items with the published set's: ranks that drop or repeat items show here."""
    card = None if record.harness else card_of(record.task)
    if card is None or card.kind == "perplexity" or not _all_items(record):
        return
    rows = published_items(record.task, record.part, "accuracy", record.protocol)
    if rows is None:
        yield "split", "warning", f"{card.title} has no split `{record.part}`"
    elif record.n != rows:
        whole = f"of the published {card.title} {record.part} set it asks {rows:,}"
        yield "items", "error", f"it is of {record.n:,} items and not flagged `partial`; {whole}"


def _all_items(one: Number) -> bool:
    return not set(OTHER_ITEMS) & set(one.flags)


def _printed(one: Reported) -> Iterator[Found]:
    """Compare a reported number with its printed form, and that with what its items allow."""
    rows = published_items(one.task, one.part, "accuracy", one.protocol)
    if rows and one.n and one.metric.name == "accuracy" and one.n != rows and _all_items(one):
        yield "items", "warning", f"it is of {one.n:,} items; the published {one.title} {one.part} set has {rows:,}"
    for metric in (one.metric, *one.other_metrics):
        printed = one.printed if metric is one.metric else one.printed_others.get(metric.name)
        if printed is None:
            continue
        meant = _meant(printed, metric)
        if meant is None or not math.isclose(meant, metric.value, rel_tol=1e-9):
            yield "printed", "error", f"`{metric.name}` is {metric.value!r}, but the source prints `{printed}`"
        elif (n := _items_of(one, metric)) and metric.unit == "proportion" and not attainable(printed, n):
            yield "unattainable", "warning", f"no number of right answers to {n:,} items is {printed} %"


def _meant(printed: str, metric: Metric) -> float | None:
    try:
        value = float(printed)
    except ValueError:
        return None
    return value / 100 if metric.unit == "proportion" else value


def _items_of(one: Reported, metric: Metric) -> int:
    """Return how many items a metric is of, 0 if that is not known."""
    if metric is one.metric:
        return one.n
    return published_items(one.task, one.part, metric.name, one.protocol) or 0 if metric.name in RACE_TEST else 0


# ---- RACE: all is what middle and high school are together ----


def _race_measured(record: Record) -> Iterator[Found]:
    """Check that the accuracy on all questions is that of the groups pooled, each a whole number of its questions."""
    values = {metric.name: metric.value for metric in (record.metric, *record.other_metrics)}
    if not {"accuracy", "accuracy_middle", "accuracy_high"} <= values.keys():
        return
    whole, middle, high = (values[name] for name in ("accuracy", "accuracy_middle", "accuracy_high"))
    if math.isclose(middle, high, abs_tol=ROUNDING):
        agrees = math.isclose(whole, middle, abs_tol=ROUNDING)
    elif record.part == "test" and record.n == sum(RACE_TEST.values()):
        agrees = math.isclose(whole * record.n, pooled(middle, high) * record.n, abs_tol=1e-6)
    else:
        questions = record.n * (whole - high) / (middle - high)
        counts = (questions, middle * questions, high * (record.n - questions))
        agrees = 0 <= questions <= record.n and all(abs(count - round(count)) < 1e-4 for count in counts)
    if not agrees:
        said = f"{whole:.6f} on all, {middle:.6f} on middle and {high:.6f} on high school questions"
        yield "race", "error", f"{said} do not go together"


def _race_of_sources(places: Sequence[tuple[Path, int, Number]]) -> Iterator[Finding]:
    """Check the same of what one source prints of one model, within rounding, on one line or on several."""
    groups: dict[tuple[Any, ...], dict[str, tuple[Path, int, Reported, str]]] = defaultdict(dict)
    for path, number, one in places:
        if isinstance(one, Reported) and one.task == "race" and one.part == "test":
            key = (one.protocol, one.model.name, one.model.shots, one.source.url)
            for name, printed in {one.metric.name: one.printed, **one.printed_others}.items():
                groups[key].setdefault(name, (path, number, one, printed))
    for found in groups.values():
        if {"accuracy", "accuracy_middle", "accuracy_high"} <= found.keys():
            path, number, one, whole = found["accuracy"]
            message = unlike_pooled(whole, found["accuracy_middle"][3], found["accuracy_high"][3])
            if message:
                yield _finding(path, number, one, "race", "warning", message)


# ---- several lines ----


def _contradictions(places: Sequence[tuple[Path, int, Number]]) -> Iterator[Finding]:
    """Compare each number with those before it that are of the same thing."""
    slots: dict[tuple[Any, ...], list[tuple[Path, int, Number]]] = defaultdict(list)
    for path, number, one in places:
        for earlier in slots[one.slot]:
            found = _compared(one, *earlier)
            if found is not None:
                yield _finding(path, number, one, *found)
                break
        slots[one.slot].append((path, number, one))


def _compared(one: Number, path: Path, number: int, other: Number) -> Found | None:
    where = f"line {number} of `{path}`"
    if one.repeats(other):
        return "duplicate", "warning", f"{where} has the same number of the same thing"
    values = f"`{one.metric.name}` is {one.metric.value!r}, {other.metric.value!r} on {where}"
    if isinstance(one, Record) and isinstance(other, Record) and one.layout != other.layout:
        if _within_layouts(one, other):
            return None
        layouts = " and ".join(f"tp {item.layout.tp} x dp {item.layout.dp}" for item in (one, other))
        flipped = ""
        if one.n_correct is not None and other.n_correct is not None:
            flipped = f", {abs(one.n_correct - other.n_correct):,} items or more were judged otherwise"
        return "layout", "error", f"{values}: the same weights in layouts {layouts} must agree{flipped}"
    return "conflict", "error", f"{values}, of the same thing"


def _within_layouts(one: Record, other: Record) -> bool:
    losses = one.metric.loss, other.metric.loss
    tolerance = LAYOUT_TOLERANCE.get(one.dtype, LAYOUT_TOLERANCE[""])
    return losses[0] is not None and losses[1] is not None and abs(losses[0] - losses[1]) <= tolerance
