"""The append-only file of records: one whole line a record, under a lock, flushed to disk."""

from __future__ import annotations

import fcntl
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mpeval.errors import DataError
from mpeval.folders import data_folder, unwritable
from mpeval.leaderboard.entries import Entry, Line, Retraction
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.reported import Reported

KINDS: dict[str, type[Line]] = {"measured": Record, "reported": Reported, "retraction": Retraction}
Number = Record | Reported
"""What stands on a board."""


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def check_store(path: Path) -> None:
    """Refuse a file that is no leaderboard, or a place that no file can be in, before anything is computed."""
    if path.exists():
        list(_whole_records(path))
    for folder in path.parents:
        if folder.exists():
            if not folder.is_dir():
                raise unwritable(path, NotADirectoryError(0, f"`{folder}` is not a folder"), "--record")
            break


def append(path: Path, lines: Sequence[Line], option: str = "--record") -> int:
    """Add lines to a store under a lock, each whole, flushed to disk; return how many were new.

    A number that is already there is not added twice; one that was taken back may be added again.  A line that a crash
    cut short is fenced off.  `option` is the one by which the user named the store, for messages.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            known = list(_whole_records(path)) if path.exists() else []
            new = _new(lines, known)
            data = "".join(line.line() + "\n" for line in new).encode()
            with path.open("ab+") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                torn = size > 0 and file.read(1) != b"\n"
                file.write(b"\n" * torn + data)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error, option) from error
    return len(new)


def _new(lines: Sequence[Line], known: Sequence[Line]) -> list[Line]:
    """Return those of `lines` that are not in the store, nor twice among themselves."""
    standing: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    for old in _standing(known):
        standing[old.slot].append(old)
    gone = {line.retracts for line in known if isinstance(line, Retraction)}
    new: list[Line] = []
    for line in lines:
        if isinstance(line, Entry):
            if any(line.repeats(old) for old in standing[line.slot]):
                continue
            standing[line.slot].append(line)
        elif isinstance(line, Retraction):
            if line.retracts in gone:
                continue
            gone.add(line.retracts)
        new.append(line)
    return new


def _standing(lines: Iterable[Line]) -> list[Number]:
    """Return the numbers that were not taken back after they were written."""
    found: list[Number] = []
    for line in lines:
        if isinstance(line, Retraction):
            found = [one for one in found if one.record_id != line.retracts]
        elif isinstance(line, Record | Reported):
            found.append(line)
    return found


def read(*paths: Path) -> list[Number]:
    """Read the numbers of stores, but for those that were taken back in their own.

    Raises:
        DataError: no such store, or a line that is no record, with its number.
    """
    found: list[Number] = []
    for path in paths:
        lines: list[Line] = []
        for _, line in scan(path):
            if isinstance(line, DataError):
                raise line
            lines.append(line)
        found += _standing(lines)
    return found


def scan(path: Path) -> Iterator[tuple[int, Line | DataError]]:
    """Yield each line of a store by its number, or what is wrong with it.

    Raises:
        DataError: no such store.
    """
    if not path.is_file():
        raise DataError(f"no leaderboard at `{path}`", "`mpeval evaluate ... --record FILE` begins one")
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if text:
            try:
                yield number, _parse(text, path, number)
            except DataError as error:
                yield number, error


def _whole_records(path: Path) -> Iterator[Line]:
    """Yield the lines that can be read; a damaged one must not keep a finished run from being added."""
    found = 0
    for _, line in scan(path):
        if not isinstance(line, DataError):
            yield line
            found += 1
    if not found and path.read_bytes().strip():
        raise DataError(f"`{path}` is a file of something else: it holds no record", "give another file")


def _parse(text: str, path: Path, number: int) -> Line:
    try:
        raw = json.loads(text)
        line = KINDS[raw["kind"]](schema_=raw.pop("schema"), **raw)
    except (ValueError, ValidationError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"`{path}` line {number} is no record: {reason}", "restore the line, or remove it") from error
    if line.record_id != line.identity():
        raise DataError(f"`{path}` line {number} was changed after it was written", "restore the line, or remove it")
    return line


def default_store() -> Path:
    """Return the project's own store of what it measured."""
    return data_folder("leaderboard") / "results.jsonl"


def default_stores() -> list[Path]:
    """Return the project's own stores: what it measured, and what others published."""
    folder = data_folder("leaderboard")
    return [path for path in (folder / "results.jsonl", folder / "published.jsonl") if path.exists()]
