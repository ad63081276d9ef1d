"""What a person sees: tables and progress.  The only module that imports rich."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mpeval.leaderboard.text import harmless
from mpeval.results import Comparison, ComparisonResults, EnsembleResults, Metric, RunResults, Verdict

if TYPE_CHECKING:
    from mpeval.leaderboard.importing.pipeline import Imported
    from mpeval.leaderboard.power import Power

Rows = Sequence[Sequence[str]]


class Advance(Protocol):
    """Tell a progress bar that `items` more are done, `tokens` of input, and how things stand."""

    def __call__(self, items: int, tokens: int, note: str = "") -> None:
        """Move the bar."""


def _nothing(items: int, tokens: int, note: str = "") -> None:
    """Move no bar."""
    del items, tokens, note


@contextmanager
def progress(
    title: str, total: int, *, done: int = 0, shown: bool = True, unit: Literal["tokens", "bytes"] = "tokens"
) -> Iterator[Advance]:
    """Show one line with bar, rate and time left on stderr; nothing when it is not a terminal or not `shown`."""
    console = Console(stderr=True)
    if not shown or not console.is_terminal:
        yield _nothing
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn() if unit == "tokens" else DownloadColumn(),
        TextColumn("{task.fields[note]}"),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total, completed=done, rate="", note="")
        seen = 0

        def advance(items: int, tokens: int, note: str = "") -> None:
            nonlocal seen
            seen += tokens
            elapsed = bar.tasks[0].elapsed or 0.0
            rate = seen / elapsed if elapsed else 0.0
            said = f"{rate:,.0f} tokens/s" if unit == "tokens" else f"{rate / 1e6:,.0f} MB/s"
            bar.update(task, advance=items, rate=said, note=note)

        yield advance


@contextmanager
def byte_progress(title: str, total: int, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Show progress over `total` bytes; gives a function to be called with the bytes just done."""
    with progress(title, total, shown=shown, unit="bytes") as advance:
        yield lambda count: advance(count, count)


def table(
    title: str,
    columns: Sequence[str],
    rows: Rows,
    *,
    right: Sequence[str] = (),
    ruled: bool = False,
    stderr: bool = False,
) -> None:
    """Print a table, with `ruled` a line between rows; cells are plain text, never markup."""
    made = Table(title=Text(harmless(title)) if title else None, title_justify="left", show_lines=ruled)
    for column in columns:
        made.add_column(
            Text(harmless(column)),
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=column.partition("\n")[0] in {"protocol", "metric", "value"},
        )
    for row in rows:
        made.add_row(*(Text(harmless(cell)) for cell in row))
    _console(stderr).print(made)


def line(text: str, *, stderr: bool = False) -> None:
    """Print one plain line."""
    _console(stderr).print(Text(harmless(text)), soft_wrap=True)


def recorded(added: int, store: object, *, stderr: bool = False) -> None:
    """Say how many records a leaderboard file has got."""
    line(f"{added} record{'s' * (added != 1)} added to {store}", stderr=stderr)


def import_tables(imported: Imported, store: object) -> None:
    """Print what was found in a file, then how many of its numbers are in a leaderboard; `store` None: a dry run."""
    findings = sorted(imported.findings, key=lambda finding: finding.kept)
    rows = [["kept" if one.kept else "left out", one.place, one.model, one.code, one.done] for one in findings]
    if rows:
        table("What was found", ("value", "where", "model", "reason", "what was done"), rows)
    left = sum(not one.kept for one in findings)
    line(
        f"{imported.rows:,} entries, {imported.numbers:,} numbers; {len(rows):,} findings, by which {left:,} values "
        f"or entries are left out; {imported.known:,} numbers were there before"
    )
    if store is None:
        line(f"{imported.added:,} would be added: a dry run")
    else:
        recorded(imported.added, store)


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr)
    stream = sys.stderr if stderr else sys.stdout
    return console if stream.isatty() else Console(stderr=stderr, width=120)


def show_metric(metric: Metric) -> str:
    """Format a value the way papers print it: per cent for accuracy, two decimals for perplexity, four for bits."""
    return _number(metric.value, metric.unit)


def _number(value: float, unit: str) -> str:
    if unit == "proportion":
        return f"{100 * value:.2f} %"
    if unit in {"bits", "number"}:
        return f"{value:.4f}"
    return f"{value:.2f}" if value < 1e3 else f"{value:,.0f}" if value < 1e6 else f"{value:.2e}"


