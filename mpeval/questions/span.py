"""SQuAD 1.1 and 2.0 in their published layout, as questions whose answers are spans of a passage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mpeval.errors import DataError, shown
from mpeval.questions.published import Published
from mpeval.questions.question import LIKE_OTHERS, Parsed, Question, Span, decoded, filled
from mpeval.tasks.cards import Card, Split


def parse_squad(card: Card, split: Split, files: Sequence[Published]) -> Parsed:
    """Read `data`, `paragraphs`, `qas` and `answers`; questions without answers are in 2.0 only.

    Raises:
        DataError: anything else, or an `answer_start` at which the answer's text does not stand; names file, line and
            place, since the published files have one line.
    """
    del card
    [file] = files
    where = file.line(1)
    found = []
    for title, number, context, asked, at in _paragraphs(decoded(file.text(), where), where):
        for count, item in enumerate(asked):
            place = f"{at}.qas[{count}]"
            raw = _object(item, place, ("id", "question", "answers"))
            answers = [_answer(answer, place) for answer in _list(raw["answers"], place, "`answers`")]
            found.append(
                span_question(
                    raw,
                    passage=f"{title}#{number}",
                    context=context,
                    answers=answers,
                    impossible=_impossible(split, raw, answers, place),
                    where=place,
                )
            )
    return Parsed(questions=tuple(found))


def is_second(split: Split) -> bool:
    """Say whether a split is of SQuAD 2.0."""
    return split.name.endswith("v2.0")


def _paragraphs(content: object, where: str) -> Iterator[tuple[str, int, str, list[Any], str]]:
    """Give title, number within it, text, questions and place of each paragraph."""
    top = _object(content, where, ("data",))
    for one, raw in enumerate(_list(top["data"], where, "`data`")):
        at = f"{where}: data[{one}]"
        article = _object(raw, at, ("title", "paragraphs"))
        title = filled(article["title"], at, "`title`")
        for two, item in enumerate(_list(article["paragraphs"], at, "`paragraphs`")):
            place = f"{at}.paragraphs[{two}]"
            paragraph = _object(item, place, ("context", "qas"))
            context = filled(paragraph["context"], place, "`context`")
            yield title, two + 1, context, _list(paragraph["qas"], place, "`qas`"), place


def _object(value: object, where: str, keys: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not set(keys) <= value.keys():
        raise DataError(f"{where}: not an object with {', '.join(f'`{key}`' for key in keys)}", LIKE_OTHERS)
    return value


def _list(value: object, where: str, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{where}: {what} should be a list, found {shown(value)}", LIKE_OTHERS)
    return value


def _answer(value: object, where: str) -> tuple[Any, Any]:
    raw = _object(value, where, ("answer_start", "text"))
    return raw["answer_start"], raw["text"]


def _impossible(split: Split, raw: Mapping[str, Any], answers: Sequence[object], where: str) -> bool:
    """Say whether a question is one that the passage does not answer; 2.0 says so, and has no answers then."""
    if not is_second(split):
        if raw.get("is_impossible"):
            raise DataError(f"{where}: a question without an answer in SQuAD 1.1", "SQuAD 2.0 has other splits")
        return False
    said = raw.get("is_impossible")
    if not isinstance(said, bool):
        raise DataError(f"{where}: no `is_impossible`, which each question of SQuAD 2.0 has", LIKE_OTHERS)
    if said and answers:
        raise DataError(f"{where}: `is_impossible` with {len(answers)} answers", LIKE_OTHERS)
    return said


def span_question(
    raw: Mapping[str, Any],
    *,
    passage: str,
    context: str,
    answers: Sequence[tuple[Any, Any]],
    impossible: bool,
    where: str,
) -> Question:
    """Check one question of SQuAD; `raw` has its `id` and its `question`, `answers` are starts and texts.

    Raises:
        DataError: an answer that is not where it says, or none where there should be one.
    """
    uid = filled(raw["id"], where, "`id`")
    if not answers and not impossible:
        raise DataError(f"{where}: question `{shown(uid)}` has no answer", LIKE_OTHERS)
    return Question(
        uid=uid,
        passage=passage,
        context=context,
        question=filled(raw["question"], where, "`question`"),
        spans=tuple(_span(context, start, text, f"{where}: question `{shown(uid)}`") for start, text in answers),
        answerable=not impossible,
        where=where,
    )


def _span(context: str, start: object, text: object, where: str) -> Span:
    answer = filled(text, where, "an answer")
    if not isinstance(start, int) or isinstance(start, bool) or start < 0:
        raise DataError(f"{where}: `answer_start` is {shown(start)}, not the number of a character", LIKE_OTHERS)
    if not context.startswith(answer, start):
        there = context[start : start + len(answer)]
        raise DataError(
            f"{where}: at `answer_start` {start} stands `{shown(there)}`, not `{shown(answer)}`",
            "offsets count characters, not bytes; get the published file again",
        )
    return start, answer
