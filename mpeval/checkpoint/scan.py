"""List what the pickles of a checkpoint would import, without opening the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpeval.checkpoint.container import attempt_torch_file
from mpeval.checkpoint.oldfile import MAGIC
from mpeval.checkpoint.unpickle import INDEX_FACTOR, Attempt, attempt
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
    """Scan one file: a torch file of either container, a DCP payload of several, or a bare pickle."""
    found = [_attempt(path)] if path.suffix != ".distcp" else list(_payload(path))
    failures = [item.failure for item in found if item.failure is not None]
    return Scan(
        path=path,
        globals=tuple(sorted({name for item in found for name in item.globals})),
        hostile=tuple(sorted({name for item in found for name in item.hostile})),
        failure=failures[0] if failures else None,
    )


def _attempt(path: Path, start: int = 0, length: int | None = None) -> Attempt:
    try:
        return attempt_torch_file(path, start, length)
    except CheckpointError as error:
        if start or length is not None:
            return _failed(error)
        return _bare(path, error)


def _bare(path: Path, error: CheckpointError) -> Attempt:
    """Read a file that does not even begin as a torch file as one pickle."""
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(b"PK") or MAGIC in head:
            return _failed(error)
        file.seek(0)
        made = attempt(file, INDEX_FACTOR * path.stat().st_size)
    return _failed(error) if made.failure is not None and not made.globals else made


def _failed(error: CheckpointError) -> Attempt:
    return Attempt(value=None, globals=(), hostile=(), failure=error.message)


def _payload(path: Path) -> Iterator[Attempt]:
    """Scan the torch files that a DCP payload is a row of, found by the ends of their zip directories."""
    size, start = path.stat().st_size, 0
    for end in _zip_ends(path):
        yield _attempt(path, start, end - start)
        start = end
    if start < size:
        yield _failed(CheckpointError(f"`{path}` ends in {size - start} bytes that are no torch file", "copy it again"))


def _zip_ends(path: Path) -> Iterator[int]:
    """Yield where each zip file of a row of them ends: after an end record without comment."""
    record, overlap = b"PK\x05\x06", 21
    with path.open("rb") as file:
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
