"""What a writer reads from: the tensors of a model by box, in the dtype and with the table rows it is to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from mpeval.checkpoint.sharded import ShardedCheckpoint
from mpeval.checkpoint.stored import Bounds
from mpeval.config import ModelConfig
from mpeval.parallel.layout import cut_of

Tensor = torch.Tensor


class Weights(Protocol):
    """The tensors of one model, of the shapes that `config` says."""

    @property
    def config(self) -> ModelConfig:
        """Return the model."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of canonical tensor `name`."""

    def read(self, name: str, bounds: Bounds | None = None) -> Tensor:
        """Return a box of `name` (default: all of it) as a new, contiguous tensor."""


@dataclass(frozen=True)
class MadeWeights:
    """Weights that a function makes: `make(name)` returns a full tensor, all of one dtype."""

    config: ModelConfig
    make: Callable[[str], Tensor]

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of canonical tensor `name`."""
        return self.make(name).dtype

    def read(self, name: str, bounds: Bounds | None = None) -> Tensor:
        """Return a box of `name` (default: all of it) as a new, contiguous tensor."""
        full = self.make(name)
        return full[tuple(slice(low, high) for low, high in bounds)].contiguous() if bounds else full


@dataclass(frozen=True)
class StoredWeights:
    """Weights of an open checkpoint, read when asked for; `config` may have more or fewer padding rows."""

    checkpoint: ShardedCheckpoint
    config: ModelConfig
    to: str | None = None
    """The dtype to convert to (default: each tensor's own)."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of canonical tensor `name`."""
        found: torch.dtype = getattr(torch, self.to or self.checkpoint.tensor(name).dtype)
        return found

    def read(self, name: str, bounds: Bounds | None = None) -> Tensor:
        """Return a box of `name` (default: all of it) as a new, contiguous tensor; new padding rows are zero."""
        tensor = self.checkpoint.tensor(name)
        box = list(bounds or [(0, extent) for extent in self.config.shapes()[name]])
        out = torch.empty([high - low for low, high in box], dtype=self.dtype(name))
        if cut_of(name).vocab:
            low, high = box[0]
            box[0] = (min(low, tensor.shape[0]), min(high, tensor.shape[0]))
            rows = box[0][1] - box[0][0]
            out[rows:].zero_()
            tensor.copy_into(out[:rows], box)
        else:
            tensor.copy_into(out, box)
        return out
