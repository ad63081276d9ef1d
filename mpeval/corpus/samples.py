"""Training samples out of tokenized corpora: the one way in for GPT and BERT."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mpeval.corpus.bert_samples import bert_samples
from mpeval.corpus.blend import Samples, asked_of, blend, normalised
from mpeval.corpus.gpt_samples import gpt_samples
from mpeval.corpus.indexed import IndexedDataset
from mpeval.corpus.masking import SpecialIds
from mpeval.corpus.splits import Part, documents_of
from mpeval.errors import ConfigError, DataError, UsageError

__all__ = ["Part", "Samples", "SpecialIds", "open_samples"]


def open_samples(
    family: Literal["gpt", "bert"],
    corpora: Sequence[tuple[float, IndexedDataset]],
    *,
    split: str = "969,30,1",
    part: Part,
    samples: int,
    sequence: int,
    seed: int,
    cache: Path | None,
    special: SpecialIds | None = None,
    short_share: float = 0.1,
    mask_share: float = 0.15,
    ngrams: int = 3,
    binary_head: bool = True,
) -> Samples:
    """Return at least `samples` training samples of one part of the corpora, each with its weight.

    They depend on the arguments and the corpora only, neither on ranks nor on processes.  `cache` is a folder in which
    what was built is kept under a name made of its contents.  The settings from `special` on are BERT's.

    Raises:
        ConfigError: a split or setting that cannot be.
        DataError: a corpus or its part has too little text, or is not split into sentences.
        OutputError: the cache cannot be written.
        UsageError: a weight is not above 0.
    """
    if samples < 1 or sequence < 1:
        raise ConfigError(f"{samples} samples of {sequence} tokens", "ask for at least one of each")
    if not 0 <= seed < 2**32:
        raise ConfigError(f"seed {seed} does not fit 32 bits", "choose one from 0 to 4294967295")

    def open_one(dataset: IndexedDataset, count: int) -> Samples:
        if not len(dataset):
            raise DataError(f"`{dataset.prefix}` is empty", "preprocess text into it, or leave it out")
        if dataset.dtype.kind not in "iu":
            raise DataError(f"`{dataset.prefix}` holds {dataset.dtype}, not token ids", "give a corpus of token ids")
        documents = documents_of(part, split, len(dataset.documents) - 1, str(dataset.prefix))
        if family == "gpt":
            return gpt_samples(dataset, documents, samples=count, sequence=sequence, seed=seed, cache=cache)
        assert special is not None, "BERT samples need the ids of special tokens"
        return bert_samples(
            dataset,
            documents,
            samples=count,
            sequence=sequence,
            seed=seed,
            special=special,
            short_share=short_share,
            mask_share=mask_share,
            ngrams=ngrams,
            binary_head=binary_head,
            cache=cache,
        )

    if not corpora:
        raise UsageError("no corpus is given", "give at least one by `--data PREFIX`")
    weights = normalised([weight for weight, _ in corpora])
    datasets = [dataset for _, dataset in corpora]
    if len(datasets) == 1:
        return open_one(datasets[0], samples)
    pairs = zip(weights, datasets, strict=True)
    return blend([open_one(dataset, asked_of(weight, samples)) for weight, dataset in pairs], weights, samples, cache)
