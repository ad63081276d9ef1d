"""What this machine can do at best: the rate of one large matrix product, which training speed is compared with."""

from __future__ import annotations

import time

import torch

from mpeval.parallel.gradients import barrier
from mpeval.parallel.group import Group, gather_objects

SIZE = 1024
ROUNDS = range(3, 20)
"""As many as fit into `BUDGET` seconds, but at least and at most these."""
BUDGET = 0.25


def matmul_roof(dtype: str, group: Group) -> float:
    """Return the floating point operations per second of all ranks together, each multiplying at the same time.

    The best of several products of `SIZE` cubed in the run's dtype and with its threads: a roof is what was reached
    once, whatever else the machine was doing at other times.
    """
    kind = getattr(torch, dtype)
    left = torch.ones(SIZE, SIZE, dtype=kind, device=group.device)
    right = torch.ones(SIZE, SIZE, dtype=kind, device=group.device)
    barrier(group.world)
    seconds: list[float] = []
    while len(seconds) < ROUNDS.start or (len(seconds) < ROUNDS.stop and sum(seconds) < BUDGET):
        begin = time.perf_counter()
        left @ right
        if group.device.type == "cuda":
            torch.cuda.synchronize(group.device)
        seconds.append(time.perf_counter() - begin)
    rate = 2.0 * SIZE**3 / min(seconds)
    return sum(gather_objects(rate, group.world))
