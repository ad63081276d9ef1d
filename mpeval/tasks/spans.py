"""Answers that are spans of a paragraph: SQuAD 1.1 and 2.0, in windows, as Devlin et al. (2018) put them to a BERT."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mpeval.data import Data
from mpeval.errors import DataError, UsageError
from mpeval.items import Answered, Headed
from mpeval.questions.question import Question
from mpeval.results import Metric
from mpeval.statistics import mean_metric
from mpeval.tasks.base import Item, Sample
from mpeval.tasks.cards import Card, Protocol
from mpeval.tasks.packing import Items, Packer, Ragged, cached_of, encode_all, numbered
from mpeval.tasks.squad_metrics import SCORES
from mpeval.tokenizer import Tokenizer

LONGEST, STEP = 384, 128
"""Tokens of a window, special ones and question included, and paragraph tokens from one window to the next:
`max_seq_length` and `doc_stride` of the `run_squad` that was published with BERT."""
QUESTION_LONGEST = 64
"""Tokens of a question (`max_query_length`); the rest is cut off."""
ANSWER_LONGEST = 30
"""Tokens of an answer (`max_answer_length`)."""
BEST = 20
"""First and last places that are tried in each window (`n_best_size`)."""
THRESHOLD = 0.0
"""How far "no answer" must be ahead of the best span to be the answer (`null_score_diff_threshold`)."""
CHUNK = 1024
"""Paragraphs that are tokenized at a time; with their offsets they take far more memory than their ids."""


class Span(NamedTuple):
    """Tokens `first` to `last` of a paragraph, both included, and the sum of their two outputs."""

    score: float
    first: int
    last: int


@dataclass(frozen=True, kw_only=True)
class Paragraphs:
    """Tokenized paragraphs: of every token its id and the characters of the original text that it is made of."""

    ids: Ragged
    begins: Ragged
    stops: Ragged

    @classmethod
    def of(cls, tokenizer: Tokenizer, texts: Sequence[str]) -> Paragraphs:
        """Tokenize texts, in parallel, or take what lies in the tokenizer's cache by content."""

        def build() -> dict[str, np.ndarray]:
            made = [row for low in range(0, len(texts), CHUNK) for row in _rows(tokenizer, texts[low : low + CHUNK])]
            ends = np.cumsum([0, *(row.shape[1] for row in made)], dtype=np.int64)
            return {"flat": np.concatenate([np.zeros((3, 0), np.int32), *made], axis=1), "ends": ends}

        found = cached_of(tokenizer, texts, "offsets", build)
        ids, begins, stops = (Ragged(flat, found["ends"]) for flat in found["flat"])
        return cls(ids=ids, begins=begins, stops=stops)

    def tokens(self, row: int, begin: int, stop: int) -> tuple[int, int] | None:
        """Return the first and the last token that hold any of a text's characters `begin` up to `stop`, if any do."""
        first = int(np.searchsorted(self.stops[row], begin, side="right"))
        last = int(np.searchsorted(self.begins[row], stop, side="left")) - 1
        return (first, last) if first <= last else None


