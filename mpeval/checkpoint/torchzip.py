"""Write torch.save's zip container one tensor at a time, so that a file may be larger than memory."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import IO, Any

import torch

ALIGNMENT = 64
"""Tensor data begins at multiples of this, as torch writes it."""


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
        torch.uint8: torch.ByteStorage,
    }
    return kinds[dtype]


class _StoredZip:
    """Writes a zip file of uncompressed entries at a file's position, each from parts that follow one another.

    Python's zipfile does this too, with a checksum that takes most of the time of copying a checkpoint.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.start = file, file.tell()
        self.directory: list[bytes] = []

    def add(self, name: str, size: int, parts: Iterable[bytes | memoryview]) -> None:
        """Write one entry of `size` bytes, its header padded so that the data is aligned; the checksum comes last."""
        from isal import isal_zlib

        begin = self.file.tell() - self.start
        wide = struct.pack("<HHQQ", 1, 16, size, size) if size >= LIMIT else b""
        extra = wide + _padding(-(begin + 30 + len(name) + len(wide)) % ALIGNMENT)
        short = _short(size)
        self.file.write(struct.pack(_LOCAL, b"PK\3\4", *_FIXED, 0, short, short, len(name), len(extra)))
        self.file.write(name.encode("ascii") + extra)
        check = 0
        for part in parts:
            check = isal_zlib.crc32(part, check)
            self.file.write(part)
        end = self.file.tell()
        self.file.seek(self.start + begin + 14)
        self.file.write(struct.pack("<L", check))
        self.file.seek(end)
        self._note(name, size, begin, check)

    def _note(self, name: str, size: int, begin: int, check: int) -> None:
        """Keep the entry's line of the directory; what does not fit four bytes goes into an extra field."""
        wide = [size, size] * (size >= LIMIT) + [begin] * (begin >= LIMIT)
        extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
        sizes = check, _short(size), _short(size), len(name), len(extra)
        line = struct.pack(_CENTRAL, b"PK\1\2", _VERSION, *_FIXED, *sizes, 0, 0, 0, 0, _short(begin))
        self.directory.append(line + name.encode("ascii") + extra)

    def close(self) -> None:
        """Write the directory and its end."""
        begin, count = self.file.tell() - self.start, len(self.directory)
        size = sum(map(len, self.directory))
        self.file.write(b"".join(self.directory))
        if begin >= LIMIT or count >= 0xFFFF:
            at = self.file.tell() - self.start
            wide = (b"PK\6\6", 44, _VERSION, _VERSION, 0, 0, count, count, size, begin)
            self.file.write(struct.pack("<4sQHHLLQQQQ", *wide) + struct.pack("<4sLQL", b"PK\6\7", 0, at, 1))
        short = min(count, 0xFFFF)
        self.file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, short, short, size, _short(begin), 0))


def _short(number: int) -> int:
    """Return a size or offset for a field of four bytes; all ones say that the wide field has it."""
    return number if number < LIMIT else 0xFFFFFFFF


LIMIT = 0xFFFFFFFF
"""Sizes and offsets from here on are written the wide way (zip64)."""
_VERSION = 45
_FIXED = (_VERSION, 0, 0, 0, 0x21)  # no flags, stored, midnight of 1 January 1980: equal content, equal bytes
_LOCAL = "<4s5H3L2H"
_CENTRAL = "<4sH5H3L5H2L"


def write_torch_file(file: IO[bytes], content: Any) -> None:
    """Write `content` at the file's position as `torch.save` would; tensors stand in it as `Planned`.

    `torch.load` opens the result with and without `mmap`.  One tensor is in memory at a time.
    """
    pickled = io.BytesIO()
    pickler = _Pickler(pickled)
    pickler.dump(content)
    archive = _StoredZip(file)
    archive.add("archive/data.pkl", pickled.tell(), [pickled.getbuffer()])
    archive.add("archive/byteorder", 6, [b"little"])
    for number, planned in enumerate(pickler.planned):
        archive.add(f"archive/data/{number}", planned.nbytes, bytes_of(planned))
    archive.add("archive/version", 2, [b"3\n"])
    archive.close()


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


def _padding(size: int) -> bytes:
    """Return an extra field of `size` bytes (or a whole alignment more: it needs four for its own header)."""
    if size == 0:
        return b""
    size = size if size >= 4 else size + ALIGNMENT
    return b"FB" + (size - 4).to_bytes(2, "little") + bytes(size - 4)
