"""A tensor that lies in a file: a strided view of its bytes, cut and turned without reading, read by slice."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from mpeval.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

ITEM_SIZES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
AGAIN = "copy the file again and compare sizes"
CHUNK_BYTES = 8 << 20
"""At most this much of a file is mapped at a time, so that loading needs little more memory than the model."""

THREADS = min(2, os.cpu_count() or 1)
"""Files written, or tensors hashed, at a time: Python's lock is free meanwhile, each holds a tensor in memory."""

Bounds = Sequence[tuple[int, int]]
Advance = Callable[[int], None]
"""Called with the bytes that long work has just done."""


def ignored(count: int) -> None:
    """Take note of nothing."""
    del count


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor on disk: a strided view of a byte range of a file.  Reads only what is asked for."""

    path: Path
    start: int
    """Byte offset of the view's first element in the file."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        """Number of elements of the view."""
        return prod(self.shape)

    def narrow(self, dim: int, low: int, high: int, step: int = 1) -> StoredTensor:
        """Return the view of indices `low:high:step` along `dim`; nothing is read."""
        count = max(0, -(-(high - low) // step))
        return replace(
            self,
            start=self.start + low * self.stride[dim] * ITEM_SIZES[self.dtype],
            shape=(*self.shape[:dim], count, *self.shape[dim + 1 :]),
            stride=(*self.stride[:dim], self.stride[dim] * step, *self.stride[dim + 1 :]),
        )

    def drop(self, dim: int) -> StoredTensor:
        """Return the view without `dim`, whose extent is 1."""
        return replace(
            self,
            shape=(*self.shape[:dim], *self.shape[dim + 1 :]),
            stride=(*self.stride[:dim], *self.stride[dim + 1 :]),
        )

    def transposed(self) -> StoredTensor:
        """Return the view of a matrix with its two dimensions exchanged."""
        return replace(self, shape=self.shape[::-1], stride=self.stride[::-1])

    def copy_into(self, out: Tensor, bounds: Bounds) -> None:
        """Copy the box `bounds` (one half-open range per dimension) into `out`, converting the dtype.

        Maps at most `CHUNK_BYTES` at a time, unless a single row is larger.

        Raises:
            CheckpointError: the file became shorter after it was opened.
        """
        if any(high <= low for low, high in bounds):
            return
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for box in _chunks(bounds, self.stride, ITEM_SIZES[self.dtype]):
                target = out
                for dim, (inner, outer) in enumerate(zip(box, bounds, strict=True)):
                    target = target.narrow(dim, inner[0] - outer[0], inner[1] - inner[0])
                self._copy_box(file.fileno(), size, target, box)

    def peek(self, bounds: Bounds) -> Tensor | None:
        """Return the box `bounds` as a view of the file itself, without copying; None if it is not one run of bytes.

        The pages are mapped for this process alone: writing to the result changes no file.
        """
        expected = 1
        for (low, high), step in reversed(list(zip(bounds, self.stride, strict=True))):
            if high - low > 1 and step != expected:
                return None
            expected *= max(1, high - low)
        if any(high <= low for low, high in bounds):
            return None
        with self.path.open("rb") as file:
            return self._map(file.fileno(), os.fstat(file.fileno()).st_size, bounds)[0]

    def _copy_box(self, descriptor: int, file_size: int, out: Tensor, box: Bounds) -> None:
        mapped, view = self._map(descriptor, file_size, box)
        out.copy_(mapped)
        del mapped
        view.close()

    def _map(self, descriptor: int, file_size: int, box: Bounds) -> tuple[Tensor, mmap.mmap]:
        """Map the part of the file that a box spans; return the box and the mapping, which the box keeps open."""
        import torch

        size = ITEM_SIZES[self.dtype]
        first = self.start + size * sum(low * step for (low, _), step in zip(box, self.stride, strict=True))
        span = size * (1 + sum((high - low - 1) * step for (low, high), step in zip(box, self.stride, strict=True)))
        if first + span > file_size:
            raise CheckpointError(f"`{self.path}` became shorter while it was read", AGAIN)
        page = first - first % mmap.ALLOCATIONGRANULARITY
        view = mmap.mmap(descriptor, first - page + span, offset=page, access=mmap.ACCESS_COPY)
        flat = torch.frombuffer(view, dtype=getattr(torch, self.dtype), offset=first - page, count=span // size)
        return flat.as_strided([high - low for low, high in box], self.stride), view


def row_boxes(box: Bounds, item: int) -> Iterator[Bounds]:
    """Cut a box, of elements of `item` bytes, into boxes of whole rows and at most `CHUNK_BYTES`, in order."""
    (low, high), *rest = box
    rows = max(1, CHUNK_BYTES // max(1, item * prod(last - first for first, last in rest)))
    for start in range(low, high, rows):
        yield [(start, min(start + rows, high)), *rest]


def _chunks(bounds: Bounds, stride: Sequence[int], item: int) -> Iterator[list[tuple[int, int]]]:
    """Cut a box along the dimension that is outermost in the file into boxes that span at most `CHUNK_BYTES` each."""
    if not bounds:
        yield []
        return
    outer = max(range(len(bounds)), key=lambda dim: (stride[dim], -dim))
    low, high = bounds[outer]
    rows = max(1, CHUNK_BYTES // max(1, item * stride[outer]))
    for start in range(low, high, rows):
        yield [*bounds[:outer], (start, min(start + rows, high)), *bounds[outer + 1 :]]
