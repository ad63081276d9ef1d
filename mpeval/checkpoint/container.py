"""Open one file of `torch.save` without torch.load: values decoded safely, tensors left on disk."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any

from mpeval.checkpoint import oldfile
from mpeval.checkpoint.stored import AGAIN, ITEM_SIZES, StoredTensor
from mpeval.checkpoint.unpickle import Attempt, StorageRef, TensorRef, accept, attempt, open_file, printable
from mpeval.errors import CheckpointError, shown

DIRECTORY_BYTES = 16 << 20
"""A zip directory of this size has room for 100,000 tensors; a larger one is an attack on memory."""
ENTRIES = 20_000
"""So many entries every zip file may have; a larger file may have one more for each `BYTES_AN_ENTRY` of it."""
BYTES_AN_ENTRY = 1024


@dataclass(frozen=True, kw_only=True)
class TorchFile:
    """The decoded content of one `.pt` file: plain values, stubs, and `StoredTensor`s where tensors stood."""

    path: Path
    value: Any
    globals: tuple[str, ...] = field(default=())


class Window(io.RawIOBase):
    """A part of a file as a read-only file of its own."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        """Look at bytes `start` to `start + length` of `file`."""
        super().__init__()
        self.file, self.start, self.length, self.at = file, start, length, 0
        self.checks_directory = False

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def tell(self) -> int:
        """Return the position in the window."""
        return self.at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move, never before the window's beginning."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.at, os.SEEK_END: self.length}[whence]
        if base + offset < 0:
            raise OSError("a position before the file's beginning")
        self.at = base + offset
        return self.at

    def read(self, size: int | None = -1) -> bytes:
        """Read what the window still has, without reserving memory for what it has not.

        Raises:
            ValueError: with `checks_directory`, for what would be a zip directory that takes too much memory.
        """
        left = max(0, self.length - self.at)
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted == 0:
            return b""
        if self.checks_directory and wanted > DIRECTORY_BYTES:
            raise ValueError(f"a zip directory of {wanted} bytes, which no checkpoint needs")
        self.file.seek(self.start + self.at)
        data = self.file.read(wanted)
        self.at += len(data)
        if self.checks_directory and data.count(b"PK\x01\x02") > ENTRIES + self.length // BYTES_AN_ENTRY:
            raise ValueError(f"a zip directory of {data.count(b'PK')} entries, too many for {self.length} bytes")
        return data

    def readinto(self, buffer: Any) -> int:
        """Read what the window still has."""
        view = memoryview(buffer)
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


def open_torch_file(path: Path, start: int = 0, length: int | None = None) -> TorchFile:
    """Decode a `torch.save` file of either container, or one that is a part of a larger file.

    Args:
        path: the file on disk.
        start: byte at which the torch file begins in it.
        length: its bytes (default: to the end).

    Raises:
        CheckpointError: truncated, no torch file, hostile, or a tensor that lies outside its storage.
    """
    decoded, places = _decode(path, start, length)
    accepted = accept(decoded, path)
    try:
        value = places.resolve(accepted.value)
    except RecursionError:
        raise CheckpointError(f"`{path}` nests its values too deeply for a checkpoint", AGAIN) from None
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {error}", AGAIN) from error
    return TorchFile(path=path, value=value, globals=accepted.globals)


def attempt_torch_file(path: Path, start: int = 0, length: int | None = None) -> Attempt:
    """Decode as `open_torch_file` does, but return what became of the pickle even if it is hostile or damaged."""
    return _decode(path, start, length)[0]


def _decode(path: Path, start: int, length: int | None) -> tuple[Attempt, _Places]:
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            window = Window(file, start, size - start if length is None else length)
            if start < 0 or window.length < 0 or start + window.length > size:
                raise CheckpointError(f"`{path}` is truncated: its {size} bytes end before what is named in it", AGAIN)
            head = window.read(64) or b""
            # as torch does: a file that does not begin as a zip is a pickle, whatever its end looks like
            is_zip = head.startswith(b"PK\x03\x04")
            if oldfile.MAGIC in head and not is_zip:
                made, start_of = oldfile.decode(path, window)
                return made, _Places(path, start, window.length, start_of)
            if not is_zip or not zipfile.is_zipfile(window):
                raise _not_a_container(path, head, window.length)
            with open_archive(window) as archive:
                return _decode_zip(path, window, archive)
    except DAMAGED as error:
        raise CheckpointError(f"`{path}` is damaged: {printable(str(error))}", AGAIN) from error


# A damaged directory makes zipfile raise any of these, according to which byte is wrong.
DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, LookupError, OverflowError),
    *(struct.error, TypeError),
)


def open_archive(window: Window) -> zipfile.ZipFile:
    """Parse a zip directory, unless it would take more memory than it can be worth.

    Raises:
        BadZipFile: or any other of `DAMAGED`, for a damaged or too large directory.
    """
    window.checks_directory = True
    try:
        return zipfile.ZipFile(window)
    finally:
        window.checks_directory = False


def _entries(path: Path, archive: zipfile.ZipFile) -> dict[str, tuple[zipfile.ZipInfo, int]]:
    """Return every entry by its name, with the offset that its data must end before."""
    ordered = sorted(archive.infolist(), key=lambda info: info.header_offset)
    ends = [info.header_offset for info in ordered[1:]] + [archive.start_dir]
    found: dict[str, tuple[zipfile.ZipInfo, int]] = {}
    for info, end in zip(ordered, ends, strict=True):
        name = shown(printable(info.filename))
        if ".." in info.filename.split("/") or info.filename.startswith("/") or "\\" in info.filename:
            raise CheckpointError(f"`{path}` has a zip entry with the path `{name}`", _HOSTILE_ZIP)
        if info.filename in found:
            raise CheckpointError(f"`{path}` has the zip entry `{name}` twice", _HOSTILE_ZIP)
        if info.header_offset < 0 or info.header_offset + _LOCAL + len(info.filename) + info.compress_size > end:
            raise CheckpointError(f"`{path}` is damaged: its zip entry `{name}` overlaps what follows it", AGAIN)
        found[info.filename] = info, end
    return found


_LOCAL = 30
"""Bytes of the header before an entry's name and data."""


