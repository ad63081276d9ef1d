"""BERT samples: two runs of sentences of one document, perhaps in the wrong order, with words masked."""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpeval.corpus.bert_index import LONG_SENTENCE, SPECIAL_TOKENS, BertPlan, build_bert_index, usable_documents
from mpeval.corpus.index_cache import cached
from mpeval.corpus.indexed import IndexedDataset
from mpeval.corpus.masking import Ids, SpecialIds, mask_words, ngram_chances
from mpeval.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class BertSamples:
    """The samples of one corpus, of `sequence` tokens with padding; each is drawn anew from `seed` + its number."""

    dataset: IndexedDataset
    rows: npt.NDArray[Any]
    """[samples, 3]: first sentence, sentence after the last, tokens to have without special ones."""
    sequence: int
    seed: int
    special: SpecialIds
    mask_share: float
    chances: list[float]
    binary_head: bool
    short_documents: int
    """Documents left out because they have too few sentences."""
    long_documents: int
    """Documents left out because one of their sentences has more than 512 tokens."""
    generators: dict[int, np.random.RandomState] = field(default_factory=dict, repr=False, compare=False)
    """One for each thread, seeded anew for every sample: to make one takes fifty times as long."""

    def __len__(self) -> int:
        """Return how many samples all the epochs have."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, npt.NDArray[Any]]:
        """Return `ids`, `tokentypes`, `labels` (int64), `padding_mask` (bool) and `order` (int64 []) of a sample.

        Raises:
            DataError: a token id is not in the vocabulary.
        """
        index = range(len(self))[index]  # the seed depends on it, so -1 must be the last one's number
        begin, end, target = self.rows[index].tolist()
        random = self._random(index)
        sentences = self.dataset[begin:end]
        first, second, swapped = self._segments(sentences, random)
        first, second = trim(first, second, target, random)
        ids, types = self._joined(first, second)
        if ids.max() >= self.special.vocab:
            raise DataError(
                f"`{self.documents(index)[0]}` has token id {ids.max()}, the vocabulary has {self.special.vocab:,}",
                "give the tokenizer that the corpus was preprocessed with",
            )
        masked, labels = mask_words(
            ids, self.special, target=target, share=self.mask_share, chances=self.chances, random=random
        )
        return {
            "ids": self._padded(masked, self.special.pad),
            "tokentypes": self._padded(types, 0),
            "padding_mask": np.arange(self.sequence) < len(ids),
            "labels": self._padded(labels, -1),
            "order": np.array(int(swapped), np.int64),
        }

    def documents(self, index: int) -> list[str]:
        """Return `prefix:number` of the document of a sample."""
        number = int(np.searchsorted(self.dataset.documents, self.rows[index][0], side="right")) - 1
        return [f"{self.dataset.prefix}:{number}"]

    def _random(self, index: int) -> np.random.RandomState:
        """Return this thread's generator, seeded for a sample."""
        thread = threading.get_ident()
        if thread not in self.generators:
            self.generators[thread] = np.random.RandomState()
        self.generators[thread].seed((self.seed + index) % 2**32)
        return self.generators[thread]

    def _segments(self, sentences: list[npt.NDArray[Any]], random: np.random.RandomState) -> tuple[Ids, Ids, bool]:
        """Cut a run of sentences in two at a random place and, every other time, put the second part first."""
        if not self.binary_head:
            return _joined(sentences), np.empty(0, np.int64), False
        cut = random.randint(1, len(sentences)) if len(sentences) > 2 else 1
        first, second = _joined(sentences[:cut]), _joined(sentences[cut:])
        swapped = random.random_sample() < 0.5
        return (second, first, True) if swapped else (first, second, False)

    def _joined(self, first: Ids, second: Ids) -> tuple[Ids, Ids]:
        """Return [CLS] A [SEP] B [SEP] and the segment of each token; without B one [SEP]."""
        ids = np.concatenate([[self.special.cls], first, [self.special.sep], second, [self.special.sep]])
        ids = ids if len(second) else ids[:-1]
        return ids, (np.arange(len(ids)) >= len(first) + 2).astype(np.int64)

    def _padded(self, values: Ids, fill: int) -> Ids:
        """Return values with `fill` up to the sequence."""
        padded = np.full(self.sequence, fill, np.int64)
        padded[: len(values)] = values
        return padded


