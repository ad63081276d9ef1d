"""Save a run by all its ranks at once, so that a kill at any moment leaves the last whole checkpoint in place."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mpeval.checkpoint.training import Progress, write_rank
from mpeval.checkpoint.write import write_tracker
from mpeval.folders import unwritable, write_atomically
from mpeval.models.transformer import Transformer
from mpeval.parallel.gradients import barrier
from mpeval.parallel.group import gather_objects
from mpeval.recipe import Recipe
from mpeval.train.optimizer import TrainingOptimizer

RECIPE_FILE = "recipe.toml"
_UNFINISHED = ".iter_"
"""What a folder is called while it is written or removed: no reader takes it for a checkpoint."""


def save(
    root: Path,
    *,
    model: Transformer,
    optimizer: TrainingOptimizer,
    progress: Progress,
    recipe: Recipe,
    keep: int = 0,
) -> Path:
    """Write `root/iter_NNNNNNN` for `progress.step` and make it the one that `root` stands for (collective).

    The first data-parallel rank of each tensor rank writes its own file, all at the same time, into a folder of
    another name; once every file is on disk the folder gets its own name, and last of all the tracker names it.

    Args:
        root: the run's output folder.
        model: this rank's shard, with its random streams.
        optimizer: its optimizer.
        progress: where the run is.
        recipe: kept as `recipe.toml` beside the shards.
        keep: how many checkpoints to leave, the newest (0: all).

    Raises:
        OutputError: the folder cannot be written.
    """
    group = model.group
    folder = root / f"iter_{progress.step:07d}"
    temporary = root / f"{_UNFINISHED}{progress.step:07d}.partial"
    try:
        if group.world.rank == 0:
            clean(root)
            temporary.mkdir(parents=True)
        barrier(group.world)
        kinds = optimizer.read()
        assert model.streams is not None
        streams = gather_objects(model.streams.state(), group.dp)
        if group.dp.rank == 0:
            write_rank(
                temporary,
                config=model.config,
                axis=group.tp,
                weights=dict(model.named_parameters()),
                optimizer=kinds,
                streams=streams,
                progress=progress,
                settings=_settings(recipe),
            )
        barrier(group.world)
        if group.world.rank == 0:
            write_atomically(temporary / RECIPE_FILE, recipe.toml())
            _publish(root, temporary, folder)
            _thin(root, folder, keep)
        barrier(group.world)
    except OSError as error:
        raise unwritable(root, error) from error
    return folder


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return the training arguments under Megatron's names."""
    training = recipe.training
    return {
        "global_batch_size": training.batch,
        "lr": training.lr,
        "min_lr": training.min_lr,
        "lr_decay_style": training.schedule,
        "lr_warmup_iters": training.warmup_steps,
        "train_iters": training.steps,
        "weight_decay": training.weight_decay,
        "adam_beta1": training.beta1,
        "adam_beta2": training.beta2,
        "adam_eps": training.adam_eps,
        "clip_grad": training.clip,
        "seed": training.seed,
        "params_dtype": training.dtype,
        "split": training.split,
    }


def _publish(root: Path, temporary: Path, folder: Path) -> None:
    """Give the finished folder its name, then let the tracker name it."""
    if folder.exists():  # of a run that was killed before its tracker was written
        _remove(folder)
    os.replace(temporary, folder)
    _sync(root)
    write_tracker(root, folder)
    _sync(root)


def _sync(folder: Path) -> None:
    """Force a folder's names to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _thin(root: Path, newest: Path, keep: int) -> None:
    """Remove all but the `keep` newest checkpoints up to `newest`."""
    if keep:
        steps = sorted(_saved(root))
        old = [step for step in steps if step <= int(newest.name[5:])][:-keep]
        keep_only(root, set(steps) - set(old))


def keep_only(root: Path, steps: Collection[int]) -> None:
    """Remove all checkpoints of `root` but those of some steps."""
    for step, folder in _saved(root).items():
        if step not in steps:
            _remove(folder)


def _saved(root: Path) -> dict[int, Path]:
    return {int(item.name[5:]): item for item in root.iterdir() if re.fullmatch(r"iter_\d{7,}", item.name)}


def _remove(folder: Path) -> None:
    """Remove a checkpoint; it is none any more from the first moment on."""
    gone = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(folder, gone)
    shutil.rmtree(gone)


def clean(root: Path) -> None:
    """Remove what a killed run was writing or removing."""
    for item in root.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(item)
