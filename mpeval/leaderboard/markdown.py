"""Boards as a Markdown page, and as a part of one that somebody else writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mpeval.errors import DataError, OutputError
from mpeval.folders import unwritable, write_atomically
from mpeval.leaderboard.boards import Board
from mpeval.leaderboard.text import one_line

BEGIN = "<!-- mpeval:leaderboard -->"
END = "<!-- /mpeval:leaderboard -->"


def page(content: Sequence[Board]) -> str:
    """Return a page of its own."""
    return "\n".join(["# Leaderboard", "", *_lines(content)])


def replace_between_markers(path: Path, content: Sequence[Board]) -> None:
    """Replace what stands between the two markers of an existing file; everything else stays byte for byte.

    Raises:
        DataError: no such file, or not each marker once on a line of its own, the first one before the other.
        OutputError: it cannot be written.
    """
    if not path.is_file():
        raise DataError(f"there is no file `{path}`", f"write one that has the lines `{BEGIN}` and `{END}`")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"`{path}` is no UTF-8 text: {error.reason} at byte {error.start}", "save it as UTF-8"
        ) from error
    except OSError as error:
        raise unwritable(path, error, "--readme") from error
    new = with_boards(text, content, str(path))
    try:
        write_atomically(path.resolve(), new)
    except OutputError as error:
        raise OutputError(error.message, "give a file you may write to by `--readme`") from error


def with_boards(text: str, content: Sequence[Board], name: str) -> str:
    """Return `text` with the boards between its markers; `name` says whose text it is.

    Raises:
        DataError: not each marker once on a line of its own, the first one before the other.
    """
    lines = text.splitlines(keepends=True)
    first, last = _only(lines, BEGIN, name), _only(lines, END, name)
    if last < first:
        raise DataError(
            f"`{name}` has the marker `{END}` in line {last + 1}, before `{BEGIN}` in line {first + 1}",
            "put the two lines in the other order",
        )
    newline = "\r\n" if lines[first].endswith("\r\n") else "\n"
    block = [f"{line}{newline}" for line in ["", *_lines(content)]]
    return "".join([*lines[: first + 1], *block, *lines[last:]])


def _only(lines: Sequence[str], marker: str, name: str) -> int:
    """Return the index of the one line that is a marker."""
    found = [number for number, line in enumerate(lines) if line.strip() == marker]
    if not found:
        raise DataError(
            f"`{name}` has no line `{marker}`", f"put in the lines `{BEGIN}` and `{END}` where boards shall be"
        )
    if len(found) > 1:
        numbers = ", ".join(str(number + 1) for number in found)
        raise DataError(f"`{name}` has the line `{marker}` more than once: lines {numbers}", "leave one of them")
    return found[0]


def _lines(content: Sequence[Board]) -> list[str]:
    lines = ["Made from records by `mpeval leaderboard publish`: `measured` numbers are mpeval's own,"]
    lines += ["`reported` ones those of the source they name, their intervals from the items it has.", ""]
    for board in content:
        headings = [board.headings.get(column, column) for column in board.columns]
        lines += [f"## {_cell(board.title)} {_cell(board.split)}: {_cell(board.protocol)}", ""]
        lines += [f"{_cell(board.metric)}, {board.arrow}", ""]
        lines += ["| " + " | ".join(map(_cell, headings)) + " |"]
        lines += ["|" + " --- |" * len(headings)]
        lines += ["| " + " | ".join(_cell(row.cells[column]) for column in board.columns) + " |" for row in board.rows]
        notes = [
            f"- {_cell(row.cells['model'])}: {_cell(row.cells['notes'])}" for row in board.rows if row.cells["notes"]
        ]
        lines += ["", *dict.fromkeys(notes)] if notes else []
        lines += [""]
    lines += [
        "A rank is a range where 95 % intervals overlap, which may hide a difference that a paired test would show."
    ]
    return [*lines, "Rows without one are flagged: they did not measure the whole published benchmark.", ""]


def _cell(text: str) -> str:
    """Make a value harmless inside a Markdown table."""
    flat = one_line(text)
    for character in "\\`*_{}[]<>|&~$":
        flat = flat.replace(character, f"&#{ord(character)};" if character in "<>&|" else "\\" + character)
    return _ADDRESS.sub("\\\\", flat)


_ADDRESS = re.compile(r"(?=://)|(?<=www)(?=\.)", re.IGNORECASE)
"""Where an address is cut, which would become a link by itself."""
