"""Which sentences make a BERT sample: runs of whole sentences of one document, as Megatron's mapping has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mpeval.corpus.compiled import compiled
from mpeval.corpus.index_cache import Arrays

LONG_SENTENCE = 512
"""A document of several sentences of which one has more tokens than this is left out."""
SPECIAL_TOKENS = 3
"""[CLS] and two [SEP], for which a sample leaves room."""


def usable_documents(
    lengths: npt.NDArray[Any], bounds: npt.NDArray[np.int64], least: int
) -> tuple[npt.NDArray[np.int64], int, int]:
    """Find the documents that give samples: at least `least` sentences, and none too long.

    `bounds` (int64 [documents + 1]) are the sentences at which documents begin.  Returns the first sentence and the
    one after the last of each usable document (int64 [usable, 2]), how many documents were left out for too few
    sentences, and how many for a long one (a document of one sentence may be of any length).
    """
    sentences = np.diff(bounds)
    has_long = np.zeros(len(sentences), np.bool_)
    long = np.flatnonzero(lengths[bounds[0] : bounds[-1]] > LONG_SENTENCE) + bounds[0]
    has_long[np.searchsorted(bounds, long, side="right") - 1] = True
    few, too_long = sentences < least, (sentences > 1) & has_long
    usable = ~few & ~too_long
    spans = np.stack([bounds[:-1][usable], bounds[1:][usable]], axis=1)
    return spans, int(few.sum()), int((too_long & ~few).sum())


@dataclass(frozen=True, kw_only=True)
class BertPlan:
    """What the index of a corpus depends on, beside the corpus."""

    first: int
    """Its first document."""
    stop: int
    """The document after its last."""
    samples: int
    """How many are wanted at least."""
    sequence: int
    seed: int
    short_share: float
    """Chance of a sample that is shorter on purpose."""
    least: int
    """Sentences of a sample."""


def build_bert_index(lengths: npt.NDArray[Any], spans: npt.NDArray[np.int64], plan: BertPlan) -> Arrays:
    """Return `rows`: first sentence, sentence after the last and target length of each sample, shuffled.

    `lengths` are all sentences' tokens, `spans` the usable documents' sentences.  Whole epochs are made until there
    are enough rows.  Rows and order are bit for bit Megatron's, with a consequence that its rules do not mention: the
    length of a short sample comes out of the same random number that makes it short, so where
    round(1 / `short_share`) and `sequence` - 4 have a common divisor some lengths never occur.
    """
    longest = plan.sequence - SPECIAL_TOKENS
    ratio = int(1 / plan.short_share + 0.5) if plan.short_share > 0 else 0
    lengths = np.array(lengths, np.int32)  # aligned and writable, for which the loop is compiled once
    room = int(np.maximum((spans[:, 1] - spans[:, 0]) // plan.least, 1).sum())
    random, unused = np.random.RandomState(plan.seed), np.empty(0, np.uint32)
    rows, made = [], 0
    buffer = np.empty((room, 3), np.int32 if len(lengths) < 2**31 else np.int64)
    while made < plan.samples:
        if ratio:
            missing = room + len(spans) - len(unused)
            unused = np.concatenate([unused, random.randint(0, 2**32, missing, np.uint32)])
        count, drawn = compiled(_walk)(lengths, spans, unused, ratio, longest, plan.least, buffer)
        rows.append(buffer[:count].copy())
        made, unused = made + count, unused[drawn:]
    table = np.concatenate(rows)
    compiled(_shuffle)(table, plan.seed + 1)
    return {"rows": table}


def _walk(
    lengths: npt.NDArray[Any],
    spans: npt.NDArray[np.int64],
    draws: npt.NDArray[np.uint32],
    ratio: int,
    longest: int,
    least: int,
    rows: npt.NDArray[Any],
) -> tuple[int, int]:
    """Fill `rows` with one epoch's samples; return how many, and how many random numbers were used; compiled."""
    row = drawn = 0
    for document in range(len(spans)):
        begin, last = spans[document, 0], spans[document, 1]
        tokens = target = 0
        for sentence in range(begin, last):
            if sentence == begin:
                target = longest
                if ratio:
                    number = int(draws[drawn])
                    drawn += 1
                    if number % ratio == 0:
                        target = 2 + number % (longest - 1)
            tokens += lengths[sentence]
            left = last - sentence - 1
            if left == 0 or (tokens >= target and left > 1 and sentence + 1 - begin >= least):
                rows[row, 0], rows[row, 1], rows[row, 2] = begin, sentence + 1, target
                row += 1
                begin, tokens = sentence + 1, 0
        if ratio:
            drawn += 1  # Megatron draws a length after every sample, also after a document's last
    return row, drawn


def _shuffle(rows: npt.NDArray[Any], seed: int) -> None:
    """Shuffle rows in place (Fisher-Yates) by the numbers of the 64-bit Mersenne Twister MT19937-64; compiled."""
    size, middle = 312, 156
    one, low = np.uint64(1), np.uint64(0x7FFFFFFF)
    state = np.empty(size, np.uint64)
    state[0] = seed
    for index in range(1, size):
        before = state[index - 1]
        state[index] = np.uint64(6364136223846793005) * (before ^ (before >> np.uint64(62))) + np.uint64(index)
    used = size
    for last in range(len(rows) - 1, 0, -1):
        if used == size:
            for index in range(size):
                mixed = (state[index] & ~low) | (state[(index + 1) % size] & low)
                odd = np.uint64(0xB5026F5AA96619E9) * (mixed & one)
                state[index] = state[(index + middle) % size] ^ (mixed >> one) ^ odd
            used = 0
        word = state[used]
        used += 1
        word ^= (word >> np.uint64(29)) & np.uint64(0x5555555555555555)
        word ^= (word << np.uint64(17)) & np.uint64(0x71D67FFFEDA60000)
        word ^= (word << np.uint64(37)) & np.uint64(0xFFF7EEE000000000)
        word ^= word >> np.uint64(43)
        other = np.int64(word % np.uint64(last + 1))
        for column in range(rows.shape[1]):
            rows[last, column], rows[other, column] = rows[other, column], rows[last, column]
