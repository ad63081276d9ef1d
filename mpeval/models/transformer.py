"""One transformer block, tensor-parallel: pre-layer-norm attention and feed-forward branches."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import nn
from torch.nn import functional as F

from mpeval.config import ModelConfig
from mpeval.parallel.dropout import DropoutStreams
from mpeval.parallel.group import Axis
from mpeval.parallel.layers import ColumnLinear, Factory, LayerNorm, RowLinear, shard_size
from mpeval.parallel.ops import enter

Tensor = torch.Tensor


def dropout(x: Tensor, rate: float, streams: DropoutStreams | None, stream: str = "shared") -> Tensor:
    """Drop elements of `x` from the named stream; without streams (evaluation) return it unchanged."""
    if streams is None or rate == 0.0:
        return x
    with streams.using(stream):
        return F.dropout(x, rate, training=True)


def pick(x: Tensor, at: Tensor | None) -> Tensor:
    """Return rows `at` of x [batch, time, ...] flattened over batch and time; all of x, unflattened, without `at`."""
    return x if at is None else x.flatten(0, 1)[at]


class Attention(nn.Module):
    """Causal self-attention; each rank computes heads / p of the heads."""

    def __init__(self, config: ModelConfig, *, axis: Axis, **factory: Unpack[Factory]) -> None:
        """Allocate this rank's heads."""
        super().__init__()
        self.heads_local = shard_size(config.heads, axis, "number of heads")
        self.head_dim = config.head_dim
        self.rate = config.attention_dropout
        self.qkv = ColumnLinear(config.hidden, 3 * config.hidden, axis=axis, **factory)
        self.out = RowLinear(config.hidden, config.hidden, axis=axis, **factory)

    def forward(self, x: Tensor, streams: DropoutStreams | None = None, at: Tensor | None = None) -> Tensor:
        """Map [batch, time, hidden] to the same shape, or to [positions, hidden] at the flat positions `at`.

        Rows of the QKV weight are [heads, 3, head_dim].
        """
        parts = self.qkv(x).unflatten(-1, (self.heads_local, 3, self.head_dim)).transpose(1, 2)
        query, key, value = parts.unbind(-2)  # [batch, heads_local, time, head_dim]
        if streams is None:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        else:
            with streams.using("own"):
                mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=self.rate)
        result: Tensor = self.out(pick(mixed.transpose(1, 2).flatten(-2), at))
        return result


class MLP(nn.Module):
    """The feed-forward branch: widen, GELU, narrow."""

    def __init__(self, config: ModelConfig, *, axis: Axis, **factory: Unpack[Factory]) -> None:
        """Allocate this rank's ffn / p features."""
        super().__init__()
        self.approximate = "tanh" if config.gelu == "tanh" else "none"
        self.up = ColumnLinear(config.hidden, config.ffn, axis=axis, **factory)
        self.down = RowLinear(config.ffn, config.hidden, axis=axis, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., hidden] to the same shape."""
        result: Tensor = self.down(F.gelu(self.up(x), approximate=self.approximate))
        return result


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): two all-reduces forward, two backward."""

    def __init__(self, config: ModelConfig, *, axis: Axis, **factory: Unpack[Factory]) -> None:
        """Allocate this rank's shard of the block."""
        super().__init__()
        self.axis = axis
        self.rate = config.dropout
        self.attention_norm = LayerNorm(config.hidden, eps=config.eps, **factory)
        self.attention = Attention(config, axis=axis, **factory)
        self.mlp_norm = LayerNorm(config.hidden, eps=config.eps, **factory)
        self.mlp = MLP(config, axis=axis, **factory)

    def forward(self, x: Tensor, streams: DropoutStreams | None = None, at: Tensor | None = None) -> Tensor:
        """Map [batch, time, hidden], equal on all tensor ranks, to the same shape.

        With `at` (flat positions in batch x time), return only those, [positions, hidden]: of a last block, nothing
        after the attention is computed for positions that nobody reads.
        """
        mixed = self.attention(enter(self.attention_norm(x), self.axis), streams, at)
        x = pick(x, at) + dropout(mixed, self.rate, streams)
        widened = self.mlp(enter(self.mlp_norm(x), self.axis))
        return x + dropout(widened, self.rate, streams)
