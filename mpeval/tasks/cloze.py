"""LAMBADA: predict the last word of a passage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from mpeval.data import Data
from mpeval.errors import DataError
from mpeval.items import Request, Scored
from mpeval.results import Metric
from mpeval.statistics import accuracy_metric, mean_perplexity_metric
from mpeval.tasks.base import Item, Sample, sample_line
from mpeval.tasks.cards import Card, Protocol
from mpeval.tokenizer import Tokenizer

Pairs = Iterable[tuple[list[int], list[int]]]


def strict_pairs(rows: Sequence[str], tokenizer: Tokenizer) -> Pairs:
    """Context and target as Megatron-LM's `--strict-lambada` makes them.

    The word is the last piece between white space, the context all before its last occurrence, stripped; the target
    is the tokens of a space and the word, so a word after a newline is scored as if after a space.
    """
    words = [row.split()[-1] for row in rows]
    contexts = [row[: row.rfind(word)].strip() for row, word in zip(rows, words, strict=True)]
    targets = tokenizer.encode_batch([" " + word for word in words])
    return zip(tokenizer.encode_batch(contexts), targets, strict=True)


def last_token_pairs(rows: Sequence[str], tokenizer: Tokenizer) -> Pairs:
    """Only the last token of the whole text is the target: Megatron-LM's default, not the paper's."""
    return ((ids[:-1], ids[-1:]) for ids in tokenizer.encode_batch(rows))


def harness_pairs(rows: Sequence[str], tokenizer: Tokenizer) -> Pairs:
    """Context and target as lm-eval's `lambada_openai` makes them.

    The word is what follows the last space.  Context and word are tokenized together, and the target is what that
    has beyond the tokens of the context alone; spaces at the context's end belong to the target.  An empty context
    is one end-of-text token.
    """
    contexts = [row.rpartition(" ")[0].rstrip() for row in rows]
    alone = tokenizer.encode_batch(contexts)
    whole = tokenizer.encode_batch([row if " " in row else f" {row}" for row in rows])
    for start, ids in zip(alone, whole, strict=True):
        yield (ids[: len(start)] if start else [tokenizer.end_of_text]), ids[len(start) :]


PAIRS: dict[str, Callable[[Sequence[str], Tokenizer], Pairs]] = {
    "lambada/megatron-strict": strict_pairs,
    "lambada/megatron-last-token": last_token_pairs,
    "lambada/lm-eval-openai": harness_pairs,
}


def summarise_cloze(samples: Sequence[Sample]) -> tuple[list[Metric], int, int]:
    """Return accuracy over passages and perplexity per target word, passages, and how many are right.

    The perplexity is exp of the mean summed negative log-likelihood.
    """
    correct = sum(bool(sample["correct"]) for sample in samples)
    losses = [-float(sample["log_probability"]) for sample in samples]
    metrics = [accuracy_metric(correct, len(samples)), mean_perplexity_metric("target_perplexity", losses)]
    return metrics, len(samples), correct


class Lambada:
    """LAMBADA under one of three protocols; an item is a passage, correct if every target token is greedy."""

    def __init__(self, card: Card, protocol: Protocol, data: Data, tokenizer: Tokenizer, context: int) -> None:
        """Tokenize every row; a row that has nothing before its last word is an error."""
        self.card, self.protocol, self.flags, self.context = card, protocol, data.flags, context
        self.tokenizer = tokenizer
        items = []
        for number, (before, target) in enumerate(PAIRS[protocol.id](data.rows, tokenizer)):
            if not before or not target:
                raise DataError(
                    f"`{data.source}` row {number + 1} leaves no context before its last word",
                    f"its text is {data.rows[number][:60]!r}; {protocol.id} cannot score it",
                )
            items.append(Item(id=f"{number:05d}", request=Request(context=before, target=target)))
        self.items: Sequence[Item] = items

    def judge(self, item: Item, scored: Scored) -> Sample:
        """Record target and prediction as text; the prediction is token by token, given the true tokens before."""
        assert isinstance(item.request, Request)
        return sample_line(
            self,
            item,
            scored,
            target=self.tokenizer.decode(list(item.request.target)),
            prediction=self.tokenizer.decode(scored.best.tolist()),
            correct=scored.greedy,
        )

    def summarise(self, samples: Sequence[Sample]) -> tuple[list[Metric], int, int | None]:
        """Accuracy over passages, and perplexity per target word."""
        return summarise_cloze(samples)

    def constants(self) -> Mapping[str, Any]:
        """Count rows, target lengths and input lengths."""
        requests = [item.request for item in self.items if isinstance(item.request, Request)]
        lengths = Counter(len(request.target) for request in requests)
        totals = [request.inputs + 1 for request in requests]
        return {
            "rows": len(self.items),
            "target_tokens": {str(length): lengths[length] for length in sorted(lengths)},
            "multi_token_targets": sum(count for length, count in lengths.items() if length > 1),
            "mean_tokens": round(sum(totals) / len(totals), 2),
            "max_tokens": max(totals),
        }
