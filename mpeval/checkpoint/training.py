"""A training run's state inside Megatron's classic container: what each rank writes, and how any layout reads it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mpeval.checkpoint.assemble import assemble
from mpeval.checkpoint.classic import flattened
from mpeval.checkpoint.container import open_torch_file
from mpeval.checkpoint.locate import MODEL_FILE, locate
from mpeval.checkpoint.logical import LogicalTensor
from mpeval.checkpoint.names import Naming, canonical_name, plain_spelling
from mpeval.checkpoint.sharded import ShardedCheckpoint
from mpeval.checkpoint.stored import Bounds, StoredTensor
from mpeval.checkpoint.torchzip import Planned, write_torch_file
from mpeval.checkpoint.weights import StoredWeights
from mpeval.checkpoint.write import arguments, nested, shard_box, shard_state
from mpeval.config import ModelConfig
from mpeval.errors import CheckpointError
from mpeval.parallel.group import Axis

Tensor = torch.Tensor
KINDS = ("exp_avg", "exp_avg_sq", "master")
"""Optimizer tensors by parameter: Adam's two moments and, below float32, the float32 weights."""
_SCALARS = ("step", "loss_scale", "good_steps")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is: all that is not a tensor of the model's shapes."""

    step: int
    """Optimizer steps begun, skipped ones included."""
    samples: int
    """Training samples consumed."""
    updates: int
    """Optimizer steps taken."""
    loss_scale: float = 1.0
    good_steps: int = 0


def naming_for(config: ModelConfig) -> Naming:
    """Return the names that a trained model is stored under: Megatron-core's, unless it cannot compute the model."""
    return "megatron" if config.post_norm else "megatron-core"


@dataclass(frozen=True)
class _Shards:
    """The shards of one tensor rank, read as boxes of the full tensors."""

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    axis: Axis

    def dtype(self, name: str) -> torch.dtype:
        """Return the dtype of canonical tensor `name`."""
        return self.tensors[name].dtype

    def read(self, name: str, bounds: Bounds | None = None) -> Tensor:
        """Return a box that lies inside this rank's shard."""
        own = self.tensors[name].detach().cpu()
        if bounds is None:
            return own
        starts = [low for low, _ in shard_box(self.config, name, self.axis.rank, self.axis.ranks)]
        return own[tuple(slice(low - start, high - start) for (low, high), start in zip(bounds, starts, strict=True))]


def write_rank(
    folder: Path,
    *,
    config: ModelConfig,
    axis: Axis,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Mapping[str, Tensor]],
    streams: Sequence[Mapping[str, Tensor]],
    progress: Progress,
    settings: Mapping[str, Any],
) -> None:
    """Write one tensor rank's file below the iteration's `folder` and force it to disk.

    Args:
        folder: the iteration's folder, which exists.
        config: the model; its padded vocabulary divides by the ranks.
        axis: the tensor axis, and this rank on it.
        weights: this rank's shard of every parameter.
        optimizer: shards by kind (`KINDS`) and parameter.
        streams: for each data-parallel rank the states of its random streams, uint8.
        progress: where the run is.
        settings: further Megatron arguments, for a reader's information.
    """
    naming = naming_for(config)

    def state(tensors: Mapping[str, Tensor]) -> dict[str, Planned]:
        return shard_state(_Shards(config, tensors, axis), axis.rank, axis.ranks, naming)

    model = state(weights)
    args = arguments(config, axis.ranks, 1, progress.step)
    content = {
        "args": argparse.Namespace(**args, **settings, consumed_train_samples=progress.samples),
        "checkpoint_version": 3.0,
        "iteration": progress.step,
        "model": nested(model) if naming == "megatron" else model,
        "optimizer": {
            **{kind: state(tensors) for kind, tensors in optimizer.items()},
            "step": progress.updates,
            "loss_scale": progress.loss_scale,
            "good_steps": progress.good_steps,
        },
        "rng_state": [{name: _bytes(value) for name, value in rank.items()} for rank in streams],
    }
    shard = folder / f"mp_rank_{axis.rank:02d}"
    shard.mkdir(parents=True, exist_ok=True)
    with (shard / MODEL_FILE).open("wb") as file:
        write_torch_file(file, content)
        file.flush()
        os.fsync(file.fileno())


