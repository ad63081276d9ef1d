"""Boards as pages and in the formats of others: the files of a published leaderboard."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mpeval.errors import DataError, UsageError, suggest
from mpeval.folders import unwritable, write_atomically
from mpeval.leaderboard.boards import Board, boards
from mpeval.leaderboard.exports import delimited, eee, harness, hub, latex, papers, table_json
from mpeval.leaderboard.exports.export import Export
from mpeval.leaderboard.markdown import page as markdown
from mpeval.leaderboard.page import html
from mpeval.leaderboard.store import read

Renderer = Callable[[list[Board]], Export]
FORMATS: dict[str, Renderer] = {
    "md": lambda content: Export(files={"README.md": markdown(content)}),
    "html": lambda content: Export(files={"index.html": html(content)}),
    "csv": delimited.export,
    "tex": latex.export,
    "json": table_json.export,
    "pwc": papers.export,
    "model-index": hub.export_model_index,
    "eval-results": hub.export_eval_results,
    "eee": eee.export,
    "lm-eval": harness.export,
}
"""Every format that boards are published in; files are written in this order."""
DEFAULT = ("md", "html")


def publish(
    stores: Sequence[Path],
    output: Path,
    formats: Sequence[str] = DEFAULT,
    *,
    models: Sequence[str] = (),
    siunitx: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write the numbers of `stores` below `output`; return the paths of the files.

    Args:
        stores: files of records.
        output: a folder, made where there is none.
        formats: names out of `FORMATS`; each file is whole or not there, and of the same bytes for the same records.
        models: names of the models whose rows are published, with their ranks among all; every one's by default.
        siunitx: numbers of LaTeX tables stand in `S` columns.
        say: is told what a format could not hold.

    Raises:
        UsageError: an unknown format, or `siunitx` without LaTeX.
        DataError: a store that cannot be read, or a model that is on no board.
        OutputError: a file that cannot be written.
    """
    exports = _rendered(stores, formats, models, siunitx=siunitx)
    for export in exports:
        for name, text in export.files.items():
            write_atomically(output / name, text)
        _remove_earlier(output, export)
        if say:
            for note in export.notes:
                say(note)
    return [output / name for export in exports for name in export.files]


def check(
    stores: Sequence[Path],
    output: Path,
    formats: Sequence[str] = DEFAULT,
    *,
    models: Sequence[str] = (),
    siunitx: bool = False,
) -> list[Path]:
    """Return the paths of the files that `publish` would write, all of which are there and hold just that.

    Pictures are not compared: where their lines run depends on the version of matplotlib.

    Raises:
        DataError: one is missing, or of other records.
        UsageError: as `publish`.
    """
    paths = []
    for export in _rendered(stores, formats, models, siunitx=siunitx):
        for name, text in export.files.items():
            path = output / name
            if not path.is_file():
                raise DataError(f"there is no `{path}`", "`mpeval leaderboard publish` writes it")
            if _PICTURES.sub("", _read(path)) != _PICTURES.sub("", text):
                raise DataError(f"`{path}` is not made of the records as they are now", "publish it again")
            paths.append(path)
    return paths


def _read(path: Path) -> str:
    """Return a file's text with the ends of its lines as they are."""
    try:
        return path.read_bytes().decode("utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"cannot read `{path}`: {error.strerror}", "check its permissions and the disk") from error


_PICTURES = re.compile(r"<svg\b.*?</svg>", re.DOTALL)


def _rendered(stores: Sequence[Path], formats: Sequence[str], models: Sequence[str], *, siunitx: bool) -> list[Export]:
    chosen = known_formats(formats, siunitx=siunitx)
    content = of_models(boards(read(*stores)), models)
    renderers = FORMATS | {"tex": partial(latex.export, siunitx=siunitx)}
    return [renderers[name](content) for name in chosen]


def known_formats(names: Sequence[str], *, siunitx: bool = False) -> list[str]:
    """Return formats, each once, in the order of `FORMATS`.

    Raises:
        UsageError: one is unknown, there is none, or `siunitx` without LaTeX.
    """
    for name in names:
        if name not in FORMATS:
            hint = f"{suggest(name, list(FORMATS))} (there are {', '.join(f'`{item}`' for item in FORMATS)})"
            raise UsageError(f"`--format {name}` is unknown", hint)
    if not names:
        raise UsageError("`--format` names no format", f"give some of {', '.join(f'`{item}`' for item in FORMATS)}")
    if siunitx and "tex" not in names:
        raise UsageError("`--siunitx` is about LaTeX tables, which are not asked for", "add `tex` to `--format`")
    return [name for name in FORMATS if name in names]


def of_models(content: list[Board], models: Sequence[str]) -> list[Board]:
    """Return the rows of some models, with their ranks among all; boards without one are left out.

    Raises:
        DataError: a model that is on no board.
    """
    if not models:
        return content
    names = {row.entry.model.name for board in content for row in board.rows}
    for model in models:
        if model not in names:
            raise DataError(f"no record of the model `{model}`", suggest(model, sorted(names)))
    kept = (
        replace(board, rows=tuple(row for row in board.rows if row.entry.model.name in models)) for board in content
    )
    return [board for board in kept if board.rows]


def _remove_earlier(output: Path, export: Export) -> None:
    """Remove the files that an earlier export made of records that are no longer there, and no one else's."""
    kept = {output / name for name in export.files}
    for path in sorted(output.glob(export.earlier)) if export.earlier else ():
        try:
            if path not in kept and path.is_file() and b': "mpeval"' in path.read_bytes():
                path.unlink()
        except OSError as error:
            raise unwritable(path, error) from error
