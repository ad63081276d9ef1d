"""How many bytes of activations training keeps for its backward pass, from sizes alone."""

from __future__ import annotations

from mpeval.config import ModelConfig


def read_share(config: ModelConfig, sequence: int, scored: float) -> float:
    """Return the share of positions whose last vectors are read, `scored` of them by the output layer.

    A BERT's last block computes what follows its attention only there and at each sequence's first position.
    """
    return 1.0 if config.family == "gpt" else min(1.0, scored + 1.0 / sequence)


def kept_bytes(
    config: ModelConfig, sequence: int, *, scored: float, recompute: bool, tp: int, size: int, device: str
) -> float:
    """Return the bytes per token that one rank keeps, parameters and the output layer's gradients left out.

    Args:
        config: the model.
        sequence: tokens that attend to one another.
        scored: share of the positions to which the output layer is applied.
        recompute: whether only the blocks' inputs are kept; one block at a time is then whole, in the backward pass.
        tp: tensor-parallel ranks.
        size: bytes of one number.
        device: `cpu` or `cuda`, whose attention kernels keep different things.
    """
    read = read_share(config, sequence, scored)
    before, after = block_bytes(config, sequence, tp=tp, size=size, device=device)
    # where not all positions are read, those that are have been copied out of the attention kernel's result
    result = size * config.heads * config.head_dim / tp if read < 1 and _fused(config, device) else 0.0
    blocks = config.layers * before + (config.layers - 1 + read) * after + result
    if recompute:
        blocks = config.layers * size * config.hidden + before + after
    mask = config.hidden if config.dropout else 0
    head = scored * (2 * config.hidden * size + _norm_bytes(config, size)) if config.lm_head else 0.0
    return blocks + mask + read * _norm_bytes(config, size) + head


def block_bytes(config: ModelConfig, sequence: int, *, tp: int, size: int, device: str = "cpu") -> tuple[float, float]:
    """Return the bytes per token that one block keeps: of its attention and before it, and from its result on.

    For GPT-2's blocks in 16 bits they are h (10 + 24 / t) without attention probabilities, as section 4 of arXiv
    2205.05198 counts: inputs of both norms and of both column-parallel layers on every rank, all between those
    layers and the row-parallel ones split.  Arguments as in `kept_bytes`.
    """
    whole = _norm_bytes(config, size) + size * config.hidden
    masks = 2 * config.hidden if config.dropout else 0
    wide = (4 if config.swiglu else 2) * config.ffn
    attention = _attention_bytes(config, sequence, size=size, device=device)
    return whole + attention / tp, whole + masks + size * (config.heads * config.head_dim + wide) / tp


def _fused(config: ModelConfig, device: str) -> bool:
    """Tell whether attention is one of torch's fused kernels: on a CPU none of them can drop probabilities."""
    return device != "cpu" or not config.attention_dropout


def _attention_bytes(config: ModelConfig, sequence: int, *, size: int, device: str) -> float:
    """Return what attention keeps of one token over all heads, its result's one copy left out.

    A fused kernel keeps queries, keys and values as they are and one float32 number per head; the one that drops on
    a CPU keeps copies of them, and a byte for each probability that it computes.
    """
    mixed, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    norms = (config.heads + config.kv_heads) * _inner_norm_bytes(config, size) if config.qk_norm else 0
    normed = config.qk_norm and (config.norm == "layernorm" or size == 4)  # the norms' inputs are kept as they are
    # queries that share keys lie apart in the layer's output and are copied
    apart = mixed if config.kv_heads != config.heads else 0
    if not _fused(config, device):
        copies = mixed + 2 * keys + (config.qkv_rows + apart if normed else 0)
        return size * copies + norms + config.heads * _attended(config, sequence)
    made = config.qkv_rows + (apart if normed or not (config.rope or config.qk_norm) else 0)
    made += mixed + keys if config.rope or config.qk_norm else 0  # queries and keys are new ones
    made += mixed if config.qk_norm else 0  # in another order, which the result has too: it is copied
    return 4.0 * config.heads + norms + size * made


def _attended(config: ModelConfig, sequence: int) -> float:
    """Return how many probabilities a query has on average: of a tile of queries as many as the last one needs."""
    from mpeval.models.attention import ROWS

    if config.family == "bert":
        return float(sequence)
    ends = [min(begin + ROWS, sequence) for begin in range(0, sequence, ROWS)]
    return sum(end * (end - begin) for end, begin in zip(ends, [0, *ends[:-1]], strict=True)) / sequence


def _norm_bytes(config: ModelConfig, size: int) -> int:
    """Return what a norm of one token keeps: its input and two statistics; RMS norm also its float32 scaling."""
    if config.norm == "layernorm":
        return size * config.hidden + 8
    return (4 + size) * config.hidden + 4


def _inner_norm_bytes(config: ModelConfig, size: int) -> int:
    """Return what the norm of one head keeps beside its input, which is a part of the QKV layer's output."""
    if config.norm == "layernorm":
        return 8
    return config.head_dim * (size if size == 4 else size + 4) + 4
