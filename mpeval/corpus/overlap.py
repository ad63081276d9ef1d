"""How much of a benchmark stands in a corpus word for word: the share of its n-grams that the corpus has too.

The Megatron-LM paper (section 5.2) reports 8-grams: at most 10.8 % of WikiText-103's test set and 1.4 % of LAMBADA's
were in its training data.  The GPT-2 paper measures the same with Bloom filters over the corpus; here the
benchmark's n-grams are hashed instead, so that the table is small whatever the corpus' size and wrong for one n-gram in
2**64 divided by the table's length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from mpeval.corpus.words import BREAK, ngram_hashes, whole_ngrams, word_hashes
from mpeval.data import Data
from mpeval.errors import DataError
from mpeval.questions.question import Question
from mpeval.tasks.cards import Card

UNKNOWN = "<unk>"
"""What WikiText has instead of a rare word: no n-gram with it is counted, for it could be any word."""

_SIEVE_BITS = 22
_BATCH = 1 << 21
_ARTICLE = re.compile(r"(?m)^(?= ?= (?!=)[^\n]*[^=\n] = ?\n ?\n)")
_WORD = re.compile(rf"{BREAK}|[^\W_]+")


@dataclass(frozen=True, kw_only=True)
class Table:
    """A benchmark's n-grams, and which of them a corpus has been seen to have."""

    task: str
    source: str
    digest: str
    flags: tuple[str, ...]
    length: int
    rows: tuple[str, ...]
    hashes: tuple[np.ndarray, ...]
    """Of each row, the hashes of its n-grams in order."""
    left_out: int
    """N-grams with an unknown word."""
    distinct: np.ndarray
    """All hashes, each once, sorted."""
    seen: np.ndarray
    """For each of `distinct`, whether the corpus has it; `mark` sets it."""
    sieve: np.ndarray
    """For each value of the top bits of a hash, whether any of `distinct` has it, bool [2**22]."""


@dataclass(frozen=True, kw_only=True)
class RowOverlap:
    """One row of a benchmark: its number from 1, its n-grams, how many the corpus has, and the passages they make."""

    row: int
    ngrams: int
    found: int
    passages: tuple[str, ...]

    @property
    def share(self) -> float:
        """Found n-grams per n-gram."""
        return self.found / self.ngrams


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What a corpus has of one benchmark; all counts are of n-grams, but `rows*` are of rows."""

    task: str
    source: str
    digest: str
    flags: tuple[str, ...]
    length: int
    ngrams: int
    found: int
    distinct: int
    distinct_found: int
    left_out: int
    rows: int
    rows_found: tuple[RowOverlap, ...]
    """Those with any found n-gram, in the benchmark's order."""

    @property
    def share(self) -> float:
        """Found n-grams per n-gram, each counted as often as the benchmark has it: the paper's figure."""
        return self.found / self.ngrams

    @property
    def distinct_share(self) -> float:
        """The same with each n-gram counted once."""
        return self.distinct_found / self.distinct

    def worst(self, rows: int) -> list[RowOverlap]:
        """Return the rows with the largest shares, largest first."""
        return sorted(self.rows_found, key=lambda row: (-row.share, -row.found, row.row))[:rows]


def table_of(card: Card, data: Data, length: int) -> Table:
    """Hash the n-grams of a benchmark's rows.

    The rows of a task that is one text are its articles, those of a task that asks are passages with their questions.

    Raises:
        DataError: no row has `length` words.
    """
    rows = _rows(card, data)
    words = [_words(row) for row in rows]
    hashes = tuple(ngram_hashes(row, length) for row in words)
    distinct = np.unique(np.concatenate(hashes))
    if not len(distinct):
        raise DataError(
            f"no row of `{data.source}` has {length} known words in a row", "ask for shorter ones by `--ngrams`"
        )
    sieve = np.zeros(1 << _SIEVE_BITS, dtype=np.bool_)
    sieve[_top(distinct)] = True
    return Table(
        task=card.name,
        source=data.source,
        digest=data.digest,
        flags=data.flags,
        length=length,
        rows=tuple(rows),
        hashes=hashes,
        left_out=sum(int(np.count_nonzero(~whole_ngrams(row, length))) for row in words),
        distinct=distinct,
        seen=np.zeros(len(distinct), dtype=np.bool_),
        sieve=sieve,
    )


