"""Runs against each other, item by item: `mpeval leaderboard compare`.  No model is run, and no torch."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpeval import __version__
from mpeval.errors import DataError, UsageError
from mpeval.finetuned import EVALUATIONS
from mpeval.journal import RESULTS_FILE, RUN_FILE, SAMPLES_FILE
from mpeval.leaderboard.ranking import tie_groups
from mpeval.predictions.lines import Predicted, protocols_in, read_predictions
from mpeval.predictions.measures import TOKENS, Measure, measures_of
from mpeval.predictions.members import check_alike, names_of, read_own_lines, read_results, refuse_other
from mpeval.predictions.paired import compare, compare_losses, with_holm
from mpeval.results import (
    ComparedRun,
    Comparison,
    ComparisonResults,
    PerplexityComparison,
    Result,
    RunResults,
    TieGroups,
    Verdict,
    now,
)
from mpeval.statistics import SIGNIFICANCE, ratio_of_sums

_RUN = "give the output folder of `mpeval evaluate`, or a `samples.jsonl`"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `mpeval leaderboard compare` was asked to do."""

    runs: tuple[Path, ...]
    protocols: tuple[str, ...] = ()
    """Ids, or names of tasks for all that they have; none for all."""
    json: bool = False
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class Side:
    """What one run has said, by protocol."""

    path: Path
    """As given."""
    file: Path
    run: RunResults | None
    results: dict[str, Result]
    """Empty for lines without results beside them, as those of an ensemble are."""
    lines: dict[str, list[Predicted]]

    @property
    def model(self) -> str:
        """What its model is called, if anything says so."""
        return self.run.checkpoint.name if self.run else str(self.path)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two runs, by their places among those given, under a protocol."""

    first: int
    second: int
    protocol: str
    comparison: Comparison | PerplexityComparison
    lower_is_better: bool


def run(options: Options) -> ComparisonResults:
    """Compare every pair of runs under every protocol that both have, and print.

    Raises:
        MpevalError: fewer than two runs, one twice, one without samples, nothing in common, or other items.
    """
    results = compare_runs(options)
    if options.json:
        sys.stdout.write(results.to_json())
        sys.stdout.flush()
        return results
    from mpeval.report import comparison_table

    comparison_table(results)
    return results


def compare_runs(options: Options) -> ComparisonResults:
    """Compare every pair of runs under every protocol that both have; see `run`."""
    sides = _sides(options)
    names = names_of([(side.model, side.path) for side in sides])
    measures = [{protocol: measures_of(lines) for protocol, lines in side.lines.items()} for side in sides]
    pairs, empty = _pairs(sides, measures, names)
    if not pairs:
        raise _nothing_shared(sides, empty)
    corrected = with_holm([pair.comparison for pair in pairs])
    verdicts = [_verdict(pair, found, sides, names) for pair, found in zip(pairs, corrected, strict=True)]
    return ComparisonResults(
        created_at=now(),
        level=SIGNIFICANCE,
        runs=[_compared_run(side, name) for side, name in zip(sides, names, strict=True)],
        comparisons=verdicts,
        groups=list(_groups(pairs, verdicts, names)) if len(sides) > 2 else [],
        not_compared=empty,
        command=options.command or shlex.join(sys.argv),
        mpeval_version=__version__,
    )


def _compared_run(side: Side, name: str) -> ComparedRun:
    digest = side.run.checkpoint.digest if side.run else None
    return ComparedRun(name=name, path=str(side.path), checkpoint=digest)


# ---- reading ----


def _sides(options: Options) -> list[Side]:
    if len(options.runs) < 2:
        raise UsageError(f"{len(options.runs)} run has nothing to be compared with", "give two runs or more")
    files = [samples_file(path) for path in options.runs]
    seen: dict[Path, Path] = {}
    for path, file in zip(options.runs, files, strict=True):
        if seen.setdefault(file.resolve(), path) is not path:
            raise UsageError(f"`{seen[file.resolve()]}` and `{path}` are the same run", "give each run once")
    sides = [_side(path, file, options.protocols) for path, file in zip(options.runs, files, strict=True)]
    for wanted in options.protocols:
        having = [side for side in sides if any(_is_wanted(protocol, [wanted]) for protocol in side.lines)]
        if len(having) < 2:
            lacking = next(side for side in sides if side not in having)
            raise DataError(
                f"`{lacking.path}` holds nothing under `{wanted}`", f"evaluate it: `{_command(lacking, wanted)}`"
            )
    return sides


def samples_file(path: Path) -> Path:
    """Return the `samples.jsonl` that a run's folder, or a path to such a file, stands for.

    Raises:
        DataError: there is none, with the command that makes it.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise DataError(f"no run at `{path}`", _RUN)
    if (path / SAMPLES_FILE).is_file():
        return path / SAMPLES_FILE
    kept = sorted(str(file.parent) for file in path.glob(f"{EVALUATIONS}/*/{SAMPLES_FILE}"))
    if kept:
        raise UsageError(
            f"`{path}` holds {len(kept)} evaluation{'s' * (len(kept) != 1)}, each of which is a run",
            f"give one, such as `{kept[-1]}`",
        )
    checkpoint, tasks = "CHECKPOINT", ["TASK"]
    if (path / RESULTS_FILE).is_file():
        run = read_results(path / RESULTS_FILE, _RUN)
        checkpoint, tasks = run.checkpoint.path, [result.protocol for result in run.results]
    line = ["mpeval", "evaluate", checkpoint, *(word for task in tasks for word in ("--task", task))]
    raise DataError(
        f"`{path}` holds no samples: there is no `{SAMPLES_FILE}`",
        f"make them: `{shlex.join([*line, '--output', str(path)])}`",
    )


