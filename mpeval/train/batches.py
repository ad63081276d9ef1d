"""From sample numbers to tensors: which samples a rank takes in a step, stacked, checked and fetched ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from mpeval.corpus.samples import Samples
from mpeval.errors import DataError
from mpeval.parallel.group import Group

Tensor = torch.Tensor


Sample = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Fed:
    """One data-parallel rank's share of a step: micro-batches of stacked samples, and the samples' numbers."""

    micro: Sequence[dict[str, Tensor]]
    numbers: Sequence[int]


class Arrangement(Protocol):
    """How a rank's share of a step becomes micro-batches."""

    def cut(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Group the samples, by their places in the share; each is in exactly one group."""

    def stack(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Join the samples of one group."""


@dataclass(frozen=True)
class Even:
    """Micro-batches of `size` samples that are all of one shape."""

    size: int

    def cut(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Group the samples in their order."""
        places = list(range(len(samples)))
        return [places[start : start + self.size] for start in range(0, len(places), self.size)]

    def stack(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Stack every array along a new first dimension."""
        return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}


class Feeder:
    """The batches of a run on one rank; tensor-parallel ranks get the same ones.

    Step batches are consecutive samples; data-parallel rank d of p takes the d-th p-th of each, so the samples of a
    step depend on nothing but its number.
    """

    def __init__(self, samples: Samples, *, batch: int, arrangement: Arrangement, vocab: int, group: Group) -> None:
        """Keep what is needed; nothing is read yet."""
        self.samples, self.batch, self.arrangement, self.vocab = samples, batch, arrangement, vocab
        self.group = group

    def numbers(self, first: int) -> range:
        """Return the samples of this rank in the step that begins with sample `first`."""
        share = self.batch // self.group.dp.ranks
        begin = first + self.group.dp.rank * share
        return range(begin, begin + share)

    def fetch(self, first: int) -> Fed:
        """Read and stack this rank's samples of the step that begins with sample `first`.

        Raises:
            DataError: a token that the vocabulary does not have.
        """
        numbers = self.numbers(first)
        made = [self.samples[number] for number in numbers]
        for number, sample in zip(numbers, made, strict=True):
            self._check(number, sample["ids"])
        parts = [[made[place] for place in places] for places in self.arrangement.cut(made)]
        return Fed(micro=[self.arrangement.stack(part) for part in parts], numbers=numbers)

    def _check(self, number: int, ids: np.ndarray) -> None:
        if int(ids.max()) >= self.vocab or int(ids.min()) < 0:
            where = ", ".join(f"`{name}`" for name in self.samples.documents(number))
            raise DataError(
                f"sample {number} holds token {int(ids.max())}, the tokenizer has {self.vocab} (documents {where})",
                "give the tokenizer that the data was made with by `--tokenizer DIR`",
            )

    @contextmanager
    def ahead(self, first: int, end: int) -> Iterator[Iterator[Fed]]:
        """Give the steps' batches from sample `first` to `end`, the next one read while the current one is used."""
        with ThreadPoolExecutor(1) as pool:
            yield self._ahead(pool, first, end)

    def _ahead(self, pool: ThreadPoolExecutor, first: int, end: int) -> Iterator[Fed]:
        waiting: Future[Fed] | None = pool.submit(self.fetch, first) if first < end else None
        while waiting is not None:
            fed = waiting.result()
            first += self.batch
            waiting = pool.submit(self.fetch, first) if first < end else None
            yield self.moved(fed)

    def moved(self, fed: Fed) -> Fed:
        """Return the same on this rank's device."""
        device = self.group.device
        if device.type == "cpu":
            return fed
        micro = [{name: value.to(device, non_blocking=True) for name, value in part.items()} for part in fed.micro]
        return Fed(micro=micro, numbers=fed.numbers)

    def documents(self, numbers: Sequence[int]) -> list[str]:
        """Return the documents that some samples are made of, each once."""
        return list(dict.fromkeys(name for number in numbers for name in self.samples.documents(number)))