def _decode_zip(path: Path, window: Window, archive: zipfile.ZipFile) -> tuple[Attempt, _Places]:
    entries = _entries(path, archive)
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            f"`{path}` is a zip file but no torch checkpoint: it has {len(pickles)} `data.pkl`",
            f"found instead: {', '.join(shown(printable(name)) for name in list(entries)[:5]) or 'nothing'}",
        )
    prefix = pickles[0].removesuffix("data.pkl")
    order = entries.get(prefix + "byteorder")
    if order is not None and _plain_bytes(path, window, archive, order[0]) != b"little":
        raise CheckpointError(f"`{path}` was written on a big-endian machine", "save it again on a little-endian one")
    data = _plain_bytes(path, window, archive, entries[pickles[0]][0])

    def start_of(storage: StorageRef) -> int:
        return _zip_storage(path, window.start, entries.get(f"{prefix}data/{storage.key}"), storage)

    made = attempt(io.BytesIO(data), window.length)
    return made, _Places(path, window.start, window.length, start_of)


_HOSTILE_ZIP = "torch writes no such file; get it again from a source you trust"


def _plain_bytes(path: Path, window: Window, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Read a small entry, which torch stores without compression."""
    plain = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
    if not plain or info.file_size > window.length:
        raise CheckpointError(
            f"`{path}` has the entry `{shown(printable(info.filename))}` compressed, to {info.file_size} bytes",
            _HOSTILE_ZIP,
        )
    return archive.read(info)


def _zip_storage(path: Path, base: int, found: tuple[zipfile.ZipInfo, int] | None, storage: StorageRef) -> int:
    """Return where after `base` a storage's data begins, from its local header: name and padding decide."""
    needed = storage.elements * ITEM_SIZES[storage.dtype]
    key = shown(printable(storage.key))
    if found is None:
        raise CheckpointError(f"`{path}` is damaged: the data of tensor storage `{key}` is missing", AGAIN)
    entry, end = found
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size < needed:
        raise CheckpointError(
            f"`{path}` is damaged: the data of tensor storage `{key}` is compressed or too short", AGAIN
        )
    with open_file(path) as file:
        header = os.pread(file.fileno(), _LOCAL, base + entry.header_offset)
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    start = entry.header_offset + _LOCAL + name + extra
    if len(header) != _LOCAL or not header.startswith(b"PK\x03\x04") or start + entry.file_size > end:
        raise CheckpointError(f"`{path}` is damaged: the data of tensor storage `{key}` has no place of its own", AGAIN)
    return start


def _not_a_container(path: Path, head: bytes, size: int) -> CheckpointError:
    if head.startswith(b"PK"):
        return CheckpointError(
            f"`{path}` is truncated: its {size} bytes begin as a torch zip file but have no directory at the end",
            AGAIN,
        )
    return CheckpointError(
        f"`{path}` is no torch checkpoint: its {size} bytes do not begin as one",
        "the file is empty, damaged or of another kind; copy it again and compare sizes",
    )


class _Places:
    """Where the storages of one torch file lie, checked against the file's real size."""

    def __init__(self, path: Path, base: int, size: int, start_of: Callable[[StorageRef], int]) -> None:
        self.path, self.base, self.size, self.start_of = path, base, size, start_of
        self.starts: dict[StorageRef, int] = {}
        self.resolved: dict[int, Any] = {}
        self.described = 0

    def resolve(self, value: Any) -> Any:
        """Replace every `TensorRef` in nested dictionaries, lists and tuples by a `StoredTensor`.

        Shared values stay shared and a value may contain itself, as in any pickle.
        """
        if isinstance(value, TensorRef):
            return self.tensor(value)
        if not isinstance(value, dict | list | tuple):
            return value
        if id(value) not in self.resolved:
            if isinstance(value, dict):
                made: dict[Any, Any] = {}
                self.resolved[id(value)] = made
                made.update((key, self.resolve(item)) for key, item in value.items())
            else:
                items: list[Any] = []
                self.resolved[id(value)] = items
                items.extend(self.resolve(item) for item in value)
        return self.resolved[id(value)]

    def tensor(self, ref: TensorRef) -> StoredTensor:
        """Check that a tensor lies inside its storage and the storage inside the file."""
        start = self._storage_start(ref.storage)
        elements = prod(ref.shape)
        reach = ref.offset + sum((n - 1) * s for n, s in zip(ref.shape, ref.stride, strict=True)) + 1
        negative = ref.offset < 0 or min(ref.shape, default=0) < 0 or min(ref.stride, default=0) < 0
        if negative or (elements > 0 and reach > ref.storage.elements):
            raise CheckpointError(
                f"`{self.path}` is damaged: a tensor of shape {list(ref.shape)} reaches outside its storage",
                AGAIN,
            )
        item = ITEM_SIZES[ref.storage.dtype]
        self.described += elements * item
        # small views that repeat values are legitimate, and read as torch reads them
        if self.described > 2 * self.size + (1 << 20):
            raise CheckpointError(
                f"`{self.path}` describes larger tensors than it holds, down to one of shape {list(ref.shape)}",
                "a weight has a place of its own for each of its values; get the file again from a source you trust",
            )
        return StoredTensor(
            path=self.path,
            start=self.base + start + ref.offset * item,
            shape=ref.shape,
            stride=ref.stride,
            dtype=ref.storage.dtype,
        )

    def _storage_start(self, storage: StorageRef) -> int:
        if storage not in self.starts:  # not its key alone: two references may differ in what they claim
            start = self.start_of(storage)
            if start + storage.elements * ITEM_SIZES[storage.dtype] > self.size:
                raise CheckpointError(f"`{self.path}` is truncated", AGAIN)
            self.starts[storage] = start
        return self.starts[storage]
