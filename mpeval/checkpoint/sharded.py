"""A checkpoint as one logical model: named full tensors, read by slice from however many shards hold them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mpeval.checkpoint.logical import LogicalTensor, largest_gap, whole
from mpeval.config import ModelConfig
from mpeval.errors import CheckpointError
from mpeval.parallel.layout import cut_of


@dataclass(frozen=True, kw_only=True)
class Accounted:
    """What became of one stored entry: read as canonical `name`, or ignored for a `reason`."""

    file: str
    stored: str
    name: str | None
    reason: str

    @property
    def used(self) -> bool:
        """Whether the entry is part of the model."""
        return self.name is not None


@dataclass(frozen=True, kw_only=True)
class ShardedCheckpoint:
    """An opened checkpoint.  Nothing but headers has been read; tensors are read when asked for."""

    path: Path
    """The folder of the iteration."""
    root: Path
    """The folder above it, where a tokenizer may lie."""
    format: str
    version: float
    iteration: int
    release: bool
    grid: tuple[int, int]
    """Tensor-parallel and pipeline-parallel size of the files."""
    config: ModelConfig
    tensors: Mapping[str, LogicalTensor]
    args: Mapping[str, Any] = field(default_factory=dict)
    entries: tuple[Accounted, ...] = ()
    tied_copies: tuple[LogicalTensor, ...] = ()

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, as stored."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def dtype(self) -> str:
        """The dtype of the stored token table."""
        return self.tensors["embedding.word.weight"].dtype

    def tensor(self, name: str) -> LogicalTensor:
        """Return the full tensor called `name` (mpeval's canonical name)."""
        if name not in self.tensors:
            raise CheckpointError(
                f"`{self.path}` has no tensor `{name}`", f"it has: {', '.join(list(self.tensors)[:6])}, ..."
            )
        return self.tensors[name]

    def accounting(self) -> tuple[Accounted, ...]:
        """Return every stored entry once: used, or ignored with a reason."""
        return self.entries

    def ignored(self) -> dict[str, int]:
        """Return how many stored entries were left out, by reason."""
        return dict(sorted(Counter(entry.reason for entry in self.entries if not entry.used).items()))

    def with_vocab(self, vocab: int, origin: str) -> ShardedCheckpoint:
        """Return the same checkpoint with the true vocabulary size filled in."""
        return replace(self, config=self.config.changed(origin, vocab=vocab))

    def check(self) -> None:
        """Compare what must be equal: replicas on tensor ranks, and the copies of a tied token table.

        Raises:
            CheckpointError: the copies differ; the checkpoint was damaged or saved while diverging.
        """
        for error in self.unequal_copies():
            raise error

    def unequal_copies(self) -> Iterator[CheckpointError]:
        """Yield an error for every tensor whose copies differ."""
        for name, tensor in self.tensors.items():
            for copy in tensor.copies:
                yield from self._compared(name, replace(tensor, copies=()), whole(name, copy))
        for tied in self.tied_copies:
            yield from self._compared(
                "the tied output layer",
                self.tensors["embedding.word.weight"],
                tied,
                "; if this model's output layer is not tied, say so by `--set tied=false`",
            )

    def _compared(
        self, what: str, left: LogicalTensor, right: LogicalTensor, more: str = ""
    ) -> Iterator[CheckpointError]:
        if left.shape != right.shape:
            yield CheckpointError(
                f"`{self.path}`: {what} has copies of shapes {list(left.shape)} and {list(right.shape)}",
                "files of two checkpoints are mixed, or one is damaged; copy all shards again",
            )
            return
        gap = largest_gap(left, right)
        gap = float("inf") if gap != gap else gap
        if gap:
            yield CheckpointError(
                f"`{self.path}`: {what} is stored in copies that differ by up to {gap:.3g}",
                f"the checkpoint is damaged or was saved while diverging; use another iteration{more}",
            )

    def tensor_digest(self, name: str, dtype: str | None = None) -> str:
        """Return the sha256 of one full tensor's values in row-major order, without padding rows.

        With `dtype`, the digest that the tensor has after a conversion to it.
        """
        import torch

        tensor, dtype = self.tensor(name), dtype or self.tensor(name).dtype
        rows = self.config.vocab if cut_of(name).vocab else None
        digest = hashlib.sha256()
        for bounds in tensor.chunks(rows):
            digest.update(tensor.peek(bounds, dtype).view(torch.uint8).numpy().data)
        shape = (rows, *tensor.shape[1:]) if rows is not None else tensor.shape
        return hashlib.sha256(f"{name} {dtype} {list(shape)} {digest.hexdigest()}".encode()).hexdigest()

    def digest(self) -> str:
        """Return `sha256:...` over all tensors: the same for the same weights in any layout.

        Names, dtypes, shapes and values count; file names, shard grid, padding rows and optimizer state do not.
        """
        return combine_digests({name: self.tensor_digest(name) for name in self.tensors})


def combine_digests(digests: Mapping[str, str]) -> str:
    """Combine the digests of all tensors of a model into one."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()