def _joined(sentences: list[npt.NDArray[Any]]) -> Ids:
    return np.concatenate(sentences, dtype=np.int64)


def trim(first: Ids, second: Ids, target: int, random: np.random.RandomState) -> tuple[Ids, Ids]:
    """Take tokens from the longer segment (the second when they are equal), front or back at random, until both fit."""
    bounds = [[0, len(first)], [0, len(second)]]
    lengths = [len(first), len(second)]
    while sum(lengths) > target:
        longer = 0 if lengths[0] > lengths[1] else 1
        lengths[longer] -= 1
        if random.random_sample() < 0.5:
            bounds[longer][0] += 1
        else:
            bounds[longer][1] -= 1
    return first[slice(*bounds[0])], second[slice(*bounds[1])]


def bert_samples(
    dataset: IndexedDataset,
    documents: range,
    *,
    samples: int,
    sequence: int,
    seed: int,
    special: SpecialIds,
    short_share: float,
    mask_share: float,
    ngrams: int,
    binary_head: bool,
    cache: Path | None,
) -> BertSamples:
    """Return at least `samples` samples of some documents of a corpus, whole epochs of them.

    Raises:
        ConfigError: a sequence, share or run length that no sample can have.
        DataError: the corpus is not split into sentences, or none of the documents gives a sample.
    """
    _check_settings(sequence, short_share, mask_share, ngrams)
    _check_sentences(dataset, binary_head)
    least = 2 if binary_head else 1
    bounds = np.array(dataset.documents[documents.start : documents.stop + 1], np.int64)
    spans, short, long = usable_documents(dataset.lengths, bounds, least)
    if not len(spans):
        raise DataError(
            f"no document from {documents.start:,} to {documents.stop - 1:,} of `{dataset.prefix}` gives a sample: "
            f"{short:,} have fewer than {least} sentences, {long:,} have one of more than {LONG_SENTENCE} tokens",
            "give the part a larger share by `--set split=...`, or add text",
        )
    plan = BertPlan(
        first=documents.start,
        stop=documents.stop,
        samples=samples,
        sequence=sequence,
        seed=seed,
        short_share=short_share,
        least=least,
    )
    identity = {"corpus": dataset.digest, **asdict(plan)}
    rows = cached(cache, "bert", identity, lambda: build_bert_index(dataset.lengths, spans, plan))["rows"]
    return BertSamples(
        dataset=dataset,
        rows=rows,
        sequence=sequence,
        seed=seed,
        special=special,
        mask_share=mask_share,
        chances=ngram_chances(ngrams),
        binary_head=binary_head,
        short_documents=short,
        long_documents=long,
    )


def _check_settings(sequence: int, short_share: float, mask_share: float, ngrams: int) -> None:
    """Refuse what no sample can have."""
    least = SPECIAL_TOKENS + 2
    checks = [
        ("sequence", sequence, sequence >= least, f"at least {least}"),
        ("short_share", short_share, 0 <= short_share <= 1, "from 0 to 1"),
        ("mask_share", mask_share, 0 < mask_share < 1, "above 0 and below 1"),
        ("mask_ngrams", ngrams, ngrams >= 1, "at least 1"),
    ]
    for name, value, good, allowed in checks:
        if not good:
            raise ConfigError(f"{name} {value:g} of BERT samples is not {allowed}", f"change it by `--set {name}=...`")


def _check_sentences(dataset: IndexedDataset, binary_head: bool) -> None:
    """Refuse a corpus whose documents are one sequence each, unless they can be single sentences."""
    documents = len(dataset.documents) - 1
    unsplit = not np.any(np.diff(dataset.documents) > 1)
    if unsplit and (binary_head or dataset.lengths.max() > LONG_SENTENCE):
        raise DataError(
            f"`{dataset.prefix}` is not split into sentences: none of its {documents:,} documents has two sequences",
            "make it by `mpeval preprocess --split-sentences`",
        )
