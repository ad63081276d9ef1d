"""Read Megatron's classic container: one file per tensor and pipeline rank, merged lazily into logical tensors."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpeval.checkpoint.args import SUPPORTED, argument, config_of
from mpeval.checkpoint.container import open_torch_file
from mpeval.checkpoint.locate import Location, check_grid, locate
from mpeval.checkpoint.names import TIED_COPY, Naming, canonical_name, layer_index, naming_of, plain_spelling
from mpeval.checkpoint.sharded import Accounted, LogicalTensor, ShardedCheckpoint
from mpeval.checkpoint.stored import AGAIN, StoredTensor
from mpeval.checkpoint.unpickle import Stub
from mpeval.config import DTYPES
from mpeval.errors import CheckpointError
from mpeval.parallel.layout import cut_of

_NEEDED = "a Megatron checkpoint is a dictionary with an entry `model`; pass the file that training wrote"
_VERSIONS = "versions 2.0 and 3.0 are read; load and save it once with a Megatron-LM of 2021 or later"
_MIXED = "files of two checkpoints are mixed, or one is damaged; copy all shards again"
OTHER_ENTRIES = {
    "optimizer": "optimizer state",
    "opt_param_scheduler": "learning-rate schedule",
    "lr_scheduler": "learning-rate schedule",
    "rng_state": "random number state",
    "random_rng_state": "random number state",
    "np_rng_state": "random number state",
    "torch_rng_state": "random number state",
    "cuda_rng_state": "random number state",
    "rng_tracker_states": "random number state",
    "args": "read for the configuration",
    "checkpoint_version": "read for the layout",
    "iteration": "read for the result",
    "total_iters": "read for the result",
    "tokens": "training progress",
    "num_floating_point_operations_so_far": "training progress",
    "rerun_state_machine": "training progress",
    "content_metadata": "training progress",
    "ft_state": "training progress",
}
"""Top-level entries beside the model, and why evaluation does not use them."""


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """One file, decoded: its place in the grid, its model tensors by plain stored name, and the rest."""

    tp: int
    pp: int
    path: Path
    tensors: dict[str, StoredTensor]
    noise: list[str]
    other: dict[str, Any]


def open_checkpoint(path: str | Path, overrides: Mapping[str, Any] | None = None) -> ShardedCheckpoint:
    """Open a checkpoint of Megatron's classic container at any tensor- and pipeline-parallel size.

    Args:
        path: the root (with the tracker file), an iteration folder, `release`, or a file inside one.
        overrides: configuration values that the file lacks or has wrong, by field of `ModelConfig`.

    Returns:
        A lazy `ShardedCheckpoint`: file headers are read, no tensor is.

    Raises:
        CheckpointError: missing, incomplete, damaged, hostile or of an unsupported kind.
        ConfigError: a configuration value is missing or impossible.
    """
    location = locate(Path(path).expanduser())
    shards = {place: _open_shard(file, *place) for place, file in sorted(location.files.items())}
    first = shards[0, 0]
    _check_one_run(shards)
    args = _args_of(first)
    _check_args_grid(args, location)
    naming = _naming(shards, location)
    offsets = _layer_offsets(shards, naming, location)
    tied = (overrides or {}).get("tied", not args.get("untie_embeddings_and_output_weights"))
    tensors, copies, entries = _merge(shards, naming, offsets, location, tied=tied)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return ShardedCheckpoint(
        path=location.folder,
        root=location.root,
        format=naming,
        version=_version_of(first),
        iteration=_iteration_of(first),
        release=location.folder.name == "release",
        grid=(location.tp, location.pp),
        config=config_of(args, shapes, overrides or {}, location.folder),
        tensors=tensors,
        args=args,
        entries=tuple(entries),
        tied_copies=tuple(copies),
    )


def _check_one_run(shards: Mapping[tuple[int, int], _Shard]) -> None:
    """Refuse shards of different iterations or versions in one folder."""
    first = shards[0, 0]
    for shard in shards.values():
        if (_iteration_of(shard), _version_of(shard)) != (_iteration_of(first), _version_of(first)):
            raise CheckpointError(
                f"`{shard.path}` is of iteration {_iteration_of(shard)} and version {_version_of(shard):g}, "
                f"`{first.path.parent.name}` of {_iteration_of(first)} and {_version_of(first):g}",
                _MIXED,
            )


def _open_shard(path: Path, tp: int, pp: int) -> _Shard:
    content = open_torch_file(path).value
    if not isinstance(content, dict):
        raise CheckpointError(f"`{path}` holds no dictionary, so no Megatron checkpoint", _NEEDED)
    if "model" not in content:
        if "model0" in content:
            raise CheckpointError(
                f"`{path}` holds virtual pipeline chunks, which this version does not read",
                "save it from a run without `--num-layers-per-virtual-pipeline-stage`",
            )
        keys = ", ".join(f"`{key}`" for key in list(content)[:8])
        raise CheckpointError(f"`{path}` has no `model` entry", f"found: {keys or 'nothing'}")
    tensors: dict[str, StoredTensor] = {}
    noise: list[str] = []
    try:
        entries = list(_flat(content["model"]))
    except RecursionError:
        raise CheckpointError(f"`{path}` holds a model that contains itself", AGAIN) from None
    for name, value in entries:
        if isinstance(value, StoredTensor) and not name.endswith("._extra_state"):
            tensors[plain_spelling(name)] = value
        else:
            noise.append(name)
    return _Shard(
        tp=tp,
        pp=pp,
        path=path,
        tensors=tensors,
        noise=noise,
        other={str(key): value for key, value in content.items() if key != "model"},
    )


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(tree, dict):
        yield prefix.removesuffix("."), tree
        return
    for key, value in tree.items():
        yield from _flat(value, f"{prefix}{key}.")


def _args_of(shard: _Shard) -> dict[str, Any]:
    args = shard.other.get("args")
    if isinstance(args, Stub):
        return {key: value for key, value in vars(args).items() if not key.startswith("stub_")}
    return {str(key): value for key, value in args.items()} if isinstance(args, dict) else {}


def _check_args_grid(args: Mapping[str, Any], location: Location) -> None:
    sizes = (("tensor_model_parallel_size", "model_parallel_size"), ("pipeline_model_parallel_size",))
    tp, pp = (argument(args, names, int, location.folder, "copy all shards again")[0] for names in sizes)
    tp, pp = tp or location.tp, pp or location.pp
    if tp < location.tp or pp < location.pp:
        raise CheckpointError(
            f"`{location.folder}` holds {location.tp} x {location.pp} shards, its arguments say {tp} x {pp}",
            "files of two checkpoints are mixed in one folder; remove the surplus ones",
        )
    check_grid(location.folder, location.files, tp, pp)


def _version_of(shard: _Shard) -> float:
    stored = shard.other.get("checkpoint_version") or 0
    if not isinstance(stored, int | float):
        raise CheckpointError(f"`{shard.path}` has checkpoint version `{stored}`, not a number", _VERSIONS)
    version = float(stored)
    if not 2.0 <= version <= 3.0:
        raise CheckpointError(
            f"`{shard.path}` has checkpoint version {version:g}, whose QKV rows this version does not put in order",
            _VERSIONS,
        )
    return version


def _iteration_of(shard: _Shard) -> int:
    stored = shard.other.get("iteration", shard.other.get("total_iters")) or 0
    if not isinstance(stored, int):
        raise CheckpointError(f"`{shard.path}` has iteration `{stored}`, not a number", _NEEDED)
    return stored


def _naming(shards: Mapping[tuple[int, int], _Shard], location: Location) -> Naming:
    names = [name for shard in shards.values() for name in shard.tensors]
    naming = naming_of(names)
    if any(re.match(r"(model\.)?(lm_head|encoder)\.|binary_head|.*tokentype", name) for name in names):
        raise CheckpointError(f"`{location.folder}` holds a BERT model, which this version cannot evaluate", SUPPORTED)
    if naming is None:
        raise CheckpointError(
            f"`{location.folder}` holds no GPT model that this version knows",
            f"tensors found: {', '.join(f'`{name}`' for name in names[:4]) or 'none'}",
        )
    return naming


def _layer_offsets(shards: Mapping[tuple[int, int], _Shard], naming: Naming, location: Location) -> dict[int, int]:
    """Return the global number of each stage's layer 0: stages number their own from zero, evenly split or not."""
    offsets, total = {}, 0
    for pp in range(location.pp):
        found = {layer_index(name, naming) for name in shards[0, pp].tensors} - {None}
        if found != set(range(len(found))):
            raise CheckpointError(
                f"`{shards[0, pp].path}` has layers {sorted(map(str, found))}, not one run from 0", _MIXED
            )
        offsets[pp] = total
        total += len(found)
    return offsets


