"""Several corpora as one, each with its share of the samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from mpeval.corpus.compiled import compiled
from mpeval.corpus.index_cache import Arrays, cached
from mpeval.errors import UsageError

SURPLUS = 0.005
"""How many more samples each corpus is asked for than its share, as Megatron does."""
MOST = 2**15 - 1
"""Corpora of a blend, whose numbers are stored in 16 bits."""


class Samples(Protocol):
    """Training samples by number: the same for every rank and worker, in an order already shuffled."""

    def __len__(self) -> int:
        """Return how many there are: at least as many as were asked for."""

    def __getitem__(self, index: int) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays of one sample.

        GPT: `ids` int64 [sequence + 1].  BERT: `ids`, `tokentypes` and `labels` (-1 where nothing is to be
        predicted) int64 [sequence], `padding_mask` bool [sequence] (True at tokens, False at padding), `order`
        int64 [] (1: the second segment stands first).
        """

    def documents(self, index: int) -> list[str]:
        """Return `prefix:number` of every document that tokens of the sample come from."""


@dataclass(frozen=True, kw_only=True)
class Blend:
    """Samples of several corpora in proportion to their weights; `len` is exactly what was asked for."""

    parts: tuple[Samples, ...]
    corpus: npt.NDArray[np.int16]
    """Which corpus a sample comes from."""
    number: npt.NDArray[np.int64]
    """Which of that corpus's samples it is."""

    def __len__(self) -> int:
        """Return how many samples the blend has."""
        return len(self.corpus)

    def __getitem__(self, index: int) -> dict[str, npt.NDArray[Any]]:
        """Return a sample."""
        return self.parts[int(self.corpus[index])][int(self.number[index])]

    def documents(self, index: int) -> list[str]:
        """Return `prefix:number` of the documents of a sample."""
        return self.parts[int(self.corpus[index])].documents(int(self.number[index]))


def normalised(weights: Sequence[float]) -> list[float]:
    """Return weights whose sum is 1.

    Raises:
        UsageError: a weight is not above 0 and finite, or there are too many.
    """
    if not 0 < len(weights) <= MOST:
        raise UsageError(f"a blend of {len(weights)} corpora", f"give 1 to {MOST:,} corpora")
    for weight in weights:
        if not 0 < weight < math.inf:
            raise UsageError(
                f"weight {weight:g} of a corpus is not above 0", "leave the corpus out, or weigh it above 0"
            )
    # numpy's sum, so that the last bit is the one that Megatron's greedy choice sees
    return [float(weight) for weight in np.array(weights, np.float64) / np.sum(np.array(weights, np.float64))]


def asked_of(weight: float, samples: int) -> int:
    """Return how many samples a corpus of normalised `weight` is to have for a blend of `samples`."""
    return math.ceil(math.ceil(samples * weight) * (1 + SURPLUS))


def blend(parts: Sequence[Samples], weights: Sequence[float], samples: int, cache: Path | None) -> Blend:
    """Mix `samples` of the `parts`, whose normalised `weights` say in what proportion.

    Every sample is taken from the corpus that is furthest behind its share so far; each corpus's samples come in
    their own order.  `parts` must have `asked_of` samples each.
    """

    def build() -> Arrays:
        corpus, number = np.empty(samples, np.int16), np.empty(samples, np.int64)
        compiled(_choose)(np.array(weights, np.float64), corpus, number)
        return {"corpus": corpus, "number": number}

    arrays = cached(cache, "blend", {"weights": list(weights), "samples": samples}, build)
    return Blend(parts=tuple(parts), corpus=arrays["corpus"], number=arrays["number"])


def _choose(weights: npt.NDArray[np.float64], corpus: npt.NDArray[np.int16], number: npt.NDArray[np.int64]) -> None:
    """Fill `corpus` and `number`, one sample after the other; compiled."""
    counts = np.zeros(len(weights), np.int64)
    for sample in range(len(corpus)):
        chosen, furthest = 0, -np.inf
        for candidate in range(len(weights)):
            behind = weights[candidate] * max(sample, 1) - counts[candidate]
            if behind > furthest:
                chosen, furthest = candidate, behind
        corpus[sample], number[sample] = chosen, counts[chosen]
        counts[chosen] += 1
