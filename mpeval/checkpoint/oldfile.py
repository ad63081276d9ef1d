"""The container that torch wrote before 1.6: pickles one after another, then the storages' data.

In order: a magic number, a protocol version, the writer's system, the object, the keys of its storages in the order of
their data, and for each of these an element count of 8 bytes and the elements.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from mpeval.checkpoint.stored import AGAIN, ITEM_SIZES
from mpeval.checkpoint.unpickle import OTHER_SIZES, Attempt, StorageRef, accept, attempt, printable
from mpeval.errors import CheckpointError, shown

NUMBER = 0x1950A86A20F9469CFC6C
MAGIC = NUMBER.to_bytes(10, "little")
"""In the first bytes of every such file."""
PROTOCOL = 1001


def decode(path: Path, stream: Any) -> tuple[Attempt, Callable[[StorageRef], int]]:
    """Decode a file whose first pickle should be the magic number; `stream` is the file, or the part of one.

    Returns:
        What became of the object's pickle, and a function from a storage to where its data begins in the stream.

    Raises:
        CheckpointError: truncated, of another protocol, or written on a big-endian machine.
    """
    size = stream.length
    stream.seek(0)
    if _plain(path, stream, size) != NUMBER:
        raise CheckpointError(f"`{path}` is no torch checkpoint: it does not begin with torch's number", AGAIN)
    protocol, system = _plain(path, stream, size), _plain(path, stream, size)
    if protocol != PROTOCOL:
        raise CheckpointError(f"`{path}` is of torch's old protocol {shown(protocol)}, only {PROTOCOL} is known", AGAIN)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(f"`{path}` was written on a big-endian machine", "save it again on a little-endian one")
    made = attempt(stream, size)
    if made.hostile or made.failure is not None:
        return made, _nowhere
    keys = _plain(path, stream, size)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise CheckpointError(f"`{path}` is damaged: its storages have no list of names", AGAIN)
    return made, _Storages(path, stream, made, keys).start


def _nowhere(storage: StorageRef) -> int:
    raise AssertionError(f"storage {storage.key} of a file that was refused")


def _plain(path: Path, stream: IO[bytes], size: int) -> Any:
    return accept(attempt(stream, size), path).value


_SIZES = ITEM_SIZES | OTHER_SIZES


class _Storages:
    """Where each storage's data is: they follow one another, so the element sizes of all are needed to find one."""

    def __init__(self, path: Path, stream: Any, made: Attempt, keys: list[str]) -> None:
        self.path, self.starts = path, dict[str, tuple[int, int]]()
        sizes: dict[str, int] = {}
        for ref in made.storages:
            size = _SIZES[ref.dtype]
            if sizes.setdefault(ref.key, size) != size:
                key = shown(printable(ref.key))
                raise CheckpointError(f"`{path}` is damaged: tensor storage `{key}` is of two dtypes", AGAIN)
        at = stream.tell()
        for key in keys:
            stream.seek(at)
            count = int.from_bytes(stream.read(8), "little")
            if key not in sizes or key in self.starts or at + 8 + count * sizes[key] > stream.length:
                named = shown(printable(key))
                raise CheckpointError(f"`{path}` is truncated in the data of tensor storage `{named}`", AGAIN)
            self.starts[key] = at + 8, count
            at += 8 + count * sizes[key]

    def start(self, storage: StorageRef) -> int:
        """Return where a storage's elements begin, after checking that as many are there as the pickle says."""
        start, count = self.starts.get(storage.key, (0, -1))
        if count < storage.elements:
            raise CheckpointError(
                f"`{self.path}` is damaged: the data of tensor storage `{shown(printable(storage.key))}` is missing "
                "or too short",
                AGAIN,
            )
        return start
