"""The files in a tar archive, read as a stream: nothing is extracted, no name becomes a path."""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

from mpeval.corpus.compressed import blocks
from mpeval.errors import DataError, shown

LARGEST = 1 << 20
"""Bytes of one file; the largest of RACE has 7,574."""
LONGEST = 1 << 30
"""Bytes of a whole archive, unpacked."""


def members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Give name and content of the regular files of an archive whose names are `wanted`, in its order.

    A leading `./` is no part of a name.  The archive may be compressed by gzip, xz or zstd.

    Raises:
        DataError: it is damaged or no tar archive, unpacks to too much, or has a link or a huge file of a wanted name.
    """
    try:
        content = _Forward(path)
        # TarFile needs no more of a file than `_Forward` has
        with tarfile.TarFile(fileobj=cast("IO[bytes]", content)) as archive:
            while (member := archive.next()) is not None:
                vars(archive)["members"].clear()  # otherwise it keeps every header
                name = member.name.removeprefix("./")
                if not member.isdir() and wanted(name):
                    yield name, _content(path, archive, member)
        content.finish()
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, EOFError) as error:
        raise DataError(f"`{path}` is a damaged tar archive, or none: {error}", "get it again") from error


def _content(path: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if not member.isreg() or member.issparse():
        raise DataError(f"`{path}`: `{shown(member.name)}` is no regular file", "only regular files are read")
    if member.size > LARGEST:
        raise DataError(
            f"`{path}`: `{shown(member.name)}` has {member.size:,} bytes", f"a file may have {LARGEST:,}; get it again"
        )
    file = archive.extractfile(member)
    assert file is not None
    with file:
        return file.read()


class _Forward:
    """As much of a file's interface as `tarfile` needs to go through one, over content that is unpacked on the way.

    Each read is bounded, so that a header cannot ask for more memory than there is.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.blocks = path, blocks(path)
        self.block, self.place, self.start = b"", 0, 0
        self.last = b""

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self.start + self.place

    def seek(self, place: int) -> None:
        """Go forward; the content between is unpacked and dropped."""
        if place < self.tell():
            raise tarfile.ReadError("a header points back")
        while place > self.start + len(self.block) and self._next():
            pass
        self.place = min(place - self.start, len(self.block))

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes, fewer at the end."""
        if count > 4 * LARGEST:
            raise tarfile.ReadError(f"a header of {count:,} bytes")
        parts, left = [], count
        while left and (self.place < len(self.block) or self._next()):
            part = self.block[self.place : self.place + left]
            self.place += len(part)
            left -= len(part)
            parts.append(part)
        self.last = b"".join(parts)
        return self.last

    def finish(self) -> None:
        """Read to the end: what compression says of the whole is checked there, and `tarfile` stops at bad headers."""
        rest = [self.last, self.block[self.place :]]
        while self._next():
            rest.append(self.block)
        if any(part.strip(b"\0") for part in rest):
            raise tarfile.ReadError("what follows a file is neither another nor the end")

    def _next(self) -> bool:
        """Unpack the next block; False at the end."""
        self.start += len(self.block)
        self.block, self.place = next(self.blocks, (b"", 0))[0], 0
        if self.start + len(self.block) > LONGEST:
            raise DataError(f"`{self.path}` unpacks to more than {LONGEST:,} bytes", "no benchmark is that large")
        return bool(self.block)
