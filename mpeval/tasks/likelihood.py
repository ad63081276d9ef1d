"""Multiple choice by a language model's own likelihood: the option whose tokens are the most probable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from mpeval.data import Data
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
    """Return article, question, and a line for the answer."""
    return f"{question.context}\n\nQuestion: {question.question}\nAnswer:"


PROMPTS: dict[str, Callable[[Question], str]] = {"piqa/lm-eval": harness_piqa, "race/likelihood": race_prompt}


def _options(item: Item) -> tuple[Request, ...]:
    assert isinstance(item.request, Likelihoods)
    return item.request.options


class LikelihoodChoices:
    """Options that follow a prompt after a space; scored by the summed log-probability of their tokens.

    Prompt and option are tokenized together, and the option's tokens are those beyond the prompt's own, as in lm-eval.
    """

    def __init__(self, card: Card, protocol: Protocol, data: Data, tokenizer: Tokenizer, context: int) -> None:
        """Tokenize every prompt, alone and with each option."""
        self.card, self.protocol, self.flags, self.context = card, protocol, data.flags, context
        self.questions = labelled(data.questions, card, data.split)
        self.places = {question.uid: number for number, question in enumerate(self.questions)}
        self.starts = np.cumsum([0, *(len(question.options) for question in self.questions)])
        prompts = [PROMPTS[protocol.id](question) for question in self.questions]
        self.prompts = encode_all(tokenizer, prompts)
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
        """Record the options' probabilities among themselves, and if the best per character is right (`acc_norm`)."""
        number = self.places[item.id]
        question, rows = self.questions[number], self.whole.lengths[self.starts[number] : self.starts[number + 1]]
        logs = [option.log_probability for option in scored]
        per_character = [log / len(option) for log, option in zip(logs, question.options, strict=True)]
        read = sum(option.inputs - score.cut for option, score in zip(_options(item), scored, strict=True))
        cut = int((rows - 1).sum()) - read
        return choice_line(
            self.protocol,
            question,
            shares(logs),
            log_probabilities=logs,
            correct_norm=int(np.argmax(per_character)) == question.answer,
            tokens=read,
        ) | ({"cut": cut} if cut else {})

    def summarise(self, samples: Sequence[Sample]) -> tuple[list[Metric], int, int | None]:
        """Accuracy over all questions and each group, and by likelihood per character."""
        return summarise_choices(samples)

    def constants(self) -> Mapping[str, Any]:
        """Count questions, target lengths, and sequences that lose tokens on their left."""
        lengths = self.whole.lengths - 1
        prompts = np.repeat(self.prompts.lengths, np.diff(self.starts))
        return {
            "questions": len(self.questions),
            "sequences": len(lengths),
            "cut_prompts": int((lengths > self.context).sum()),
            "mean_target_tokens": round(float((self.whole.lengths - prompts).mean()), 2),
            "mean_tokens": round(float(lengths.mean()), 2),
            "max_tokens": int(lengths.max()),
        }
