"""What all lines of a leaderboard have in common, and the line that takes another back."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from mpeval.results import Document, Metric

UNRANKED = (
    "partial",
    "sample-rows",
    "modified-data",
    "unverified-data",
    "window-",
    "truncated",
    "megatron-exact",
    "no-checkpoint",
    "protocol-unknown",
    "source-doubtful",
)
"""A result with a flag that begins like one of these is shown, but never ranked against the published set."""


def is_date(text: str) -> bool:
    """Tell whether a text is a day of the calendar, written `YYYY-MM-DD`."""
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


class Line(Document):
    """One line of a store."""

    newer: ClassVar[frozenset[str]] = frozenset()
    """Fields that are left out where they are empty, so that lines written before there were any keep their ids."""
    schema_: Literal["mpeval.result/1"] = "mpeval.result/1"
    record_id: str = ""
    created_at: str

    @property
    def mark(self) -> str:
        """A text of the line that every line has too which it repeats or takes back."""
        raise NotImplementedError

    def document(self) -> dict[str, Any]:
        """Return plain JSON values, without what stands empty in the newer fields."""
        return {key: value for key, value in super().document().items() if value or key not in self.newer}

    def line(self) -> str:
        """Return the record as one line of JSON, with an id that changes when anything in it does."""
        return canonical({**self.document(), "record_id": self.identity()})

    def identity(self) -> str:
        """Return the sha256 of the record's content without id and time."""
        body = {key: value for key, value in self.document().items() if key not in {"record_id", "created_at"}}
        return "sha256:" + hashlib.sha256(canonical(body).encode()).hexdigest()


class Entry(Line):
    """One number of a board."""

    task: str
    title: str
    protocol: str
    metric: Metric
    other_metrics: list[Metric]
    n: int
    flags: list[str]
    split: str = ""

    @property
    def part(self) -> str:
        """The split; records older than the choice of one are of test sets."""
        return self.split or "test"

    @property
    def slot(self) -> tuple[Any, ...]:
        """What the number is of: two entries of one slot should have one value."""
        raise NotImplementedError

    @property
    def date(self) -> str:
        """When the number came to be, `YYYY-MM-DD` or empty."""
        return self.created_at[:10]

    @property
    def ranked(self) -> bool:
        """Whether the number may stand beside others of its protocol."""
        return not any(flag.startswith(UNRANKED) for flag in self.flags)

    def repeats(self, other: Entry) -> bool:
        """Tell whether `other` has the same number of the same thing, up to the order of summation."""
        return self.slot == other.slot and math.isclose(self.metric.value, other.metric.value, rel_tol=1e-6)


class Retraction(Line):
    """A line that takes an earlier one back: nothing is ever deleted."""

    kind: Literal["retraction"] = "retraction"
    retracts: str
    """`record_id` of the line that no longer counts."""
    reason: str

    @property
    def mark(self) -> str:
        """The id that it takes back."""
        return self.retracts


def canonical(value: Mapping[str, Any]) -> str:
    """Return JSON of one form only: keys in order, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
