"""Open one file of `torch.save` without torch.load: values decoded safely, tensors left on disk."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any

from mpeval.checkpoint import oldfile
from mpeval.checkpoint.stored import AGAIN, ITEM_SIZES, StoredTensor
from mpeval.checkpoint.unpickle import Attempt, StorageRef, TensorRef, accept, attempt
from mpeval.errors import CheckpointError, shown

DIRECTORY_BYTES = 16 << 20
"""A zip directory of this size has room for 200,000 tensors; a larger one is an attack on memory."""


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

    def readinto(self, buffer: Any) -> int:
        """Read what the window still has."""
        view = memoryview(buffer)
        wanted = max(0, min(len(view), self.length - self.at))
        self.file.seek(self.start + self.at)
        data = self.file.read(wanted)
        view[: len(data)] = data
        self.at += len(data)
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
    return TorchFile(path=path, value=value, globals=accepted.globals)


def attempt_torch_file(path: Path, start: int = 0, length: int | None = None) -> Attempt:
    """Decode as `open_torch_file` does, but return what became of the pickle even if it is hostile or damaged."""
    return _decode(path, start, length)[0]


def _decode(path: Path, start: int, length: int | None) -> tuple[Attempt, _Places]:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            window = Window(file, start, size - start if length is None else length)
            if start < 0 or window.length < 0 or start + window.length > size:
                raise CheckpointError(f"`{path}` is truncated: its {size} bytes end before what is named in it", AGAIN)
            head = window.read(64) or b""
            if oldfile.MAGIC in head:
                made, start_of = oldfile.decode(path, window)
                return made, _Places(path, start, window.length, start_of)
            if not zipfile.is_zipfile(window):
                raise _not_a_container(path, head, window.length)
            _check_directory(path, window)
            with zipfile.ZipFile(window) as archive:
                return _decode_zip(path, window, archive)
    # A damaged directory makes zipfile raise any of these, according to which byte is wrong.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, LookupError) as error:
        raise CheckpointError(f"`{path}` is damaged: {str(error)[:200]}", AGAIN) from error


def _check_directory(path: Path, window: Window) -> None:
    """Refuse a zip directory that would take more memory than it can be worth, before it is parsed."""
    window.seek(max(0, window.length - (1 << 16) - 22))
    tail = window.read() or b""
    at = tail.rfind(b"PK\x05\x06")
    size = int.from_bytes(tail[at + 12 : at + 16], "little")
    if size == 0xFFFFFFFF and (wide := tail.rfind(b"PK\x06\x06")) >= 0:
        size = int.from_bytes(tail[wide + 40 : wide + 48], "little")
    if size > DIRECTORY_BYTES:
        raise CheckpointError(f"`{path}` has a zip directory of {size} bytes, which no checkpoint needs", AGAIN)


def _decode_zip(path: Path, window: Window, archive: zipfile.ZipFile) -> tuple[Attempt, _Places]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if ".." in info.filename.split("/") or info.filename.startswith("/") or "\\" in info.filename:
            raise CheckpointError(f"`{path}` has a zip entry with the path `{shown(info.filename)}`", _HOSTILE_ZIP)
        if info.filename in entries:
            raise CheckpointError(f"`{path}` has the zip entry `{shown(info.filename)}` twice", _HOSTILE_ZIP)
        entries[info.filename] = info
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            f"`{path}` is a zip file but no torch checkpoint: it has {len(pickles)} `data.pkl`",
            f"found instead: {', '.join(shown(name) for name in list(entries)[:5]) or 'nothing'}",
        )
    prefix = pickles[0].removesuffix("data.pkl")
    order = entries.get(prefix + "byteorder")
    if order is not None and _plain_bytes(path, window, archive, order) != b"little":
        raise CheckpointError(f"`{path}` was written on a big-endian machine", "save it again on a little-endian one")
    data = _plain_bytes(path, window, archive, entries[pickles[0]])

    def start_of(storage: StorageRef) -> int:
        return _zip_storage(path, window, entries.get(f"{prefix}data/{storage.key}"), storage)

    made = attempt(io.BytesIO(data), window.length)
    return made, _Places(path, window.start, window.length, start_of)


_HOSTILE_ZIP = "torch writes no such file; get it again from a source you trust"


def _plain_bytes(path: Path, window: Window, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Read a small entry, which torch stores without compression."""
    plain = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size
    if not plain or info.file_size > window.length:
        raise CheckpointError(
            f"`{path}` has the entry `{shown(info.filename)}` compressed, to {info.file_size} bytes", _HOSTILE_ZIP
        )
    return archive.read(info)


def _zip_storage(path: Path, window: Window, entry: zipfile.ZipInfo | None, storage: StorageRef) -> int:
    """Return where in the window a storage's data begins, from its local header: name and padding decide."""
    needed = storage.elements * ITEM_SIZES[storage.dtype]
    if entry is None or entry.compress_type != zipfile.ZIP_STORED or entry.file_size < needed:
        found = "is missing" if entry is None else "is compressed or too short"
        raise CheckpointError(f"`{path}` is damaged: the data of tensor storage `{shown(storage.key)}` {found}", AGAIN)
    with path.open("rb") as file:
        header = os.pread(file.fileno(), 30, window.start + entry.header_offset)
    if len(header) != 30 or not header.startswith(b"PK\x03\x04"):
        raise CheckpointError(f"`{path}` is damaged: a zip entry has no header", AGAIN)
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return entry.header_offset + 30 + name + extra


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
        self.starts: dict[str, int] = {}
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
        if elements > ref.storage.elements or self.described > 2 * self.size + (1 << 20):
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
        if storage.key not in self.starts:
            start = self.start_of(storage)
            if start + storage.elements * ITEM_SIZES[storage.dtype] > self.size:
                raise CheckpointError(f"`{self.path}` is truncated", AGAIN)
            self.starts[storage.key] = start
        return self.starts[storage.key]
