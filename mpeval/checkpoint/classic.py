"""Read Megatron's classic container, of every era: one file per tensor and pipeline rank."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpeval.checkpoint.args import argument, config_of, refuse_foreign, refuse_ignored_order, refuse_unsupported
from mpeval.checkpoint.assemble import MIXED, Parts, assemble, joined_shape, shapes_of
from mpeval.checkpoint.container import open_torch_file
from mpeval.checkpoint.locate import Location, check_grid
from mpeval.checkpoint.logical import LogicalTensor, joined
from mpeval.checkpoint.names import TIED_COPY, Naming, canonical_name, layer_index, naming_of, plain_spelling
from mpeval.checkpoint.sharded import Accounted, ShardedCheckpoint
from mpeval.checkpoint.stored import AGAIN, StoredTensor
from mpeval.checkpoint.unpickle import Stub
from mpeval.errors import CheckpointError, name_in_file, shown

_NEEDED = "a Megatron checkpoint is a dictionary with an entry `model`; pass the file that training wrote"
_VERSIONS = "versions are 0 (none), 1.0, 2.0 and 3.0; give the right one by `--set checkpoint_version=2.0`"
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
class _Chunk:
    """The model of one file, or one of the several that a virtual pipeline puts into it: tensors by plain name."""

    tp: int
    pp: int
    number: int
    file: str
    tensors: Mapping[str, StoredTensor]


@dataclass(frozen=True, kw_only=True)
class _Shard:
    """One file, decoded: its model chunks, what is no tensor in them, and the rest."""

    file: str
    chunks: tuple[_Chunk, ...]
    noise: tuple[str, ...]
    other: Mapping[str, Any]


def read_classic(location: Location, overrides: Mapping[str, Any]) -> ShardedCheckpoint:
    """Open the files of one iteration as one checkpoint.

    Args:
        location: where the files are; the grid is complete.
        overrides: configuration values that the file lacks or has wrong, by field of `ModelConfig`, and
            `checkpoint_version`.

    Raises:
        CheckpointError: damaged, hostile, mixed, or of an unsupported kind.
        ConfigError: a configuration value is missing or impossible.
    """
    path = location.folder
    shards = [_open_shard(location, tp, pp) for tp, pp in sorted(location.files)]
    first = shards[0]
    _check_one_run(shards, path)
    args = args_of(first.other)
    refuse_unsupported(args, path)
    _check_args_grid(args, location)
    version = _version(first, overrides, path)
    naming = _naming(shards, location)
    tied = overrides.get("tied", not args.get("untie_embeddings_and_output_weights"))
    parts, copy, entries = _sort(shards, naming, location, tied=tied)
    if naming == "megatron-core":
        refuse_ignored_order(args, overrides, path)
    config = config_of(args, shapes_of(parts, path), overrides, path)
    config.check_ranks(location.tp)
    return ShardedCheckpoint(
        path=path,
        root=location.root,
        format=naming,
        version=version,
        iteration=iteration_of(first.other, path),
        release=path.name == "release",
        grid=(location.tp, location.pp),
        config=config,
        # only the early names had other row orders; Megatron-core's never did, whatever version its files say
        tensors=assemble(parts, config, version if naming == "megatron" else 3.0),
        args=args,
        entries=tuple(entries),
        tied_copies=tuple(copy),
    )


def _check_one_run(shards: list[_Shard], path: Path) -> None:
    """Refuse shards of different iterations or versions in one folder."""
    first = shards[0]
    for shard in shards[1:]:
        ours, theirs = (
            (iteration_of(one.other, path), stored_version(one.other, path / one.file)) for one in (shard, first)
        )
        if ours != theirs:
            raise CheckpointError(
                f"`{path / shard.file}` is of iteration {ours[0]} and version {ours[1]:g}, `{first.file}` of "
                f"{theirs[0]} and {theirs[1]:g}",
                MIXED,
            )


def _open_shard(location: Location, tp: int, pp: int) -> _Shard:
    path = location.files[tp, pp]
    content = open_torch_file(path).value
    if not isinstance(content, dict):
        raise CheckpointError(f"`{path}` holds no dictionary, so no Megatron checkpoint", _NEEDED)
    models = ["model"] if "model" in content else []
    models = models or [key for key in (f"model{n}" for n in range(len(content))) if key in content]
    if not models:
        keys = ", ".join(f"`{shown(key)}`" for key in list(content)[:8])
        raise CheckpointError(f"`{path}` has no `model` entry", f"found: {keys or 'nothing'}")
    file, noise, chunks = str(path.relative_to(location.folder)), [], []
    for number, key in enumerate(models):
        tensors: dict[str, StoredTensor] = {}
        try:
            entries = list(flattened(content[key]))
        except RecursionError:
            raise CheckpointError(f"`{path}` holds a model that contains itself, over and over", AGAIN) from None
        except ValueError as error:
            raise CheckpointError(f"`{path}` holds {error}", AGAIN) from None
        for name, value in entries:
            if isinstance(value, StoredTensor) and not name.endswith("._extra_state"):
                if plain_spelling(name) in tensors:
                    raise CheckpointError(f"`{path}` holds `{name}` a second time", MIXED)
                tensors[plain_spelling(name)] = value
            else:
                noise.append(name)
        chunks.append(_Chunk(tp=tp, pp=pp, number=number, file=file, tensors=tensors))
    other = {shown(key): value for key, value in content.items() if key not in models}
    return _Shard(file=file, chunks=tuple(chunks), noise=tuple(noise), other=other)


ENTRIES = 1_000_000
"""A nested dictionary of more entries is no model's: shared parts can make a short file unfold without end."""


