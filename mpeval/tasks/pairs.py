"""Two texts and a class for the head to give them: MNLI and QQP, as Megatron-LM builds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpeval.data import Data
from mpeval.items import Answered, Headed
from mpeval.results import Metric
from mpeval.statistics import f1_metric
from mpeval.tasks.base import Item, Sample
from mpeval.tasks.cards import Card, Protocol
from mpeval.tasks.choice import choice_line, labelled, shares
from mpeval.tasks.packing import LONGEST, Items, Packer, clean, encode_all, numbered
from mpeval.tasks.summary import summarise_choices
from mpeval.tokenizer import Tokenizer


def summarise_pairs(samples: Sequence[Sample]) -> tuple[list[Metric], int, int]:
    """Return metrics, the number of pairs, and how many are right, of lines of `samples.jsonl`.

    Accuracy comes first; where there are two classes (QQP), F1 of class 1 follows, the other metric of GLUE.

    Raises:
        DataError: no samples, or a pair whose class nobody has published.
    """
    (accuracy, *_), pairs, correct = summarise_choices(samples)
    if any(len(sample["probabilities"]) != 2 for sample in samples):
        return [accuracy], pairs, correct
    f1 = f1_metric([sample["target"] for sample in samples], [sample["prediction"] for sample in samples])
    return [accuracy, f1], pairs, correct


class Pairs:
    """MNLI and QQP for a BERT: `[CLS] first [SEP] second [SEP]`, cleaned and cut as Megatron-LM does."""

    def __init__(self, card: Card, protocol: Protocol, data: Data, tokenizer: Tokenizer, context: int) -> None:
        """Tokenize every text once, in parallel.

        Raises:
            UsageError: the classes of the set are not public.
        """
        self.card, self.protocol = card, protocol
        self.questions = labelled(data.questions, card, data.split)
        self.places = {question.uid: number for number, question in enumerate(self.questions)}
        self.longest = min(LONGEST, context)
        self.flags = data.flags + ((f"window-{self.longest}",) if self.longest < LONGEST else ())
        self.packer = Packer.of(tokenizer, self.longest)
        # premises have several hypotheses, and QQP's questions are in several pairs: each text is kept once
        both = [text for question in self.questions for text in (question.context, question.question)]
        texts, rows = numbered(both)
        self.rows = np.array(rows, dtype=np.int32).reshape(-1, 2)
        """[pairs, 2], where the first and the second text of each pair are in `texts`."""
        self.texts = encode_all(tokenizer, [clean(text) for text in texts])
        self.items: Sequence[Item] = Items(range(len(self.questions)), self._item)

    def _item(self, number: int) -> Item:
        first, second = self.rows[number]
        question = self.questions[number]
        ids, firsts = self.packer.pack(self.texts[first], self.texts[second])
        targets = np.array([question.answer], dtype=np.int64)
        return Item(id=question.uid, request=Headed(ids=(ids,), firsts=(firsts,), targets=targets))

    def judge(self, item: Item, scored: Answered) -> Sample:
        """Record the probability of every class: the softmax of the head's outputs; the first of equals is chosen."""
        question = self.questions[self.places[item.id]]
        line = choice_line(self.protocol, question, shares(scored.logits[0]), tokens=item.request.inputs)
        del line["passage"]  # no two pairs share one
        return line

    def summarise(self, samples: Sequence[Sample]) -> tuple[list[Metric], int, int | None]:
        """Accuracy over pairs, and F1 of class 1 where there are two classes."""
        return summarise_pairs(samples)

    def constants(self) -> Mapping[str, Any]:
        """Count pairs, those of each class, different texts, cuts and sequence lengths."""
        whole = self.texts.lengths[self.rows].sum(axis=1) + 3
        lengths = np.minimum(whole, self.longest)
        classes = Counter(question.answer for question in self.questions)
        return {
            "questions": len(self.questions),
            "classes": {str(number): classes[number] for number in sorted(classes)},
            "texts": len(self.texts),
            "cut_pairs": int((whole > self.longest).sum()),
            "mean_tokens": round(float(lengths.mean()), 2),
            "max_tokens": int(lengths.max()),
        }
