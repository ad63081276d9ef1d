"""Small tokenized corpora for tests of what is made out of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mpeval.corpus.indexed import IndexedDataset, IndexedWriter
from mpeval.corpus.samples import SpecialIds

VOCAB = 400


def write_corpus(prefix: Path, documents: Sequence[Sequence[Sequence[int]]]) -> IndexedDataset:
    """Write documents of sequences of token ids and open the result."""
    with IndexedWriter(prefix, np.dtype(np.uint16)) as writer:
        for document in documents:
            for sequence in document:
                writer.add(sequence)
            writer.end_document()
    return IndexedDataset(prefix)


def random_documents(
    documents: int, sentences: tuple[int, int], tokens: tuple[int, int], seed: int = 0
) -> list[list[list[int]]]:
    """Return documents with a random number of sentences (from, to) of a random number of tokens from 5 to VOCAB."""
    random = np.random.default_rng(seed)
    made = []
    for _ in range(documents):
        lengths = random.integers(*tokens, size=random.integers(*sentences, endpoint=True), endpoint=True)
        made.append([random.integers(5, VOCAB, size=length).tolist() for length in lengths])
    return made


def special_ids() -> SpecialIds:
    """Return special ids 0 to 3 for a vocabulary in which every third piece continues a word."""
    continuation = np.arange(VOCAB) % 3 == 1
    continuation[:5] = False
    return SpecialIds(cls=1, sep=2, mask=3, pad=0, vocab=VOCAB, continuation=continuation)