def _side(path: Path, file: Path, protocols: Sequence[str]) -> Side:
    """Read what is wanted of a run: checked against its results, where they lie beside, else the lines alone."""
    folder = file.parent
    if file.name != SAMPLES_FILE or not (folder / RUN_FILE).is_file():
        found = [protocol for protocol in protocols_in(file) if _is_wanted(protocol, protocols)]
        lines = {protocol: read_predictions(file, protocol, ()) for protocol in found}
        return Side(path=path, file=file, run=None, results={}, lines=lines)
    again = f"run the command again that it was made by, `mpeval evaluate ... --output {folder}`"
    run = read_results(folder / RESULTS_FILE, again)
    # a group of lm-eval's tasks has no lines of its own
    own = [result for result in run.results if not (result.harness and result.harness.tasks)]
    results = {result.protocol: result for result in own if _is_wanted(result.protocol, protocols)}
    lines = {protocol: read_own_lines(folder, run, result, (), again) for protocol, result in results.items()}
    return Side(path=path, file=file, run=run, results=results, lines=lines)


def _is_wanted(protocol: str, wanted: Sequence[str]) -> bool:
    return not wanted or any(name in (protocol, protocol.partition("/")[0]) for name in wanted)


def _nothing_shared(sides: Sequence[Side], empty: Sequence[str]) -> DataError:
    held = [", ".join(f"`{protocol}`" for protocol in side.lines) or "nothing" for side in sides[:2]]
    if empty:
        return DataError(
            f"samples of {', '.join(f'`{name}`' for name in empty)} hold nothing that is compared item by item",
            "compare runs of a task of right and wrong answers, or of perplexity",
        )
    first = next(iter(sides[0].lines), "TASK")
    return DataError(
        f"the runs have no protocol in common: `{sides[0].path}` holds {held[0]}, `{sides[1].path}` {held[1]}",
        f"evaluate the other under it: `{_command(sides[1], first)}`",
    )


def _command(side: Side, protocol: str) -> str:
    checkpoint = side.run.checkpoint.path if side.run else "CHECKPOINT"
    return shlex.join(["mpeval", "evaluate", checkpoint, "--task", protocol, "--output", str(side.file.parent)])


# ---- comparing ----


def _pairs(
    sides: Sequence[Side], measures: Sequence[dict[str, list[Measure]]], names: Sequence[str]
) -> tuple[list[Pair], list[str]]:
    """Return all comparisons, protocol by protocol, and the protocols of which nothing can be compared."""
    pairs: list[Pair] = []
    empty: list[str] = []
    for protocol in dict.fromkeys(protocol for side in sides for protocol in side.lines):
        having = [number for number, side in enumerate(sides) if protocol in side.lines]
        before = len(pairs)
        scaled = all(sides[number].results for number in having)
        for first, second in itertools.combinations(having, 2):
            two = (sides[first], sides[second])
            _check_alike(two, protocol)
            theirs = {measure.metric: measure for measure in measures[second][protocol]}
            for mine in measures[first][protocol]:
                other = theirs.get(mine.metric)
                if other is None or other.kind != mine.kind:
                    continue
                found = _compared(mine, other, two, protocol if scaled else None)
                found = found.model_copy(update={"first": names[first], "second": names[second]})
                lower = mine.kind == "loss" or any(_is_lower(side, protocol, mine.metric) for side in two)
                pair = Pair(first=first, second=second, protocol=protocol, comparison=found, lower_is_better=lower)
                pairs.append(pair)
        if len(having) > 1 and len(pairs) == before:
            empty.append(protocol)
    return pairs, empty


