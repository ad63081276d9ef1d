"""BERT's masking: which words of a sample are to be predicted, and what stands in their place."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MASKED = 0.8
"""Share of chosen tokens that become [MASK]; half of the others stay, half become a random token."""
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """What masking must know of a WordPiece vocabulary."""

    cls: int
    sep: int
    mask: int
    pad: int
    vocab: int
    """Tokens, of which a random one is drawn."""
    continuation: npt.NDArray[np.bool_]
    """[vocab]: True for pieces that go on with the word before them (`##`)."""


def ngram_chances(ngrams: int) -> list[float]:
    """Return the cumulative chances of runs of 1 to `ngrams` words, each in proportion to 1 / its length."""
    chances = 1.0 / np.arange(1, ngrams + 1)
    cumulative = (chances / chances.sum()).cumsum()
    return [float(chance) for chance in cumulative / cumulative[-1]]


def whole_words(ids: Ids, special: SpecialIds) -> tuple[list[int], list[int]]:
    """Return the positions of ordinary tokens, and the places in that list at which words start and the last ends.

    A piece that continues a word belongs to it, also where a separator stands between; the first starts a word.
    """
    positions = np.flatnonzero((ids != special.cls) & (ids != special.sep))
    starts = ~special.continuation[ids[positions]]
    starts[:1] = True
    return positions.tolist(), [*np.flatnonzero(starts).tolist(), len(positions)]


def mask_words(
    ids: Ids, special: SpecialIds, *, target: int, share: float, chances: list[float], random: np.random.RandomState
) -> tuple[Ids, Ids]:
    """Mask whole words of one unpadded sample; return the new ids and the labels (-1 where nothing is predicted).

    At most min(`share` x `target`, max(1, round(`share` x tokens))) tokens are chosen, `target` being the length
    that the sample was to have: words in random order, each with up to as many that follow it as `chances` (of
    `ngram_chances`) say, fewer when that is too many; a run that touches a chosen word is passed over.  The random
    numbers are used in the order in which Megatron's BERT dataset uses them, so the outcome is the same.
    """
    positions, starts = whole_words(ids, special)
    words = len(starts) - 1
    limit = int(min(share * target, max(1, round(len(ids) * share))))
    order = np.arange(words)
    random.shuffle(order)
    masked, labels = ids.copy(), np.full(len(ids), -1, np.int64)
    chosen: set[int] = set()
    for word in order.tolist():
        if len(chosen) >= limit:
            break
        longest = 1 + bisect_right(chances, random.random_sample())
        for run in range(longest, 0, -1):
            span = positions[starts[word] : starts[min(word + run, words)]]
            if len(chosen) + len(span) <= limit:
                break
        else:
            continue
        if chosen.isdisjoint(span):
            chosen.update(span)
            for position in span:
                labels[position] = ids[position]
                masked[position] = _replacement(int(ids[position]), special, random)
    return masked, labels


def _replacement(token: int, special: SpecialIds, random: np.random.RandomState) -> int:
    """Return what stands in the place of a chosen token."""
    if random.random_sample() < MASKED:
        return special.mask
    return int(random.randint(0, special.vocab)) if random.random_sample() >= 0.5 else token
