"""Index arrays on disk: named by what they were built from, checked when they are opened, mapped into memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpeval.folders import new_file, unwritable, write_atomically

VERSION = 1
"""To be raised whenever other arrays are built from the same identity."""
DESCRIPTION = "index.json"
Arrays = dict[str, npt.NDArray[Any]]


def cached(cache: Path | None, name: str, identity: Mapping[str, Any], build: Callable[[], Arrays]) -> Arrays:
    """Return the arrays that `build` makes: from the folder `cache` when they are there, else built and put there.

    `identity` is everything that the arrays depend on.  Ranks may build the same index at the same time: each file
    is renamed into place whole, and all of them write the same bytes.  An index that is incomplete or damaged (by
    size and CRC-32 of every file) is built again.  Without a folder nothing is written.

    Raises:
        OutputError: the folder cannot be written.
    """
    if cache is None:
        return build()
    described = {"version": VERSION, "index": name, **identity}
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    folder = cache / f"{name}-{key[:32]}"
    found = _read(folder, described)
    if found is None:
        built = build()
        _write(folder, described, built)
        # mapped pages are shared by the ranks of a machine; what was built serves if another changed the folder
        found = _read(folder, described) or built
    return found


def _write(folder: Path, described: Mapping[str, Any], arrays: Arrays) -> None:
    """Write every array, then the description that makes them count."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = {name: _save(folder / f"{name}.npy", array) for name, array in arrays.items()}
    except OSError as error:
        raise unwritable(folder, error, "") from error
    write_atomically(folder / DESCRIPTION, json.dumps({**described, "files": files}, indent=1, sort_keys=True) + "\n")


def _save(path: Path, array: npt.NDArray[Any]) -> list[int]:
    """Write one array atomically; return its file's size and checksum."""
    with new_file(path) as file:
        np.save(file, array, allow_pickle=False)
    return _measure(path)


def _measure(path: Path) -> list[int]:
    """Return a file's size in bytes and its CRC-32."""
    from isal import isal_zlib

    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 24):
            checksum = isal_zlib.crc32(chunk, checksum)
        return [file.tell(), checksum]


def _read(folder: Path, described: Mapping[str, Any]) -> Arrays | None:
    """Map the arrays of a folder into memory; nothing unless each is there exactly as it was written."""
    try:
        stored = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        files = stored.pop("files")
        if stored != described or any(
            _measure(folder / f"{name}.npy") != as_it_was for name, as_it_was in files.items()
        ):
            return None
        # plain arrays over the mapped pages: a memmap object makes each access several times as slow
        return {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