def show_interval(metric: Metric) -> str:
    """Format the 95 % interval, empty when there is none."""
    if metric.low is None or metric.high is None:
        return ""
    return f"{_number(metric.low, metric.unit)} - {_number(metric.high, metric.unit)}"


def results_table(run: RunResults, *, stderr: bool = False) -> None:
    """Print one row per metric of a run, then what a reader must know to trust it.

    Splits are named where one is not the test set.
    """
    named = any(result.split not in {"", "test"} for result in run.results)
    rows = [
        [
            result.protocol if number == 0 else "",
            *([result.split if number == 0 else ""] if named else []),
            metric.name.replace("_", " "),
            show_metric(metric),
            show_interval(metric),
            f"{result.n:,}" if number == 0 else "",
            ", ".join(result.flags) if number == 0 else "",
        ]
        for result in run.results
        for number, metric in enumerate(result.metrics)
    ]
    checkpoint = run.checkpoint
    title = f"{checkpoint.name}, iteration {checkpoint.iteration}, {checkpoint.parameters:,} parameters, {run.dtype}"
    columns = ("protocol", *(["split"] if named else []), "metric", "value", "95 % interval", "n", "flags")
    table(title, columns, rows, right=("value", "n"), stderr=stderr)
    speed = [result.tokens_per_second for result in run.results if result.tokens_per_second]
    padding = "let in (megatron-exact)" if run.megatron_exact else "masked"
    facts = [
        f"checkpoint {checkpoint.digest[:19]}",
        f"stored tp {checkpoint.grid[0]} x pp {checkpoint.grid[1]}",
        f"run tp {run.layout.tp} x dp {run.layout.dp} on {run.device}",
        f"GELU {checkpoint.gelu}" if checkpoint.gelu else "SwiGLU",
        f"padding rows {padding}",
        *([f"{speed[-1]:,.0f} tokens/s"] if speed else []),
    ]
    line("; ".join(facts), stderr=stderr)
    truncated = sum(result.truncated for result in run.results)
    if truncated:
        line(f"{truncated} items were cut on the left to fit the model's context", stderr=stderr)


def ensemble_tables(results: EnsembleResults, *, stderr: bool = False) -> None:
    """Print the scores of members and ensemble, then the ensemble against each member."""
    names = [metric.name for metric in results.metrics]
    rows = [
        [member.name, "" if member.seed is None else str(member.seed), *_scores(member.metrics)]
        for member in results.members
    ]
    rows.append([f"ensemble of {len(results.members)}", "", *_scores(results.metrics)])
    columns = [
        "model",
        "seed",
        names[0].replace("_", " "),
        "95 % interval",
        *(name.replace("_", " ") for name in names[1:]),
    ]
    title = f"{results.title} {results.split}, {results.protocol}: {results.n:,} questions"
    table(title, columns, rows, right=columns[1:3] + columns[4:], stderr=stderr)
    compared = ("ensemble minus", "difference", "95 % interval", "p", "p (Holm)", "right alone", "p (McNemar)")
    table("Paired differences", compared, [_difference(item) for item in results.comparisons], stderr=stderr)
    passages = results.comparisons[0].clusters
    line(
        f"p is of z with questions of one passage as one cluster ({passages:,} clusters), Holm's over "
        f"{len(results.comparisons)} tests; McNemar's exact test takes questions as independent",
        stderr=stderr,
    )
    if results.flags:
        line(f"flags: {', '.join(results.flags)}", stderr=stderr)


COMPARED = (
    "protocol\nmetric",
    "runs",
    "n\nclusters",
    "difference\n95 % interval",
    "p\np (Holm)",
    "right alone\np (McNemar)",
    "corre-\nlation",
    "verdict",
)
FEW = 200
"""Below so many clusters of right and wrong answers the normal distribution is a rough one."""


