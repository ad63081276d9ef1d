"""What a pretraining run will cost, from its recipe alone: parameters, memory, FLOPs, communication."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mpeval.activations import kept_bytes, read_share
from mpeval.config import ModelConfig
from mpeval.recipe import Recipe

SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number."""
PREFIXES = "kMGTPEZY"


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one rank holds during a step, by kind.

    Not counted: short-lived results of single operations, the caching allocator's slack, and the libraries' own.
    """

    weights: int
    """This rank's shard in the recipe's dtype."""
    gradients: int
    """Float32 buckets of all of them."""
    optimizer: int
    """Adam's two float32 moments, and float32 copies of weights of a lower dtype."""
    activations: int
    """What one micro-batch keeps for its backward pass, but for the output layer."""
    head: int
    """Gradients of the output layer, which are made together with the loss, the table's in float32."""
    logits: int
    """Logits of one chunk of positions."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


@dataclass(frozen=True, kw_only=True)
class Flops:
    """Floating point operations in matrix products, over all ranks.

    `model` is what the model's definition asks for; `hardware` counts a layer's second forward pass too, where its
    activations are computed again.
    """

    model_per_token: float
    model_per_step: float
    hardware_per_step: float
    model: float
    hardware: float


@dataclass(frozen=True, kw_only=True)
class Communication:
    """Bytes that one rank puts into collectives in one step; `sent` is what a ring then sends of them.

    Of n ranks a ring all-reduce sends each byte 2 (n - 1) / n times, a broadcast from every rank (n - 1) / n times.
    Left out: the numbers that losses, norms and signals are summed in, a few dozen bytes.
    """

    tensor: int
    """Tensor axis: all-reduces of activations and of their gradients, and of the split softmax."""
    tensor_sent: int
    data: int
    """Data axis: one all-reduce of all float32 gradients."""
    data_sent: int
    weights: int
    """Data axis: new float32 weights from the ranks that updated them, if these share the optimizer out."""
    weights_sent: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of a run over `tp` x `dp` ranks."""

    recipe: str
    vocab: int
    tp: int
    dp: int
    dtype: str
    recompute: bool
    parameters: int
    parameters_per_rank: int
    sequence: int
    micro_batch: int
    micro_batches: int
    """Forward and backward passes of one rank in one step."""
    steps: int
    tokens_per_step: int
    tokens: int
    memory: Memory
    flops: Flops
    communication: Communication


def estimate(recipe: Recipe, *, vocab: int, tp: int, dp: int, device: str = "cpu") -> Estimate:
    """Estimate the cost of `recipe` with a tokenizer of `vocab` tokens, per rank of `tp` x `dp`.

    Args:
        recipe: what is trained.
        vocab: tokens of the tokenizer; the table is padded as for training.
        tp: tensor-parallel ranks.
        dp: data-parallel ranks.
        device: `cpu` or `cuda`, whose attention and dropout kernels keep different things.

    Raises:
        ConfigError: the ranks cannot cut the model or the batch.
    """
    config, training = recipe.config(vocab, tp), recipe.training
    config.check_ranks(tp)
    micro_batch = recipe.micro_batch(dp)
    shards = _shards(config, tp)
    tokens = training.batch * recipe.sequence
    return Estimate(
        recipe=recipe.name,
        vocab=vocab,
        tp=tp,
        dp=dp,
        dtype=training.dtype,
        recompute=training.recompute,
        parameters=config.parameters(),
        parameters_per_rank=sum(shards.values()),
        sequence=recipe.sequence,
        micro_batch=micro_batch,
        micro_batches=training.batch // (dp * micro_batch),
        steps=training.steps,
        tokens_per_step=tokens,
        tokens=tokens * training.steps,
        memory=_memory(recipe, config, shards, tp=tp, dp=dp, device=device),
        flops=_flops(recipe, config),
        communication=_communication(recipe, config, shards, tp=tp, dp=dp),
    )


def scored_share(recipe: Recipe) -> float:
    """Return the share of positions that the output layer is applied to: all of a GPT's, the masked ones of a BERT."""
    return recipe.training.mask_share if recipe.family == "bert" else 1.0


def _shards(config: ModelConfig, tp: int) -> dict[str, int]:
    """Return how many numbers of each parameter one of `tp` ranks holds."""
    from mpeval.parallel.layout import bounds, cut_of

    sizes = {}
    for name, shape in config.shapes().items():
        cut = cut_of(name)
        part = list(shape)
        if cut.dim is not None:
            first, last = bounds(shape[cut.dim], 0, tp, cut)
            part[cut.dim] = last - first
        sizes[name] = math.prod(part)
    return sizes


