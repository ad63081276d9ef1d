"""List what the pickles of a checkpoint would import, without opening the checkpoint."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

from mpeval.checkpoint.container import DAMAGED, Window, attempt_torch_file, open_archive
from mpeval.checkpoint.oldfile import MAGIC
from mpeval.checkpoint.unpickle import INDEX_FACTOR, Attempt, attempt, open_file
from mpeval.errors import CheckpointError

SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".ckpt", ".metadata", ".distcp")
"""Files that may be pickles or hold some."""


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What one file's pickles name."""

    path: Path
    globals: tuple[str, ...]
    """Every global, also of a file that is hostile or damaged."""
    hostile: tuple[str, ...]
    """Those that no checkpoint needs."""
    failure: str | None
    """Why the file could not be read to its end."""


def scan_checkpoint(path: Path) -> list[Scan]:
    """Scan every file below a folder that may hold a pickle, or one file.

    Raises:
        CheckpointError: there is no such path, or no such file in it.
    """
    if not path.exists():
        raise CheckpointError(f"no such checkpoint: `{path}` does not exist", "give a checkpoint or a file of one")
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    chosen = [file for file in files if file is path or file.suffix in SUFFIXES or file.name == ".metadata"]
    if not chosen:
        raise CheckpointError(
            f"`{path}` holds no file that could be a pickle",
            f"such files end in {', '.join(SUFFIXES)}; safetensors hold no code",
        )
    return [scan_file(file) for file in chosen]


def scan_file(path: Path) -> Scan:
    """Scan one file: a torch file of either container, a DCP payload of several, or a bare pickle.

    Raises:
        CheckpointError: the file does not exist or may not be read; never for what is in it.
    """
    open_file(path).close()
    found = [_attempt(path)] if path.suffix != ".distcp" else list(_payload(path))
    failures = [item.failure for item in found if item.failure is not None]
    return Scan(
        path=path,
        globals=tuple(sorted({name for item in found for name in item.globals})),
        hostile=tuple(sorted({name for item in found for name in item.hostile})),
        failure=failures[0] if failures else None,
    )


def _attempt(path: Path, start: int = 0, length: int | None = None) -> Attempt:
    with open_file(path) as file:
        size = file.seek(0, io.SEEK_END)
        window = Window(file, start, size - start if length is None else length)
        try:
            made = attempt_torch_file(path, start, length)
        except CheckpointError as error:
            made = _damaged(window, error)
        return _together(made, list(_entries(window)) if _begins_as_zip(window) else [])


def _begins_as_zip(window: Window) -> bool:
    window.seek(0)
    return window.read(4) == _ENTRY


_ENTRY = b"PK\x03\x04"
_UNPACKED = 16 << 20
"""So much of a compressed pickle is looked at; torch compresses none."""
_PICKLES = 64
"""So many pickles of one file are looked at; torch writes one or five."""


def _damaged(window: Window, error: CheckpointError) -> Attempt:
    """Read a file that is no torch file as pickles one after another, as far as they go."""
    if _begins_as_zip(window):
        return _failed(error)
    window.seek(0)
    is_old = MAGIC in window.read(64)
    window.seek(0)
    found: list[Attempt] = []
    while len(found) < _PICKLES and window.tell() < window.length and (not found or found[-1].failure is None):
        found.append(attempt(cast("IO[bytes]", window), window.length * INDEX_FACTOR))
    made = _together(_failed(error), found)
    if not found or is_old or (found[0].failure is not None and not made.globals):
        return made
    return replace(made, failure=found[0].failure)


def _together(first: Attempt, others: list[Attempt]) -> Attempt:
    """Return the first with the names of all."""
    found = [first, *others]
    return replace(
        first,
        globals=tuple(sorted({name for item in found for name in item.globals})),
        hostile=tuple(sorted({name for item in found for name in item.hostile})),
    )


def _entries(window: Window) -> Iterator[Attempt]:
    """Read every pickle of a zip file, also of one that is refused or damaged: then its first, as torch writes it."""
    try:
        with open_archive(window) as archive:
            offsets = {info.header_offset for info in archive.infolist() if info.filename.endswith(".pkl")}
    except DAMAGED:
        offsets = {0}
    for offset in sorted(offsets)[:_PICKLES]:
        try:
            window.seek(offset)
            header = window.read(30)
            window.seek(offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"))
            stream = cast("IO[bytes]", window)
            if header[8:10] == b"\x08\0":
                stream = io.BytesIO(zlib.decompressobj(-15).decompress(window.read(_UNPACKED), _UNPACKED))
            if header[:4] == _ENTRY:
                yield attempt(stream, window.length)
        except DAMAGED:
            continue


def _failed(error: CheckpointError) -> Attempt:
    return Attempt(value=None, globals=(), hostile=(), failure=error.message)


def _payload(path: Path) -> Iterator[Attempt]:
    """Scan the torch files that a DCP payload is a row of, found by the ends of their zip directories."""
    with open_file(path) as file:
        size, start = file.seek(0, io.SEEK_END), 0
    for end in _zip_ends(path):
        yield _attempt(path, start, end - start)
        start = end
    if start < size:
        yield _failed(CheckpointError(f"`{path}` ends in {size - start} bytes that are no torch file", "copy it again"))


def _zip_ends(path: Path) -> Iterator[int]:
    """Yield where each zip file of a row of them ends: after an end record without comment."""
    record, overlap = b"PK\x05\x06", 21
    with open_file(path) as file:
        at, tail = 0, b""
        while block := file.read(8 << 20):
            data: Any = tail + block
            found = data.find(record)
            while found >= 0:
                if data[found + 20 : found + 22] == b"\0\0":
                    yield at - len(tail) + found + 22
                found = data.find(record, found + 1)
            at += len(block)
            tail = data[-overlap:]