def comparison_table(results: ComparisonResults, *, stderr: bool = False) -> None:
    """Print a row of two lines for each comparison, then what its numbers mean."""
    letters = {run.name: _letter(number) for number, run in enumerate(results.runs)}
    for run in results.runs:
        line(f"{letters[run.name]}: {run.name}" + f" ({run.path})" * (run.path != run.name), stderr=stderr)
    rows = [_compared(item, letters) for item in results.comparisons]
    tests = len(rows)
    table("Paired comparisons", COMPARED, rows, right=COMPARED[2:3], ruled=True, stderr=stderr)
    found = [item.comparison for item in results.comparisons]
    shares = [item for item in found if isinstance(item, Comparison)]
    said = []
    if shares:
        said.append("differences in points: z with questions of one passage as one cluster")
    if len(shares) < tests:
        said.append("ratios of perplexities, below 1 where the first is better: Student's t with documents as clusters")
    line("; ".join(said), stderr=stderr)
    line(
        f"verdicts: p below {results.level:.2g} after Holm's correction for {tests} test{'s' * (tests != 1)}; the "
        "intervals are not corrected; McNemar's exact test takes questions as independent",
        stderr=stderr,
    )
    if min((item.clusters for item in shares), default=FEW) < FEW:
        line(f"with fewer than {FEW} clusters p is rough: see McNemar's too", stderr=stderr)
    for tied in results.groups:
        ranks = "; ".join(", ".join(letters[name] for name in group) for group in tied.groups)
        title = f"{tied.protocol}, {tied.metric.replace('_', ' ')}"
        line(f"{title}, best first, between semicolons what no test tells from its best: {ranks}", stderr=stderr)
    for protocol, flags in {item.protocol: item.flags for item in results.comparisons if item.flags}.items():
        line(f"flags of {protocol}: {', '.join(flags)}", stderr=stderr)
    if results.not_compared:
        line(f"not compared, item by item there is nothing: {', '.join(results.not_compared)}", stderr=stderr)


def _letter(number: int) -> str:
    """Return A to Z, then A1, B1, ..."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number % 26] + (str(number // 26) if number > 25 else "")


def _compared(item: Verdict, letters: Mapping[str, str]) -> list[str]:
    found = item.comparison
    if isinstance(found, Comparison):
        difference, interval = f"{100 * found.difference:+.2f} points", _points(found)
        alone = f"{found.only_first:,} : {found.only_second:,}\n{show_p_value(found.mcnemar)}"
    else:
        difference, alone = f"x {_times(found.ratio)}", ""
        interval = "" if found.low is None or found.high is None else f"{_times(found.low)} to {_times(found.high)}"
    shown = "no difference shown" if found.p_value is not None else "no test of one cluster"
    return [
        f"{item.protocol}\n{found.metric.replace('_', ' ')}",
        f"{letters[found.first]} {'-' if isinstance(found, Comparison) else '/'} {letters[found.second]}",
        f"{found.n:,}\n{found.clusters:,}",
        f"{difference}\n{interval}",
        f"{show_p_value(found.p_value)}\n{show_p_value(found.p_value_holm)}",
        alone,
        "" if found.correlation is None else f"{found.correlation:.2f}",
        shown if item.better is None else f"{letters[item.better]} better",
    ]


def _times(ratio: float) -> str:
    return f"{ratio:.4f}" if 0.1 <= ratio < 100 else f"{ratio:.3g}"


def power_table(title: str, found: Power, needed: Mapping[str, int]) -> None:
    """Print what a set of items can resolve, in points, and how many it takes for what was asked."""
    percent = f"{100 * found.power:g} % power"
    paired = f"on the same items, correlation {found.correlation:g}"
    rows = [
        ["standard error", f"{100 * found.stderr:.2f} points"],
        ["95 % half width", f"{100 * found.half_width:.2f} points"],
        [f"smallest difference found with {percent}, measured apart", f"{100 * found.unpaired:.2f} points"],
        [f"smallest difference found with {percent}, {paired}", f"{100 * found.paired:.2f} points"],
        *([what, f"{count:,} items"] for what, count in needed.items()),
    ]
    table(f"{title}: {found.n:,} items, accuracy {100 * found.accuracy:g} %", ("what", "value"), rows, right=("value",))
    line("items are taken as independent: questions that share a passage resolve less, by how much only a run can tell")


def _scores(metrics: Sequence[Metric]) -> list[str]:
    return [show_metric(metrics[0]), show_interval(metrics[0]), *(show_metric(metric) for metric in metrics[1:])]


def _difference(item: Comparison) -> list[str]:
    return [
        item.second,
        f"{100 * item.difference:+.2f} points",
        _points(item),
        show_p_value(item.p_value),
        show_p_value(item.p_value_holm),
        f"{item.only_first:,} : {item.only_second:,}",
        show_p_value(item.mcnemar),
    ]


def _points(item: Comparison) -> str:
    return "" if item.low is None or item.high is None else f"{100 * item.low:+.2f} to {100 * item.high:+.2f}"


def show_p_value(value: float | None) -> str:
    """Return a p-value, small ones by their power of ten; empty for none."""
    if value is None:
        return ""
    return f"{value:.3f}" if value >= 1e-3 else f"{value:.1e}"
