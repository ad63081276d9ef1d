"""Multiple choice by a language model's own likelihood: the option whose tokens are the most probable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from mpeval.data import Data
from mpeval.errors import DataError
from mpeval.items import Likelihoods, Request, Scored
from mpeval.questions.question import Question
from mpeval.results import Metric
from mpeval.tasks.base import Item, Sample
from mpeval.tasks.cards import Card, Protocol
from mpeval.tasks.choice import choice_line, labelled, shares
from mpeval.tasks.packing import Items, encode_all
from mpeval.tasks.summary import summarise_choices
from mpeval.tokenizer import Tokenizer


def harness_piqa(question: Question) -> str:
    """Return the prompt of lm-eval's `piqa`."""
    return f"Question: {question.context}\nAnswer:"


def race_prompt(question: Question) -> str:
    """Return article and question in the words of lm-eval's `race`; the option follows, also after a blank."""
    return f"Article: {question.context}\n\n{question.question}"


def harness_race(article: Sequence[Question]) -> str:
    """Return the prompt of lm-eval's `race` (version 3): an article and its questions, all but the last with answers.

    An answer takes the place of the blank that ends a question; any other question and its answer are labelled lines.
    """
    *others, last = article
    return f"Article: {last.context}\n\n{''.join(map(_told, others))}{last.question}"


def _told(question: Question) -> str:
    """Return a question with its right answer."""
    answer = question.options[question.answer]
    if question.question.endswith(BLANK):
        return f"{question.question.removesuffix(BLANK)} {answer}\n"
    return f"Question: {question.question}\nAnswer: {answer}\n"


BLANK = "  _  ."
"""How questions of RACE end that are sentences to complete; lm-eval's `race` knows the blank by exactly this."""
PROMPTS: dict[str, Callable[[Question], str]] = {"piqa": harness_piqa, "race": race_prompt}
"""The prompt of a question that is asked by itself, by task."""
LAST_OF_ARTICLE = "race/lm-eval"
"""The protocol that asks the last question of each article of the high part, after the others."""
BY_CHARACTER = ("piqa/lm-eval", "piqa/byte-norm", "race/all")
"""Protocols that also report the accuracy by likelihood per character, lm-eval's `acc_norm`."""


def asked(protocol: Protocol, data: Data) -> Data:
    """Return a set with those questions only that a protocol asks.

    Raises:
        DataError: there are none.
    """
    if protocol.id != LAST_OF_ARTICLE:
        return data
    last = tuple(article[-1] for article in high_articles(data.questions))
    if not last:
        raise DataError(
            f"`{data.source}` has no question of RACE's high part, the only one that `{protocol.id}` asks about",
            f"add the {data.split} set's folder `high`, or choose `race/all`",
        )
    return replace(data, questions=last)


def high_articles(questions: Sequence[Question]) -> list[list[Question]]:
    """Return the questions of each article of the high part, in their order."""
    articles: dict[str, list[Question]] = {}
    for question in questions:
        if question.group == "high":
            articles.setdefault(question.passage, []).append(question)
    return list(articles.values())


def _prompts(protocol: Protocol, data: Data, questions: Sequence[Question]) -> list[str]:
    """Return the prompt of each of the questions that a protocol asks."""
    if protocol.id == LAST_OF_ARTICLE:
        return [harness_race(article) for article in high_articles(data.questions)]
    ask = PROMPTS[protocol.id.partition("/")[0]]
    return [ask(question) for question in questions]


def _options(item: Item) -> tuple[Request, ...]:
    assert isinstance(item.request, Likelihoods)
    return item.request.options


class LikelihoodChoices:
    """Options that follow a prompt after a space, compared by their log-probability or its mean per token or byte.

    As in lm-eval, prompt and option are tokenized together, and the option's tokens are those beyond the prompt's own;
    white space at the prompt's end belongs to the option.
    """

    def __init__(self, card: Card, protocol: Protocol, data: Data, tokenizer: Tokenizer, context: int) -> None:
        """Tokenize every prompt, alone and with each option."""
        self.card, self.protocol, self.flags, self.context = card, protocol, data.flags, context
        labelled(data.questions, card, data.split)
        self.questions = asked(protocol, data).questions
        self.places = {question.uid: number for number, question in enumerate(self.questions)}
        self.starts = np.cumsum([0, *(len(question.options) for question in self.questions)])
        prompts = _prompts(protocol, data, self.questions)
        self.prompts = encode_all(tokenizer, [prompt.rstrip() for prompt in prompts])
        whole = [
            f"{prompt} {option}"
            for prompt, question in zip(prompts, self.questions, strict=True)
            for option in question.options
        ]
        self.whole = encode_all(tokenizer, whole)
        self.items: Sequence[Item] = Items(range(len(self.questions)), self._item)

    def _item(self, number: int) -> Item:
        question, begin = self.questions[number], len(self.prompts[number])
        rows = [self.whole[int(self.starts[number]) + option] for option in range(len(question.options))]
        # of an option longer than the context the end is scored; `judge` counts what is left out
        options = tuple(Request(context=row[:begin], target=row[begin:][-self.context :]) for row in rows)
        targets = np.array([question.answer], dtype=np.int64)
        return Item(id=question.uid, request=Likelihoods(options=options, targets=targets))

    def judge(self, item: Item, scored: tuple[Scored, ...]) -> Sample:
        """Record the options' probabilities among themselves, made of what is compared, and the log-probabilities."""
        number = self.places[item.id]
        question, rows = self.questions[number], self.whole.lengths[self.starts[number] : self.starts[number + 1]]
        logs = [option.log_probability for option in scored]
        read = sum(option.inputs - score.cut for option, score in zip(_options(item), scored, strict=True))
        cut = int((rows - 1).sum()) - read
        more: dict[str, Any] = {"log_probabilities": logs}
        if self.protocol.id in BY_CHARACTER:
            per_character = [log / len(option) for log, option in zip(logs, question.options, strict=True)]
            more["correct_norm"] = int(np.argmax(per_character)) == question.answer
        if cut:
            more["cut"] = cut
        compared = [log / size for log, size in zip(logs, self._sizes(question, scored), strict=True)]
        return choice_line(self.protocol, question, shares(compared), **more, tokens=read)

    def _sizes(self, question: Question, scored: tuple[Scored, ...]) -> list[int]:
        """Return what the log-probability of each option is divided by: 1, or its scored tokens or its bytes."""
        if self.protocol.per == "token":
            return [len(option.log_probabilities) for option in scored]
        if self.protocol.per == "byte":
            return [len(option.encode()) for option in question.options]
        return [1] * len(scored)

    def summarise(self, samples: Sequence[Sample]) -> tuple[list[Metric], int, int | None]:
        """Accuracy over all questions and each group, and for some protocols by likelihood per character."""
        return summarise_choices(samples)

    def constants(self) -> Mapping[str, Any]:
        """Count questions, target lengths, and sequences that lose tokens on their left."""
        lengths = self.whole.lengths - 1
        prompts = np.repeat(self.prompts.lengths, np.diff(self.starts))
        return {
            "questions": len(self.questions),
            "passages": len({question.passage for question in self.questions}),
            "sequences": len(lengths),
            "cut_prompts": int((lengths > self.context).sum()),
            "mean_target_tokens": round(float((self.whole.lengths - prompts).mean()), 2),
            "mean_tokens": round(float(lengths.mean()), 2),
            "max_tokens": int(lengths.max()),
        }
