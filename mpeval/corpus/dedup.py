"""Which documents of a corpus are too short or near-duplicates of earlier ones, by MinHash and banded sorting.

The Megatron-LM paper (section 4.1) drops documents below 128 tokens and, by locality-sensitive hashing, those whose
Jaccard similarity to another is above 0.7.  Here MinHash signatures (datasketch) only propose pairs; every pair is
decided by the exact similarity of its shingle sets.  The index over signatures is a sort per band: with them it takes
0.8 KB a document (3 KB where every second one is a duplicate), where datasketch's own index takes 8 KB.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from mpeval.corpus.words import ngram_hashes, word_hashes
from mpeval.errors import UsageError

RECALL = 0.95
"""The chance, at least, that a pair just above the threshold is proposed; pairs further above are surer."""

_BATCH = 512
_SLICE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What is dropped: documents of fewer than `minimum` tokens, and those above `threshold` (None: no duplicates)."""

    minimum: int = 128
    threshold: float | None = 0.7
    ngrams: int = 5
    permutations: int = 128
    seed: int = 1


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A document that goes, the earlier one that stays for it, both counted from 0, and their exact similarity."""

    document: int
    of: int
    jaccard: float


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """What becomes of each document of a corpus, in order."""

    tokens: np.ndarray
    """Length of each document, int64 [documents]."""
    kept: np.ndarray
    """Whether it stays, bool [documents]."""
    short: np.ndarray
    """Whether it goes because it is too short, bool [documents]."""
    duplicates: tuple[Duplicate, ...]
    compared: int
    """Pairs whose exact similarity was computed."""


@dataclass(frozen=True, kw_only=True)
class _Sketches:
    """Documents as far as comparing them needs: signatures, and shingle sets spooled to a file."""

    documents: np.ndarray
    """The number of each sketched document, int64 [sketched]."""
    signatures: np.ndarray
    """MinHash values, uint32 [sketched, permutations]."""
    bounds: np.ndarray
    """Where each shingle set begins in `shingles`, int64 [sketched + 1]."""
    shingles: np.ndarray
    """All sets one after the other, each sorted, uint64."""


def judge(
    texts: Iterable[str],
    settings: Filter,
    spool: IO[bytes],
    count: Callable[[list[str]], Sequence[int]] | None = None,
) -> Verdicts:
    """Decide for every document whether it stays.

    A document goes if its similarity to an earlier one that stays is above the threshold; so nothing goes without
    something like it staying, and the first of several stays.

    Args:
        texts: the documents in order; read once.
        settings: what is dropped.
        spool: an empty temporary file, for 8 bytes per distinct shingle of every document that is long enough.
        count: gives the lengths of documents in tokens; None counts words.
    """
    lengths: list[int] = []
    sketches = _sketch(texts, settings, spool, count, lengths)
    tokens = np.asarray(lengths, dtype=np.int64)
    short = tokens < settings.minimum
    duplicates: list[Duplicate] = []
    compared = 0
    if settings.threshold is not None and len(sketches.documents):
        duplicates, compared = _duplicates(sketches, settings)
    kept = ~short
    kept[[item.document for item in duplicates]] = False
    return Verdicts(tokens=tokens, kept=kept, short=short, duplicates=tuple(duplicates), compared=compared)


def shingles(text: str, length: int) -> np.ndarray:
    """Return the set of a document's word n-grams as sorted hashes, uint64; a shorter document is one shingle."""
    return _shingles(word_hashes(text), length)


def jaccard(left: np.ndarray, right: np.ndarray) -> float:
    """Return the exact Jaccard similarity of two sets of sorted hashes."""
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common / (len(left) + len(right) - common)


