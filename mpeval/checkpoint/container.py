"""Open one file of `torch.save` (the zip container) without torch.load: values decoded safely, tensors left on disk."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mpeval.checkpoint.stored import AGAIN, ITEM_SIZES, StoredTensor
from mpeval.checkpoint.unpickle import StorageRef, TensorRef, unpickle
from mpeval.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class TorchFile:
    """The decoded content of one `.pt` file: plain values, stubs, and `StoredTensor`s where tensors stood."""

    path: Path
    value: Any
    globals: tuple[str, ...] = field(default=())


def open_torch_file(path: Path) -> TorchFile:
    """Decode a `torch.save` file of the zip container.

    Raises:
        CheckpointError: truncated, not a zip container, hostile, or a tensor that lies outside its storage.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise _not_a_container(path)
        with zipfile.ZipFile(path) as archive:
            return _decode(path, archive)
    # A damaged directory makes zipfile raise any of these, according to which byte is wrong.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, LookupError) as error:
        raise CheckpointError(f"`{path}` is damaged: {error}", AGAIN) from error


def _decode(path: Path, archive: zipfile.ZipFile) -> TorchFile:
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(
            f"`{path}` is a zip file but no torch checkpoint: it has {len(pickles)} `data.pkl`",
            f"found instead: {', '.join(list(entries)[:5]) or 'nothing'}",
        )
    prefix = pickles[0].removesuffix("data.pkl")
    if prefix + "byteorder" in entries and archive.read(prefix + "byteorder") != b"little":
        raise CheckpointError(f"`{path}` was written on a big-endian machine", "save it again on a little-endian one")
    decoded = unpickle(archive.read(pickles[0]), path)
    try:
        value = _Places(path, prefix, entries).resolve(decoded.value)
    except RecursionError:
        raise CheckpointError(f"`{path}` nests its values too deeply for a checkpoint", AGAIN) from None
    return TorchFile(path=path, value=value, globals=decoded.globals)


def _not_a_container(path: Path) -> CheckpointError:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"PK"):
        return CheckpointError(
            f"`{path}` is truncated: its {size} bytes begin as a torch zip file but have no directory at the end",
            AGAIN,
        )
    if b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19" in head:
        return CheckpointError(
            f"`{path}` is in the pickle container that torch wrote before 1.6, which this version does not read",
            "open it with `torch.load(path, weights_only=False)` on a machine you can lose, and `torch.save` it again",
        )
    return CheckpointError(
        f"`{path}` is no torch checkpoint: its {size} bytes do not begin as one",
        "the file is empty, damaged or of another kind; copy it again and compare sizes",
    )


class _Places:
    """Where the storages of one file lie, checked against the file's real size."""

    def __init__(self, path: Path, prefix: str, entries: dict[str, zipfile.ZipInfo]) -> None:
        self.path, self.prefix, self.entries = path, prefix, entries
        self.size = path.stat().st_size
        self.starts: dict[str, int] = {}
        self.resolved: dict[int, Any] = {}

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
        empty = 0 in ref.shape
        reach = ref.offset + sum((n - 1) * s for n, s in zip(ref.shape, ref.stride, strict=True)) + 1
        negative = ref.offset < 0 or min(ref.shape, default=0) < 0 or min(ref.stride, default=0) < 0
        if negative or (not empty and reach > ref.storage.elements):
            raise CheckpointError(
                f"`{self.path}` is damaged: a tensor of shape {list(ref.shape)} reaches outside its storage",
                AGAIN,
            )
        item = ITEM_SIZES[ref.storage.dtype]
        return StoredTensor(
            path=self.path,
            start=start + ref.offset * item,
            shape=ref.shape,
            stride=ref.stride,
            dtype=ref.storage.dtype,
        )

    def _storage_start(self, storage: StorageRef) -> int:
        if storage.key in self.starts:
            return self.starts[storage.key]
        entry = self.entries.get(f"{self.prefix}data/{storage.key}")
        needed = storage.elements * ITEM_SIZES[storage.dtype]
        if entry is None or entry.compress_type != zipfile.ZIP_STORED or entry.file_size < needed:
            found = "is missing" if entry is None else "is compressed or too short"
            raise CheckpointError(
                f"`{self.path}` is damaged: the data of tensor storage `{storage.key}` {found}",
                AGAIN,
            )
        start = self._data_offset(entry)
        if start + needed > self.size:
            raise CheckpointError(f"`{self.path}` is truncated", AGAIN)
        self.starts[storage.key] = start
        return start

    def _data_offset(self, entry: zipfile.ZipInfo) -> int:
        """Read the local header, whose name and padding fields decide where the data begins."""
        with self.path.open("rb") as file:
            header = os.pread(file.fileno(), 30, entry.header_offset)
        if len(header) != 30 or not header.startswith(b"PK\x03\x04"):
            raise CheckpointError(f"`{self.path}` is damaged: a zip entry has no header", AGAIN)
        name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
        return entry.header_offset + 30 + name + extra
