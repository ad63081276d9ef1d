"""The helper that starts ranks: results in order, failures told, nothing left behind."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from ranks import RankError, run_ranks

from mpeval.parallel.group import Group


def _fail_on(group: Group, rank: int) -> None:
    if group.world.rank == rank:
        raise KeyError("a mistake of one rank")
    dist.barrier()


def _end_on(group: Group, rank: int) -> None:
    if group.world.rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(30)


def _sleep(group: Group) -> None:
    time.sleep(30)


def test_tensors_and_closures_cross_the_border() -> None:
    base = torch.arange(3.0)
    assert [x.tolist() for x in run_ranks(lambda group: base + group.tp.rank, 2)] == [[0, 1, 2], [1, 2, 3]]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_rank_that_failed_first_is_the_one_reported(rank: int) -> None:
    with pytest.raises(RankError, match=f"(?s)rank {rank} of 2 failed.*_fail_on.*KeyError: 'a mistake of one rank'"):
        run_ranks(_fail_on, 2, rank)


def test_a_rank_that_dies_without_a_word_ends_the_others() -> None:
    begin = time.monotonic()
    with pytest.raises(RankError, match="rank 1 of 2 was ended by signal 9"):
        run_ranks(_end_on, 2, 1)
    assert time.monotonic() - begin < 20


def test_ranks_that_hang_are_ended_after_the_timeout() -> None:
    begin = time.monotonic()
    with pytest.raises(RankError, match=r"ranks \[0, 1\] of 2 were still running after 0.5 s"):
        run_ranks(_sleep, 2, timeout=0.5)
    assert time.monotonic() - begin < 20
