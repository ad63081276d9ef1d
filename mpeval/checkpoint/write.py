"""Write Megatron's classic container at any tensor- and pipeline-parallel size, in either naming."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from mpeval.checkpoint.args import UNKNOWN_VOCAB
from mpeval.checkpoint.locate import MODEL_FILE, TRACKER
from mpeval.checkpoint.names import TIED_COPY, Naming, stored_name, stored_together
from mpeval.checkpoint.stored import THREADS, Advance, Bounds, ignored, row_boxes
from mpeval.checkpoint.torchzip import Planned, write_torch_file
from mpeval.checkpoint.weights import Weights
from mpeval.config import ModelConfig
from mpeval.errors import CheckpointError
from mpeval.folders import new_folder, write_atomically
from mpeval.parallel.layout import bounds, cut_of


def write_megatron(
    root: Path,
    weights: Weights,
    *,
    tp: int = 1,
    pp: int = 1,
    iteration: int = 1,
    naming: Naming = "megatron-core",
    version: float = 3.0,
) -> Path:
    """Write `root/iter_NNNNNNN`, which appears whole or not at all, then the tracker; return that folder.

    Arguments and errors as in `fill_megatron`; `root` is created if absent.

    Raises:
        OutputError: the iteration is already there, or cannot be written.
    """
    folder = root / f"iter_{iteration:07d}"
    with new_folder(folder) as temporary:
        fill_megatron(temporary, weights, tp=tp, pp=pp, iteration=iteration, naming=naming, version=version)
    write_tracker(root, folder)
    return folder


def write_tracker(root: Path, folder: Path) -> None:
    """Make `folder` the one that a root stands for; done last, so that it never names a folder half there."""
    number = folder.name.removeprefix("iter_")
    write_atomically(root / TRACKER, str(int(number)) if number.isdecimal() else number)


def fill_megatron(
    folder: Path,
    weights: Weights,
    *,
    tp: int = 1,
    pp: int = 1,
    iteration: int = 1,
    naming: Naming = "megatron-core",
    version: float = 3.0,
    divisor: int = 128,
    advance: Advance = ignored,
) -> None:
    """Write `tp` x `pp` shards into a folder, `THREADS` files at a time, a few rows of each in memory.

    Args:
        folder: the iteration's folder.
        weights: the model; its `padded_vocab` must divide by `tp`.
        tp: tensor-parallel size of the files.
        pp: pipeline-parallel size of the files; divides the layers.
        iteration: the number that the files say.
        naming: `megatron-core` or `megatron` (the names of Megatron-LM v2).
        version: the `checkpoint_version` entry, 2.0 or 3.0.
        divisor: Megatron's `make_vocab_size_divisible_by`, for the arguments.
        advance: called with the bytes of each tensor written.

    Raises:
        CheckpointError: sizes that do not divide.
    """
    config = weights.config
    config.check_ranks(tp)
    if version not in {2.0, 3.0}:
        raise CheckpointError(f"checkpoint version {version} cannot be written", "give 2.0 or 3.0")
    if config.layers % pp or config.padded_vocab % tp:
        raise CheckpointError(
            f"{config.layers} layers and {config.padded_vocab} rows cannot be cut into {pp} stages of {tp} shards",
            "choose a pipeline size that divides the layers, a tensor size that divides the padded vocabulary",
        )
    if naming == "megatron-core":
        refuse_order(config)
    args = argparse.Namespace(**arguments(config, tp, pp, iteration, divisor))

    def fill(place: tuple[int, int]) -> None:
        rank, stage = place
        state = shard_state(weights, rank, tp, naming, stage=stage, pp=pp, advance=advance)
        content = {
            "args": args,
            "checkpoint_version": version,
            "iteration": iteration,
            "model": nested(state) if naming == "megatron" else state,
        }
        shard = folder / (f"mp_rank_{rank:02d}" + (f"_{stage:03d}" if pp > 1 else ""))
        shard.mkdir(parents=True)
        with (shard / MODEL_FILE).open("wb") as file:
            write_torch_file(file, content)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fill, [(rank, stage) for stage in range(pp) for rank in range(tp)]):
            pass


def refuse_order(config: ModelConfig) -> None:
    """Refuse to write for Megatron-core what it would compute in another order."""
    if config.post_norm:
        raise CheckpointError(
            "Megatron-core does not compute models whose residuals are added to the norms' outputs (`post_norm`)",
            "write the names of Megatron-LM v2, which does: `--format megatron`",
        )


def shard_state(
    weights: Weights, rank: int, tp: int, naming: Naming, *, stage: int = 0, pp: int = 1, advance: Advance = ignored
) -> dict[str, Planned]:
    """Return what one rank of one stage holds, under stored names."""
    config = weights.config
    per_stage = config.layers // pp
    first, last = stage * per_stage, (stage + 1) * per_stage
    state: dict[str, Planned] = {}
    for name, names in stored_together(config.shapes(), config.swiglu):
        if stage_holds(name, stage, pp, first, last):
            state[stored_name(name, naming, config.family, first)] = _planned(weights, names, rank, tp, advance)
    if config.tied and pp > 1 and stage == pp - 1:
        state[TIED_COPY[naming]] = _planned(weights, ["embedding.word.weight"], rank, tp, advance)
    return state


def _planned(weights: Weights, names: list[str], rank: int, tp: int, advance: Advance) -> Planned:
    """Plan one rank's shard of a tensor, or of several that lie one above the other."""
    boxes = [shard_box(weights.config, name, rank, tp) for name in names]
    extents = [high - low for low, high in boxes[0]]

    def make() -> Iterator[torch.Tensor]:
        for name, box in zip(names, boxes, strict=True):
            yield from in_parts(weights, name, box, advance)

    return Planned(shape=(extents[0] * len(names), *extents[1:]), dtype=weights.dtype(names[0]), make=make)


