"""The append-only file of records: one whole line a record, under a lock, flushed to disk."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from mpeval.errors import DataError
from mpeval.folders import data_folder, unwritable
from mpeval.leaderboard.records import Record


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


def append(path: Path, records: Sequence[Record]) -> int:
    """Add records to a store under a lock, each a whole line, flushed to disk; return how many were new.

    A run whose very numbers are already there is not added twice.  A line that a crash cut short is fenced off.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            known = list(_whole_records(path)) if path.exists() else []
            new = [record for record in records if not any(record.repeats(old) for old in known)]
            data = "".join(record.line() + "\n" for record in new).encode()
            with path.open("ab+") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                torn = size > 0 and file.read(1) != b"\n"
                file.write(b"\n" * torn + data)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error, "--record") from error
    return len(new)


def read(path: Path) -> list[Record]:
    """Read every record of a store.

    Raises:
        DataError: no such store, or a line that is no record, with its number.
    """
    if not path.is_file():
        raise DataError(f"no leaderboard at `{path}`", "`mpeval evaluate ... --record FILE` begins one")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if line:
            records.append(_parse(line, path, number))
    return records


def _whole_records(path: Path) -> Iterator[Record]:
    """Yield the records that can be read; a damaged line must not keep a finished run from being added."""
    text = path.read_text(encoding="utf-8", errors="replace")
    found = 0
    for line in text.split("\n"):
        with suppress(DataError):
            yield _parse(line, path, 0)
            found += 1
    if text.strip() and not found:
        raise DataError(f"`{path}` is a file of something else: it holds no record", "give another file by `--record`")


def _parse(line: str, path: Path, number: int) -> Record:
    try:
        raw = json.loads(line)
        record = Record(schema_=raw.pop("schema"), **raw)
    except (ValueError, ValidationError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"`{path}` line {number} is no record: {reason}", "restore the line, or remove it") from error
    if record.record_id != record.identity():
        raise DataError(f"`{path}` line {number} was changed after it was written", "restore the line, or remove it")
    return record


def default_store() -> Path:
    """Return the project's own store."""
    return data_folder("leaderboard") / "results.jsonl"
