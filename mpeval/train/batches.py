"""From sample numbers to tensors: which samples a rank takes in a step, stacked, checked and fetched ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from mpeval.corpus.samples import Samples
from mpeval.errors import DataError
from mpeval.parallel.group import Group

Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Fed:
    """One data-parallel rank's share of a step: micro-batches of stacked samples, and the samples' numbers."""

    micro: Sequence[dict[str, Tensor]]
    numbers: Sequence[int]


class Feeder:
    """The batches of a run on one rank; tensor-parallel ranks get the same ones.

    Step batches are consecutive samples; data-parallel rank d of p takes the d-th p-th of each, so the samples of a
    step depend on nothing but its number.
    """

    def __init__(self, samples: Samples, *, batch: int, micro_batch: int, vocab: int, group: Group) -> None:
        """Keep what is needed; nothing is read yet."""
        self.samples, self.batch, self.micro_batch, self.vocab = samples, batch, micro_batch, vocab
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
        parts = [made[start : start + self.micro_batch] for start in range(0, len(made), self.micro_batch)]
        return Fed(micro=[_stacked(part) for part in parts], numbers=numbers)

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


def _stacked(samples: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}
