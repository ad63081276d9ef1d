"""The append-only file of records: one whole line a record, under a lock, flushed to disk."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mpeval.errors import DataError
from mpeval.folders import data_folder, unwritable
from mpeval.leaderboard.entries import Entry, Line, Retraction
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.reported import Reported
from mpeval.results import invalid

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


def check_store(path: Path, option: str = "--record") -> None:
    """Refuse a file that is no leaderboard, or a place that no file can be in, before anything is computed.

    `option` is the one by which the user named it.
    """
    try:
        if path.exists():
            _check_content(_content(path), path, option)
        for folder in path.parents:
            if folder.exists():
                if not folder.is_dir():
                    raise unwritable(path, NotADirectoryError(0, f"`{folder}` is not a folder"), option)
                break
    except OSError as error:  # a name that is too long, or a folder that may not be looked into
        raise unwritable(path, error, option) from error


def append(path: Path, lines: Sequence[Line], option: str = "--record") -> int:
    """Add lines to a store under a lock, each whole, flushed to disk; return how many were new.

    A number that is already there is not added twice; one that was taken back may be added again.  A line that a crash
    cut short is fenced off.  `option` is the one by which the user named the store, for messages.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            content = _content(path) if path.exists() else b""
            _check_content(content, path, option)
            new = _new(lines, _related(content, lines))
            data = "".join(line.line() + "\n" for line in new).encode()
            fence = b"\n" * (content[-1:] not in {b"", b"\n"})
            with path.open("ab") as file:
                file.write(fence + data)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error, option) from error
    except UnicodeEncodeError as error:  # as the names of files may be that nobody wrote in UTF-8
        raise DataError(
            f"a record has a text that is no Unicode: {error.object[max(0, error.start - 30) : error.end]!a}",
            "rename the file, then `mpeval leaderboard add` the run",
        ) from error
    return len(new)


def _related(content: bytes, lines: Sequence[Line]) -> list[Line]:
    """Return the whole lines that may repeat one of `lines`, or take one back, in order; others may be among them.

    To read a line and check its id costs a thousand times what looking for a few letters does, so only those are read
    that hold the mark of one of `lines`, or could hold it in other letters (JSON's `\\u00..`).
    """
    marks = {b"\\u00", *(_searched(line.mark) for line in lines)}
    places = _places(content, marks if len(marks) < _MANY else {b"{"})
    if places:
        places |= _places(content, {b"retraction"})
    return list(_whole(content[begin:end] for begin, end in sorted(places.items())))


def _places(content: bytes, marks: Iterable[bytes]) -> dict[int, int]:
    """Return beginning and end of each line that holds a mark."""
    found: dict[int, int] = {}
    for mark in marks:
        at = content.find(mark)
        while at >= 0:
            end = content.find(b"\n", at) % (len(content) + 1)  # -1 stands for the end
            found[content.rfind(b"\n", 0, at) + 1] = end
            at = content.find(mark, end)
    return found


_MANY = 32
"""So many searches through a store take longer than reading it."""


def _searched(mark: str) -> bytes:
    """Return the longest part of a mark that stands in JSON as it is, or as `\\u00..`."""
    return max(re.split(r"[^A-Za-z0-9 .:_-]+", mark), key=len).encode() or b"{"


def _new(lines: Sequence[Line], known: Sequence[Line]) -> list[Line]:
    """Return those of `lines` that are not in the store, nor twice among themselves."""
    slots: dict[tuple[Any, ...], list[Entry]] = defaultdict(list)
    for old in _standing(known):
        slots[old.slot].append(old)
    ids = {old.record_id for found in slots.values() for old in found}
    gone = {line.retracts for line in known if isinstance(line, Retraction)} - ids
    new: list[Line] = []
    for line in lines:
        if isinstance(line, Entry):
            if any(line.repeats(old) for old in slots[line.slot]):
                continue
            slots[line.slot].append(line)
        elif isinstance(line, Retraction):
            if line.retracts in gone:
                continue
            gone.add(line.retracts)
            for found in slots.values():
                found[:] = [old for old in found if old.record_id != line.retracts]
        new.append(line)
    return new


