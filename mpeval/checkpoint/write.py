"""Write Megatron's classic container: any tensors, at any tensor- and pipeline-parallel size, in either naming."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mpeval.checkpoint.locate import MODEL_FILE, TRACKER
from mpeval.checkpoint.names import TIED_COPY, Naming, stored_name
from mpeval.config import ModelConfig
from mpeval.errors import CheckpointError
from mpeval.folders import unwritable, write_atomically
from mpeval.parallel.layout import split

GetTensor = Callable[[str], torch.Tensor]


def write_megatron(
    root: Path,
    config: ModelConfig,
    tensor: GetTensor,
    *,
    tp: int = 1,
    pp: int = 1,
    iteration: int = 1,
    naming: Naming = "megatron-core",
    version: float = 3.0,
) -> Path:
    """Write `root/iter_NNNNNNN` with `tp` x `pp` shards, then the tracker.

    Args:
        root: the checkpoint's root folder; created if absent.
        config: the model; its `padded_vocab` must divide by `tp`.
        tensor: returns the full tensor of a canonical name.
        tp: tensor-parallel size of the files.
        pp: pipeline-parallel size of the files; divides the layers.
        iteration: number of the iteration folder.
        naming: `megatron-core` or `megatron` (the names of Megatron-LM v2).
        version: the `checkpoint_version` entry, 2.0 or 3.0.

    Returns:
        The iteration folder, which appears whole or not at all.

    Raises:
        CheckpointError: sizes that do not divide, or an iteration that is already there.
    """
    config.check_ranks(tp)
    if version not in {2.0, 3.0}:
        raise CheckpointError(f"checkpoint version {version} cannot be written", "give 2.0 or 3.0")
    if config.layers % pp or config.padded_vocab % tp:
        raise CheckpointError(
            f"{config.layers} layers and {config.padded_vocab} rows cannot be cut into {pp} stages of {tp} shards",
            "choose a pipeline size that divides the layers, a tensor size that divides the padded vocabulary",
        )
    folder = root / f"iter_{iteration:07d}"
    if folder.exists():
        raise CheckpointError(f"`{folder}` is already there", "write to another root, or remove it")
    temporary = root / f".{folder.name}.{os.getpid()}"
    try:
        for stage in range(pp):
            for rank, state in enumerate(_stage_states(config, tensor, stage, tp, pp, naming)):
                name = f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if pp > 1 else "")
                (temporary / name).mkdir(parents=True)
                content = {
                    "args": _args(config, tp, pp, iteration),
                    "checkpoint_version": version,
                    "iteration": iteration,
                    "model": _nested(state) if naming == "megatron" else state,
                }
                torch.save(content, temporary / name / MODEL_FILE)
        os.replace(temporary, folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    write_atomically(root / TRACKER, str(iteration))
    return folder


def _stage_states(
    config: ModelConfig, tensor: GetTensor, stage: int, tp: int, pp: int, naming: Naming
) -> list[dict[str, torch.Tensor]]:
    """Return the state of each tensor rank of one pipeline stage, under stored names."""
    per_stage = config.layers // pp
    first, last = stage * per_stage, (stage + 1) * per_stage
    states: list[dict[str, torch.Tensor]] = [{} for _ in range(tp)]
    for name in config.shapes():
        if _stage_holds(name, stage, pp, first, last):
            for state, shard in zip(states, split(name, tensor(name), tp), strict=True):
                state[stored_name(name, naming, first)] = shard
    if config.tied and pp > 1 and stage == pp - 1:
        shards = split("embedding.word.weight", tensor("embedding.word.weight"), tp)
        for state, shard in zip(states, shards, strict=True):
            state[TIED_COPY[naming]] = shard
    return states


def _stage_holds(name: str, stage: int, pp: int, first: int, last: int) -> bool:
    if name.startswith("embedding."):
        return stage == 0
    if name.startswith("layers."):
        return first <= int(name.split(".")[1]) < last
    return stage == pp - 1


def _args(config: ModelConfig, tp: int, pp: int, iteration: int) -> argparse.Namespace:
    """Return the arguments that Megatron needs to rebuild the model."""
    values: dict[str, Any] = {
        "num_layers": config.layers,
        "hidden_size": config.hidden,
        "ffn_hidden_size": config.ffn,
        "num_attention_heads": config.heads,
        "kv_channels": config.head_dim,
        "seq_length": config.context,
        "max_position_embeddings": config.context,
        "vocab_size": config.vocab,
        "padded_vocab_size": config.padded_vocab,
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "virtual_pipeline_model_parallel_size": None,
        "position_embedding_type": "learned_absolute",
        "add_position_embedding": True,
        "normalization": "LayerNorm",
        "layernorm_epsilon": config.eps,
        "norm_epsilon": config.eps,
        "add_bias_linear": True,
        "swiglu": False,
        "openai_gelu": False,
        "bias_gelu_fusion": config.gelu == "tanh",
        "untie_embeddings_and_output_weights": not config.tied,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "init_method_std": config.init_std,
        "iteration": iteration,
    }
    return argparse.Namespace(**values)


def _nested(state: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Nest names as Megatron-LM v2 did: dictionaries down to `embedding.*` and `encoder`, flat below."""
    tree: dict[str, Any] = {}
    for name, value in state.items():
        parts = name.split(".")
        depth = 2 if parts[1] == "encoder" else len(parts) - 1
        branch = tree
        for part in parts[:depth]:
            branch = branch.setdefault(part, {})
        branch[".".join(parts[depth:])] = value
    return tree
