"""Multiple choice by a task head: RACE and PIQA, one sequence per option, for a BERT and for a GPT."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpeval.data import Data
from mpeval.errors import DataError, UsageError
from mpeval.items import Answered, Headed
from mpeval.questions.question import Question
from mpeval.results import Metric
from mpeval.tasks.base import Item, Sample
from mpeval.tasks.cards import Card, Protocol
from mpeval.tasks.packing import LONGEST, Items, Packer, clean, encode_all, numbered
from mpeval.tasks.summary import summarise_choices
from mpeval.tokenizer import Tokenizer

QA_LONGEST = 128
"""Tokens of question and option together under Megatron's protocol (its `MAX_QA_LENGTH`); the rest is cut off."""


def question_with(option: str, question: str) -> str:
    """Return question and option as one cleaned text: the option takes the place of every underscore, or follows."""
    return clean(question.replace("_", option) if "_" in question else f"{question} {option}")


def labelled(questions: Sequence[Question], card: Card, split: str) -> Sequence[Question]:
    """Return the questions of a set whose right answers are known.

    Raises:
        UsageError: they are not public.
    """
    if any(question.answer < 0 for question in questions):
        known = [item.name for item in card.splits if item.name != split]
        raise UsageError(
            f"the right answers of the {card.title} {split} set are not public, so nothing can be scored on it",
            f"choose another set: {', '.join(f'`--split {name}`' for name in known)}",
        )
    return questions


def shares(logits: Sequence[float] | np.ndarray) -> list[float]:
    """Return the softmax of logits, in float64."""
    values = np.asarray(logits, dtype=np.float64)
    powers = np.exp(values - values.max())
    return [float(power) for power in powers / powers.sum()]


def choice_line(protocol: Protocol, question: Question, probabilities: Sequence[float], **more: Any) -> Sample:
    """Return what every sample of multiple choice says; of options that are equally likely the first is chosen."""
    prediction = int(np.argmax(probabilities))
    return {
        "task": protocol.id,
        "id": question.uid,
        "passage": question.passage,
        "group": question.group,
        "target": question.answer,
        "prediction": prediction,
        "probabilities": list(probabilities),
        "correct": prediction == question.answer,
        **more,
    }


class Choices(ABC):
    """Multiple choice: what all ways of putting a question to a model share."""

    longest: int
    """Tokens of a sequence at most."""

    def __init__(self, card: Card, protocol: Protocol, data: Data, tokenizer: Tokenizer, context: int) -> None:
        """Tokenize every text once, in parallel."""
        self.card, self.protocol, self.flags = card, protocol, data.flags
        self.questions = labelled(data.questions, card, data.split)
        self.places = {question.uid: number for number, question in enumerate(self.questions)}
        self.starts = np.cumsum([0, *(len(question.options) for question in self.questions)])
        self.prepare(tokenizer, context)
        self.items: Sequence[Item] = Items(range(len(self.questions)), self._item)

    @abstractmethod
    def prepare(self, tokenizer: Tokenizer, context: int) -> None:
        """Tokenize the questions and set `longest`."""

    @abstractmethod
    def sequence(self, number: int, option: int) -> tuple[np.ndarray, int]:
        """Return the ids of an option of question `number`, and how many of them are of the first segment."""

    @abstractmethod
    def cuts(self) -> Mapping[str, int]:
        """Count what did not fit, for `constants`."""

    def _item(self, number: int) -> Item:
        question = self.questions[number]
        made = [self.sequence(number, option) for option in range(len(question.options))]
        ids, firsts = zip(*made, strict=True)
        targets = np.array([question.answer], dtype=np.int64)
        return Item(id=question.uid, request=Headed(ids=ids, firsts=firsts, targets=targets))

    def judge(self, item: Item, scored: Answered) -> Sample:
        """Record the probability of every option: the softmax of the head's outputs."""
        question = self.questions[self.places[item.id]]
        probabilities = shares([float(logits[0]) for logits in scored.logits])
        return choice_line(self.protocol, question, probabilities, tokens=item.request.inputs)

    def summarise(self, samples: Sequence[Sample]) -> tuple[list[Metric], int, int | None]:
        """Accuracy over all questions, each once, and over each group of them."""
        return summarise_choices(samples)

    def constants(self) -> Mapping[str, Any]:
        """Count questions, options, cuts and sequence lengths."""
        lengths = [length for item in self.items for length in item.request.lengths]
        return {
            "questions": len(self.questions),
            "passages": len({question.passage for question in self.questions}),
            "sequences": len(lengths),
            **self.cuts(),
            "mean_tokens": round(sum(lengths) / len(lengths), 2),
            "max_tokens": max(lengths),
        }


