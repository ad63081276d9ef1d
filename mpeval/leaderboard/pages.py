"""Boards as a Markdown page and one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mpeval.folders import write_atomically
from mpeval.leaderboard.boards import Board, boards
from mpeval.leaderboard.page import html
from mpeval.leaderboard.store import read


def publish(stores: Sequence[Path], output: Path) -> list[Path]:
    """Write `README.md` and `index.html` from the numbers of `stores`; return their paths."""
    content = boards(read(*stores))
    pages = {output / "README.md": _markdown(content), output / "index.html": html(content)}
    for path, text in pages.items():
        write_atomically(path, text)
    return list(pages)


def _markdown(content: list[Board]) -> str:
    lines = [
        "# Leaderboard",
        "",
        "Made from records by `mpeval leaderboard publish`: `measured` numbers are mpeval's own,",
    ]
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
    lines += ["Rows without a rank are flagged: they did not measure the whole published benchmark.", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Make a value harmless inside a Markdown table."""
    flat = " ".join(text.split())
    for character in "\\`*_{}[]<>|&":
        flat = flat.replace(character, f"&#{ord(character)};" if character in "<>&|" else "\\" + character)
    return flat
