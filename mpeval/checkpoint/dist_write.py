"""Write Megatron's torch_dist container: global tensors, layers stacked, one chunk a layer, PyTorch DCP's index."""

from __future__ import annotations

import argparse
import json
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch

from mpeval.checkpoint.names import engine_spelling, stored_name, stored_together
from mpeval.checkpoint.stored import Advance, ignored
from mpeval.checkpoint.torchzip import Planned, write_torch_file
from mpeval.checkpoint.weights import Weights
from mpeval.checkpoint.write import arguments, in_parts, refuse_order
from mpeval.config import ModelConfig

PAYLOAD = "__0_0.distcp"
_BACKEND = {
    "sharded_backend": "torch_dist",
    "sharded_backend_version": 1,
    "common_backend": "torch",
    "common_backend_version": 1,
}
_EMPTY = ("self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2")
"""Layers for which Megatron-core demands an `_extra_state` of each block, which holds nothing here."""


def fill_dist(
    folder: Path,
    weights: Weights,
    *,
    tp: int = 1,
    pp: int = 1,
    iteration: int = 1,
    divisor: int = 128,
    advance: Advance = ignored,
) -> None:
    """Write the files of one iteration into a folder; arguments and errors as in `fill_megatron`.

    The container has no ranks: `tp` and `pp` only go into the arguments, for the run that loads it.
    """
    from torch.distributed.checkpoint import metadata

    config = weights.config
    config.check_ranks(tp)
    refuse_order(config)
    state: dict[str, Any] = {}
    places: dict[Any, Any] = {}
    with (folder / PAYLOAD).open("wb") as file:
        for key, tensors in _stacks(weights, advance).items():
            _write_stack(file, key, tensors, state, places)
        for key in _extra_states(config):
            state[key] = metadata.BytesStorageMetadata()
            places[metadata.MetadataIndex(key)] = _write(file, [None])
    index = metadata.Metadata(state_dict_metadata=state, planner_data=None, storage_data=places)
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    (folder / "metadata.json").write_text(json.dumps(_BACKEND), encoding="utf-8")
    args = arguments(config, tp, pp, iteration, divisor) | {"ckpt_format": "torch_dist"}
    common = {"args": argparse.Namespace(**args), "checkpoint_version": 3.0, "iteration": iteration}
    with (folder / "common.pt").open("wb") as file:
        write_torch_file(file, common)


def _stacks(weights: Weights, advance: Advance) -> dict[str, list[Planned]]:
    """Return, under each key of the container, the tensors of all layers; a list of one outside the blocks."""
    config = weights.config
    stacks: dict[str, list[Planned]] = {}
    for name, names in stored_together(config.shapes(), config.swiglu):
        key = engine_spelling(stored_name(name, "megatron-core", config.family))
        key = re.sub(r"(coder\.layers)\.\d+\.", r"\1.", key)
        stacks.setdefault(key, []).append(_planned(weights, names, advance))
    return stacks


def _planned(weights: Weights, names: list[str], advance: Advance) -> Planned:
    shape = weights.config.shapes()[names[0]]
    lead = (1,) if names[0].startswith("layers.") else ()

    def make() -> Iterator[torch.Tensor]:
        for name in names:
            yield from in_parts(weights, name, [(0, extent) for extent in weights.config.shapes()[name]], advance)

    full = (*lead, shape[0] * len(names), *shape[1:])
    return Planned(shape=full, dtype=weights.dtype(names[0]), make=make)


def _write_stack(
    file: IO[bytes], key: str, tensors: list[Planned], state: dict[str, Any], places: dict[Any, Any]
) -> None:
    """Write the chunks of one key and note what they are and where."""
    from torch.distributed.checkpoint import metadata

    shape = tensors[0].shape
    stacked = "coder.layers." in key
    chunks = []
    for layer, tensor in enumerate(tensors):
        at = torch.Size([layer, *(0 for _ in shape[1:])]) if stacked else torch.Size([0] * len(shape))
        chunks.append(metadata.ChunkStorageMetadata(offsets=at, sizes=torch.Size(shape)))
        places[metadata.MetadataIndex(key, at)] = _write(file, tensor)
    size = torch.Size([len(tensors), *shape[1:]]) if stacked else torch.Size(shape)
    properties = metadata.TensorProperties(dtype=tensors[0].dtype)
    state[key] = metadata.TensorStorageMetadata(properties=properties, size=size, chunks=chunks)


def _write(file: IO[bytes], content: Any) -> Any:
    """Append one torch file to the payload and return its place."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    start = file.tell()
    write_torch_file(file, content)
    return _StorageInfo(relative_path=PAYLOAD, offset=start, length=file.tell() - start)


def _extra_states(config: ModelConfig) -> Iterator[str]:
    stack = "encoder" if config.family == "bert" else "decoder"
    for layer in range(config.layers):
        for name in _EMPTY:
            yield f"{stack}.layers.{name}._extra_state/shard_{layer}_{config.layers}"
    if config.lm_head:
        yield "output_layer._extra_state/shard_0_1"