class _PairChoices(Choices):
    """Multiple choice for a BERT: `[CLS] first [SEP] second [SEP]` for every option."""

    def prepare(self, tokenizer: Tokenizer, context: int) -> None:
        """Tokenize contexts, each different one once, and what is asked of them."""
        self.longest = self.limit(context)
        if self.longest < LONGEST:
            self.flags = (*self.flags, f"window-{self.longest}")
        self.packer = Packer.of(tokenizer, self.longest)
        texts, self.context_of = numbered([question.context for question in self.questions])
        self.contexts = encode_all(tokenizer, [clean(text) for text in texts])
        self.options = encode_all(tokenizer, [text for question in self.questions for text in self.texts(question)])

    def limit(self, context: int) -> int:
        """Return the longest sequence for a model of a context of so many tokens."""
        return min(LONGEST, context)

    @abstractmethod
    def texts(self, question: Question) -> list[str]:
        """Return what stands beside the context, for every option."""


class RaceMegatron(_PairChoices):
    """RACE as Megatron-LM builds it: question and option, cut at 128 tokens, then the article, 512 in all."""

    def texts(self, question: Question) -> list[str]:
        """Return the question with each option in it."""
        return [question_with(option, question.question) for option in question.options]

    def asked(self, row: int) -> np.ndarray:
        """Return the tokens of a question with an option."""
        return self.options[row][:QA_LONGEST]

    def sequence(self, number: int, option: int) -> tuple[np.ndarray, int]:
        """Return `[CLS] question and option [SEP] article [SEP]`, the article cut off at its end."""
        return self.packer.pack(self.asked(int(self.starts[number]) + option), self.contexts[self.context_of[number]])

    def cuts(self) -> Mapping[str, int]:
        """Count options of which Megatron's limit cuts something off, and sequences that lack some of their article."""
        asked = np.array([len(self.asked(row)) for row in range(len(self.options))])
        articles = np.repeat(self.contexts.lengths[self.context_of], np.diff(self.starts))
        return {
            "cut_options": int((self.options.lengths > asked).sum()),
            "cut_articles": int((asked + articles + 3 > self.longest).sum()),
        }


class RaceLongestContext(RaceMegatron):
    """RACE with the whole of every question and option, and as much of the article as the model reads beside it."""

    def limit(self, context: int) -> int:
        """Return the model's whole context."""
        return context

    def prepare(self, tokenizer: Tokenizer, context: int) -> None:
        """Tokenize, and refuse an option that leaves no room for an article."""
        super().prepare(tokenizer, context)
        for number, question in enumerate(self.questions):
            longest = int(self.options.lengths[self.starts[number] : self.starts[number + 1]].max())
            if longest + 4 > self.longest:
                raise DataError(
                    f"`{question.uid}` has an option that takes {longest} tokens with its question, more than the "
                    f"model's context of {context} holds beside an article",
                    "use `race/megatron`, which cuts it, or a model of longer context",
                )

    def asked(self, row: int) -> np.ndarray:
        """Return all tokens of a question with an option."""
        return self.options[row]


class PiqaPair(_PairChoices):
    """PIQA for a BERT: `[CLS] goal [SEP] solution [SEP]`."""

    def texts(self, question: Question) -> list[str]:
        """Return the solutions."""
        return [clean(option) for option in question.options]

    def sequence(self, number: int, option: int) -> tuple[np.ndarray, int]:
        """Return the goal with one solution, cut off at its end if need be."""
        return self.packer.pack(self.contexts[self.context_of[number]], self.options[int(self.starts[number]) + option])

    def cuts(self) -> Mapping[str, int]:
        """Count sequences of which something is cut off."""
        goals = np.repeat(self.contexts.lengths[self.context_of], np.diff(self.starts))
        return {"cut_options": int((goals + self.options.lengths + 3 > self.longest).sum())}


class LastToken(Choices):
    """Multiple choice for a GPT: context, question and option, then `<|endoftext|>`, whose vector the head reads."""

    def prepare(self, tokenizer: Tokenizer, context: int) -> None:
        """Tokenize contexts, each different one once, and the line that follows each."""
        self.longest, self.end = context, tokenizer.end_of_text
        texts, self.context_of = numbered([question.context for question in self.questions])
        self.contexts = encode_all(tokenizer, [clean(text) for text in texts])
        lines = [f"\n{self.line(question, option)}" for question in self.questions for option in question.options]
        self.options = encode_all(tokenizer, lines)

    def line(self, question: Question, option: str) -> str:
        """Return question and option as one line."""
        return question_with(option, question.question) if question.question else clean(option)

    def sequence(self, number: int, option: int) -> tuple[np.ndarray, int]:
        """Return one option's ids; the context is cut off at its end, the option only where it fills all by itself."""
        asked = self.options[int(self.starts[number]) + option][: self.longest - 1]
        room = self.longest - 1 - len(asked)
        ids = np.concatenate([self.contexts[self.context_of[number]][:room], asked, [self.end]]).astype(np.int32)
        return ids, len(ids)

    def cuts(self) -> Mapping[str, int]:
        """Count sequences that lack some of their context, and those that lack some of their option."""
        contexts = np.repeat(self.contexts.lengths[self.context_of], np.diff(self.starts))
        return {
            "cut_options": int((self.options.lengths + 1 > self.longest).sum()),
            "cut_contexts": int((contexts + self.options.lengths + 1 > self.longest).sum()),
        }