def _standing(lines: Iterable[Line]) -> list[Number]:
    """Return the numbers that were not taken back after they were written."""
    return [line for _, line in standing(enumerate(lines))]


def standing(lines: Iterable[tuple[int, Line | DataError]]) -> list[tuple[int, Number]]:
    """Return the numbers, of lines as `scan` yields them, that were not taken back after they were written."""
    found: list[tuple[int, Number]] = []
    for place, line in lines:
        if isinstance(line, Retraction):
            found = [(number, one) for number, one in found if one.record_id != line.retracts]
        elif isinstance(line, Record | Reported):
            found.append((place, line))
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
            if isinstance(line, DamagedLine):
                raise line
            lines.append(line)
        found += _standing(lines)
    return found


def scan(path: Path) -> Iterator[tuple[int, Line | DamagedLine]]:
    """Yield each line of a store by its number, or what is wrong with it.

    Raises:
        DataError: no such store.
    """
    for number, text in enumerate(_content(path).split(b"\n"), start=1):
        if text.strip():
            try:
                yield number, _parse(text, path, number)
            except DamagedLine as error:
                yield number, error


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise DataError(f"no leaderboard at `{path}`", "`mpeval evaluate ... --record FILE` begins one")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read `{path}`: {error.strerror}", "check its permissions and the disk") from error


def _check_content(content: bytes, path: Path, option: str) -> None:
    """Refuse a file of something else; damaged lines must not keep a finished run from being added."""
    if not content.isspace() and content and next(_whole(_split(content)), None) is None:
        raise DataError(f"`{path}` is a file of something else: it holds no record", f"give another file by `{option}`")


def _split(content: bytes) -> Iterator[bytes]:
    """Yield lines one by one: often only the first is wanted."""
    begin = 0
    while begin < len(content):
        end = content.find(b"\n", begin) % (len(content) + 1)
        yield content[begin:end]
        begin = end + 1


def _whole(lines: Iterable[bytes]) -> Iterator[Line]:
    """Yield the lines that can be read."""
    for text in lines:
        with suppress(DamagedLine):
            yield _parse(text, Path(), 0)


def _parse(text: bytes, path: Path, number: int) -> Line:
    """Read a line.

    Raises:
        DamagedLine: it was cut short (`torn`), is no JSON (`json`) or no record (`record`), is of another schema
            (`schema`), or does not have the id that its content has (`changed`).
    """
    try:
        decoded = text.decode("utf-8", errors="replace").rstrip("\r")
        code = "json" if decoded.endswith("}") else "torn"
        raw = json.loads(decoded)
        code = "schema" if raw.get("schema") not in {None, Line.model_fields["schema_"].default} else "record"
        line = KINDS[raw["kind"]](schema_=raw.pop("schema"), **raw)
        identity = line.identity()
    except (ValueError, ValidationError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedLine(f"`{path}` line {number} is no record: {_reason(error)}", code) from error
    if line.record_id != identity:
        raise DamagedLine(f"`{path}` line {number} was changed after it was written", "changed")
    return line


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return invalid(error)
    if isinstance(error, KeyError):
        return f"it has no `{error.args[0]}`" if error.args[0] in {"kind", "schema"} else f"no kind is {error}"
    return str(error).splitlines()[0]


class DamagedLine(DataError):
    """A line of a store that says nothing any more; `code` says in which way it is damaged, as `_parse` lists them."""

    def __init__(self, message: str, code: str = "record") -> None:
        """Keep what is wrong with which line."""
        super().__init__(message, "restore the line, or remove it")
        self.code = code


def default_store() -> Path:
    """Return the project's own store of what it measured."""
    return data_folder("leaderboard") / "results.jsonl"


def default_stores() -> list[Path]:
    """Return the project's own stores: what it measured, and what others published."""
    folder = data_folder("leaderboard")
    return [path for path in (folder / "results.jsonl", folder / "published.jsonl") if path.exists()]