def _bytes(value: Tensor) -> Planned:
    return Planned(shape=tuple(value.shape), dtype=torch.uint8, make=lambda: [value.cpu()])


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """A stored run, opened: nothing but headers has been read."""

    checkpoint: ShardedCheckpoint
    optimizer: Mapping[str, Mapping[str, LogicalTensor]]
    """Full tensors by kind and parameter."""
    streams: Sequence[Sequence[Mapping[str, StoredTensor]]]
    """States of the random streams by tensor rank and data-parallel rank."""
    progress: Progress

    def weights(self, config: ModelConfig, axis: Axis, dtype: str) -> dict[str, Tensor]:
        """Read this rank's shard of every parameter, for the padding of `config`."""
        return _read(StoredWeights(self.checkpoint, config, dtype), axis)

    def moments(self, kind: str, config: ModelConfig, axis: Axis) -> dict[str, Tensor]:
        """Read this rank's shard of every optimizer tensor of a kind, float32."""
        return _read(StoredWeights(replace(self.checkpoint, tensors=self.optimizer[kind]), config, "float32"), axis)

    def streams_of(self, group_tp: Axis, group_dp: Axis) -> dict[str, Tensor] | None:
        """Return the states of this rank's streams; None where the run had another number of ranks."""
        if len(self.streams) != group_tp.ranks or len(self.streams[0]) != group_dp.ranks:
            return None
        states = self.streams[group_tp.rank][group_dp.rank]
        made = {name: torch.empty(stored.shape, dtype=torch.uint8) for name, stored in states.items()}
        for name, stored in states.items():
            stored.copy_into(made[name], [(0, extent) for extent in stored.shape])
        return made


def _read(weights: StoredWeights, axis: Axis) -> dict[str, Tensor]:
    config = weights.config
    return {
        name: weights.read(name, shard_box(config, name, axis.rank, axis.ranks)).clone() for name in config.shapes()
    }


def read_training_state(checkpoint: ShardedCheckpoint) -> TrainingState:
    """Open what `write_rank` wrote beside the model of `checkpoint`.

    Raises:
        CheckpointError: the files hold no state to go on from, or a damaged one.
    """
    files = locate(checkpoint.path).files
    contents = [open_torch_file(files[key]).value for key in sorted(files)]
    missing = CheckpointError(
        f"`{checkpoint.path}` holds a model but no state of a training run to go on from",
        "give another `--output`; training goes on only from what `mpeval pretrain` saved",
    )
    sections = [content.get("optimizer") for content in contents]
    first = sections[0]
    if not isinstance(first, dict) or not all(isinstance(first.get(name), int | float) for name in _SCALARS):
        raise missing
    kinds = [kind for kind in KINDS if kind in first]
    samples = checkpoint.args.get("consumed_train_samples")
    if not isinstance(samples, int) or not {"exp_avg", "exp_avg_sq"} <= set(kinds):
        raise missing
    return TrainingState(
        checkpoint=checkpoint,
        optimizer={kind: _section([section[kind] for section in sections], checkpoint) for kind in kinds},
        streams=[content["rng_state"] for content in contents],
        progress=Progress(
            step=checkpoint.iteration,
            samples=samples,
            updates=int(first["step"]),
            loss_scale=float(first["loss_scale"]),
            good_steps=int(first["good_steps"]),
        ),
    )


def _section(shards: Sequence[Any], checkpoint: ShardedCheckpoint) -> dict[str, LogicalTensor]:
    """Join one kind's tensors over the tensor ranks, as the model's own are."""
    naming = naming_for(checkpoint.config)
    parts: dict[str, list[StoredTensor]] = {}
    for shard in shards:
        for stored, tensor in flattened(shard):
            name = canonical_name(plain_spelling(stored), naming)
            if name is None or not isinstance(tensor, StoredTensor):
                raise CheckpointError(
                    f"`{checkpoint.path}`: optimizer state `{stored}` is of no parameter", "use another iteration"
                )
            parts.setdefault(name, []).append(tensor)
    made = assemble(parts, checkpoint.config, 3.0)
    if made.keys() != checkpoint.tensors.keys():
        absent = sorted(checkpoint.tensors.keys() - made.keys())
        raise CheckpointError(
            f"`{checkpoint.path}` lacks the optimizer state of {', '.join(f'`{name}`' for name in absent[:4])}",
            "the files are damaged; remove this iteration's folder and go on from an earlier one",
        )
    return made
