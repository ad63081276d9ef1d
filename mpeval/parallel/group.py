"""The process groups of a run: which rank this process is on each axis of parallelism.

A `Group` is passed to whatever needs one; nothing below `launch.py` asks the environment.  Ranks are numbered as
Megatron numbers them, the tensor axis fastest: world rank = dp_rank * tp_ranks + tp_rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mpeval.parallel.host import HostMemory, host_memory

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of parallelism: this process is number `rank` of `ranks`.

    `handle` is the torch process group; it is None exactly when `ranks` is 1, and then nothing communicates.
    `memory` is what its ranks share for large sums, if all compute on the CPUs of one machine.
    """

    rank: int = 0
    ranks: int = 1
    handle: Any = None
    memory: HostMemory | None = None


@dataclass(frozen=True, kw_only=True)
class Group:
    """Every axis of a run, and the device its tensors live on.

    A further axis (pipeline stages) is one more field here and one more nesting in `create`.
    """

    tp: Axis = field(default_factory=Axis)
    dp: Axis = field(default_factory=Axis)
    world: Axis = field(default_factory=Axis)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def single(cls, device: str | torch.device = "cpu") -> Group:
        """Return the group of a process that is alone; needs no torch.distributed."""
        return cls(device=torch.device(device))

    @classmethod
    def create(cls, *, tp: int, dp: int = 1, device: str | torch.device = "cpu") -> Group:
        """Cut the initialised world of `tp * dp` ranks into its axes (collective: every rank must call it)."""
        rank, ranks = dist.get_rank(), dist.get_world_size()
        if tp * dp != ranks:
            raise ValueError(f"tp {tp} x dp {dp} needs {tp * dp} ranks, the world has {ranks}")
        tensor = _axis([[d * tp + t for t in range(tp)] for d in range(dp)], rank)
        shared = host_memory(tensor) if torch.device(device).type == "cpu" else None
        return cls(
            tp=replace(tensor, memory=shared),
            dp=_axis([[d * tp + t for d in range(dp)] for t in range(tp)], rank),
            world=_axis([list(range(ranks))], rank),
            device=torch.device(device),
        )


def _axis(members: Sequence[Sequence[int]], rank: int) -> Axis:
    """Make one process group per row of `members` and return the axis of the row that holds `rank`."""
    mine = Axis()
    for row in members:
        handle = dist.new_group(list(row)) if len(row) > 1 else None
        if rank in row:
            mine = Axis(rank=list(row).index(rank), ranks=len(row), handle=handle)
    return mine


def gather_objects(value: T, axis: Axis) -> list[T]:
    """Return the `value` of every rank of `axis`, in rank order, on every rank.  Moves pickles of our own values."""
    if axis.ranks == 1:
        return [value]
    values: list[Any] = [None] * axis.ranks
    dist.all_gather_object(values, value, group=axis.handle)
    return values


def broadcast_object(value: T, axis: Axis) -> T:
    """Return the first rank's `value` on every rank of `axis`."""
    if axis.ranks == 1:
        return value
    box: list[Any] = [value if axis.rank == 0 else None]
    dist.broadcast_object_list(box, group=axis.handle, group_src=0)
    return box[0]  # type: ignore[no-any-return]
