"""WikiText-103: perplexity of one long text read through windows."""

from __future__ import annotations

import bisect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mpeval.data import Data
from mpeval.errors import DataError
from mpeval.items import Request, Scored
from mpeval.results import Metric
from mpeval.statistics import ratio_perplexity_metrics
from mpeval.tasks.base import Item, Sample, sample_line
from mpeval.tasks.cards import Card, Protocol
from mpeval.tokenizer import Tokenizer

_PUNCTUATION = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."), *((f" {sign} ", f"{sign} ") for sign in ":;.!?,"))
_PAIRED = (
    r"\(\s*([^\)]*?)\s*\)",
    r"\[\s*([^\]]*?)\s*\]",
    r"\{\s*([^}]*?)\s*\}",
    r'"\s*([^"]*?)\s*"',
    r"'\s*([^']*?)\s*'",
)
_PAIRS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
_LAST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def detokenize(text: str) -> str:
    """Undo WikiText's word-level tokenization, rule by rule as Megatron-LM and lm-eval do.

    Their rule for quoted digits matches only a literal `/' 7/` and is kept for exactness.
    """
    text = text.replace("s '", "s'")
    text = re.sub(r"/' [0-9]/", r"/'[0-9]/", text)
    for old, new in _PUNCTUATION:
        text = text.replace(old, new)
    for pattern, (left, right) in zip(_PAIRED, _PAIRS, strict=True):
        text = re.sub(pattern, rf"{left}\1{right}", text)
    for old, new in _LAST:
        text = text.replace(old, new)
    return text


def count_windows(tokens: int, stride: int) -> int:
    """Return how many windows Megatron-LM makes of a text of `tokens` tokens, the useless ones at its end included."""
    return max(-(-max(tokens - 1 - stride, 0) // stride) + 1, 1)


def windows(tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, first target, end) of each window that scores anything, as positions in the text.

    ::
        window 0     [start ............ window]          scores all its targets
        window 1        [+stride .............. ]          scores its last `stride` targets
        window 2           [+2 stride ............ ]       and so on: every token but the first exactly once

    The model reads tokens start .. end-2 and predicts tokens first .. end-1.
    """
    first = 1
    start = 0
    while first < tokens:
        end = min(start + window + 1, tokens)
        yield start, first, end
        first = end
        start += stride


class WikiText:
    """WikiText-103 under one window protocol; an item is a window."""

    def __init__(self, card: Card, protocol: Protocol, data: Data, tokenizer: Tokenizer, context: int) -> None:
        """Detokenize and tokenize the whole text once, and lay the windows over it."""
        self.card, self.protocol = card, protocol
        published = protocol.window or context
        self.window = min(published, context)
        self.stride = min(protocol.stride or self.window, self.window)
        self.flags = data.flags + ((f"window-{self.window}",) if self.window < published else ())
        self.original_tokens = len(data.text.strip().split(" "))
        self.words = len(data.text.split())
        text = detokenize(data.text)
        ids, offsets = tokenizer.encode_with_offsets(text)
        if len(ids) < 2 or self.original_tokens < 2:
            raise DataError(
                f"`{data.source}` is too short to measure perplexity on", "give a text of at least two words"
            )
        self.tokens = np.asarray(ids, dtype=np.int64)
        self.documents = article_numbers(text, offsets)
        self.bounds = list(windows(len(ids), self.window, self.stride))
        self.items: Sequence[Item] = [
            Item(
                id=f"window-{number:06d}",
                request=Request(context=self.tokens[start:first], target=self.tokens[first:end]),
            )
            for number, (start, first, end) in enumerate(self.bounds)
        ]

    @property
    def token_ratio(self) -> float:
        """Scored tokens per original word-level token, (T - 1) / (To - 1)."""
        return (len(self.tokens) - 1) / (self.original_tokens - 1)

    def judge(self, item: Item, scored: Scored) -> Sample:
        """Record the window's loss, and its share by article: [article, negative log-likelihood, tokens]."""
        _, first, end = self.bounds[int(item.id.removeprefix("window-"))]
        return sample_line(self, item, scored, documents=article_shares(self.documents[first:end], scored))

    def summarise(self, samples: Sequence[Sample]) -> tuple[list[Metric], int, int | None]:
        """Token, word and token-ratio-adjusted perplexity; intervals treat articles as the independent units."""
        losses, counts = article_sums(samples)
        metrics = ratio_perplexity_metrics(
            losses,
            counts,
            {
                "adjusted_perplexity": self.token_ratio,
                "token_perplexity": 1.0,
                "word_perplexity": (len(self.tokens) - 1) / self.words,
            },
        )
        return metrics, sum(counts), None

    def constants(self) -> Mapping[str, Any]:
        """Count original and scored tokens and windows."""
        return {
            "original_tokens": self.original_tokens,
            "words": self.words,
            "scored_tokens": len(self.tokens) - 1,
            "token_ratio": self.token_ratio,
            "windows": count_windows(len(self.tokens), self.stride),
            "useful_windows": len(self.items),
            "articles": int(self.documents.max()) + 1,
        }


def article_shares(documents: np.ndarray, scored: Scored) -> list[list[float]]:
    """Return [article, negative log-likelihood, tokens] of each article that scored tokens, one of each, belong to."""
    shares: dict[int, list[float]] = defaultdict(lambda: [0.0, 0])
    for document, log in zip(documents.tolist(), scored.log_probabilities.tolist(), strict=True):
        shares[document][0] -= log
        shares[document][1] += 1
    return [[document, *share] for document, share in sorted(shares.items())]


def article_sums(samples: Sequence[Sample]) -> tuple[list[float], list[int]]:
    """Add up the shares of all samples: negative log-likelihoods and tokens of each article, in their order."""
    losses: dict[int, float] = defaultdict(float)
    counts: dict[int, int] = defaultdict(int)
    for sample in samples:
        for document, loss, tokens in sample["documents"]:
            losses[document] += loss
            counts[document] += int(tokens)
    order = sorted(losses)
    return [losses[document] for document in order], [counts[document] for document in order]


def article_numbers(text: str, offsets: Sequence[int]) -> np.ndarray:
    """Return the article number of each token: articles begin at the headings `= Title =` of the first level."""
    starts = [match.start() for match in re.finditer(r"(?m)^ ?= (?!=)[^\n]*[^=\n] = ?$", text)] or [0]
    return np.asarray([max(0, bisect.bisect_right(starts, offset) - 1) for offset in offsets], dtype=np.int32)
