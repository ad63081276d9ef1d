"""A checkpoint as one logical model: named full tensors, read by slice from however many shards hold them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpeval.checkpoint.stored import CHUNK_BYTES, ITEM_SIZES, StoredTensor
from mpeval.config import ModelConfig
from mpeval.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LogicalTensor:
    """One full tensor, stored as consecutive `parts` along `dim` (None: one part holds it all).

    Index it with slices, `tensor[10:20]` or `tensor[:, 5:9]`, to read just that box.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    dim: int | None
    parts: tuple[StoredTensor, ...]
    copies: tuple[StoredTensor, ...] = ()
    """Other places of the file that must hold the same values as `parts[0]`: replicas on other tensor ranks."""

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Tensor:
        """Read a box of the tensor; slices have step 1."""
        slices = index if isinstance(index, tuple) else (index,)
        slices = (*slices, *[slice(None)] * (len(self.shape) - len(slices)))
        bounds = []
        for item, extent in zip(slices, self.shape, strict=True):
            low, high, step = item.indices(extent)
            if step != 1:
                raise ValueError("checkpoint tensors are read with step 1")
            bounds.append((low, max(low, high)))
        return self.read(bounds)

    def read(self, bounds: Sequence[tuple[int, int]]) -> Tensor:
        """Read the box `bounds` into a new tensor of the stored dtype."""
        import torch

        out = torch.empty([high - low for low, high in bounds], dtype=getattr(torch, self.dtype))
        self.copy_into(out, bounds)
        return out

    def copy_into(self, out: Tensor, bounds: Sequence[tuple[int, int]]) -> None:
        """Read the box `bounds` into `out`, converting to its dtype and device, touching only what it covers."""
        if self.dim is None:
            self.parts[0].copy_into(out, bounds)
            return
        start = 0
        low, high = bounds[self.dim]
        for part in self.parts:
            stop = start + part.shape[self.dim]
            first, last = max(low, start), min(high, stop)
            if first < last:
                inner = list(bounds)
                inner[self.dim] = (first - start, last - start)
                part.copy_into(out.narrow(self.dim, first - low, last - first), inner)
            start = stop

    def pieces(self, rows: int | None = None) -> Iterator[Tensor]:
        """Read the tensor (its first `rows` rows) in order, a bounded amount of memory at a time."""
        total = self.shape[0] if rows is None else rows
        row_bytes = ITEM_SIZES[self.dtype]
        for extent in self.shape[1:]:
            row_bytes *= extent
        step = max(1, CHUNK_BYTES // max(1, row_bytes))
        for start in range(0, total, step):
            yield self[start : min(start + step, total)]


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

    def with_vocab(self, vocab: int, origin: str) -> ShardedCheckpoint:
        """Return the same checkpoint with the true vocabulary size filled in."""
        return replace(self, config=self.config.changed(origin, vocab=vocab))

    def check(self) -> None:
        """Compare what must be equal: replicas on tensor ranks, and the copies of a tied token table.

        Raises:
            CheckpointError: the copies differ; the checkpoint was damaged or saved while diverging.
        """
        for tensor in self.tensors.values():
            whole = tensor.parts[:1]
            for copy in tensor.copies:
                self._same(
                    tensor.name, replace(tensor, dim=None, parts=whole), replace(tensor, dim=None, parts=(copy,))
                )
        for tied in self.tied_copies:
            self._same("the tied output layer", self.tensors["embedding.word.weight"], tied)

    def _same(self, what: str, left: LogicalTensor, right: LogicalTensor) -> None:
        import torch

        if left.shape != right.shape:
            raise CheckpointError(
                f"`{self.path}`: {what} has copies of shapes {list(left.shape)} and {list(right.shape)}",
                "files of two checkpoints are mixed, or one is damaged; copy all shards again",
            )
        for ours, theirs in zip(left.pieces(), right.pieces(), strict=True):
            if not torch.equal(ours, theirs):
                gap = (ours.double() - theirs.double()).abs().max().item()
                raise CheckpointError(
                    f"`{self.path}`: {what} is stored in copies that differ by up to {gap:.3g}",
                    "the checkpoint is damaged or was saved while diverging; use another iteration",
                )

    def tensor_digest(self, name: str) -> str:
        """Return the sha256 of one full tensor's values in row-major order, without padding rows."""
        import torch

        tensor = self.tensor(name)
        rows = self.config.vocab if name in {"embedding.word.weight", "head.weight"} else None
        digest = hashlib.sha256()
        for piece in tensor.pieces(rows):
            digest.update(piece.contiguous().view(torch.uint8).numpy().tobytes())
        shape = (rows, *tensor.shape[1:]) if rows is not None else tensor.shape
        return hashlib.sha256(f"{name} {tensor.dtype} {list(shape)} {digest.hexdigest()}".encode()).hexdigest()

    def digest(self) -> str:
        """Return `sha256:...` over all tensors: the same for the same weights in any layout.

        Names, dtypes, shapes and values count; file names, shard grid, padding rows and optimizer state do not.
        """
        return combine_digests({name: self.tensor_digest(name) for name in self.tensors})


def combine_digests(digests: Mapping[str, str]) -> str:
    """Combine the digests of all tensors of a model into one."""
    lines = "".join(f"{name} {digests[name]}\n" for name in sorted(digests))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()
