"""Texts to the sequences that task heads read: Megatron's cleaning, ids of many texts at once, two texts in one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from mpeval.corpus.index_cache import Arrays, cached
from mpeval.tasks.base import Item
from mpeval.tokenizer import Tokenizer

LONGEST = 512
"""Tokens of a sequence, special ones included, under Megatron's protocols (its `--seq-length`)."""
CHUNK = 8192
"""Texts that are tokenized at a time, in parallel."""


def clean(text: str) -> str:
    """Return a text as Megatron cleans it: white space is single spaces, and ` . ` is `. ` (three passes)."""
    text = re.sub(r"\s+", " ", text)
    for _ in range(3):
        text = text.replace(" . ", ". ")
    return text


@dataclass(frozen=True)
class Ragged:
    """Rows of ids of any lengths, one after the other in one array."""

    flat: np.ndarray
    """int32, all rows."""
    ends: np.ndarray
    """[rows + 1] int64, where each row begins and the last one ends."""

    def __getitem__(self, row: int) -> np.ndarray:
        """Return a row as a view."""
        return self.flat[self.ends[row] : self.ends[row + 1]]

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.ends) - 1

    @property
    def lengths(self) -> np.ndarray:
        """[rows] int64."""
        return np.diff(self.ends)


def encode_all(tokenizer: Tokenizer, texts: Sequence[str]) -> Ragged:
    """Return the ids of many texts, tokenized in parallel, or as they lie in the tokenizer's cache by content."""

    def build() -> dict[str, np.ndarray]:
        parts: list[np.ndarray] = []
        lengths = np.zeros(len(texts) + 1, dtype=np.int64)
        for begin in range(0, len(texts), CHUNK):
            rows = tokenizer.encode_batch(texts[begin : begin + CHUNK])
            parts.append(np.fromiter((token for row in rows for token in row), dtype=np.int32))
            lengths[begin + 1 : begin + 1 + len(rows)] = [len(row) for row in rows]
        return {"flat": np.concatenate([*parts, np.zeros(0, np.int32)]), "ends": lengths.cumsum()}

    found = cached_of(tokenizer, texts, "ids", build)
    return Ragged(found["flat"], found["ends"])


def cached_of(tokenizer: Tokenizer, texts: Sequence[str], name: str, build: Callable[[], Arrays]) -> Arrays:
    """Return what `build` makes of texts, or what lies under `name` and their content in the tokenizer's cache."""
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return cached(tokenizer.cache, name, {"tokenizer": tokenizer.digest, "texts": digest.hexdigest()}, build)


def numbered(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return each different text once, in order of appearance, and for every text which of them it is."""
    places: dict[str, int] = {}
    numbers = [places.setdefault(text, len(places)) for text in texts]
    return list(places), numbers


@dataclass(frozen=True, kw_only=True)
class Packer:
    """Two texts as one sequence for a BERT: `[CLS] first [SEP] second [SEP]`."""

    cls: int
    sep: int
    longest: int
    """Tokens of a sequence at most."""

    @classmethod
    def of(cls, tokenizer: Tokenizer, longest: int) -> Packer:
        """Take the special tokens of a BERT's tokenizer.

        Raises:
            TokenizerError: it has none.
        """
        return cls(cls=tokenizer.special_id("[CLS]"), sep=tokenizer.special_id("[SEP]"), longest=longest)

    def pack(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, int]:
        """Return the sequence, int32, and how many of its tokens are of the first segment.

        As Megatron packs: what does not fit is cut off the end, and the last token is always a [SEP], of type 1.
        """
        ids = np.empty(min(len(first) + len(second) + 3, self.longest), dtype=np.int32)
        body = np.concatenate([[self.cls], first, [self.sep], second])[: len(ids) - 1]
        ids[:-1] = body
        ids[-1] = self.sep
        return ids, min(len(first) + 2, len(ids) - 1)


class Items(Sequence[Item]):
    """Items that are made when they are asked for: a training set of them would not fit in memory."""

    def __init__(self, numbers: range, make: Callable[[int], Item]) -> None:
        """Keep which items there are, and what makes one of its number."""
        self._numbers, self._make = numbers, make

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> Items: ...

    def __getitem__(self, index: int | slice) -> Item | Items:
        """Make one item, or return a part of the sequence without making any."""
        if isinstance(index, slice):
            return Items(self._numbers[index], self._make)
        return self._make(self._numbers[index])

    def __len__(self) -> int:
        """Count the items."""
        return len(self._numbers)
