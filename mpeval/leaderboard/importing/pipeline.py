"""From a file to lines of a store: read, check, make numbers, find what is there twice or contradicts, append."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpeval.errors import DataError, UsageError
from mpeval.leaderboard.importing.checks import checked
from mpeval.leaderboard.importing.drafts import Draft, Finding, Given, Reading, joined
from mpeval.leaderboard.reported import UNATTAINABLE, Reported, reported
from mpeval.leaderboard.store import append, check_store, read
from mpeval.results import Metric, now

FORMATS = {
    "csv": "delimited.read",
    "pwc": "papers.read",
    "lm-eval": "harness.read",
    "model-index": "hub.read_model_index",
    "eval-results": "hub.read_eval_results",
    "eee": "eee.read",
}
"""Reader of each format, `module.function` of this package."""
CONFLICT = "conflict"
"""Flag of numbers of one thing that differ."""
Z = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `mpeval leaderboard import` was asked."""

    file: Path
    form: str
    store: Path | None
    """None for a dry run that is compared with nothing."""
    dry_run: bool
    given: Given


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of a file."""

    rows: int
    """Lines or entries in it."""
    numbers: int
    """What could be a record."""
    added: int
    """Records that were new; of a dry run, that would be."""
    known: int
    """Records that the store had."""
    findings: tuple[Finding, ...]

    def document(self) -> dict[str, Any]:
        """Return plain JSON values."""
        findings = [vars(finding) for finding in self.findings]
        return {key: getattr(self, key) for key in ("rows", "numbers", "added", "known")} | {"findings": findings}


def run(options: Options) -> Imported:
    """Import a file.

    Raises:
        UsageError: a format that is unknown.
        DataError: a file that is not there or not of its format, or a store that is none.
    """
    raw = _reader(options.form)(_text(options.file), options.given)
    reading = checked(replace(raw, drafts=joined(raw.drafts)))
    if options.store:
        check_store(options.store, "--store")
    there = read(options.store) if options.store and options.store.exists() else []
    standing = [one for one in there if isinstance(one, Reported)]
    findings = list(reading.findings)
    made = _numbers(reading, findings)
    fresh, known = _compared(made, standing, findings)
    new = [number for _, number in fresh]
    added = append(options.store, new, "--store") if options.store and not options.dry_run else len(new)
    return Imported(rows=reading.rows, numbers=len(made), added=added, known=known, findings=tuple(findings))


def _reader(form: str) -> Callable[[str, Given], Reading]:
    if form not in FORMATS:
        raise UsageError(f"`--format {form}` is unknown", f"formats are {', '.join(f'`{one}`' for one in FORMATS)}")
    module, _, function = FORMATS[form].partition(".")
    reader: Callable[[str, Given], Reading] = getattr(
        importlib.import_module(f"mpeval.leaderboard.importing.{module}"), function
    )
    return reader


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise DataError(f"`{path}` cannot be read: {reason}", "give a file to import") from error


def _numbers(reading: Reading, findings: list[Finding]) -> list[tuple[Draft, Reported]]:
    """Return the numbers that drafts make, and say which cannot be."""
    made: list[tuple[Draft, Reported]] = []
    created_at = now()
    for draft in reading.drafts:
        try:
            number = _number(draft, created_at)
        except DataError as error:
            findings.append(_finding(draft, "out-of-range", f"{error.message}: left out", kept=False))
            continue
        if UNATTAINABLE in number.flags:
            done = f"no number of right answers gives {_said(number)}: kept, flagged"
            findings.append(_finding(draft, UNATTAINABLE, done))
        made.append((draft, number))
    return made


def _said(number: Reported) -> str:
    return ", ".join([number.printed, *number.printed_others.values()])


def _number(draft: Draft, created_at: str) -> Reported:
    number = reported(
        created_at=created_at,
        task=draft.task,
        title=draft.title,
        protocol=draft.protocol,
        split=draft.split,
        values=draft.values,
        items=draft.items,
        unit=draft.unit,
        model=draft.model,
        source=draft.source,
        flags=draft.flags,
        note=draft.note,
    )
    if not draft.errors:
        return number
    metrics = [_with_error(metric, draft.errors.get(metric.name)) for metric in (number.metric, *number.other_metrics)]
    return number.model_copy(update={"metric": metrics[0], "other_metrics": metrics[1:]})


def _with_error(metric: Metric, stderr: float | None) -> Metric:
    """Return a metric with the standard error that its source gives, and the normal interval where it has no other."""
    if stderr is None:
        return metric
    if metric.low is not None:
        return metric.model_copy(update={"stderr": stderr})
    low, high = metric.value - Z * stderr, metric.value + Z * stderr
    low, high = (max(0.0, low), min(1.0, high)) if metric.unit == "proportion" else (max(1.0, low), high)
    bars = {"stderr": stderr, "low": low, "high": high, "interval": "normal, standard error of the source"}
    return metric.model_copy(update=bars)


def _compared(
    made: Sequence[tuple[Draft, Reported]], standing: Sequence[Reported], findings: list[Finding]
) -> tuple[list[tuple[Draft, Reported]], int]:
    """Return the numbers that are new, contradictory ones flagged, and how many the store had."""
    there: dict[tuple[Any, ...], list[Reported]] = defaultdict(list)
    for old in standing:
        there[old.slot].append(old)
    slots: dict[tuple[Any, ...], list[tuple[Draft, Reported]]] = defaultdict(list)
    known = 0
    for draft, number in made:
        mine = slots[number.slot]
        if any(number.repeats(old) for old in there[number.slot]):
            known += 1
        elif any(number.repeats(other) for _, other in mine):
            findings.append(_finding(draft, "duplicate", "the same number stands in the file before: left out"))
        else:
            mine.append((draft, number))
    fresh: list[tuple[Draft, Reported]] = []
    for slot, found in slots.items():
        values = [*(old.printed for old in there[slot]), *(number.printed for _, number in found)]
        if len(values) < 2 or not found:
            fresh += found
            continue
        for draft, number in found:
            done = f"{' and '.join(values)} by one source: all kept, flagged"
            findings.append(_finding(draft, CONFLICT, done))
            flags = [*number.flags, *([CONFLICT] if CONFLICT not in number.flags else [])]
            fresh.append((draft, number.model_copy(update={"flags": flags})))
    return fresh, known


def _finding(draft: Draft, code: str, done: str, *, kept: bool = True) -> Finding:
    return Finding(place=draft.place, model=draft.model.name, code=code, done=done, kept=kept)
