"""torch's AdamW, its moments whole on every data-parallel rank or shared out over them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import AdamW, Optimizer

from mpeval.parallel.group import Axis

Tensor = torch.Tensor
Moments = Mapping[str, Tensor]
"""`exp_avg` and `exp_avg_sq` of one parameter."""
MOMENTS = ("exp_avg", "exp_avg_sq")


def new_adam(
    groups: Sequence[Mapping[str, Any]], *, lr: float, betas: tuple[float, float], eps: float, axis: Axis, sharded: bool
) -> Optimizer:
    """Return the optimizer of parameter `groups`.

    With `sharded` each rank of `axis` keeps the moments of, and updates, its share of the parameters, and sends
    those to the others after each step (torch's ZeroRedundancyOptimizer, arXiv 1910.02054); the numbers are the same.
    """
    settings: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "fused": True}
    if not sharded or axis.ranks == 1:
        return AdamW([dict(group) for group in groups], **settings)
    with warnings.catch_warnings():  # what torch imports with it warns of torch.jit, which is not used here
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.distributed.optim import ZeroRedundancyOptimizer
    made = ZeroRedundancyOptimizer(
        [dict(group) for group in groups], optimizer_class=AdamW, process_group=axis.handle, **settings
    )
    assert isinstance(made, Optimizer)
    return made


def read_moments(optimizer: Optimizer, axis: Axis) -> list[dict[str, Tensor]]:
    """Return the moments of every parameter, in the order of the groups; empty on all ranks but the axis' first.

    Collective when the state is shared out: sends the whole state to the first rank.
    """
    if hasattr(optimizer, "consolidate_state_dict"):
        optimizer.consolidate_state_dict(to=0)
    if axis.rank:
        return []
    state = optimizer.state_dict()["state"]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not state:  # not one step was taken: float16 begins with overflows
        return [{name: torch.zeros_like(parameter) for name in MOMENTS} for parameter in parameters]
    return [{name: state[index][name] for name in MOMENTS} for index in range(len(parameters))]


def write_moments(optimizer: Optimizer, moments: Sequence[Moments], steps: int) -> None:
    """Set the moments of every parameter, in the order of the groups, and the number of steps taken."""
    state = {
        index: {"step": torch.tensor(float(steps)), **{name: values[name] for name in MOMENTS}}
        for index, values in enumerate(moments)
    }
    # of an optimizer that shares its state out, the plain form holds the groups of all ranks
    optimizer.load_state_dict({"state": state, "param_groups": Optimizer.state_dict(optimizer)["param_groups"]})
