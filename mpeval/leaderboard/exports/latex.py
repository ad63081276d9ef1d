"""The boards as LaTeX tables with booktabs, to be read by `\\input`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from mpeval.leaderboard.boards import OTHER, Board, Row
from mpeval.leaderboard.exports.export import Export, metrics, printed, scaled
from mpeval.leaderboard.exports.latex_text import escape
from mpeval.leaderboard.text import slug
from mpeval.results import Metric

COLUMNS = ("rank", "model", "kind", "parameters", "value", "interval", "n", "shots", "flags", "source")
"""Those that a page has room for, beside other scores of the board; whatever is empty in all rows is left out."""
RIGHT = {"rank", "parameters", "value", "n"}
LONG = 1e9
"""Larger numbers are written with a power of ten."""
RULE = r"Bold: every value whose rank may be 1, since no other's 95\,\% interval lies beyond its own."


def export(content: Sequence[Board], *, siunitx: bool = False) -> Export:
    """Return `leaderboard.tex`: one table per board.

    Args:
        content: boards.
        siunitx: numbers stand in `S` columns with their standard error, `81.0(9)`; else as text.
    """
    packages = r"\usepackage{booktabs}" + (r" and \usepackage{siunitx}" if siunitx else "")
    lines = [f"% Made by `mpeval leaderboard publish`; needs {packages}."]
    labels: set[str] = set()
    for board in content:
        label = base = f"tab:{slug(f'{board.title} {board.split} {board.protocol} {board.metric}') or 'board'}"[:80]
        number = 1
        while label in labels:
            number += 1
            label = f"{base}-{number}"
        labels.add(label)
        lines += ["", *_table(board, label, siunitx)]
    return Export(files={"leaderboard.tex": "\n".join(lines) + "\n"})


def best_group(board: Board) -> list[Row]:
    """Return the rows whose rank may be 1 among all of the board, those that are not shown too."""
    return [row for row in board.rows if row.ranks and row.ranks[0] == 1]


def _table(board: Board, label: str, siunitx: bool) -> Iterator[str]:
    # an `S` column has the standard error, which the interval would say again
    columns = [column for column in _columns(board) if not (siunitx and column == "interval")]
    numbers = [column for column in columns if siunitx and _is_score(board, column)]
    bold = best_group(board)
    sources = list(dict.fromkeys(row.cells["source"] for row in board.rows if row.cells["source"]))
    layout = "".join(
        "S" if column in numbers else "r" if column in RIGHT or _is_score(board, column) else "l" for column in columns
    )
    what = f"{board.title} {board.split}: {board.metric}, {board.arrow}; protocol {board.protocol}."
    scale = r" Scores in percent or as they are, standard error in parentheses." if siunitx else ""
    yield r"\begin{table}"
    yield r"  \centering"
    yield rf"  \caption{{{escape(what)}{scale} {RULE}}}"
    yield rf"  \label{{{label}}}"
    yield r"  \footnotesize\setlength{\tabcolsep}{4pt}"
    yield rf"  \begin{{tabular}}{{{layout}}}"
    yield r"    \toprule"
    yield "    " + _line([_heading(board, column, column in numbers) for column in columns])
    yield r"    \midrule"
    for row in board.rows:
        cell = partial(_cell, row, numbers=numbers, bold=any(row is one for one in bold), sources=sources)
        yield "    " + _line([cell(column) for column in columns])
    yield r"    \bottomrule"
    yield r"  \end{tabular}"
    if sources:
        listed = "; ".join(f"({number}) {escape(source)}" for number, source in enumerate(sources, start=1))
        yield rf"  \par\smallskip Sources: {listed}.\par"
    yield r"\end{table}"


def _line(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _columns(board: Board) -> list[str]:
    """Return the columns of the table; scores of groups come after the interval, as on the other pages."""
    chosen = [column for column in board.columns if column in COLUMNS or _is_score(board, column)]
    first = [column for column in COLUMNS if column in chosen]
    at = first.index("interval") + 1
    ordered = [*first[:at], *(column for column in chosen if column not in COLUMNS), *first[at:]]
    return [column for column in ordered if any(row.cells[column] for row in board.rows)]


def _is_score(board: Board, column: str) -> bool:
    return column == "value" or any(_metric_of(row, column) for row in board.rows)


def _metric_of(row: Row, column: str) -> Metric | None:
    """Return the metric that a column shows of a row."""
    if column == "value":
        return row.entry.metric
    return next((metric for metric in metrics(row.entry)[1:] if column == OTHER + metric.name), None)


def _heading(board: Board, column: str, number: bool) -> str:
    text = escape(board.headings.get(column, column))
    return f"{{{text}}}" if number else text


def _cell(row: Row, column: str, *, numbers: Sequence[str], bold: bool, sources: Sequence[str]) -> str:
    metric = _metric_of(row, column)
    if column in numbers:
        return _with_error(row, metric) if metric else "{}"
    if column == "source":
        return f"({sources.index(row.cells[column]) + 1})" if row.cells[column] else ""
    text = escape(row.cells[column])
    return rf"\textbf{{{text}}}" if bold and column in {"model", "value"} else text


def _with_error(row: Row, metric: Metric) -> str:
    """Return a number for an `S` column, its standard error in units of the last digit in parentheses."""
    text = printed(row.entry, metric)
    value, error = scaled(metric.value, metric), scaled(metric.stderr, metric)
    assert value is not None
    if not text:
        text = f"{value:.2e}" if abs(value) >= LONG else f"{value:.{2 if abs(value) < 1000 else 0}f}"
    digits, _, power = text.partition("e")
    decimals = len(digits.partition(".")[2]) - int(power or 0)
    units = round(error * 10.0**decimals) if error else 0
    return digits + (f"({units})" if units else "") + (f"e{int(power)}" if power else "")