def _check_alike(sides: Sequence[Side], protocol: str) -> None:
    """Refuse runs whose results are of another version of the protocol or other data; lines alone do not say."""
    results = [side.results[protocol] for side in sides if side.results]
    if len(results) == len(sides):
        folders = [side.file.parent for side in sides]
        check_alike(results, folders)
        refuse_other(results, folders, "configuration", lambda result: result.harness.config if result.harness else "")


def _is_lower(side: Side, protocol: str, metric: str) -> bool:
    result = side.results.get(protocol)
    return any(item.name == metric and item.direction == "min" for item in (result.metrics if result else ()))


def _compared(
    mine: Measure, other: Measure, sides: tuple[Side, Side], scaled_by: str | None
) -> Comparison | PerplexityComparison:
    """Compare two runs; results under the protocol `scaled_by` say what a loss per token is multiplied by."""
    files = (str(sides[0].file), str(sides[1].file))
    if mine.kind == "score":
        return compare(mine.lines, other.lines, files, metric=mine.metric, key="score")
    metric, scale = mine.metric, 1.0
    if metric == TOKENS and scaled_by is not None:
        primary = sides[0].results[scaled_by].metrics[0]
        metric, scale = primary.name, _scale(mine, primary.loss)
    return compare_losses(mine.lines, other.lines, files, metric=metric, scale=scale)


def _scale(measure: Measure, loss: float | None) -> float:
    """Return what the loss per token is multiplied by to be that of a perplexity per word, by the run's own results."""
    losses, weights = zip(*((share[1], share[2]) for line in measure.lines for share in line["documents"]), strict=True)
    ratio, _ = ratio_of_sums(losses, weights)
    return 1.0 if loss is None or ratio == 0 else loss / ratio


def _verdict(
    pair: Pair, found: Comparison | PerplexityComparison, sides: Sequence[Side], names: Sequence[str]
) -> Verdict:
    results = [side.results.get(pair.protocol) for side in (sides[pair.first], sides[pair.second])]
    flags = dict.fromkeys(flag for result in results if result for flag in result.flags)
    better = None
    if found.p_value_holm is not None and found.p_value_holm < SIGNIFICANCE:
        better = names[pair.first if (found.difference < 0) == pair.lower_is_better else pair.second]
    split = next((result.split for result in results if result), "")
    return Verdict(protocol=pair.protocol, split=split, flags=list(flags), comparison=found, better=better)


def _groups(pairs: Sequence[Pair], verdicts: Sequence[Verdict], names: Sequence[str]) -> Iterator[TieGroups]:
    """Yield for each protocol and metric which runs tie with the best, which with the best of the others, ..."""
    boards: dict[tuple[str, str], dict[tuple[int, int], tuple[Pair, Verdict]]] = {}
    for pair, verdict in zip(pairs, verdicts, strict=True):
        board = boards.setdefault((pair.protocol, pair.comparison.metric), {})
        board[pair.first, pair.second] = pair, verdict
    for (protocol, metric), board in boards.items():
        count = len({number for pair_of in board for number in pair_of})
        if count > 2 and len(board) == count * (count - 1) // 2:
            groups = [[names[number] for number in group] for group in _grouped(board)]
            yield TieGroups(protocol=protocol, metric=metric, groups=groups)


def _grouped(board: dict[tuple[int, int], tuple[Pair, Verdict]]) -> list[list[int]]:
    """Return runs, of which every pair was compared, in groups of ties."""
    base = min(first for first, _ in board)
    behind = {base: 0.0}
    for (first, second), (pair, _) in board.items():
        if first == base:
            behind[second] = pair.comparison.difference * (-1 if pair.lower_is_better else 1)
    return tie_groups(
        sorted(behind, key=behind.__getitem__),
        lambda one, other: board[min(one, other), max(one, other)][1].better is not None,
    )