def flattened(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield every (dotted name, value) of nested dictionaries.

    Raises:
        RecursionError: a dictionary contains itself, or unfolds to more than `ENTRIES`.
        ValueError: a key is no name.
    """
    stack = [("", tree, 0)]
    for _ in range(ENTRIES):
        if not stack:
            return
        name, value, depth = stack.pop()
        if not isinstance(value, dict):
            yield name, value
            continue
        if depth > DEPTH:
            raise RecursionError
        dot = f"{name}." if name else ""
        for key in reversed(value):
            stack.append((f"{dot}{name_in_file(key)}", value[key], depth + 1))
    raise RecursionError


DEPTH = 20
"""Dictionaries are nested this deep at most: seven levels in the files of Megatron-LM v2."""


def args_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Megatron arguments among a file's entries; empty where there are none."""
    args = content.get("args")
    if isinstance(args, Stub):
        return {key: value for key, value in vars(args).items() if not key.startswith("stub_")}
    return {shown(key): value for key, value in args.items()} if isinstance(args, dict) else {}


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


def stored_version(content: Mapping[str, Any], path: Path) -> float:
    """Return the `checkpoint_version` among a file's entries; files of before September 2020 have none: 0."""
    stored = content.get("checkpoint_version") or 0
    if not isinstance(stored, int | float) or not 0 <= stored <= 3:
        raise CheckpointError(
            f"`{path}` has checkpoint version `{shown(stored)}`, which Megatron never wrote", _VERSIONS
        )
    return float(stored)


def _version(first: _Shard, overrides: Mapping[str, Any], path: Path) -> float:
    version = overrides.get("checkpoint_version")
    return stored_version({"checkpoint_version": version} if version is not None else first.other, path / first.file)


def iteration_of(content: Mapping[str, Any], path: Path) -> int:
    """Return the iteration among a file's entries, 0 where it is not said."""
    stored = content.get("iteration", content.get("total_iters")) or 0
    if not isinstance(stored, int) or isinstance(stored, bool) or not 0 <= stored < 10**12:
        raise CheckpointError(f"`{path}` has iteration `{shown(stored)}`, not a number", _NEEDED)
    return stored


def _naming(shards: list[_Shard], location: Location) -> Naming:
    names = [name for shard in shards for chunk in shard.chunks for name in chunk.tensors]
    naming = naming_of(names)
    if naming is None:
        raise CheckpointError(
            f"`{location.folder}` holds no GPT or BERT that this version knows",
            f"tensors found: {', '.join(f'`{name}`' for name in names[:4]) or 'none'}",
        )
    return naming


def _layer_offsets(shards: list[_Shard], naming: Naming, path: Path) -> dict[tuple[int, int], int]:
    """Return the global number of layer 0 of each (chunk, stage).

    Every chunk numbers its own layers from zero, however the layers are shared out; a virtual pipeline goes through
    the first chunk of all stages, then through the second.
    """
    offsets, total = {}, 0
    first = [chunk for shard in shards for chunk in shard.chunks if chunk.tp == 0]
    for chunk in sorted(first, key=lambda chunk: (chunk.number, chunk.pp)):
        found = {layer_index(name, naming) for name in chunk.tensors} - {None}
        if found != set(range(len(found))):
            raise CheckpointError(
                f"`{path / chunk.file}` has layers {sorted(map(str, found))}, not one run from 0", MIXED
            )
        offsets[chunk.number, chunk.pp] = total
        total += len(found)
    return offsets


def _sort(
    shards: list[_Shard], naming: Naming, location: Location, *, tied: bool
) -> tuple[Parts, list[LogicalTensor], list[Accounted]]:
    """Sort every stored tensor into shards of canonical tensors, tied copies, and the accounting."""
    parts: dict[str, dict[int, StoredTensor]] = defaultdict(dict)
    copy: dict[int, StoredTensor] = {}
    entries: list[Accounted] = []
    offsets = _layer_offsets(shards, naming, location.folder)
    for shard in shards:
        entries += [Accounted(file=shard.file, stored=name, name=None, reason="no weight") for name in shard.noise]
        entries += [
            Accounted(file=shard.file, stored=key, name=None, reason=OTHER_ENTRIES.get(key, "not part of the model"))
            for key in shard.other
        ]
        for chunk in shard.chunks:
            entries += list(_sort_chunk(chunk, naming, offsets, parts, copy, location.folder, tied=tied))
    ordered = {name: _in_rank_order(name, found, location) for name, found in parts.items()}
    copies = [_tied_copy(copy, location)] if copy else []
    return ordered, copies, entries


def _sort_chunk(
    chunk: _Chunk,
    naming: Naming,
    offsets: Mapping[tuple[int, int], int],
    parts: dict[str, dict[int, StoredTensor]],
    copy: dict[int, StoredTensor],
    folder: Path,
    *,
    tied: bool,
) -> Iterator[Accounted]:
    """Put one chunk's tensors into `parts` or `copy` and account for each."""
    for stored, tensor in chunk.tensors.items():
        if stored == TIED_COPY[naming] and tied:
            copy[chunk.tp] = tensor
            yield Accounted(file=chunk.file, stored=stored, name=None, reason="copy of the tied token table")
            continue
        offset = offsets.get((chunk.number, chunk.pp))
        name = canonical_name(stored, naming, offset) if offset is not None else None
        if name is None:
            refuse_foreign(stored, folder / chunk.file)
            raise CheckpointError(
                f"`{folder / chunk.file}` holds a tensor that no GPT or BERT has: `{stored[:120]}`",
                "it is of another kind of model, or a newer format; nothing was read",
            )
        if chunk.tp in parts[name]:
            raise CheckpointError(
                f"`{folder / chunk.file}` holds `{name}` a second time",
                "files of two checkpoints are mixed, or these are expert-parallel ranks, which are not supported",
            )
        parts[name][chunk.tp] = tensor
        yield Accounted(file=chunk.file, stored=stored, name=name, reason="")


def _in_rank_order(name: str, found: Mapping[int, StoredTensor], location: Location) -> list[StoredTensor]:
    missing = [str(tp) for tp in range(location.tp) if tp not in found]
    if missing:
        raise CheckpointError(
            f"`{location.folder}`: tensor `{name}` is missing on tensor rank {', '.join(missing)}", MIXED
        )
    return [found[tp] for tp in range(location.tp)]


def _tied_copy(copy: Mapping[int, StoredTensor], location: Location) -> LogicalTensor:
    name = "embedding.word.weight"
    parts = _in_rank_order(name, copy, location)
    joined_shape(name, parts, location.folder)
    return joined(name, parts, 0)
