"""WikiText-103: perplexity of one long text, or of each of its pages, read through windows."""

from __future__ import annotations

import bisect
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpeval.data import Data
from mpeval.errors import DataError
from mpeval.items import Request, Scored, page_windows
from mpeval.results import Metric
from mpeval.statistics import bits_metric, ratio_perplexity_metrics
from mpeval.tasks.base import Item, Sample, sample_line
from mpeval.tasks.cards import Card, Protocol
from mpeval.tasks.packing import encode_all
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


@dataclass(frozen=True, kw_only=True)
class TextSize:
    """How long a text is as it was published."""

    tokens: int
    """Pieces between single spaces."""
    words: int
    """Pieces between white space."""

    def ratio(self, scored: int) -> float:
        """Return how many tokens a model scored for each piece but the first."""
        return scored / (self.tokens - 1)


def size_of(text: str) -> TextSize:
    """Count a text before its tokenization is undone."""
    return TextSize(tokens=len(text.strip().split(" ")), words=len(text.split()))


def summarise_windows(samples: Sequence[Sample], *, scored: int, text: TextSize) -> tuple[list[Metric], int, None]:
    """Return token-ratio-adjusted, token and word perplexity, and how many tokens the samples have.

    Args:
        samples: lines of `samples.jsonl`.
        scored: tokens that all windows of the text score.
        text: its size.
    """
    losses, counts = article_sums(samples)
    scales = {
        "adjusted_perplexity": text.ratio(scored),
        "token_perplexity": 1.0,
        "word_perplexity": scored / text.words,
    }
    return ratio_perplexity_metrics(losses, counts, scales), sum(counts), None


class WikiText:
    """WikiText-103 under one window protocol; an item is a window."""

    def __init__(self, card: Card, protocol: Protocol, data: Data, tokenizer: Tokenizer, context: int) -> None:
        """Detokenize and tokenize the whole text once, and lay the windows over it."""
        self.card, self.protocol = card, protocol
        published = protocol.window or context
        self.window = min(published, context)
        self.stride = min(protocol.stride or self.window, self.window)
        self.flags = data.flags + ((f"window-{self.window}",) if self.window < published else ())
        self.size = size_of(data.text)
        text = detokenize(data.text)
        ids, offsets = tokenizer.encode_with_offsets(text)
        if len(ids) < 2 or self.size.tokens < 2:
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
        return self.size.ratio(len(self.tokens) - 1)

    def judge(self, item: Item, scored: Scored) -> Sample:
        """Record the window's loss, and its share by article: [article, negative log-likelihood, tokens]."""
        _, first, end = self.bounds[int(item.id.removeprefix("window-"))]
        return sample_line(self, item, scored, documents=article_shares(self.documents[first:end], scored))

    def summarise(self, samples: Sequence[Sample]) -> tuple[list[Metric], int, int | None]:
        """Token, word and token-ratio-adjusted perplexity; intervals treat articles as the independent units."""
        return summarise_windows(samples, scored=len(self.tokens) - 1, text=self.size)

    def constants(self) -> Mapping[str, Any]:
        """Count original and scored tokens and windows."""
        return {
            "original_tokens": self.size.tokens,
            "words": self.size.words,
            "scored_tokens": len(self.tokens) - 1,
            "token_ratio": self.token_ratio,
            "windows": count_windows(len(self.tokens), self.stride),
            "useful_windows": len(self.items),
            "articles": int(self.documents.max()) + 1,
        }


def pages_of(text: str) -> list[str]:
    """Cut a text into pages as the document-level data set is cut that lm-eval's `wikitext` reads.

    A page begins at each line that looks like the title of an article: white space at its ends aside, and two or three
    equals signs with spaces between them taken for one word, it begins with `= ` and ends with ` =`.  WikiText's test
    set has 60 articles and two more such lines, formulas.  The line break before a page belongs to none; neither do
    blank lines before the first.
    """
    parts: list[list[str]] = [[]]
    for line in text.split("\n"):
        bare = line.replace("= = =", "===").replace("= =", "==").strip()
        if bare.startswith("= ") and bare.endswith(" ="):
            parts.append([])
        parts[-1].append(line)
    return [page for page in map("\n".join, parts) if page.strip()]


class WikiTextPages:
    """WikiText as lm-eval's `wikitext` scores it, each page by itself; an item is a window.

    Perplexities are per word and byte of the pages as they are in the file, before their tokenization is undone; words
    are the pieces between white space, the empty ones at both ends of a page among them.
    """

    def __init__(self, card: Card, protocol: Protocol, data: Data, tokenizer: Tokenizer, context: int) -> None:
        """Detokenize and tokenize every page, and lay windows of the model's context over each."""
        self.card, self.protocol, self.flags, self.window = card, protocol, data.flags, context
        pages = pages_of(data.text)
        self.words, self.bytes = sizes_of(pages)
        self.rows = encode_all(tokenizer, [detokenize(page) for page in pages])
        self.items: Sequence[Item] = list(self._items(tokenizer.end_of_text))

    def _items(self, end_of_text: int) -> Iterator[Item]:
        for page in range(len(self.rows)):
            tokens = np.concatenate([[end_of_text], self.rows[page]]).astype(np.int64)
            for number, (start, first, end) in enumerate(page_windows(len(tokens) - 1, self.window)):
                yield Item(
                    id=f"page-{page:04d}-window-{number:04d}",
                    request=Request(context=tokens[start:first], target=tokens[first:end]),
                )

    def judge(self, item: Item, scored: Scored) -> Sample:
        """Record the window's loss as the share of its page: [page, negative log-likelihood, tokens]."""
        page = int(item.id.split("-")[1])
        return sample_line(self, item, scored, documents=article_shares(np.full(len(scored.best), page), scored))

    def summarise(self, samples: Sequence[Sample]) -> tuple[list[Metric], int, int | None]:
        """Perplexity per word and byte, and bits per byte; a page that is not whole counts by its scored tokens."""
        losses, counts = article_sums(samples)
        pages = sorted({int(page) for sample in samples for page, _, _ in sample["documents"]})
        whole = [count / int(self.rows.lengths[page]) for page, count in zip(pages, counts, strict=True)]
        words = [self.words[page] * share for page, share in zip(pages, whole, strict=True)]
        sizes = [self.bytes[page] * share for page, share in zip(pages, whole, strict=True)]
        return page_metrics(losses, words, sizes), sum(counts), None

    def constants(self) -> Mapping[str, Any]:
        """Count pages, their words and bytes, scored tokens and windows."""
        return {
            "pages": len(self.rows),
            "words": sum(self.words),
            "bytes": sum(self.bytes),
            "scored_tokens": len(self.rows.flat),
            "window": self.window,
            "windows": len(self.items),
        }


def sizes_of(pages: Sequence[str]) -> tuple[list[int], list[int]]:
    """Return words and bytes of each page; the empty pieces at both ends of one count as words."""
    return [len(re.split(r"\s+", page)) for page in pages], [len(page.encode()) for page in pages]


def page_metrics(losses: Sequence[float], words: Sequence[float], sizes: Sequence[float]) -> list[Metric]:
    """Return perplexity per word and byte, and bits per byte, of pages' losses (nats), words and bytes."""
    return [
        *ratio_perplexity_metrics(losses, words, {"word_perplexity": 1.0}),
        *ratio_perplexity_metrics(losses, sizes, {"byte_perplexity": 1.0}),
        bits_metric("bits_per_byte", losses, sizes),
    ]


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
