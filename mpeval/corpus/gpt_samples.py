"""GPT samples: the shuffled documents of a corpus laid end to end and cut into sequences, as Megatron cuts them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpeval.corpus.index_cache import Arrays, cached
from mpeval.corpus.indexed import IndexedDataset
from mpeval.errors import DataError

LAST_EPOCH_SHARE = 0.8
"""A last epoch of which less than this is used is shuffled by itself, so that no document is favoured."""


@dataclass(frozen=True, kw_only=True)
class GptSamples:
    """The samples of one corpus: `sequence` + 1 tokens, of which neighbours before the shuffle share one."""

    dataset: IndexedDataset
    order: npt.NDArray[np.int32]
    """Document numbers in reading order, every epoch's."""
    table: npt.NDArray[Any]
    """[samples + 1, 2]: place in `order` and token in that document at which a sample starts."""
    shuffle: npt.NDArray[Any]
    """Row of `table` for each sample number."""
    sequence: int

    def __len__(self) -> int:
        """Return how many samples all the epochs have."""
        return len(self.shuffle)

    def __getitem__(self, index: int) -> dict[str, npt.NDArray[Any]]:
        """Return `ids`, int64 [sequence + 1]: inputs are all but the last, targets all but the first."""
        pieces: list[npt.NDArray[Any]] = []
        for document, start, stop in self._spans(index):
            pieces += _read(self.dataset, document, start, stop)
        return {"ids": np.concatenate(pieces, dtype=np.int64)}

    def documents(self, index: int) -> list[str]:
        """Return `prefix:number` of each document of a sample, in order."""
        numbers = dict.fromkeys(document for document, _, _ in self._spans(index))
        return [f"{self.dataset.prefix}:{number}" for number in numbers]

    def _spans(self, index: int) -> list[tuple[int, int, int]]:
        """Return (document, first token, token after the last) of each piece of a sample."""
        row = int(self.shuffle[index])
        (place, start), (last, stop) = self.table[row].tolist(), self.table[row + 1].tolist()
        spans = []
        left = self.sequence + 1
        for document in self.order[place : last + 1].tolist():
            taken = min(_length(self.dataset, document) - start, left)
            if taken > 0:
                spans.append((document, start, start + taken))
            start, left = 0, left - taken
        assert (spans[-1][2], left) == (stop + 1, 0)
        return spans


def _length(dataset: IndexedDataset, document: int) -> int:
    """Return the tokens of a document."""
    return int(dataset.lengths[dataset.documents[document] : dataset.documents[document + 1]].sum())


def _read(dataset: IndexedDataset, document: int, start: int, stop: int) -> list[npt.NDArray[Any]]:
    """Return tokens `start` to `stop` of a document as views, one for each sequence that they lie in."""
    first, last = int(dataset.documents[document]), int(dataset.documents[document + 1])
    if last == first + 1:
        return [dataset.get(first, start, stop - start)]
    ends = np.cumsum(dataset.lengths[first:last], dtype=np.int64)
    sequence = int(np.searchsorted(ends, start, side="right"))
    pieces = []
    while start < stop:
        end = int(ends[sequence])
        offset = start - end + int(dataset.lengths[first + sequence])
        pieces.append(dataset.get(first + sequence, offset, min(end, stop) - start))
        start, sequence = max(start, end), sequence + 1
    return pieces


def document_lengths(dataset: IndexedDataset) -> npt.NDArray[np.int64]:
    """Return the tokens of every document, int64 [documents]."""
    ends = np.zeros(len(dataset) + 1, np.int64)
    np.cumsum(dataset.lengths, out=ends[1:])
    lengths: npt.NDArray[np.int64] = np.diff(ends[dataset.documents])
    return lengths


