"""Boards as a Markdown page and one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpeval.folders import write_atomically
from mpeval.leaderboard.boards import boards
from mpeval.leaderboard.store import read


def publish(store: Path, output: Path) -> list[Path]:
    """Write `README.md` and `index.html` from the records of `store`; return their paths."""
    content = boards(read(store))
    pages = {output / "README.md": _markdown(content), output / "index.html": _html(content)}
    for path, text in pages.items():
        write_atomically(path, text)
    return list(pages)


def _html(content: list[dict[str, Any]]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mpeval"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("leaderboard.html").render(boards=content)


def _markdown(content: list[dict[str, Any]]) -> str:
    lines = ["# Leaderboard", "", "Measured by mpeval; made from `results.jsonl` by `mpeval leaderboard publish`.", ""]
    for board in content:
        columns, headings = board["columns"], board["headings"]
        lines += [f"## {_cell(board['title'])} {_cell(board['split'])}: {_cell(board['protocol'])}", ""]
        lines += [f"{_cell(board['metric'])}, {board['arrow']}", ""]
        lines += ["| " + " | ".join(_cell(headings.get(column, column)) for column in columns) + " |"]
        lines += ["|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in board["rows"]]
        notes = [f"- {_cell(row['model'])}: {_cell(row['notes'])}" for row in board["rows"] if row["notes"]]
        lines += ["", *notes] if notes else []
        lines += [""]
    lines += ["Rows without a rank are flagged: they did not measure the whole published benchmark.", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Make a value harmless inside a Markdown table."""
    flat = " ".join(text.split())
    for character in "\\`*_{}[]<>|&":
        flat = flat.replace(character, f"&#{ord(character)};" if character in "<>&|" else "\\" + character)
    return flat
