"""Attention with dropout on a CPU, where torch has no fast kernel: a tile of one head's probabilities at a time.

`scaled_dot_product_attention` with dropout holds every probability of every head several times over.  Here a tile
stays in the cache, causal attention leaves out what lies in the future, and only the drops are kept for backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from mpeval.parallel.dropout import DropoutStreams

Tensor = torch.Tensor
ROWS = 256
"""Queries in a tile."""


class _Tile(NamedTuple):
    """Queries `begin` to `end` of one head of one sample, and the keys from 0 to `keys` that they may attend to."""

    sample: int
    head: int
    begin: int
    end: int
    keys: int


def _tiles(query: Tensor, causal: bool) -> Iterator[_Tile]:
    batch, heads, time, _ = query.shape
    for sample in range(batch):
        for head in range(heads):
            for begin in range(0, time, ROWS):
                end = min(begin + ROWS, time)
                yield _Tile(sample, head, begin, end, end if causal else time)


class _Masks:
    """What makes some keys impossible, as -inf to add to scores."""

    def __init__(self, query: Tensor, mask: Tensor | None, causal: bool) -> None:
        """Prepare the triangle of the last ROWS keys and a row per sample."""
        rows = min(ROWS, query.shape[2])
        floor = query.new_full((), float("-inf"))
        self.triangle = query.new_full((rows, rows), float("-inf")).triu(1) if causal else None
        self.keys = None if mask is None else torch.where(mask[:, 0, 0], floor.new_zeros(()), floor)

    def add(self, scores: Tensor, tile: _Tile) -> None:
        """Add to the scores [rows, keys] of a tile in place."""
        if self.triangle is not None:
            rows = tile.end - tile.begin
            scores[:, tile.begin : tile.end] += self.triangle[:rows, :rows]
        if self.keys is not None:
            scores += self.keys[tile.sample, : tile.keys]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        causal: bool,
        rate: float,
        streams: DropoutStreams,
    ) -> Tensor:
        query = (query * query.shape[-1] ** -0.5).contiguous()
        key, value = key.contiguous(), value.contiguous()
        masks, shared = _Masks(query, mask, causal), query.shape[1] // key.shape[1]
        mixed = query.new_empty((*query.shape[:-1], value.shape[-1]))
        drops = []
        for tile in _tiles(query, causal):
            s, h, group, rows, keys = tile.sample, tile.head, tile.head // shared, slice(*tile[2:4]), tile.keys
            scores = query[s, h, rows] @ key[s, group, :keys].T
            masks.add(scores, tile)
            kept = streams.kept(scores.shape, rate, "own")
            shares = scores.softmax(dim=-1).mul_(kept.to(query.dtype))
            torch.mm(shares, value[s, group, :keys], out=mixed[s, h, rows])
            drops.append(kept.flatten())
        ctx.save_for_backward(query, key, value, mask, torch.cat(drops))
        ctx.causal, ctx.scale = causal, 1 / (1 - rate)
        return mixed.mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, drops = ctx.saved_tensors
        masks, shared = _Masks(query, mask, ctx.causal), query.shape[1] // key.shape[1]
        upstream = (grads[0] * ctx.scale).contiguous()
        query_grad = torch.empty_like(query)
        # transposed, [.., head_dim, time]: products with few rows and many columns are the faster ones
        key_grad, value_grad = (
            x.new_zeros(x.shape, dtype=torch.float32).transpose(2, 3).contiguous() for x in (key, value)
        )
        used = 0
        for tile in _tiles(query, ctx.causal):
            s, h, group, rows, keys = tile.sample, tile.head, tile.head // shared, slice(*tile[2:4]), tile.keys
            scores = query[s, h, rows] @ key[s, group, :keys].T
            masks.add(scores, tile)
            shares = scores.softmax(dim=-1)
            kept = drops[used : used + shares.numel()].view_as(shares).to(query.dtype)
            used += shares.numel()
            above = upstream[s, h, rows]
            value_grad[s, group, :, :keys] += above.T @ (shares * kept)
            grad = (above @ value[s, group, :keys].T).mul_(kept)
            grad = torch._softmax_backward_data(grad, shares, -1, query.dtype)
            torch.mm(grad, key[s, group, :keys], out=query_grad[s, h, rows])
            key_grad[s, group, :, :keys] += query[s, h, rows].T @ grad
        made = (query_grad.mul_(query.shape[-1] ** -0.5), key_grad.transpose(2, 3), value_grad.transpose(2, 3))
        return (*(grad.to(query.dtype) for grad in made), None, None, None, None)


def attention_with_dropout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    causal: bool,
    rate: float,
    streams: DropoutStreams,
) -> Tensor:
    """Return softmax(query key^T / sqrt(head_dim)) with dropout of `rate`, times value: [batch, heads, time, head_dim].

    Args:
        query: [batch, heads, time, head_dim].
        key: [batch, kv_heads, time, head_dim], each head serving heads / kv_heads query heads; so does `value`.
        value: as `key`.
        mask: [batch, 1, 1, time] bool, the keys that may be attended to; at least one.
        causal: whether each query attends to itself and the positions before it only.
        rate: how many probabilities to drop; the others are scaled up.
        streams: where to draw from, its stream `own`.

    Probabilities are computed in fp32 and rounded to the inputs' dtype.  Backward computes the scores again.
    """
    result: Tensor = _Attention.apply(query, key, value, mask, causal, rate, streams)  # type: ignore[no-untyped-call]
    return result