def _rows(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[np.ndarray]:
    """Yield [3, tokens] int32 of each text: ids, first characters, ends."""
    for ids, offsets in tokenizer.encode_batch_with_offsets(texts):
        yield np.array([ids, *(zip(*offsets, strict=True) if offsets else ((), ()))], dtype=np.int32)


def windows(tokens: int, room: int, step: int = STEP) -> list[tuple[int, int]]:
    """Return first token and end of each window of at most `room` tokens, `step` apart, up to the paragraph's end."""
    found = []
    for begin in range(0, tokens, min(room, step)):
        found.append((begin, min(begin + room, tokens)))
        if begin + room >= tokens:
            break
    return found


def best_windows(tokens: int, bounds: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return [tokens] int64: the window in which each token has the most context, the first of equals.

    It is the smaller of the tokens to its left and to its right in the window, plus a hundredth of the window's
    length, as in `run_squad`.  An answer is sought in a window only where its first token has this window.
    """
    places = np.arange(tokens)
    begins, ends = np.array(bounds).T[:, :, None]
    context = np.minimum(places - begins, ends - 1 - places)
    owners: np.ndarray = np.where(context < 0, -1.0, context + 0.01 * (ends - begins)).argmax(axis=0)
    return owners


def best_span(logits: np.ndarray, before: int, allowed: np.ndarray, most: int | None = BEST) -> Span | None:
    """Return the likeliest span of one window, in places of the window's part of the paragraph.

    Args:
        logits: [time, 2] float32, of the whole window.
        before: tokens before the paragraph's.
        allowed: [tokens of the window's part] bool, where an answer may begin.
        most: first and last places that are tried, the best ones of the whole window; None tries all.

    Returns:
        The span that has the largest sum of outputs, begins where it may, and is of 1 to 30 tokens; none if those
        that are tried make no such span.  Of equal sums the one of the better first place, then last, is taken.
    """
    order = np.argsort(-logits, axis=0, kind="stable")[:most] - before
    firsts, lasts = (column[(column >= 0) & (column < len(allowed))] for column in order.T)
    firsts = firsts[allowed[firsts]]
    lengths = lasts[None, :] - firsts[:, None] + 1
    exact = logits[before:].astype(np.float64)
    sums = np.where(
        (lengths >= 1) & (lengths <= ANSWER_LONGEST), exact[firsts, 0][:, None] + exact[lasts, 1][None, :], -np.inf
    )
    if not sums.size or sums.max() == -np.inf:
        return None
    row, column = np.unravel_index(sums.argmax(), sums.shape)
    return Span(float(sums[row, column]), int(firsts[row]), int(lasts[column]))


def best_of_windows(
    logits: Sequence[np.ndarray], before: int, bounds: Sequence[tuple[int, int]], most: int | None = BEST
) -> Span:
    """Return the likeliest span of a paragraph, the first of equals.

    Where the best places of all windows make no span (a model that points at the question) all places are tried;
    `run_squad` answers `empty` then.
    """
    owners = best_windows(bounds[-1][1], bounds)
    best: Span | None = None
    for number, (window, (begin, end)) in enumerate(zip(logits, bounds, strict=True)):
        found = best_span(window, before, owners[begin:end] == number, most)
        if found and (best is None or found.score > best.score):
            best = Span(found.score, found.first + begin, found.last + begin)
    assert best is not None or most is not None, "every token is a span of its own"
    return best or best_of_windows(logits, before, bounds, None)


def summarise_spans(samples: Sequence[Sample]) -> tuple[list[Metric], int, int]:
    """Return F1, exact match, the number of questions, and how many are exact, of lines of `samples.jsonl`.

    Where some questions have no answer, both follow for those that have one (`HasAns_`) and those that have none
    (`NoAns_`), as version 2.0's script prints them.  Standard errors treat questions of one paragraph as one cluster.

    Raises:
        DataError: no samples.
    """
    if not samples:
        raise DataError("there is no question to sum up", "score one at least")
    parts = {
        "HasAns_": [sample for sample in samples if sample["target"]],
        "NoAns_": [sample for sample in samples if not sample["target"]],
    }
    chosen = {"": samples} | (parts if parts["NoAns_"] else {})
    metrics = [
        mean_metric(
            prefix + name, [float(sample[name]) for sample in part], [str(sample["passage"]) for sample in part]
        )
        for prefix, part in chosen.items()
        if part
        for name in ("f1", "exact")
    ]
    return metrics, len(samples), sum(bool(sample["correct"]) for sample in samples)


class Spans:
    """SQuAD for a BERT: an item is a question with the windows `[CLS] question [SEP] part of paragraph [SEP]`.

    A window's targets are the places of the first published answer's tokens; where the window does not hold all of
    them, or there is no answer, they are [CLS]'s, (0, 0).
    """

    def __init__(self, card: Card, protocol: Protocol, data: Data, tokenizer: Tokenizer, context: int) -> None:
        """Tokenize every question and every paragraph once, in parallel.

        Raises:
            UsageError: the answers of the set are not public, or the protocol cannot give them.
            DataError: a context too small for a question, or a paragraph without tokens.
        """
        self.card, self.protocol = card, protocol
        self.questions = answered(data.questions, card, protocol, data.split)
        self.places = {question.uid: number for number, question in enumerate(self.questions)}
        published, self.step = protocol.window or LONGEST, protocol.stride or STEP
        self.longest = min(published, context)
        self.flags = data.flags + ((f"window-{self.longest}",) if self.longest < published else ())
        self.packer = Packer.of(tokenizer, self.longest)
        self.asked = encode_all(tokenizer, [question.question for question in self.questions])
        texts, self.paragraph_of = numbered([question.context for question in self.questions])
        self.paragraphs = Paragraphs.of(tokenizer, texts)
        self._check_room()
        self.items: Sequence[Item] = Items(range(len(self.questions)), self._item)

    def _check_room(self) -> None:
        """Refuse a question that leaves its paragraph no room, and a paragraph of nothing."""
        for number, question in enumerate(self.questions):
            if self.room(number) < 1:
                raise DataError(
                    f"a window of {self.longest} tokens has no room for a paragraph beside the question "
                    f"`{question.uid}`, which takes {len(self.words(number)) + 3} tokens",
                    f"give a model, or a `--context`, of {QUESTION_LONGEST + 4} or more",
                )
            if not len(self.paragraphs.ids[self.paragraph_of[number]]):
                raise DataError(
                    f"the paragraph of the question `{question.uid}` has no tokens", "get the published file again"
                )

    def words(self, number: int) -> np.ndarray:
        """Return the tokens of a question, at most 64."""
        return self.asked[number][:QUESTION_LONGEST]

    def room(self, number: int) -> int:
        """Return how many tokens of its paragraph a window of a question holds."""
        return self.longest - len(self.words(number)) - 3

    def bounds(self, number: int) -> list[tuple[int, int]]:
        """Return first token and end, in the paragraph, of each window of a question."""
        return windows(len(self.paragraphs.ids[self.paragraph_of[number]]), self.room(number), self.step)

    def answer(self, number: int) -> tuple[int, int] | None:
        """Return the first and the last token, in the paragraph, of a question's first answer, if it has any."""
        spans = self.questions[number].spans
        if not spans:
            return None
        begin, text = spans[0]
        return self.paragraphs.tokens(self.paragraph_of[number], begin, begin + len(text))

    def _item(self, number: int) -> Item:
        return Item(id=self.questions[number].uid, request=self._request(number))

    def _request(self, number: int) -> Headed:
        words, answer = self.words(number), self.answer(number)
        paragraph = self.paragraphs.ids[self.paragraph_of[number]]
        bounds = self.bounds(number)
        ids, firsts = zip(*(self.packer.pack(words, paragraph[begin:end]) for begin, end in bounds), strict=True)
        targets = np.zeros((len(bounds), 2), dtype=np.int64)
        for row, (begin, end) in enumerate(bounds):
            if answer is not None and begin <= answer[0] and answer[1] < end:
                targets[row] = np.array(answer) - begin + len(words) + 2
        return Headed(ids=ids, firsts=firsts, targets=targets)

    def judge(self, item: Item, scored: Answered) -> Sample:
        """Record the predicted text, as the paragraph spells it, how good it is, and how far "no answer" is ahead."""
        number = self.places[item.id]
        question, row = self.questions[number], self.paragraph_of[number]
        span = best_of_windows(scored.logits, len(self.words(number)) + 2, self.bounds(number))
        margin = min(float(logits[0, 0]) + float(logits[0, 1]) for logits in scored.logits) - span.score
        text = question.context[self.paragraphs.begins[row][span.first] : self.paragraphs.stops[row][span.last]]
        prediction = "" if self.protocol.id == "squad/v2" and margin > THRESHOLD else text
        answers = [answer for _, answer in question.spans]
        exact, f1 = SCORES[self.protocol.id](prediction, answers)
        return {
            "task": self.protocol.id,
            "id": question.uid,
            "passage": question.passage,
            "target": answers,
            "prediction": prediction,
            "exact": exact,
            "f1": f1,
            "no_answer": margin,
            "correct": bool(exact),
            "tokens": item.request.inputs,
        }

    def summarise(self, samples: Sequence[Sample]) -> tuple[list[Metric], int, int | None]:
        """F1 and exact match over questions, and apart for those with and without an answer."""
        return summarise_spans(samples)

    def constants(self) -> Mapping[str, Any]:
        """Count questions, paragraphs, windows, answers out of reach, and sequence lengths."""
        numbers = range(len(self.questions))
        answers = [self.answer(number) for number in numbers]
        requests = [self._request(number) for number in numbers]
        lengths = [length for request in requests for length in request.lengths]
        return {
            "questions": len(numbers),
            "passages": len(self.paragraphs.ids),
            "windows": len(lengths),
            "unanswerable": sum(not question.spans for question in self.questions),
            "cut_questions": int((self.asked.lengths > QUESTION_LONGEST).sum()),
            "answers_in_no_window": sum(
                answer is not None and not request.targets.any()
                for answer, request in zip(answers, requests, strict=True)
            ),
            "answers_too_long": sum(
                answer is not None and answer[1] - answer[0] >= ANSWER_LONGEST for answer in answers
            ),
            "mean_tokens": round(sum(lengths) / len(lengths), 2),
            "max_tokens": max(lengths),
        }


def answered(questions: Sequence[Question], card: Card, protocol: Protocol, split: str) -> Sequence[Question]:
    """Return the questions of a set whose answers are known and can be given under a protocol.

    Raises:
        UsageError: answers that are not public, or questions without one under `squad/v1`.
    """
    hidden = sum(question.answerable and not question.spans for question in questions)
    if hidden:
        raise UsageError(
            f"the answers to {hidden:,} of {len(questions):,} questions of the {card.title} {split} set are not "
            "public, so nothing can be scored on it",
            f"choose another set: {', '.join(f'`--split {item.name}`' for item in card.splits if item.name != split)}",
        )
    without = sum(not question.answerable for question in questions)
    if without and protocol.id != "squad/v2":
        raise UsageError(
            f"{without:,} of {len(questions):,} questions of the {card.title} {split} set have no answer, "
            f"which `{protocol.id}` cannot say",
            "use `--task squad/v2`",
        )
    return questions
