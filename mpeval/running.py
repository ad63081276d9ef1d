"""What commands that train do around the loop: start ranks, open the output folder, make it theirs, show progress."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpeval import launch
from mpeval.checkpoint.locate import TRACKER
from mpeval.checkpoint.open import open_checkpoint
from mpeval.config import ModelConfig
from mpeval.errors import OutputError
from mpeval.folders import unwritable, write_atomically
from mpeval.journal import RUN_FILE, claim
from mpeval.recipe import Recipe
from mpeval.tokenizer import Tokenizer, files_beside

if TYPE_CHECKING:
    from mpeval.checkpoint.training import Progress, TrainingState
    from mpeval.parallel.group import Group
    from mpeval.train.loop import Run


def start(options: Any, plan: Callable[[Any, int, int], Any], work: Callable[[Any, Group], None]) -> None:
    """Train with as many ranks as asked for: new local processes, or as one of torchrun's or Slurm's.

    Args:
        options: of a command that trains, with `tp`, `dp` and `device`.
        plan: checks options for so many tensor and data ranks; a mistake is reported once, before any rank starts.
        work: what each rank does, a function that another process can import.
    """
    options = replace(options, device=launch.device_of(options.device))
    launch.start(options.tp, options.dp, partial(_as_rank, work), options, check=partial(plan, options), graceful=True)


def _as_rank(work: Callable[[Any, Group], None], world: launch.World | None, options: Any) -> None:
    from mpeval.train.memory import keep_memory

    tp, dp = launch.sizes(options.tp, options.dp, world)
    if options.device == "cpu":
        keep_memory()
    with launch.joined(world, tp=tp, dp=dp, device=options.device) as group:
        work(options, group)


CACHE = "index-cache"
"""What a command may have put into an output folder before a run begins in it."""


def check_output(output: Path) -> None:
    """Refuse an output folder that holds something else than a training run.

    Raises:
        OutputError: it does, or is a file.
    """
    if output.exists() and not output.is_dir():
        raise OutputError(f"`{output}` is a file", "give a folder by `--output`")
    names = sorted(item.name for item in output.iterdir() if item.name != CACHE) if output.exists() else []
    if names and not (output / RUN_FILE).is_file():
        listed = ", ".join(f"`{name}`" for name in names[:6])
        raise OutputError(f"`{output}` is no training run: it holds {listed}", "give an empty folder")


def saved_state(output: Path, config: ModelConfig) -> TrainingState | None:
    """Open what an earlier run into the folder saved; None for a new run.

    Raises:
        OutputError: the folder holds something else.
    """
    check_output(output)
    if (output / TRACKER).is_file():
        from mpeval.checkpoint.training import read_training_state

        checkpoint = open_checkpoint(output)
        if checkpoint.config.computed() != config.computed():
            raise OutputError(f"`{output}` holds another model than this run's", "give another folder by `--output`")
        return read_training_state(checkpoint)
    return None


def take_folder(output: Path, recipe: Recipe, tokenizer: Tokenizer, identity: Mapping[str, Any]) -> None:
    """Make the output folder this run's own, with its recipe and tokenizer in it.

    Raises:
        OutputError: it belongs to a run of another `identity`, or cannot be written.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        whole = {**recipe.identity(), "tokenizer": tokenizer.digest, **identity}
        claim(output / RUN_FILE, whole, "give another folder by `--output`, or that run's value by `--set`")
        write_atomically(output / "recipe.toml", recipe.toml())
        for name, path in files_beside((tokenizer.path,)).items():  # so that what is trained can be evaluated
            if path.resolve() != (output / name).resolve():
                write_atomically(output / name, path.read_bytes())
    except OSError as error:
        raise unwritable(output, error) from error


def train_shown(
    run: Run, progress: Progress, *, title: str, talks: bool, until: int | None = None, board: Any = None
) -> tuple[Progress, bool, dict[str, Any]]:
    """Train as `fit` does, with a line of progress, and a TensorBoard writer if there is one.

    Returns:
        What `fit` returns, and the last value of every metric.
    """
    from mpeval.report import progress as shown_progress
    from mpeval.train.loop import fit

    last: dict[str, Any] = {}
    with shown_progress(title, run.recipe.training.steps, done=progress.step, shown=talks) as advance:

        def notice(record: dict[str, Any]) -> None:
            last.update(record)
            loss = record["loss"]
            tokens = round(record["tokens_per_second"] * record["seconds"])
            advance(1, tokens, f"loss {loss:.3f}" if loss is not None else "overflow")
            if board:
                for name, value in record.items():
                    if name != "step" and value is not None:
                        board.add_scalar(name, value, record["step"])

        progress, stopped = fit(run, progress, notice, until)
    return progress, stopped, last


def opening(run: Run, progress: Progress) -> str:
    """Say in one line what begins, or goes on, and on what."""
    group, recipe = run.model.group, run.recipe
    where = f"goes on after step {progress.step}" if progress.step else "begins"
    return (
        f"{recipe.name} {where}: {run.model.config.parameters():,} parameters, {recipe.training.dtype}, "
        f"tp {group.tp.ranks} x dp {group.dp.ranks} on {group.device.type}, "
        f"matmul roof {run.roof / 1e9:,.0f} GFLOP/s"
    )


def say_stopped(progress: Progress, steps: int, command: Sequence[str]) -> None:
    """Say how to go on with a run that was asked to stop."""
    from mpeval.report import line

    line(f"stopped and saved after step {progress.step} of {steps}; go on with:", stderr=True)
    line(f"  {shlex.join(command or ('mpeval', *sys.argv[1:]))}", stderr=True)
