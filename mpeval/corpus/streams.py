"""JSON Lines written as a stream, compressed by the file's name, and renamed into place when complete."""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mpeval.errors import OutputError, UsageError
from mpeval.folders import new_file, unwritable

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.xz", ".jsonl.zst")
"""How a file may end that is written here."""


def check_new(path: Path) -> None:
    """Refuse an output that cannot be written, before any work is done.

    Raises:
        UsageError: its name has none of `SUFFIXES`.
        OutputError: it is there already, or its folder cannot be written to.
    """
    if not path.name.endswith(SUFFIXES):
        known = ", ".join(f"`{suffix}`" for suffix in SUFFIXES)
        raise UsageError(f"cannot tell from its name how to write `{path}`", f"let it end in one of {known}")
    if path.exists():
        raise OutputError(f"`{path}` is already there", "write to another file, or remove it")
    check_folder(path, "--output")


def check_folder(path: Path, option: str) -> None:
    """Make the folder of a file that `option` names, and refuse one that takes no files.

    Raises:
        OutputError: it cannot be made or written to, or `path` is itself a folder.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise unwritable(path, error, option, kind="file") from error


@contextmanager
def new_stream(path: Path) -> Iterator[IO[bytes]]:
    """Give a file to write to, which is compressed as its name says; it is there under its name only if all went well.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        with new_file(path) as file, _compressed(file, path.suffix) as stream:
            yield stream
    except OSError as error:
        raise unwritable(path, error, kind="file") from error


@contextmanager
def _compressed(file: IO[bytes], suffix: str) -> Iterator[IO[bytes]]:
    """Give a stream that compresses into `file`; the same content gives the same bytes at any time."""
    if suffix == ".gz":
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as zipped:
            yield zipped  # type: ignore[misc]
    elif suffix == ".xz":
        with lzma.LZMAFile(file, "wb") as squeezed:
            yield squeezed
    elif suffix == ".zst":
        import zstandard

        with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as stream:
            yield stream
    else:
        yield file
