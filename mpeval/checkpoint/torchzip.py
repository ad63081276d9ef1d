"""Write torch.save's zip container one tensor at a time, so that a file may be larger than memory."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import IO, Any

import torch

ALIGNMENT = 64
"""Tensor data begins at multiples of this, as torch writes it."""
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(eq=False, kw_only=True)
class Planned:
    """A tensor that is made only when its place in the file has come, in parts that follow one another in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Iterable[torch.Tensor]] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class _Storage:
    kind: type
    key: str
    elements: int


class _Pickler(pickle.Pickler):
    """Pickles a tree of plain values as torch.save does, with `Planned` leaves for tensors."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, protocol=2)
        self.planned: list[Planned] = []

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, _Storage):
            return ("storage", value.kind, value.key, "cpu", value.elements)
        return None

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Planned):
            return NotImplemented
        stride, elements = [], 1
        for extent in reversed(value.shape):
            stride.append(elements)
            elements *= extent
        storage = _Storage(_storage_kind(value.dtype), str(len(self.planned)), elements)
        self.planned.append(value)
        arguments: tuple[Any, ...] = (storage, 0, tuple(value.shape), tuple(reversed(stride)), False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


def _storage_kind(dtype: torch.dtype) -> type:
    kinds: dict[torch.dtype, type] = {
        torch.float32: torch.FloatStorage,
        torch.float64: torch.DoubleStorage,
        torch.float16: torch.HalfStorage,
        torch.bfloat16: torch.BFloat16Storage,
    }
    return kinds[dtype]


class _Window(io.RawIOBase):
    """A file's end as a file of its own: offsets inside the zip count from where it begins."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self.file, self.start = file, file.tell()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.file.tell() - self.start

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = self.start if whence == io.SEEK_SET else 0
        return self.file.seek(offset + base, whence) - self.start

    def write(self, data: Any) -> int:
        return self.file.write(data)


def write_torch_file(file: IO[bytes], content: Any) -> None:
    """Write `content` at the file's position as `torch.save` would; tensors stand in it as `Planned`.

    `torch.load` opens the result with and without `mmap`.  One tensor is in memory at a time.
    """
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(content)
    window = _Window(file)
    with zipfile.ZipFile(window, "w", zipfile.ZIP_STORED) as archive:
        _entry(archive, window, "data.pkl", len(pickled.getbuffer()), [pickled.getbuffer()])
        _entry(archive, window, "byteorder", 6, [b"little"])
        for number, planned in enumerate(pickler.planned):
            _entry(archive, window, f"data/{number}", planned.nbytes, bytes_of(planned))
        _entry(archive, window, "version", 2, [b"3\n"])


def bytes_of(planned: Planned) -> Iterator[memoryview]:
    """Make a tensor and yield its bytes in row-major order."""
    total = 0
    for part in planned.make():
        if part.dtype != planned.dtype:
            raise ValueError(f"planned {planned.dtype}, made {part.dtype}")
        total += part.nbytes
        yield part.contiguous().flatten().view(torch.uint8).numpy().data
    if total != planned.nbytes:
        raise ValueError(f"planned {planned.nbytes} bytes, made {total}")


def _entry(archive: zipfile.ZipFile, window: _Window, name: str, size: int, data: Iterable[bytes | memoryview]) -> None:
    """Write one stored entry, padded in its header so that the data is aligned."""
    info = zipfile.ZipInfo(f"archive/{name}", _EPOCH)
    large = size >= 1 << 30
    begin = window.tell() + 30 + len(info.filename) + (20 if large else 0)
    info.extra = _padding(-begin % ALIGNMENT)
    info.file_size = size
    with archive.open(info, "w", force_zip64=large) as entry:
        for part in data:
            entry.write(part)


def _padding(size: int) -> bytes:
    """Return an extra field of `size` bytes (or a whole alignment more: it needs four for its own header)."""
    if size == 0:
        return b""
    size = size if size >= 4 else size + ALIGNMENT
    return b"FB" + (size - 4).to_bytes(2, "little") + bytes(size - 4)
