"""The four tensor-parallel operators, each a pair of mirror images under differentiation.

===========  ====================  ====================
operator     forward               backward
===========  ====================  ====================
`enter` (f)  identity              all-reduce
`leave` (g)  all-reduce            identity
`gather`     concatenate shards    keep the own shard
`scatter`    keep the own shard    concatenate shards
===========  ====================  ====================

f and g are section 3 of the Megatron-LM paper (arXiv 1909.08053).  No operator writes to its input; on an axis of
one rank each is the identity and sends nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from mpeval.parallel.group import Axis

Tensor = torch.Tensor


def all_reduced(x: Tensor, axis: Axis, op: str = "sum") -> Tensor:
    """Return the sum, max or min of `x` over `axis`; not differentiable.  Sends one tensor of x's size."""
    if axis.ranks == 1:
        return x
    if op == "sum" and axis.memory is not None and axis.memory.takes(x):
        return axis.memory.summed(x)
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, op=getattr(dist.ReduceOp, op.upper()), group=axis.handle)
    return total


def all_gathered(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """Return the shards of all ranks concatenated along `dim`; not differentiable."""
    if axis.ranks == 1:
        return x
    x = x.contiguous()
    shards = [torch.empty_like(x) for _ in range(axis.ranks)]
    dist.all_gather(shards, x, group=axis.handle)
    return torch.cat(shards, dim=dim)


def own_shard(x: Tensor, axis: Axis, dim: int) -> Tensor:
    """Return this rank's equal part of `x` along `dim`."""
    if x.shape[dim] % axis.ranks:
        raise ValueError(f"dimension {dim} of size {x.shape[dim]} cannot be cut into {axis.ranks} equal shards")
    return x if axis.ranks == 1 else x.chunk(axis.ranks, dim)[axis.rank].contiguous()


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> Tensor:
    result: Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return all_reduced(grads[0], ctx.axis), None


class _Leave(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, x: Tensor, axis: Axis) -> Tensor:
        return all_reduced(x, axis)

    @staticmethod
    def backward(_ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return all_gathered(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return own_shard(grads[0], ctx.axis, ctx.dim), None, None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int) -> Tensor:
        ctx.axis, ctx.dim = axis, dim
        return own_shard(x, axis, dim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return all_gathered(grads[0], ctx.axis, ctx.dim), None, None


def enter(x: Tensor, axis: Axis) -> Tensor:
    """f: pass `x` into a sharded region.  Backward sends one all-reduce of x's size."""
    return x if axis.ranks == 1 else _apply(_Enter, x, axis)


def leave(x: Tensor, axis: Axis) -> Tensor:
    """g: sum the ranks' partial results.  Forward sends one all-reduce of x's size."""
    return x if axis.ranks == 1 else _apply(_Leave, x, axis)


def gather(x: Tensor, axis: Axis, dim: int = -1) -> Tensor:
    """Join the ranks' shards along `dim`.  Forward sends one all-gather, backward nothing."""
    return x if axis.ranks == 1 else _apply(_Gather, x, axis, dim)


def scatter(x: Tensor, axis: Axis, dim: int = -1) -> Tensor:
    """Keep this rank's part of `x` along `dim`.  Forward sends nothing, backward one all-gather."""
    return x if axis.ranks == 1 else _apply(_Scatter, x, axis, dim)
