"""Gradients of all parameters in a few flat buckets, summed over data-parallel ranks while backward goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from mpeval.parallel.group import Axis, Group
from mpeval.parallel.layout import cut_of
from mpeval.parallel.ops import all_reduced

Tensor = torch.Tensor


@dataclass(kw_only=True)
class _Bucket:
    """One flat float32 tensor that holds the gradients of some parameters, and how many are still to come."""

    flat: Tensor
    names: list[str] = field(default_factory=list)
    missing: int = 0
    work: Any = None


class Gradients:
    """The float32 gradients of a model, by parameter name, each a view of a bucket.

    Gradients arrive in the order of the backward pass, the last layer first; buckets are filled in that order.  Once
    the last gradient of a bucket has arrived its all-reduce over the data-parallel axis begins, beside the rest of
    the backward pass.  Buckets are sent in the same order on every rank.  Each step sends every gradient once.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], axis: Axis, *, bucket_bytes: float = 25e6) -> None:
        """Allocate the buckets and watch the parameters; `axis` is the data-parallel one."""
        self.axis = axis
        self.views: dict[str, Tensor] = {}
        self._buckets: list[_Bucket] = []
        self._sending = False
        self._next = 0
        for group in _grouped(parameters, bucket_bytes):
            self._add(group)
        # the hooks live as long as the parameters, which are this object's own
        for bucket in self._buckets:
            for name in bucket.names:
                self._watch(parameters[name], self.views[name], bucket)

    def _add(self, group: Mapping[str, nn.Parameter]) -> None:
        first = next(iter(group.values()))
        flat = torch.zeros(sum(p.numel() for p in group.values()), dtype=torch.float32, device=first.device)
        parts = torch.split(flat, [parameter.numel() for parameter in group.values()])
        for (name, parameter), part in zip(group.items(), parts, strict=True):
            self.views[name] = part.view_as(parameter)
        self._buckets.append(_Bucket(flat=flat, names=list(group)))

    def _watch(self, parameter: nn.Parameter, view: Tensor, bucket: _Bucket) -> None:
        alike = parameter.dtype == torch.float32
        if alike:
            parameter.grad = view  # autograd adds to it in place
            if self.axis.ranks == 1:
                return

        def arrived(parameter: Tensor) -> None:
            if not alike:
                assert parameter.grad is not None
                view.add_(parameter.grad)
                parameter.grad = None
            if self._sending:
                bucket.missing -= 1
                self._send()

        parameter.register_post_accumulate_grad_hook(arrived)  # type: ignore[no-untyped-call]

    def zero(self) -> None:
        """Begin a new step."""
        for bucket in self._buckets:
            bucket.flat.zero_()

    @contextmanager
    def summing(self) -> Iterator[None]:
        """Sum over the data-parallel ranks what the backward pass inside makes complete: the step's last one."""
        for bucket in self._buckets:
            bucket.missing, bucket.work = len(bucket.names), None
        self._sending, self._next = self.axis.ranks > 1, 0
        try:
            yield
            if self._sending:
                self._send(everything=True)
                for bucket in self._buckets:
                    bucket.work.wait()
        finally:
            self._sending = False

    def _send(self, *, everything: bool = False) -> None:
        """Start the all-reduce of every next bucket that is complete; of `everything` at the end of the pass."""
        while self._next < len(self._buckets):
            bucket = self._buckets[self._next]
            if bucket.missing > 0 and not everything:
                return
            bucket.work = dist.all_reduce(bucket.flat, group=self.axis.handle, async_op=True)
            self._next += 1

    def scale(self, factor: float | Tensor) -> None:
        """Multiply every gradient."""
        torch._foreach_mul_([bucket.flat for bucket in self._buckets], factor)

    def norm(self, tp: Axis) -> float:
        """Return the global 2-norm: of split parameters every shard counts, replicated ones count once.

        NaN or infinite if any gradient is.  Sends one number over the tensor axis.
        """
        names = list(self.views)
        norms = torch._foreach_norm([self.views[name] for name in names])
        squares = torch.stack(norms).double().square()
        split = torch.tensor([cut_of(name).dim is not None for name in names], device=squares.device)
        parts = all_reduced(squares[split].sum(), tp)
        return math.sqrt(float(parts + squares[~split].sum()))

    def clip(self, limit: float, norm: float) -> None:
        """Scale gradients of global norm `norm` down to `limit` (0: leave them), as torch's clip_grad_norm_ does."""
        if limit and norm > limit:
            self.scale(limit / (norm + 1e-6))


def _grouped(parameters: Mapping[str, nn.Parameter], bucket_bytes: float) -> Iterator[dict[str, nn.Parameter]]:
    """Cut the parameters, last first, into runs of at least one and at most `bucket_bytes` of float32 gradients."""
    group: dict[str, nn.Parameter] = {}
    for name in reversed(list(parameters)):
        parameter = parameters[name]
        size = 4 * (sum(p.numel() for p in group.values()) + parameter.numel())
        if group and size > bucket_bytes:
            yield group
            group = {}
        group[name] = parameter
    if group:
        yield group


def barrier(axis: Axis) -> None:
    """Wait until every rank of `axis` has come here."""
    if axis.ranks > 1:
        dist.barrier(group=axis.handle)


def summed_over(values: list[float], group: Group) -> list[float]:
    """Return the float64 sums of `values` over the data-parallel ranks."""
    return list(all_reduced(torch.tensor(values, dtype=torch.float64, device=group.device), group.dp).tolist())


def any_rank(flag: bool, group: Group) -> bool:
    """Tell whether `flag` is set on any rank of the world."""
    return bool(all_reduced(torch.tensor(int(flag), device=group.device), group.world, "max").item())
