"""The bytes of a file, decompressed on the way if its first bytes say that it is gzip, xz or zstd."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from mpeval.errors import DataError

BLOCK = 1 << 20
"""Bytes of content handed on at a time."""
PACKED = 1 << 16
"""Compressed bytes read at a time: they may become a thousand times as many."""
Reader = Callable[[IO[bytes]], Iterator[bytes]]


def blocks(path: Path) -> Iterator[tuple[bytes, int]]:
    """Give the content of a file in blocks, each with how many bytes of the file itself are read by then.

    Raises:
        DataError: the file cannot be read, or its compressed data are damaged or end too early.
    """
    from isal.igzip_lib import IsalError
    from zstandard import ZstdError

    try:
        with path.open("rb") as file:
            for block in _reader_for(file)(file):
                yield block, file.tell()
    except (EOFError, lzma.LZMAError, zlib.error, IsalError, ZstdError) as error:  # type: ignore[misc]  # isal's stub
        raise _damaged(path, error) from error
    except OSError as error:
        if error.errno is None:  # gzip's own errors are of this kind
            raise _damaged(path, error) from error
        raise DataError(f"cannot read `{path}`: {error.strerror}", "check its permissions and the disk") from error


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"`{path}` is damaged or cut short: {error}", "get the file again")


def _reader_for(file: IO[bytes]) -> Reader:
    start = file.read(6)
    file.seek(0)
    known: dict[bytes, Reader] = {b"\x1f\x8b": _gzip, b"\xfd7zXZ\x00": _xz, b"\x28\xb5\x2f\xfd": _zstd}
    return next((reader for magic, reader in known.items() if start.startswith(magic)), _plain)


def first_bytes(path: Path, count: int = 64) -> bytes:
    """Return how the content of a file begins (less than `count` bytes where there are no more).

    Raises:
        DataError: see `blocks`.
    """
    return next((block[:count] for block, _ in blocks(path)), b"")


def _plain(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _gzip(file: IO[bytes]) -> Iterator[bytes]:
    from isal import igzip

    with igzip.GzipFile(fileobj=file) as opened:
        yield from _plain(opened)


def _xz(file: IO[bytes]) -> Iterator[bytes]:
    # between streams there may be zeros
    return _streams(file, lzma.LZMADecompressor, b"\x00")


def _zstd(file: IO[bytes]) -> Iterator[bytes]:
    from zstandard import ZstdDecompressor

    # the longest window that `zstd --ultra --long=31` writes
    made = ZstdDecompressor(max_window_size=1 << 31)
    return _streams(file, made.decompressobj, b"")


def _streams(file: IO[bytes], begin: Callable[[], Any], padding: bytes) -> Iterator[bytes]:
    """Decompress stream after stream.

    The libraries' own files take a zstd file that ends within a stream, and garbage behind an xz one, for nothing bad.
    """
    stream = begin()
    while data := file.read(PACKED):
        while data:
            if stream.eof:
                data = data.lstrip(padding) if padding else data
                stream = begin() if data else stream
            if data and (content := stream.decompress(data)):
                yield content
            data = stream.unused_data if stream.eof and data else b""
    if not stream.eof:
        raise EOFError("the last stream is not whole")
