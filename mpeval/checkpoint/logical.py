"""One full tensor put together from wherever its pieces lie, read by slice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from mpeval.checkpoint.stored import ITEM_SIZES, Bounds, StoredTensor, row_boxes

if TYPE_CHECKING:
    from torch import Tensor


class Piece(NamedTuple):
    """A stored tensor that fills the box beginning at `at` of a larger one."""

    at: tuple[int, ...]
    tensor: StoredTensor


@dataclass(frozen=True, kw_only=True)
class LogicalTensor:
    """One full tensor, tiled by `pieces` without gap or overlap.

    Index it with slices, `tensor[10:20]` or `tensor[:, 5:9]`, to read just that box.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    pieces: tuple[Piece, ...]
    copies: tuple[StoredTensor, ...] = ()
    """Other places of the checkpoint that must hold the same values: replicas on other tensor ranks."""

    @property
    def nbytes(self) -> int:
        """Size of the whole tensor in bytes, as stored."""
        return prod(self.shape) * ITEM_SIZES[self.dtype]

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

    def read(self, bounds: Bounds, dtype: str | None = None) -> Tensor:
        """Read the box `bounds` into a new tensor (default: of the stored dtype)."""
        import torch

        out = torch.empty([high - low for low, high in bounds], dtype=getattr(torch, dtype or self.dtype))
        self.copy_into(out, bounds)
        return out

    def peek(self, bounds: Bounds, dtype: str | None = None) -> Tensor:
        """Return the box `bounds` to look at, not to change: a view of the file where it can be one, else as `read`."""
        if dtype in {None, self.dtype}:
            for piece in self.pieces:
                inner = [(low - start, high - start) for (low, high), start in zip(bounds, piece.at, strict=True)]
                inside = all(low >= 0 and high <= n for (low, high), n in zip(inner, piece.tensor.shape, strict=True))
                found = piece.tensor.peek(inner) if inside else None
                if found is not None:
                    return found
        return self.read(bounds, dtype)

    def copy_into(self, out: Tensor, bounds: Bounds) -> None:
        """Read the box `bounds` into `out`, converting to its dtype and device, touching only what it covers."""
        for piece in self.pieces:
            if not (shared := _shared(piece, bounds)):
                continue
            target = out
            for dim, ((low, high), (first, _)) in enumerate(zip(shared, bounds, strict=True)):
                target = target.narrow(dim, low - first, high - low)
            inner = [(low - start, high - start) for (low, high), start in zip(shared, piece.at, strict=True)]
            piece.tensor.copy_into(target, inner)

    def box(self, name: str, bounds: Bounds) -> LogicalTensor:
        """Return the tensor that a box of this one is, under a name of its own; nothing is read."""
        pieces = []
        for piece in self.pieces:
            if not (shared := _shared(piece, bounds)):
                continue
            tensor = piece.tensor
            for dim, ((low, high), start) in enumerate(zip(shared, piece.at, strict=True)):
                tensor = tensor.narrow(dim, low - start, high - start)
            at = tuple(low - first for (low, _), (first, _) in zip(shared, bounds, strict=True))
            pieces.append(Piece(at, tensor))
        return LogicalTensor(
            name=name,
            shape=tuple(high - low for low, high in bounds),
            dtype=self.dtype,
            pieces=tuple(pieces),
            copies=tuple(_narrowed(copy, bounds) for copy in self.copies),
        )

    def without_first(self) -> LogicalTensor:
        """Return the same tensor without its first dimension, whose extent is 1."""
        pieces = tuple(Piece(piece.at[1:], piece.tensor.drop(0)) for piece in self.pieces)
        return replace(self, shape=self.shape[1:], pieces=pieces)

    def chunks(self, rows: int | None = None) -> Iterator[Bounds]:
        """Cut the tensor (its first `rows` rows) into boxes of whole rows and a bounded size, in order."""
        total = self.shape[0] if rows is None else rows
        return row_boxes([(0, total), *((0, extent) for extent in self.shape[1:])], ITEM_SIZES[self.dtype])


def largest_gap(left: LogicalTensor, right: LogicalTensor, rows: int | None = None) -> float:
    """Return the largest absolute difference of two tensors (their first `rows` rows) of one shape.

    Equal infinities and NaN in the same place do not differ; NaN in one alone makes the result NaN.
    """
    gap = 0.0
    for bounds in left.chunks(rows):
        ours, theirs = left.peek(bounds), right.peek(bounds)
        if ours.dtype == theirs.dtype and bool(ours.equal(theirs)):
            continue
        far = (ours.double() - theirs.double()).abs()
        worst = far.masked_fill_((ours == theirs) | (ours.isnan() & theirs.isnan()), 0.0).max().item()
        gap = worst if worst != worst or worst > gap else gap
    return gap


def _shared(piece: Piece, bounds: Bounds) -> list[tuple[int, int]] | None:
    """Return the part of the box `bounds` that `piece` fills, None if there is none."""
    shared = []
    for (low, high), start, extent in zip(bounds, piece.at, piece.tensor.shape, strict=True):
        first, last = max(low, start), min(high, start + extent)
        if first >= last:
            return None
        shared.append((first, last))
    return shared


def _narrowed(tensor: StoredTensor, bounds: Bounds) -> StoredTensor:
    for dim, (low, high) in enumerate(bounds):
        tensor = tensor.narrow(dim, low, high)
    return tensor


def whole(name: str, tensor: StoredTensor, copies: Sequence[StoredTensor] = ()) -> LogicalTensor:
    """Return the logical tensor that one stored tensor is."""
    at = (0,) * len(tensor.shape)
    return LogicalTensor(
        name=name, shape=tensor.shape, dtype=tensor.dtype, pieces=(Piece(at, tensor),), copies=tuple(copies)
    )


def joined(name: str, parts: Sequence[StoredTensor], dim: int) -> LogicalTensor:
    """Return the tensor whose consecutive parts along `dim` are `parts`."""
    shape, pieces, start = parts[0].shape, [], 0
    for part in parts:
        pieces.append(Piece(tuple(start if index == dim else 0 for index in range(len(shape))), part))
        start += part.shape[dim]
    full = (*shape[:dim], start, *shape[dim + 1 :])
    return LogicalTensor(name=name, shape=full, dtype=parts[0].dtype, pieces=tuple(pieces))