def in_parts(weights: Weights, name: str, box: Bounds, advance: Advance) -> Iterator[torch.Tensor]:
    """Read a box of a tensor a few rows at a time, so that the same memory serves for all of them."""
    for rows in row_boxes(box, weights.dtype(name).itemsize):
        part = weights.read(name, rows)
        advance(part.nbytes)
        yield part


def shard_box(config: ModelConfig, name: str, rank: int, tp: int) -> list[tuple[int, int]]:
    """Return the box of the full tensor that one rank holds."""
    cut, shape = cut_of(name), config.shapes()[name]
    box = [(0, extent) for extent in shape]
    if cut.dim is not None:
        box[cut.dim] = bounds(shape[cut.dim], rank, tp, cut)
    return box


def stage_holds(name: str, stage: int, pp: int, first: int, last: int) -> bool:
    """Tell whether a pipeline stage, of layers `first` to `last` (not included), holds a canonical tensor."""
    if name.startswith("embedding."):
        return stage == 0
    if name.startswith("layers."):
        return first <= int(name.split(".")[1]) < last
    return stage == pp - 1


def arguments(config: ModelConfig, tp: int, pp: int, iteration: int, divisor: int = 128) -> dict[str, Any]:
    """Return the arguments that Megatron needs to rebuild the model."""
    values: dict[str, Any] = {
        "num_layers": config.layers,
        "hidden_size": config.hidden,
        "ffn_hidden_size": config.ffn,
        "num_attention_heads": config.heads,
        "group_query_attention": config.kv_heads != config.heads,
        "num_query_groups": config.kv_heads,
        "kv_channels": config.head_dim,
        "seq_length": config.context,
        "max_position_embeddings": config.context,
        "vocab_size": config.vocab if config.origins.get("vocab") != UNKNOWN_VOCAB else None,
        "padded_vocab_size": config.padded_vocab,
        "make_vocab_size_divisible_by": divisor,
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "virtual_pipeline_model_parallel_size": None,
        "position_embedding_type": "rope" if config.rope else "learned_absolute",
        "add_position_embedding": not config.rope,
        "normalization": "RMSNorm" if config.norm == "rmsnorm" else "LayerNorm",
        "layernorm_epsilon": config.eps,
        "norm_epsilon": config.eps,
        "apply_residual_connection_post_layernorm": config.post_norm,
        "qk_layernorm": config.qk_norm,
        "add_bias_linear": config.linear_bias,
        "add_qkv_bias": config.qkv_bias and not config.linear_bias,
        "swiglu": config.swiglu,
        "openai_gelu": config.lm_head_gelu == "tanh",
        "bias_gelu_fusion": config.gelu == "tanh",
        "untie_embeddings_and_output_weights": not config.tied,
        "bert_binary_head": config.binary_head,
        "hidden_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "init_method_std": config.init_std,
        "iteration": iteration,
    }
    return values | (_rope_arguments(config) if config.rope else {})


def _rope_arguments(config: ModelConfig) -> dict[str, Any]:
    if config.rope_scaling == "llama3" and (config.rope_low, config.rope_high, config.rope_original) != (1, 4, 8192):
        raise CheckpointError(
            f"Megatron's arguments cannot say rotary scaling between {config.rope_low:g} and {config.rope_high:g} of "
            f"{config.rope_original}",
            "its code has 1, 4 and 8192 written into it; keep the Hugging Face format",
        )
    return {
        "rotary_base": int(config.rope_base) if config.rope_base == int(config.rope_base) else config.rope_base,
        "rotary_percent": config.rope_percent,
        "rotary_interleaved": config.rope_interleaved,
        "rotary_seq_len_interpolation_factor": config.rope_factor if config.rope_scaling == "linear" else None,
        "use_rope_scaling": config.rope_scaling == "llama3",
        "rope_scaling_factor": config.rope_factor if config.rope_scaling == "llama3" else 8.0,
    }


def nested(state: dict[str, Planned]) -> dict[str, Any]:
    """Nest names as Megatron-LM v2 did: dictionaries down to `embedding.*` and `encoder`, flat below."""
    tree: dict[str, Any] = {}
    for name, value in state.items():
        parts = name.split(".")
        depth = 2 if parts[1] == "encoder" else 1 if parts[0].endswith("_head") and len(parts) > 2 else len(parts) - 1
        branch = tree
        for part in parts[:depth]:
            branch = branch.setdefault(part, {})
        branch[".".join(parts[depth:])] = value
    return tree
