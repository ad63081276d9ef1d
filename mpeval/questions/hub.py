"""Rows that the `datasets` library gives, as the same questions that the published files make."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mpeval.errors import DataError, shown
from mpeval.questions.choice import piqa_question, race_question
from mpeval.questions.pair import pair
from mpeval.questions.question import LIKE_OTHERS, Parsed, Question, filled
from mpeval.questions.span import is_second, span_question
from mpeval.tasks.cards import Card, Split

Row = Mapping[str, Any]
_EXAMPLE = re.compile(r"(?P<group>[a-z]+)(?P<name>(?P<number>\d{1,18})\.txt)")


def from_rows(card: Card, split: Split, rows: Iterable[Row], source: str) -> Parsed:
    """Make questions of a hub's rows, with the uids and in the order that the published files give.

    Raises:
        DataError: a column is absent or a row malformed; names the row, counted from 1.
    """
    makers: dict[str, Callable[[Card, Split, Iterable[Row], str], Iterable[Question]]] = {
        "race": _race,
        "piqa": _piqa,
        "tsv": _pairs,
        "squad": _squad,
    }
    try:
        return Parsed(questions=tuple(makers[card.format](card, split, rows, source)))
    except KeyError as error:
        raise DataError(
            f"`{source}` has no column {error}".replace("'", "`"),
            "the hub's set has changed; give a folder by `--data`",
        ) from error


def _race(card: Card, split: Split, rows: Iterable[Row], source: str) -> list[Question]:
    """A row is a question; `example_id`, such as `high1001.txt`, is the folder and name of its file."""
    del card
    folders = {path.rpartition("/")[2]: path for path in split.files}
    counts: Counter[str] = Counter()
    found = []
    for number, row in enumerate(rows, start=1):
        where = f"`{source}`, row {number}"
        match = _EXAMPLE.fullmatch(str(row["example_id"]))
        if match is None or match["group"] not in folders:
            raise DataError(f"{where}: `example_id` is `{shown(row['example_id'])}`", "expected such as `high1001.txt`")
        path = f"{folders[match['group']]}/{match['name']}"
        counts[path] += 1
        question = race_question(
            path,
            counts[path],
            passage=path,
            article=filled(row["article"], where, "`article`"),
            question=row["question"],
            options=list(row["options"]),
            answer=row["answer"],
            where=where,
        )
        found.append((match["group"], int(match["number"]), counts[path], question))
    return [question for *_, question in sorted(found, key=lambda item: item[:3])]


def _piqa(card: Card, split: Split, rows: Iterable[Row], source: str) -> Iterable[Question]:
    for number, row in enumerate(rows, start=1):
        where = f"`{source}`, row {number}"
        label = row["label"]
        if label not in ((0, 1) if split.labelled else (-1,)):
            raise DataError(f"{where}: the label `{shown(label)}` is neither 0 nor 1", LIKE_OTHERS)
        yield piqa_question(card, split, number, row, int(label), where)


def _pairs(card: Card, split: Split, rows: Iterable[Row], source: str) -> Iterable[Question]:
    """`idx` is the row's place in the published file, from 0; classes have the hub's own numbers."""
    labels = (split.hub.labels if split.hub else ()) or card.labels
    first, second = ("premise", "hypothesis") if card.name == "mnli" else ("question1", "question2")
    for number, row in enumerate(rows, start=1):
        where = f"`{source}`, row {number}"
        label, last = row["label"], len(labels) - 1
        if not (0 <= label <= last if split.labelled else label == -1):
            raise DataError(f"{where}: unknown label `{shown(label)}`", f"known: 0 to {last}")
        answer = card.labels.index(labels[label]) if split.labelled else -1
        yield pair(card, split, row["idx"] + 1, (row[first].strip(), row[second].strip()), answer, where)


def _squad(card: Card, split: Split, rows: Iterable[Row], source: str) -> Iterable[Question]:
    """Paragraphs have no number of their own: they are counted within their article, in the set's order."""
    del card
    title, context, paragraph = "", "", 0
    for number, row in enumerate(rows, start=1):
        if row["title"] != title:
            title, context, paragraph = row["title"], "", 0
        if row["context"] != context:
            context, paragraph = row["context"], paragraph + 1
        answers = list(zip(row["answers"]["answer_start"], row["answers"]["text"], strict=True))
        yield span_question(
            row,
            passage=f"{title}#{paragraph}",
            context=context,
            answers=answers,
            impossible=is_second(split) and not answers,
            where=f"`{source}`, row {number}",
        )
