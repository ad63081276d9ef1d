"""Finished evaluations, found by the folder of a run and read back whole and checked.  No torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mpeval.errors import DataError, UsageError
from mpeval.finetuned import EVALUATIONS, FILE, SEEDS_FILE, read_finetuned
from mpeval.journal import RESULTS_FILE, RUN_FILE, SAMPLES_FILE
from mpeval.predictions.lines import Predicted, predictions_digest, read_predictions
from mpeval.results import Result, RunResults
from mpeval.tasks.cards import Card


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which of a run's evaluations is asked for, and how one would make it."""

    card: Card
    protocol: str | None
    """An id; None takes the only one of the task that there is."""
    split: str
    data: Path | None = None

    @property
    def task(self) -> str:
        """What to give to `--task`."""
        return self.protocol or self.card.name

    def command(self, run: Path, folder: Path) -> str:
        """Return the command line that evaluates `run` into `folder`."""
        data = str(self.data) if self.data else "DATA"
        line = ["mpeval", "evaluate", str(run), "--task", self.task, "--split", self.split, "--data", data]
        return shlex.join([*line, "--output", str(folder)])


@dataclass(frozen=True, kw_only=True)
class Member:
    """One evaluation under one protocol, as its folder holds it."""

    path: Path
    """As given."""
    folder: Path
    run: RunResults
    result: Result
    lines: tuple[Predicted, ...]
    seed: int | None

    @property
    def samples_file(self) -> str:
        """The file its predictions are in, for messages."""
        return str(self.folder / SAMPLES_FILE)

    @property
    def predictions(self) -> str:
        """Digest of its probabilities."""
        return predictions_digest(self.lines)


def read_member(path: Path, wanted: Wanted) -> Member:
    """Read the evaluation that a finetuned run or an evaluation's own folder holds.

    Raises:
        DataError: there is none, it is unfinished or damaged, or about another task, split or data.
        UsageError: a folder of several runs, or an evaluation under several protocols of the task.
    """
    folder = _folder(path, wanted)
    run = read_results(folder / RESULTS_FILE, f"go on with it: `{wanted.command(path, folder)}`")
    result = _chosen(run, folder, wanted)
    if result.split and result.split != wanted.split:
        new = path / EVALUATIONS / wanted.split
        raise DataError(
            f"`{folder}` is an evaluation on the split `{result.split}`, not on `{wanted.split}`",
            f"give `--split {result.split}`, or evaluate: `{wanted.command(path, new)}`",
        )
    again = f"evaluate again: `{wanted.command(path, folder)}`"
    lines = read_own_lines(folder, run, result, ("target",), again)
    return Member(path=path, folder=folder, run=run, result=result, lines=tuple(lines), seed=_seed(path, folder, run))


def read_own_lines(folder: Path, run: RunResults, result: Result, needed: Sequence[str], again: str) -> list[Predicted]:
    """Read what an evaluation's folder holds under the protocol of one of its results.

    Args:
        folder: the evaluation's.
        run: what its `results.json` says.
        result: one of those of `run`.
        needed: keys that every line must have.
        again: what to do where lines are not as many as the result is of.

    Raises:
        DataError: lines that are damaged, or are not those that the result is of.
    """
    _check_identity(folder / RUN_FILE, run, result)
    lines = read_predictions(folder / SAMPLES_FILE, result.protocol, needed)
    if result.harness is None and len(lines) != result.items:
        raise DataError(
            f"`{folder / SAMPLES_FILE}` holds {len(lines):,} predictions under `{result.protocol}`, its results are of "
            f"{result.items:,}",
            again,
        )
    return lines


def check_alike(results: Sequence[Result], folders: Sequence[Path]) -> None:
    """Refuse evaluations that did not measure the same thing: protocol, its version, the data.

    Raises:
        DataError: they did not; it names two folders and what differs.
    """
    refuse_other(results, folders, "protocol", lambda result: result.protocol)
    refuse_other(results, folders, "version of the protocol", lambda result: result.protocol_version)
    refuse_other(results, folders, "digest of the data", lambda result: result.data.digest)