def _rows(card: Card, data: Data) -> Sequence[str]:
    if data.questions:
        return passages(data.questions)
    return data.rows if card.format == "jsonl" else articles(data.text)


def passages(questions: Sequence[Question]) -> list[str]:
    """Return each passage once, followed by the questions about it and their options, a line each."""
    lines: dict[str, list[str]] = {}
    for item in questions:
        lines.setdefault(item.passage, [item.context]).extend(filter(None, (item.question, *item.options)))
    return ["\n".join(parts) for parts in lines.values()]


def articles(text: str) -> list[str]:
    """Cut WikiText before each heading of the first level, ` = Title = `; text before the first is an article too."""
    starts = [match.start() for match in _ARTICLE.finditer(text)]
    bounds = sorted({0, *starts, len(text)})
    return [text[start:end] for start, end in pairwise(bounds) if text[start:end].strip()]


def mark_texts(tables: Sequence[Table], texts: Iterable[str]) -> tuple[int, int]:
    """Mark every n-gram that the texts have; none crosses from one text to the next.  Return texts and words read."""
    documents = words = 0
    for batch in _batches(texts):
        documents += len(batch)
        hashes = _words(BREAK.join(batch))
        words += int(np.count_nonzero(hashes))
        for length in {table.length for table in tables}:
            found = ngram_hashes(hashes, length)
            for table in tables:
                if table.length == length:
                    mark(table, found)
    return documents, words


def mark(table: Table, hashes: np.ndarray) -> None:
    """Mark those of a benchmark's n-grams that stand among `hashes`."""
    possible = hashes[table.sieve[_top(hashes)]]
    places = np.minimum(np.searchsorted(table.distinct, possible), len(table.distinct) - 1)
    table.seen[places[table.distinct[places] == possible]] = True


def overlap_of(table: Table) -> Overlap:
    """Sum up what has been marked."""
    found = [table.seen[np.searchsorted(table.distinct, row)] for row in table.hashes]
    return Overlap(
        task=table.task,
        source=table.source,
        digest=table.digest,
        flags=table.flags,
        length=table.length,
        ngrams=sum(len(row) for row in table.hashes),
        found=sum(int(np.count_nonzero(row)) for row in found),
        distinct=len(table.distinct),
        distinct_found=int(np.count_nonzero(table.seen)),
        left_out=table.left_out,
        rows=len(table.rows),
        rows_found=tuple(
            RowOverlap(
                row=number,
                ngrams=len(row),
                found=int(np.count_nonzero(row)),
                passages=tuple(_passages(table.rows[number - 1], row, table.length)),
            )
            for number, row in enumerate(found, start=1)
            if row.any()
        ),
    )


def _passages(text: str, found: np.ndarray, length: int) -> Iterator[str]:
    """Yield the longest runs of words of a row that consist of found n-grams."""
    words = _WORD.findall(text.replace(UNKNOWN, BREAK).lower())
    starts = np.flatnonzero(whole_ngrams(_words(text), length))[found]
    for run in np.split(starts, np.flatnonzero(np.diff(starts) > 1) + 1):
        yield " ".join(words[run[0] : run[-1] + length])


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Yield texts in lists of some two million characters, for one short text is no work for arrays."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _words(text: str) -> np.ndarray:
    return word_hashes(text.replace(UNKNOWN, BREAK))


def _top(hashes: np.ndarray) -> np.ndarray:
    return hashes >> np.uint64(64 - _SIEVE_BITS)
