"""RACE and PIQA in their published layout, as questions with options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mpeval.errors import DataError, shown
from mpeval.questions.published import Published
from mpeval.questions.question import LIKE_OTHERS, Parsed, Question, decoded, filled, texts
from mpeval.tasks.cards import Card, Split

OPTIONS = 4
LETTERS = "ABCD"


def parse_race(card: Card, split: Split, files: Sequence[Published]) -> Parsed:
    """Read files of JSON, normally of one line: `article`, `questions`, `options` of each, `answers` from A to D.

    Raises:
        DataError: anything else, and an article without questions that is not published so; names file and line.
    """
    del card
    return Parsed(questions=tuple(question for file in files for question in _articles(split, file)))


def _articles(split: Split, file: Published) -> Iterator[Question]:
    count = 0
    lines = [(number, line) for number, line in enumerate(file.text().split("\n"), start=1) if line.strip()]
    if not lines:
        raise DataError(f"{file.line(1)}: the file is empty", LIKE_OTHERS)
    for number, line in lines:
        where = file.line(number)
        passage = file.path if number == 1 else f"{file.path}:{number}"
        article, asked = _asked(decoded(line, where), where)
        if not asked and file.path not in split.bare:
            raise DataError(f"{where}: an article without questions", "leave the file out")
        for question, options, answer in asked:
            count += 1
            yield race_question(
                file.path,
                count,
                passage=passage,
                article=article,
                question=question,
                options=options,
                answer=answer,
                where=where,
            )


def _asked(value: object, where: str) -> tuple[str, list[tuple[Any, Any, Any]]]:
    """Return an article and its questions, each with its options and answer, not yet checked."""
    lists = ("questions", "options", "answers")
    if not isinstance(value, Mapping) or not {"article", *lists} <= value.keys():
        raise DataError(f"{where}: not an object with `article`, `questions`, `options` and `answers`", LIKE_OTHERS)
    for name in lists:
        if not isinstance(value[name], list):
            raise DataError(f"{where}: `{name}` should be a list, found {shown(value[name])}", LIKE_OTHERS)
    counts = [len(value[name]) for name in lists]
    if len(set(counts)) > 1:
        said = ", ".join(f"{count} {name}" for count, name in zip(counts, lists, strict=True))
        raise DataError(f"{where}: numbers that differ: {said}", "each question has its options and its answer")
    return filled(value["article"], where, "`article`"), list(zip(*(value[name] for name in lists), strict=True))


def race_question(
    path: str, number: int, *, passage: str, article: str, question: object, options: object, answer: object, where: str
) -> Question:
    """Check one question of RACE, the one of this `number` in the file `path`.

    Raises:
        DataError: not four options, an empty text, or an answer that is no letter from A to D.
    """
    at = f"{where}: question {number}"
    choices = texts(options, at, "each option")
    if len(choices) != OPTIONS:
        raise DataError(f"{at} has {len(choices)} options, not {OPTIONS}", LIKE_OTHERS)
    if not isinstance(answer, str) or len(answer) != 1 or answer not in LETTERS:
        raise DataError(f"{at} has the answer `{shown(answer)}`, not a letter from A to D", LIKE_OTHERS)
    return Question(
        uid=f"{path}#{number}",
        passage=passage,
        group=path.split("/")[-2],
        context=article,
        question=filled(question, at, "its text"),
        options=tuple(choices),
        answer=LETTERS.index(answer),
        where=where,
    )


def parse_piqa(card: Card, split: Split, files: Sequence[Published]) -> Parsed:
    """Read JSON lines `goal`, `sol1`, `sol2`, and the file of labels beside them where the split has one.

    Raises:
        DataError: anything else, a label that is neither 0 nor 1, or as many labels as there are no rows.
    """
    rows = _lines(files[0])
    labels = [-1] * len(rows)
    if split.labelled:
        labels = [_label(text, files[1].line(number)) for number, text in enumerate(_lines(files[1]), start=1)]
    if len(labels) != len(rows):
        short, other = (files[1], files[0]) if len(labels) < len(rows) else (files[0], files[1])
        last = min(len(labels), len(rows))
        raise DataError(
            f"`{files[1].where}` has {len(labels):,} labels for the {len(rows):,} rows of `{files[0].where}`: "
            f"`{short.where}` ends at line {last:,}",
            f"line N of one belongs to line N of the other; get both again, `{other.path}` and `{short.path}`",
        )
    return Parsed(
        questions=tuple(
            piqa_question(card, split, number, decoded(line, files[0].line(number)), label, files[0].line(number))
            for number, (line, label) in enumerate(zip(rows, labels, strict=True), start=1)
        )
    )


def _lines(file: Published) -> list[str]:
    return file.text().removesuffix("\n").split("\n")


def _label(text: str, where: str) -> int:
    if text.strip() not in {"0", "1"}:
        raise DataError(f"{where}: the label `{shown(text.strip())}` is neither 0 nor 1", LIKE_OTHERS)
    return int(text)


def piqa_question(card: Card, split: Split, number: int, row: object, label: int, where: str) -> Question:
    """Check one row of PIQA, the one of this `number`.

    Raises:
        DataError: not a goal and two solutions, all of them text.
    """
    if not isinstance(row, Mapping) or not {"goal", "sol1", "sol2"} <= row.keys():
        raise DataError(f"{where}: not an object with `goal`, `sol1` and `sol2`", LIKE_OTHERS)
    goal, first, second = (filled(row[name], where, f"`{name}`") for name in ("goal", "sol1", "sol2"))
    uid = f"{card.name}/{split.name}#{number}"
    return Question(uid=uid, passage=uid, context=goal, options=(first, second), answer=label, where=where)
