"""What a benchmark asks: questions with options, pairs of texts and questions about a passage, all of one shape."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mpeval.errors import DataError, shown

LIKE_OTHERS = "compare it with the other rows of the set, or get the published file again"
Span = tuple[int, str]
"""An answer in a passage: the number of its first character, and its text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One thing a benchmark asks."""

    uid: str
    """The same on every machine: published path and number from 1, or the number that the set itself gives."""
    passage: str
    """The uid of what questions share, by which they are clustered; the question's own where nothing is shared."""
    group: str = ""
    """`middle` or `high` (RACE), `matched` or `mismatched` (MNLI), else empty."""
    context: str
    """RACE article, PIQA goal, MNLI premise, first question of QQP, SQuAD paragraph."""
    question: str = ""
    """RACE and SQuAD question, MNLI hypothesis, second question of QQP; PIQA has none."""
    options: tuple[str, ...] = ()
    """Four for RACE, two for PIQA."""
    answer: int = -1
    """The option or class that is right; -1 where the set does not say."""
    spans: tuple[Span, ...] = ()
    """SQuAD: the answers of those who were asked."""
    answerable: bool = True
    """Whether the passage has an answer (SQuAD 2.0)."""
    where: str = ""
    """File and line, for messages."""


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """What was read of a set: texts or questions.

    Attributes:
        lines: of a set that is one text.
        complaints: what is wrong with rows that are only accepted in a set that is known to have them.
        left_out: how many of these rows became no question.
    """

    texts: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    lines: int = 0
    complaints: tuple[DataError, ...] = ()
    left_out: int = 0

    @property
    def count(self) -> int:
        """How many rows the set has, as cards count them."""
        return self.lines or len(self.texts) + len(self.questions)


def check_unique(questions: Sequence[Question]) -> None:
    """Refuse a set in which two questions have one uid.

    Raises:
        DataError: both places.
    """
    seen: dict[str, str] = {}
    for question in questions:
        if question.uid in seen:
            raise DataError(
                f"{question.where}: the id `{question.uid}` is there already, in {seen[question.uid]}",
                "an id may stand for one question only; remove one of the two",
            )
        seen[question.uid] = question.where


def decoded(text: str, where: str) -> Any:
    """Read JSON.

    Raises:
        DataError: it is broken, or nested deeper than any set; names `where`, which is file and line.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: broken JSON: {error}", "get the published file again") from error


def texts(value: object, where: str, what: str) -> list[str]:
    """Return a list of texts, none of them empty.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(value, list):
        raise DataError(f"{where}: {what} should be a list, found {shown(value)}", LIKE_OTHERS)
    return [filled(item, where, what) for item in value]


def filled(value: object, where: str, what: str) -> str:
    """Return a text that is not empty.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: {what} should be text, found {shown(value)}", LIKE_OTHERS)
    if not value.strip():
        raise DataError(f"{where}: {what} is empty", LIKE_OTHERS)
    return value


_ASKED = [field.name for field in fields(Question) if field.name != "where"]


def digest_of(questions: Iterable[Question]) -> str:
    """Return the sha256 (hexadecimal) over one line of JSON for each question, in order: all its fields but `where`."""
    total = hashlib.sha256()
    for question in questions:
        values = [getattr(question, name) for name in _ASKED]
        total.update(json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return total.hexdigest()
