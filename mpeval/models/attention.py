"""Attention with dropout on a CPU, where torch has no fast kernel: a tile of some heads' probabilities at a time.

`scaled_dot_product_attention` with dropout holds every probability of every head several times over.  Here all tiles
use the same memory, keys that lie in the future or in padding are left out, and only drops are kept for backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from mpeval.parallel.dropout import DropoutStreams, clear, mask_type

Tensor = torch.Tensor
ROWS = 256
"""Queries in a tile of causal attention, each of which computes what its last query sees."""
PROBABILITIES = 1_280_000
"""Probabilities in a tile, of as many heads as that allows: fewer and larger products are the faster ones."""


class _Tile(NamedTuple):
    """Queries `rows` of some heads of one sample, and the keys from 0 to `keys` that they may attend to.

    The heads are number `head` of those that share keys, in each of the `groups`.
    """

    sample: int
    groups: slice
    head: int
    rows: slice
    keys: int

    @property
    def queries(self) -> tuple[int, slice, int, slice]:
        """Where the tile lies in [batch, groups, shared, time, head_dim]: there [groups, rows, head_dim]."""
        return self.sample, self.groups, self.head, self.rows

    @property
    def seen(self) -> tuple[int, slice, slice]:
        """Where its keys lie in [batch, groups, time, head_dim]: there [groups, keys, head_dim]."""
        return self.sample, self.groups, slice(self.keys)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, queries of each, keys."""
        return self.groups.stop - self.groups.start, self.rows.stop - self.rows.start, self.keys


class _Plan:
    """How attention of one shape is cut into tiles, and what makes some keys impossible, as -inf to add to scores."""

    def __init__(self, query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> None:
        """Find out how many keys each sample has; a mask that leaves out the last ones only needs no addition."""
        self.batch, self.groups, self.shared, self.time, _ = query.shape
        self.causal = causal
        self.keys = [key.shape[2]] * self.batch
        self.excluded: Tensor | None = None
        rows = min(ROWS, self.time)
        self.triangle = query.new_full((rows, rows), float("-inf")).triu(1) if causal else None
        if mask is not None:
            real = mask[:, 0, 0]
            if bool((real[:, 1:] <= real[:, :-1]).all()):
                self.keys = real.sum(dim=-1).tolist()
            else:
                self.excluded = query.new_zeros(real.shape).masked_fill_(~real, float("-inf"))

    def tiles(self) -> Iterator[_Tile]:
        """Yield all tiles."""
        for sample, keys in enumerate(self.keys):
            step = ROWS if self.causal else max(1, PROBABILITIES // keys)
            for begin in range(0, self.time, step):
                end = min(begin + step, self.time)
                seen = min(end, keys) if self.causal else keys
                together = max(1, PROBABILITIES // ((end - begin) * seen))
                for first in range(0, self.groups, together):
                    groups = slice(first, min(first + together, self.groups))
                    yield from (_Tile(sample, groups, head, slice(begin, end), seen) for head in range(self.shared))

    def shares(self, query: Tensor, key: Tensor, tile: _Tile, room: Tensor) -> Tensor:
        """Return a tile's probabilities before dropout, [groups, rows, keys], in `room`."""
        shares = _part(room, tile)
        torch.bmm(query[tile.queries], key[tile.seen].transpose(1, 2), out=shares)
        first = tile.rows.start
        if self.triangle is not None and tile.keys > first:
            wide, rows = tile.keys - first, tile.shape[1]
            shares[..., first:] += self.triangle[:rows, :wide]
        if self.excluded is not None:
            shares += self.excluded[tile.sample, : tile.keys]
        return torch.softmax(shares, dim=-1, out=shares)


def _part(room: Tensor, tile: _Tile) -> Tensor:
    groups, rows, keys = tile.shape
    return room[: groups * rows * keys].view(groups, rows, keys)


def _grouped(query: Tensor, groups: int) -> Tensor:
    """View [batch, heads, time, head_dim] as [batch, groups, heads of each, time, head_dim]."""
    batch, heads, time, width = query.shape
    return query.view(batch, groups, heads // groups, time, width)


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
        grouped = _grouped(query, key.shape[1])
        plan = _Plan(grouped, key, mask, causal)
        tiles = list(plan.tiles())
        sizes = [groups * rows * keys for groups, rows, keys in (tile.shape for tile in tiles)]
        room = query.new_empty(max(sizes))
        mixed = query.new_empty((*grouped.shape[:-1], value.shape[-1]))
        drops = query.new_empty(sum(sizes), dtype=torch.int8)
        for tile, own in zip(tiles, torch.split(drops, sizes), strict=True):
            shares = plan.shares(grouped, key, tile, room)
            kept = streams.masks(own.numel(), rate, "own")
            own.copy_(kept)
            clear(shares, kept.view(shares.shape))
            torch.bmm(shares, value[tile.seen], out=mixed[tile.queries])
        ctx.save_for_backward(query, key, value, mask, drops)
        ctx.causal, ctx.scale, ctx.sizes = causal, 1 / (1 - rate), sizes
        return mixed.flatten(1, 2).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask, drops = ctx.saved_tensors
        grouped = _grouped(query, key.shape[1])
        plan = _Plan(grouped, key, mask, ctx.causal)
        upstream = _grouped((grads[0] * ctx.scale).contiguous(), key.shape[1])
        query_grad = torch.empty_like(grouped)
        key_grad, value_grad = (x.new_zeros(x.shape, dtype=torch.float32) for x in (key, value))
        room, other = query.new_empty(2, max(ctx.sizes))
        masks = drops.new_empty(max(ctx.sizes), dtype=mask_type(query.dtype))
        for tile, own in zip(plan.tiles(), torch.split(drops, ctx.sizes), strict=True):
            shares = plan.shares(grouped, key, tile, room)
            kept = _part(masks, tile).copy_(own.view(shares.shape))
            dropped = _part(other, tile).copy_(shares)
            above, below = upstream[tile.queries], grouped[tile.queries]
            value_grad[tile.seen] += torch.bmm(clear(dropped, kept).transpose(1, 2), above)
            grad = torch.bmm(above, value[tile.seen].transpose(1, 2), out=dropped)
            grad = torch._softmax_backward_data(clear(grad, kept), shares, -1, query.dtype, grad_input=grad)
            torch.bmm(grad, key[tile.seen], out=query_grad[tile.queries])
            key_grad[tile.seen] += torch.bmm(grad.transpose(1, 2), below)
        query_grad = query_grad.flatten(1, 2).mul_(query.shape[-1] ** -0.5)
        return query_grad, key_grad.to(key.dtype), value_grad.to(value.dtype), None, None, None, None


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
    """Return softmax(query key^T / sqrt(head_dim)), dropped at `rate`, times value: [batch, heads, queries, head_dim].

    Args:
        query: [batch, heads, queries, head_dim].
        key: [batch, kv_heads, time, head_dim], each head serving heads / kv_heads query heads; so does `value`.
        value: as `key`.
        mask: [batch, 1, 1, time] bool, the keys that may be attended to; at least one.
        causal: whether each query attends to itself and the positions before it only; there is one at each position.
        rate: how many probabilities to drop; the others are scaled up.
        streams: where to draw from, its stream `own`.

    Probabilities are computed in fp32 and rounded to the inputs' dtype.  Backward computes the scores again.
    """
    result: Tensor = _Attention.apply(query, key, value, mask, causal, rate, streams)  # type: ignore[no-untyped-call]
    return result
