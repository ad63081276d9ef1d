"""What a writer reads from: the tensors of a model by box, in the dtype and with the table rows it is to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch

from mpeval.checkpoint.sharded import ShardedCheckpoint
from mpeval.checkpoint.stored import THREADS, Bounds
from mpeval.config import ModelConfig

Tensor = torch.Tensor


class Weights(Protocol):
    """The tensors of one model, of the shapes that `config` says."""

    @property
    def config(self) -> ModelConfig:
        """Return the model."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of canonical tensor `name`."""

    def read(self, name: str, bounds: Bounds | None = None) -> Tensor:
        """Return a box of `name` (default: all of it), to be looked at and not changed."""


class MadeWeights:
    """Weights that a function makes: `make(name)` returns a full tensor, all of one dtype."""

    def __init__(self, config: ModelConfig, make: Callable[[str], Tensor]) -> None:
        """Keep the function; what it made last is kept too, as writers ask for it a few rows at a time."""
        self.config = config
        self._make = lru_cache(maxsize=THREADS)(make)

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of canonical tensor `name`."""
        return self._make(name).dtype

    def read(self, name: str, bounds: Bounds | None = None) -> Tensor:
        """Return a box of `name` (default: all of it) as a new, contiguous tensor."""
        full = self._make(name)
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
        """Return a box of `name` (default: all of it) to look at; padding rows that the source lacks are zero."""
        tensor = self.checkpoint.tensor(name)
        box = list(bounds or [(0, extent) for extent in self.config.shapes()[name]])
        if box[0][1] <= tensor.shape[0]:
            return tensor.peek(box, self.to)
        out = torch.zeros([high - low for low, high in box], dtype=self.dtype(name))
        low, high = min(box[0][0], tensor.shape[0]), tensor.shape[0]
        tensor.copy_into(out[: high - low], [(low, high), *box[1:]])
        return out