def _merge(
    shards: Mapping[tuple[int, int], _Shard],
    naming: Naming,
    offsets: Mapping[int, int],
    location: Location,
    *,
    tied: bool,
) -> tuple[dict[str, LogicalTensor], list[LogicalTensor], list[Accounted]]:
    """Sort every stored tensor into logical tensors (by tensor rank), tied copies, and the accounting."""
    parts: dict[str, dict[int, StoredTensor]] = defaultdict(dict)
    copy: dict[int, StoredTensor] = {}
    entries: list[Accounted] = []
    for shard in shards.values():
        file = str(shard.path.relative_to(location.folder))
        entries += [Accounted(file=file, stored=name, name=None, reason="no weight") for name in shard.noise]
        entries += list(_account_other(shard, file))
        for stored, tensor in shard.tensors.items():
            if stored == TIED_COPY[naming] and tied:
                copy[shard.tp] = tensor
                entries.append(Accounted(file=file, stored=stored, name=None, reason="copy of the tied token table"))
                continue
            name = canonical_name(stored, naming, offsets[shard.pp])
            if name is None:
                raise CheckpointError(
                    f"`{shard.path}` holds a tensor that no GPT-2 model has: `{stored}`",
                    "it is of another kind of model, or a newer format; nothing was evaluated",
                )
            if shard.tp in parts[name]:
                raise CheckpointError(f"`{shard.path}` holds `{name}` a second time", _MIXED)
            parts[name][shard.tp] = tensor
            entries.append(Accounted(file=file, stored=stored, name=name, reason=""))
    tensors = {name: _logical(name, found, location) for name, found in parts.items()}
    copies = [_logical("embedding.word.weight", copy, location)] if copy else []
    return tensors, copies, entries


