"""Questions as training samples: which one a step takes, and micro-batches of sequences of about one length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from mpeval.items import Headed, Item, Likelihoods
from mpeval.train.batches import Sample

Tensor = torch.Tensor
OVERHEAD = 64
"""Tokens that a micro-batch costs at least besides its own: measured on a CPU, 23 million parameters."""


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """Which question comes when: every epoch takes them all once, in an order of its own, but for an unfilled batch.

    As Megatron's finetuning does: the order of an epoch is drawn from seed + epoch, and what is left when no whole
    batch can be filled is not trained on in that epoch.
    """

    questions: int
    batch: int
    seed: int

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return self.questions // self.batch

    def place(self, sample: int) -> int:
        """Return which question training sample `sample` is, counted over all epochs."""
        epoch, at = divmod(sample, self.steps * self.batch)
        return int(_order(self.questions, self.seed + epoch)[at])


@lru_cache(maxsize=4)
def _order(questions: int, seed: int) -> np.ndarray:
    return np.random.RandomState(seed % 2**32).permutation(questions)


class QuestionSamples:
    """The items of a task as `Samples`.

    Each is `ids`, all its sequences one after the other; `lengths` and `firsts` of each sequence, the latter being
    the tokens of the first segment, or of the prompt; and `targets` as its request has them.
    """

    def __init__(self, items: Sequence[Item], epochs: Epochs, context: int) -> None:
        """Keep the items; nothing is made yet."""
        self.items, self.epochs, self.context = items, epochs, context

    def __len__(self) -> int:
        """Count the samples of one epoch."""
        return self.epochs.steps * self.epochs.batch

    def __getitem__(self, index: int) -> Sample:
        """Return training sample `index`, counted over all epochs."""
        request = self.items[self.epochs.place(index)].request
        assert isinstance(request, Headed | Likelihoods)
        if isinstance(request, Headed):
            ids, firsts = request.ids, request.firsts
        else:  # what does not fit is cut off the left of the prompt, as in scoring
            ids = tuple(
                np.concatenate([option.context, option.target])[-self.context - 1 :] for option in request.options
            )
            firsts = tuple(len(row) - len(option.target) for row, option in zip(ids, request.options, strict=True))
        return {
            "ids": np.concatenate(ids).astype(np.int64),
            "lengths": np.array([len(row) for row in ids], dtype=np.int64),
            "firsts": np.array(firsts, dtype=np.int64),
            "targets": request.targets,
        }

    def documents(self, index: int) -> list[str]:
        """Return the uid of a sample's question."""
        return [self.items[self.epochs.place(index)].id]


@dataclass(frozen=True)
class Packed:
    """Micro-batches of whole questions of about one length, each within `budget` tokens, padding included."""

    budget: int

    @property
    def overhead(self) -> int:
        """Tokens whose computation takes about as long as a micro-batch takes besides its tokens' computation."""
        return max(OVERHEAD, self.budget // 32)

    def cut(self, samples: Sequence[Sample]) -> list[list[int]]:
        """Group samples, longest first, so that tokens with padding, and `overhead` per group, are fewest in all.

        One that is longer than the budget has a group of its own.
        """
        longest = [int(sample["lengths"].max()) for sample in samples]
        order = sorted(range(len(samples)), key=lambda place: (-longest[place], place))
        best = [(0, 0)]  # of the first samples in that order: what they cost, and where their last group begins
        for end in range(1, len(order) + 1):
            costs: list[tuple[int, int]] = []
            rows = 0
            for begin in reversed(range(end)):
                rows += len(samples[order[begin]]["lengths"])
                tokens = rows * longest[order[begin]]
                if costs and tokens > self.budget:
                    break
                costs.append((best[begin][0] + tokens + self.overhead, begin))
            best.append(min(costs))
        groups: list[list[int]] = []
        end = len(order)
        while end:
            begin = best[end][1]
            groups.append(order[begin:end])
            end = begin
        return groups[::-1]

    def stack(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return `ids` [rows, longest], padded on the right with 0, `lengths` and `firsts` [rows], and `targets`."""
        lengths = np.concatenate([sample["lengths"] for sample in samples])
        ids = np.zeros((len(lengths), int(lengths.max())), dtype=np.int64)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate([sample["ids"] for sample in samples])
        return {
            "ids": torch.from_numpy(ids),
            "lengths": torch.from_numpy(lengths),
            "firsts": torch.from_numpy(np.concatenate([sample["firsts"] for sample in samples])),
            "targets": torch.from_numpy(np.concatenate([sample["targets"] for sample in samples])),
        }
