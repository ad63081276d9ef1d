"""MNLI and QQP in the layout of GLUE, as pairs of texts with a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpeval.errors import DataError, shown
from mpeval.questions.published import Published
from mpeval.questions.question import LIKE_OTHERS, Parsed, Question
from mpeval.tasks.cards import Card, Split

NAMES = {
    "mnli": ("sentence1", "sentence2", "gold_label"),
    "qqp": ("question1", "question2", "is_duplicate"),
}
"""What the header calls the two texts and the label."""
PLACES = {
    "mnli": {10: (8, 9, None), 12: (8, 9, 11), 16: (8, 9, 15)},
    "qqp": {3: (1, 2, None), 6: (3, 4, 5)},
}
"""Where Megatron-LM looks for them, counted from 0, by the number of columns; sets without labels have fewer."""


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """How many columns there are and which hold the two texts and the label (None: there is none)."""

    total: int
    first: int
    second: int
    label: int | None


def parse_tsv(card: Card, split: Split, files: Sequence[Published]) -> Parsed:
    """Read a table whose cells are parted by tabs; quotes mean nothing, and the first line names the columns.

    GLUE's QQP has rows that a line break cuts in two: a row with another number of columns becomes no question, which
    is only accepted if the set has as many questions as published.

    Raises:
        DataError: no header, no label, or one that the card does not know.
    """
    [file] = files
    lines = [line.removesuffix("\r") for line in file.text().removesuffix("\n").split("\n")]
    columns = _columns(card, split, lines[0].split("\t"), file.line(1))
    questions, complaints, left_out = [], [], 0
    for number, line in enumerate(lines[1:], start=1):
        where, cells = file.line(number + 1), line.split("\t")
        if len(cells) != columns.total:
            complaints.append(_wrong_width(where, len(cells), columns.total))
            left_out += 1
            continue
        first, second = cells[columns.first].strip(), cells[columns.second].strip()
        if not first or not second:
            complaints.append(DataError(f"{where}: the {'second' if first else 'first'} text is empty", LIKE_OTHERS))
        label = -1 if columns.label is None else _class(card, cells[columns.label].strip(), where)
        questions.append(pair(card, split, number, (first, second), label, where))
    return Parsed(questions=tuple(questions), complaints=tuple(complaints), left_out=left_out)


def _columns(card: Card, split: Split, header: list[str], where: str) -> _Columns:
    """Find the columns by name, or else at their places in a table of a known width."""
    names = NAMES[card.name]
    known = PLACES[card.name]
    if set(names[:2]) <= set(header):
        label = header.index(names[2]) if names[2] in header else None
        found = _Columns(total=len(header), first=header.index(names[0]), second=header.index(names[1]), label=label)
    elif len(header) in known:
        first, second, label = known[len(header)]
        if label is not None and header[label].strip() in card.labels:
            raise DataError(f"{where}: a row where the names of the columns should be", "put the header back")
        found = _Columns(total=len(header), first=first, second=second, label=label)
    else:
        raise DataError(
            f"{where}: no columns `{names[0]}` and `{names[1]}`, and {len(header)} columns instead of "
            f"{' or '.join(map(str, known))}",
            f"get `{split.files[0]}` as GLUE has it",
        )
    if split.labelled and found.label is None:
        raise DataError(
            f"{where}: no column `{names[2]}`, but the {split.name} set has labels",
            f"this looks like a test set; get `{split.files[0]}`",
        )
    return found


def _wrong_width(where: str, found: int, expected: int) -> DataError:
    return DataError(
        f"{where}: {found} columns, the header has {expected}", "columns are parted by one tab; mend the line"
    )


def _class(card: Card, label: str, where: str) -> int:
    if label not in card.labels:
        known = ", ".join(f"`{name}`" for name in card.labels)
        raise DataError(f"{where}: unknown label `{shown(label)}`", f"known: {known}")
    return card.labels.index(label)


def pair(card: Card, split: Split, number: int, texts: tuple[str, str], label: int, where: str) -> Question:
    """Make the question of the row of this `number`, from 1 and without the header."""
    uid = f"{card.name}/{split.name}#{number}"
    group = split.name.rpartition("-")[2]
    return Question(
        uid=uid,
        passage=uid,
        group=group if group in {"matched", "mismatched"} else "",
        context=texts[0],
        question=texts[1],
        answer=label,
        where=where,
    )