def _account_other(shard: _Shard, file: str) -> Iterator[Accounted]:
    for key in shard.other:
        yield Accounted(file=file, stored=key, name=None, reason=OTHER_ENTRIES.get(key, "not part of the model"))


def _logical(name: str, found: Mapping[int, StoredTensor], location: Location) -> LogicalTensor:
    """Join one tensor's shards in rank order; replicated tensors keep their copies for comparison."""
    missing = [str(tp) for tp in range(location.tp) if tp not in found]
    if missing:
        raise CheckpointError(
            f"`{location.folder}`: tensor `{name}` is missing on tensor rank {', '.join(missing)}", _MIXED
        )
    parts = tuple(found[tp] for tp in range(location.tp))
    if parts[0].dtype not in {"float64", *DTYPES}:
        raise CheckpointError(f"`{location.folder}`: `{name}` is of dtype {parts[0].dtype}, no weight's", _MIXED)
    dim = cut_of(name).dim
    if len({part.dtype for part in parts}) > 1:
        raise CheckpointError(f"`{location.folder}`: `{name}` has shards of different dtypes", _MIXED)
    shape = parts[0].shape
    if dim is None:
        return LogicalTensor(name=name, shape=shape, dtype=parts[0].dtype, dim=None, parts=parts[:1], copies=parts[1:])
    if dim >= len(shape) or len({part.shape for part in parts}) > 1:
        raise CheckpointError(f"`{location.folder}`: the shards of `{name}` have unequal shapes", _MIXED)
    full = (*shape[:dim], shape[dim] * len(parts), *shape[dim + 1 :])
    return LogicalTensor(name=name, shape=full, dtype=parts[0].dtype, dim=dim, parts=parts)
