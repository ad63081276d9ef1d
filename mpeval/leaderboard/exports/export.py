"""What every export has in common: its files, what it left out, and how numbers are written for others."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mpeval.errors import DataError, shown
from mpeval.leaderboard.boards import Board, Row
from mpeval.leaderboard.published import card_of
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.store import Number
from mpeval.results import Metric
from mpeval.tasks.cards import HubSource

OTHER_QUESTIONS = ("race/lm-eval", "lm-eval/race")
"""Protocols that ask only some questions of the benchmark whose name they bear."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """The files of one format, by path below the output folder."""

    files: dict[str, str]
    notes: tuple[str, ...] = ()
    """What of the boards the format cannot hold, a sentence each."""
    earlier: str = ""
    """Pattern of the files that an earlier export may have left, where there is one file per record or run."""


def rows(content: Iterable[Board]) -> Iterator[tuple[Board, Row]]:
    """Yield every row with its board."""
    for board in content:
        for row in board.rows:
            yield board, row


def metrics(entry: Number) -> list[Metric]:
    """Return all metrics of a line, the primary one first."""
    return [entry.metric, *entry.other_metrics]


def printed(entry: Number, metric: Metric) -> str:
    """Return a metric as the source prints it; empty for a measured one."""
    if isinstance(entry, Record):
        return ""
    return entry.printed if metric is entry.metric else entry.printed_others.get(metric.name, "")


def percent(value: float) -> float:
    """Return a proportion in percent, without the dust that binary floating point leaves behind."""
    return round(100 * value, 12)


def scaled(value: float | None, metric: Metric) -> float | None:
    """Return a value, error or bound of a metric in the unit that others show it in: percent for proportions."""
    return percent(value) if value is not None and metric.unit == "proportion" else value


def unit(metric: Metric) -> str:
    """Return the unit that goes with `scaled`."""
    return "percent" if metric.unit == "proportion" else metric.unit


def shots(entry: Number) -> str:
    """Return how many solved examples stood before each question, or `finetuned`; empty if nobody says."""
    if not isinstance(entry, Record):
        return entry.model.shots
    if entry.harness:
        return str(entry.harness.shots)
    return "finetuned" if entry.training else ""


def whole_benchmark(entry: Number) -> bool:
    """Tell whether a number is of the whole published benchmark, so that a format without flags may have it."""
    return entry.ranked and not entry.protocol.startswith(OTHER_QUESTIONS)


def hub_of(entry: Number) -> HubSource | None:
    """Return where the hub has the rows that a number is of, None if that is not known."""
    card = card_of(entry.task)
    split = next((item for item in card.splits if item.name == entry.part), None) if card else None
    return split.hub if split else None


def seconds(moment: str) -> float:
    """Return an ISO 8601 moment, in UTC if it does not say, as seconds since 1970.

    Raises:
        DataError: it is none.
    """
    try:
        found = datetime.fromisoformat(moment)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except ValueError as error:
        raise DataError(
            f"a record has the time `{shown(moment)}`", "mend or retract the record: times are ISO 8601"
        ) from error


def pretty(value: Any) -> str:
    """Return JSON for people and machines: keys as given, ASCII only, no NaN."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def left_out(reasons: Sequence[str], file: str) -> tuple[str, ...]:
    """Say how often something was left out of a file for each reason."""
    return tuple(f"left out of {file}: {count} {reason}" for reason, count in Counter(reasons).items())


def file_name(name: str) -> str:
    """Return a name that a file may have, as lm-eval makes it of a model's; never hidden, never long."""
    safe = re.sub(r'["<>:/|\\?*\[\]]+', "__", name)
    safe = "".join(character if character.isprintable() else "_" for character in safe)
    return ("_" + safe if safe.startswith(".") else safe)[:60].rstrip() or "_"