def epochs_for(samples: int, tokens: int, sequence: int) -> int:
    """Return how often `tokens` must be read for `samples`: the least E with (E tokens - 1) // sequence >= samples."""
    return -(-(samples * sequence + 1) // tokens)


def last_epoch_apart(samples: int, tokens: int, sequence: int) -> bool:
    """Say whether the last of several epochs is used for less than 80 % of its samples, and so shuffled by itself."""
    epochs = epochs_for(samples, tokens, sequence)
    before = ((epochs - 1) * tokens - 1) // sequence
    return epochs > 1 and samples - before < int(LAST_EPOCH_SHARE * ((tokens - 1) // sequence))


@dataclass(frozen=True, kw_only=True)
class GptPlan:
    """What the index of a corpus depends on, beside the corpus."""

    first: int
    """Its first document."""
    stop: int
    """The document after its last."""
    epochs: int
    apart: bool
    """Whether the last epoch is shuffled by itself."""
    sequence: int
    seed: int


def build_gpt_index(lengths: npt.NDArray[np.int64], plan: GptPlan) -> Arrays:
    """Return `order`, `table` and `shuffle` of the samples of some documents, bit for bit Megatron's.

    `lengths` are the tokens of each of these documents.  `order` is every epoch's documents, shuffled.  Sample i
    starts at token i x `sequence` of that order.
    """
    random = np.random.RandomState(plan.seed)
    order = _order(plan, random)
    starts = np.zeros(len(order) + 1, np.int64)
    np.cumsum(lengths[order - plan.first], out=starts[1:])
    samples = int(starts[-1] - 1) // plan.sequence
    tokens = np.arange(samples + 1) * plan.sequence
    places = np.searchsorted(starts, tokens, side="right") - 1
    small = max(len(order), int(lengths.max())) <= np.iinfo(np.int32).max
    table = np.empty((samples + 1, 2), np.int32 if small else np.int64)
    table[:, 0], table[:, 1] = places, tokens - starts[places]
    whole = samples if not plan.apart else (int(lengths.sum()) * (plan.epochs - 1) - 1) // plan.sequence
    shuffle = np.arange(samples, dtype=np.uint32 if samples < np.iinfo(np.uint32).max - 1 else np.int64)
    _shuffle_parts(shuffle, whole, random)
    return {"order": order, "table": table, "shuffle": shuffle}


def _order(plan: GptPlan, random: np.random.RandomState) -> npt.NDArray[np.int32]:
    """Return the documents of all epochs in random order, the last epoch's behind the others when it is apart."""
    documents = np.arange(plan.first, plan.stop, dtype=np.int32)
    order = np.tile(documents, plan.epochs)
    _shuffle_parts(order, len(documents) * (plan.epochs - plan.apart), random)
    return order


def _shuffle_parts(values: npt.NDArray[Any], first: int, random: np.random.RandomState) -> None:
    """Shuffle the `first` values and then, if there are more, the others."""
    random.shuffle(values[:first])
    if first < len(values):
        random.shuffle(values[first:])


def gpt_samples(
    dataset: IndexedDataset, documents: range, *, samples: int, sequence: int, seed: int, cache: Path | None
) -> GptSamples:
    """Return at least `samples` samples of some documents of a corpus, whole epochs of them.

    Raises:
        DataError: the documents have too few tokens for one sample.
    """
    lengths = document_lengths(dataset)[documents.start : documents.stop]
    tokens = int(lengths.sum())
    if tokens <= sequence:
        raise DataError(
            f"documents {documents.start:,} to {documents.stop - 1:,} of `{dataset.prefix}` have {tokens:,} tokens, "
            f"a sample of sequence {sequence:,} needs {sequence + 1:,}",
            "give the part a larger share by `--set split=...`, shorten `--set sequence=...` or add text",
        )
    plan = GptPlan(
        first=documents.start,
        stop=documents.stop,
        # more samples of the same epochs need no other index, so `samples` itself is not in it
        epochs=epochs_for(samples, tokens, sequence),
        apart=last_epoch_apart(samples, tokens, sequence),
        sequence=sequence,
        seed=seed,
    )
    identity = {"corpus": dataset.digest, **asdict(plan)}
    arrays = cached(cache, "gpt", identity, lambda: build_gpt_index(lengths, plan))
    return GptSamples(dataset=dataset, sequence=sequence, **arrays)