def _forward_flops(config: ModelConfig, sequence: int, scored: float) -> tuple[float, float]:
    """Return the FLOPs of one forward pass over one sequence: of all blocks, and of everything after them.

    A product of [m, k] and [k, n] takes 2mkn.  Attention scores are counted whole, as publications do, although a
    causal kernel need not compute the masked half.
    """
    h, mixed = config.hidden, config.heads * config.head_dim
    attention = config.qkv_rows * h + 2 * sequence * mixed
    rest = mixed * h + (3 if config.swiglu else 2) * config.ffn * h
    blocks = config.layers * attention + (config.layers - 1 + read_share(config, sequence, scored)) * rest
    after = scored * sequence * (h * config.vocab + (h * h if config.lm_head else 0))
    after += (h * h if config.pooler else 0) + (2 * h if config.binary_head else 0)
    return 2.0 * sequence * blocks, 2.0 * after


def flops_per_sequence(config: ModelConfig, sequence: int, *, scored: float) -> float:
    """Return the FLOPs that a forward and backward pass over one sequence need, matrix products only.

    The backward pass takes twice the forward pass: gradients of inputs and of weights.  Recomputed activations are
    not counted, so that a rate of these FLOPs compares runs with and without.  Of a GPT with h = heads x head_dim and
    ffn = 4h it is 72 b s l h^2 (1 + s / 6h + V / 12lh): equation 3 of arXiv 2104.04473 less its recomputation.

    Args:
        config: the model.
        sequence: tokens.
        scored: share of the positions to which the output layer is applied: 1 for GPT, the mask share for BERT.
    """
    return 3.0 * sum(_forward_flops(config, sequence, scored))


def _flops(recipe: Recipe, config: ModelConfig) -> Flops:
    scored, batch, steps = scored_share(recipe), recipe.training.batch, recipe.training.steps
    model = flops_per_sequence(config, recipe.sequence, scored=scored)
    hardware = model + (_again_flops(config, recipe.sequence, scored) if recipe.training.recompute else 0.0)
    return Flops(
        model_per_token=model / recipe.sequence,
        model_per_step=model * batch,
        hardware_per_step=hardware * batch,
        model=model * batch * steps,
        hardware=hardware * batch * steps,
    )


def _again_flops(config: ModelConfig, sequence: int, scored: float) -> float:
    """Return the FLOPs of all blocks' second forward pass, which ends with the last number that backward needs."""
    last = 0.0
    if not config.dropout:  # then the block's last product is not needed, only its input
        last = 2.0 * sequence * config.hidden * config.ffn
    blocks = config.layers - 1 + read_share(config, sequence, scored)
    return _forward_flops(config, sequence, scored)[0] - blocks * last