def refuse_other(results: Sequence[Result], folders: Sequence[Path], what: str, value: Callable[[Result], str]) -> None:
    """Refuse results of which another says otherwise than the first."""
    for result, folder in zip(results[1:], folders[1:], strict=True):
        if value(results[0]) != value(result):
            raise DataError(
                f"the {what} is `{value(results[0])}` in `{folders[0]}`, `{value(result)}` in `{folder}`",
                "evaluate both on the same data under the same protocol",
            )


def names_of(runs: Sequence[tuple[str, Path]]) -> list[str]:
    """Return what runs (checkpoint's name, path) are called: by their checkpoints if those differ, else their paths."""
    names = [name for name, _ in runs]
    return names if len(set(names)) == len(names) else [str(path) for _, path in runs]


def _folder(path: Path, wanted: Wanted) -> Path:
    """Return the folder with `samples.jsonl`: `path` itself, or the evaluation on the split that is kept below it."""
    made = path / EVALUATIONS / wanted.split
    for folder in (path, made):
        if (folder / SAMPLES_FILE).is_file():
            return folder
    if (path / SEEDS_FILE).is_file():
        runs = sorted(str(run.parent) for run in path.glob(f"*/{FILE}"))
        raise UsageError(
            f"`{path}` holds {len(runs)} runs, each of which is a member", f"give {shlex.join(runs) or 'the runs'}"
        )
    if not path.exists():
        raise DataError(f"no run at `{path}`", "give the folder of a finetuned run, or of an evaluation")
    raise DataError(
        f"`{path}` has not been evaluated on {wanted.card.title} {wanted.split}: there is no `{made / SAMPLES_FILE}`",
        f"evaluate it: `{wanted.command(path, made)}`",
    )


def read_results(path: Path, hint: str) -> RunResults:
    """Read the `results.json` of a finished evaluation.

    Raises:
        DataError: it is not there, with `hint`, or is something else.
    """
    if not path.is_file():
        raise DataError(f"the evaluation in `{path.parent}` is not finished: there is no `{path.name}`", hint)
    raw = read_object(path)
    try:
        return RunResults(schema_=raw.pop("schema", None), **raw)
    except (ValidationError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"`{path}` holds no results of an evaluation: {reason}", "evaluate the model again") from error


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that a command wrote into a run's folder.

    Raises:
        DataError: it cannot be read, or holds something else than an object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read `{path}`: {error}", "evaluate the model again") from error
    if not isinstance(raw, dict):
        raise DataError(f"`{path}` holds no object", "evaluate the model again")
    return raw


def _chosen(run: RunResults, folder: Path, wanted: Wanted) -> Result:
    own = [result for result in run.results if result.task == wanted.card.name]
    found = [result for result in own if wanted.protocol in {None, result.protocol}]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"`{folder}` holds evaluations under {_names(found)}",
            f"choose one, such as `--task {found[0].protocol}`",
        )
    raise DataError(
        f"`{folder}` holds no evaluation of `{wanted.task}`",
        f"it holds {_names(run.results)}" if run.results else "evaluate the model first",
    )


def _names(results: Sequence[Result]) -> str:
    return ", ".join(f"`{result.protocol}`" for result in results)


def _check_identity(path: Path, run: RunResults, result: Result) -> None:
    """Refuse samples of another checkpoint, data or version of the protocol than the results beside them."""
    if not path.is_file():
        raise DataError(f"`{path.parent}` is no evaluation: there is no `{path.name}`", "evaluate the model again")
    identity = read_object(path)
    expected = {"checkpoint": run.checkpoint.digest}
    if result.harness is None:
        expected[f"data of {result.protocol}"] = result.data.digest
        expected[f"version of {result.protocol}"] = result.protocol_version
    else:
        expected[f"configuration of {result.protocol}"] = result.harness.config
    for key, value in expected.items():
        if identity.get(key) != value:
            raise DataError(
                f"in `{path.parent}` the {key} is `{identity.get(key)}` by `{path.name}`, `{value}` by the results",
                "its files are of different evaluations; evaluate the model again, into a new folder",
            )


def _seed(path: Path, folder: Path, run: RunResults) -> int | None:
    """Return the seed a model was finetuned with, if its run says so."""
    places = [path, *([folder.parent.parent] if folder.parent.name == EVALUATIONS else [])]
    for place in places:
        finetuned = read_finetuned(place)
        if finetuned:
            return finetuned.training.seed
    return run.training.seed if run.training else None