def bands(threshold: float, permutations: int) -> tuple[int, int]:
    """Return how many bands of how many signature values propose pairs above `threshold` with a chance of `RECALL`.

    A pair of similarity s agrees in a whole band of r values, in one of b bands, with the chance 1 - (1 - s^r)^b;
    longer bands propose fewer pairs below the threshold.

    Raises:
        UsageError: there are too few permutations for so low a threshold.
    """
    for rows in range(permutations, 0, -1):
        if 1 - (1 - threshold**rows) ** (permutations // rows) >= RECALL:
            return permutations // rows, rows
    raise UsageError(
        f"{permutations} permutations cannot find pairs of Jaccard similarity {threshold:g} with a chance of {RECALL}",
        "give more by `--permutations`, or a higher `--threshold`",
    )


def proposals(signatures: np.ndarray, count: int, rows: int) -> Iterator[tuple[int, list[int]]]:
    """Yield each document that shares a whole band with another, in order, with its shared bands' bucket numbers."""
    buckets = np.full((len(signatures), count), -1, dtype=np.int32)
    for band in range(count):
        keys = _band_keys(signatures[:, band * rows : (band + 1) * rows])
        _, inverse, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        shared = sizes[inverse] > 1
        buckets[shared, band] = inverse[shared]
    for document in np.flatnonzero((buckets >= 0).any(axis=1)).tolist():
        numbers = buckets[document].astype(np.int64) * count + np.arange(count)
        yield document, numbers[buckets[document] >= 0].tolist()


def _sketch(
    texts: Iterable[str],
    settings: Filter,
    spool: IO[bytes],
    count: Callable[[list[str]], Sequence[int]] | None,
    lengths: list[int],
) -> _Sketches:
    """Read all texts, append their lengths to `lengths`, and sketch those long enough."""
    documents, sizes, signatures = [], [0], bytearray()
    sign = _signer(settings)
    for batch in _batches(texts):
        words = [word_hashes(text) for text in batch]
        found = count(batch) if count is not None else [int(np.count_nonzero(row)) for row in words]
        for text_words, tokens in zip(words, found, strict=True):
            lengths.append(tokens)
            if settings.threshold is None or tokens < settings.minimum:
                continue
            documents.append(len(lengths) - 1)
            unique = _shingles(text_words, settings.ngrams)
            sizes.append(len(unique))
            spool.write(unique.tobytes())
            signatures += sign(unique).tobytes()
    spool.flush()
    return _Sketches(
        documents=np.asarray(documents, dtype=np.int64),
        signatures=np.frombuffer(signatures, dtype=np.uint32).reshape(len(documents), settings.permutations),
        bounds=np.cumsum(sizes, dtype=np.int64),
        shingles=np.memmap(spool, dtype=np.uint64, mode="r") if documents else np.empty(0, dtype=np.uint64),
    )


def _duplicates(sketches: _Sketches, settings: Filter) -> tuple[list[Duplicate], int]:
    """Compare each document with the earlier ones that stay and share a band with it."""
    assert settings.threshold is not None
    staying: dict[int, list[int]] = defaultdict(list)
    found: list[Duplicate] = []
    compared = 0
    for index, buckets in proposals(sketches.signatures, *bands(settings.threshold, settings.permutations)):
        own = _set_of(sketches, index)
        for other in sorted({member for bucket in buckets for member in staying[bucket]}):
            compared += 1
            similarity = jaccard(_set_of(sketches, other), own)
            if similarity > settings.threshold:
                document, of = int(sketches.documents[index]), int(sketches.documents[other])
                found.append(Duplicate(document=document, of=of, jaccard=similarity))
                break
        else:
            for bucket in buckets:
                staying[bucket].append(index)
    return found, compared


def _set_of(sketches: _Sketches, index: int) -> np.ndarray:
    return sketches.shingles[sketches.bounds[index] : sketches.bounds[index + 1]]


def _shingles(words: np.ndarray, length: int) -> np.ndarray:
    found = ngram_hashes(words, length)
    if not len(found):
        known = words[words > 0]
        found = ngram_hashes(known, len(known)) if len(known) else np.zeros(1, dtype=np.uint64)
    return np.unique(found)


def _signer(settings: Filter) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from a set of shingles to its MinHash values, uint32 [permutations]."""
    from datasketch import MinHash

    first = MinHash(num_perm=settings.permutations, seed=settings.seed, hashfunc=int)

    def sign(unique: np.ndarray) -> np.ndarray:
        made: Any = MinHash(
            num_perm=settings.permutations,
            seed=settings.seed,
            hashfunc=int,
            permutations=first.permutations,
            scheme=first.scheme,
        )
        # the library makes a table of values x permutations, which a book would take gigabytes for
        for start in range(0, len(unique), _SLICE):
            made.update_batch((unique[start : start + _SLICE] >> np.uint64(32)).tolist())
        return np.asarray(made.hashvalues, dtype=np.uint32)

    return sign


def _band_keys(values: np.ndarray) -> np.ndarray:
    """Return one number for each row of a band, uint64; unequal rows with equal numbers only cost a comparison."""
    keys = np.zeros(len(values), dtype=np.uint64)
    for column in values.T:
        keys = keys * np.uint64(0x9E3779B97F4A7C15) + column
    return keys


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the texts in lists of `_BATCH`."""
    source = iter(texts)
    while batch := list(itertools.islice(source, _BATCH)):
        yield batch