def _memory(recipe: Recipe, config: ModelConfig, shards: Mapping[str, int], *, tp: int, dp: int, device: str) -> Memory:
    training, scored, size = recipe.training, scored_share(recipe), SIZES[recipe.training.dtype]
    held = sum(shards.values())
    # a parameter's moments stay whole, so the fullest rank has at least the largest of them
    moments = max(math.ceil(held / dp), *shards.values()) if training.shard_optimizer else held
    tokens = recipe.micro_batch(dp) * recipe.sequence
    columns = min(config.vocab, -(-config.padded_vocab // tp))
    kept = kept_bytes(
        config, recipe.sequence, scored=scored, recompute=training.recompute, tp=tp, size=size, device=device
    )
    return Memory(
        weights=held * size,
        gradients=4 * held,
        optimizer=8 * moments + (4 * held if size < 4 else 0),
        activations=round(tokens * kept),
        head=4 * columns * (config.hidden + config.lm_head) + round(tokens * scored) * config.hidden * size,
        logits=_chunk(round(tokens * scored)) * columns * (4 if size == 4 else 4 + size),
    )


def _chunk(scored: int) -> int:
    from mpeval.parallel.vocab import CHUNK

    return min(CHUNK, scored)


def _communication(
    recipe: Recipe, config: ModelConfig, shards: Mapping[str, int], *, tp: int, dp: int
) -> Communication:
    gradients = 4 * sum(shards.values())
    reduced, gathered = _tensor_bytes(recipe, config, shards, dp=dp) if tp > 1 else (0, 0)
    shared = recipe.training.shard_optimizer and dp > 1
    return Communication(
        tensor=reduced + gathered,
        tensor_sent=round(reduced * _ring(tp) + gathered * (tp - 1)),
        data=gradients if dp > 1 else 0,
        data_sent=round(gradients * _ring(dp)),
        weights=gradients if shared else 0,
        weights_sent=round(gradients * _ring(dp) / 2) if shared else 0,
    )


def _tensor_bytes(recipe: Recipe, config: ModelConfig, shards: Mapping[str, int], *, dp: int) -> tuple[int, int]:
    """Return what one rank all-reduces over the tensor axis in a step, and what it gathers for the softmax.

    A block all-reduces its two branches' results forward and their inputs' gradients backward (section 3 of arXiv
    1909.08053).  Recomputing stops at the last number that backward needs: with dropout that is its mask, after the
    second all-reduce, without it is the input of the second row-parallel layer, before it.
    """
    training = recipe.training
    positions = training.batch // dp * recipe.sequence
    scored = positions * scored_share(recipe)
    read = positions * read_share(config, recipe.sequence, scored_share(recipe))
    again = (2 if config.dropout else 1) if training.recompute else 0
    vectors = (config.layers - 1) * (4 + again) * positions + (3 + again) * read + positions
    vectors += positions + scored  # the embedding forward, the output layer backward
    inside = sum(count for name, count in shards.items() if "query_norm" in name or "key_norm" in name)
    passes = training.batch // (dp * recipe.micro_batch(dp))
    size = SIZES[training.dtype]
    return round(size * (config.hidden * vectors + inside * passes)), round(12 * scored)


def _ring(ranks: int) -> float:
    """Return how often a ring of `ranks` sends each byte that it all-reduces."""
    return 2.0 * (ranks - 1) / ranks


def as_dict(made: Estimate) -> dict[str, Any]:
    """Return an estimate as a document, with the memory's total."""
    content = asdict(made)
    content["memory"]["total"] = made.memory.total
    return content


def show(made: Estimate) -> list[tuple[str, str, str]]:
    """Return an estimate as rows of a table: what, how much, and how it comes about."""
    return [*_size_rows(made), *_memory_rows(made), *_flops_rows(made), *_communication_rows(made)]


def _size_rows(made: Estimate) -> list[tuple[str, str, str]]:
    passes = f"{made.micro_batches} micro-batch{'es' if made.micro_batches > 1 else ''}"
    batch = f"{made.dp} dp x {passes} of {made.micro_batch} sequences of {made.sequence:,} tokens"
    return [
        ("parameters", f"{made.parameters:,}", f"{made.vocab:,} tokens, the table padded for tp {made.tp}"),
        ("parameters per rank", f"{made.parameters_per_rank:,}", f"tp {made.tp}"),
        ("tokens per step", f"{made.tokens_per_step:,}", batch),
        ("tokens", f"{made.tokens:,}", f"{made.steps:,} steps"),
    ]


def _memory_rows(made: Estimate) -> list[tuple[str, str, str]]:
    memory = made.memory
    moments = f"Adam's moments{f', shared over dp {made.dp}' if made.communication.weights else ''}"
    copies = "" if made.dtype == "float32" else "; float32 copies of the weights"
    kept = "inputs of all layers and one layer's activations" if made.recompute else "activations of all layers"
    return [
        ("memory per rank", _amount(memory.total, "B"), "all below; not counted: short-lived results, allocator slack"),
        ("  weights", _amount(memory.weights, "B"), made.dtype),
        ("  gradients", _amount(memory.gradients, "B"), "float32"),
        ("  optimizer", _amount(memory.optimizer, "B"), moments + copies),
        ("  activations", _amount(memory.activations, "B"), f"one micro-batch, {kept}"),
        ("  head", _amount(memory.head, "B"), "gradients of the output layer, made with the loss"),
        ("  logits", _amount(memory.logits, "B"), "one chunk of positions"),
    ]


def _flops_rows(made: Estimate) -> list[tuple[str, str, str]]:
    flops = made.flops
    again = [("  executed", _amount(flops.hardware, "FLOP"), "with the second forward pass of each layer (recompute)")]
    return [
        ("FLOPs per token", _amount(flops.model_per_token, "FLOP"), "matrix products, 3 x those of the forward pass"),
        ("FLOPs per step", _amount(flops.model_per_step, "FLOP"), "of all ranks"),
        ("FLOPs", _amount(flops.model, "FLOP"), f"{made.steps:,} steps"),
        *(again if made.recompute else []),
    ]


def _communication_rows(made: Estimate) -> list[tuple[str, str, str]]:
    sent = made.communication
    others = (
        ("activations, over tensor ranks", sent.tensor, sent.tensor_sent, made.tp),
        ("gradients, over replicas", sent.data, sent.data_sent, made.dp),
        ("new weights, over replicas", sent.weights, sent.weights_sent, made.dp),
    )
    rows = [
        (f"  {what}", _amount(over, "B"), f"{_amount(payload, 'B')} in a ring of {ranks}")
        for what, payload, over, ranks in others
        if payload
    ]
    total = sent.tensor_sent + sent.data_sent + sent.weights_sent
    head = ("sent per step", _amount(total, "B"), "by each rank")
    return [head, *rows] if rows else [("sent per step", "nothing", "one rank")]


def _amount(value: float, unit: str) -> str:
    """Write a number with a decimal prefix: `1.05 GB`."""
    power = 0
    while value >= (1000 if power == 0 else 999.5) and power < len(PREFIXES):
        value, power = value / 1000, power + 1
    return f"{f'{value:#.3g}'.rstrip('.')} {PREFIXES[power - 1]}{unit}" if power else f"{value:,.0f} {unit}"
