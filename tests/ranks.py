"""Run a function on several real ranks: forked processes that meet over gloo, with no network port to choose."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mpeval.parallel.group import Group


class RankError(AssertionError):
    """A rank failed, died or hung; the message holds its traceback."""


def run_ranks(
    fn: Callable[..., Any], ranks: int, *args: Any, tp: int | None = None, timeout: float = 60.0
) -> list[Any]:
    """Call `fn(group, *args)` on each of `ranks` ranks and return what each returned, in rank order.

    The ranks are forked, so `fn` and `args` may be anything, closures included; results travel as pickles.  Every
    rank computes on one thread.  `tp` (default: all ranks) is the tensor-parallel size, the rest is data-parallel.
    Run backward passes inside `fn`: on a machine with a GPU, autograd starts threads that do not survive a fork.

    Raises:
        RankError: with the traceback of the rank that failed first, or once `timeout` seconds have passed.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="ranks-") as name:
        folder = Path(name)
        common = (fn, args, ranks, tp or ranks, folder)
        processes = [context.Process(target=_work, args=(rank, *common), daemon=True) for rank in range(ranks)]
        try:
            _start(processes)
            _wait(processes, folder, timeout)
        finally:
            _end(processes)
        return [pickle.loads(_result(folder, rank).read_bytes()) for rank in range(ranks)]


def _result(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.result"


def _failure(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.failure"


def _start(processes: Sequence[BaseProcess]) -> None:
    """Fork.  Python 3.12 warns when the parent has threads; torch's hold no lock that a one-threaded child needs."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=r".*use of fork\(\) may lead to deadlocks", category=DeprecationWarning
        )
        for process in processes:
            process.start()


def _work(rank: int, fn: Callable[..., Any], args: tuple[Any, ...], ranks: int, tp: int, folder: Path) -> None:
    """Be one rank: meet the others, call `fn`, leave its result or its failure in `folder`."""
    try:
        torch.set_num_threads(1)
        store = dist.FileStore(str(folder / "store"), ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
        result = pickle.dumps(fn(Group.create(tp=tp, dp=ranks // tp), *args))
        _result(folder, rank).write_bytes(result)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        report = (time.monotonic(), f"rank {rank} of {ranks} failed:\n{traceback.format_exc()}")
        _failure(folder, rank).write_bytes(pickle.dumps(report))
        raise SystemExit(1) from None


def _wait(processes: Sequence[BaseProcess], folder: Path, timeout: float) -> None:
    """Wait for every rank to end well; when one does not, tell why."""
    deadline = time.monotonic() + timeout
    while running := [process for process in processes if process.exitcode is None]:
        wait([process.sentinel for process in running], timeout=max(0.0, deadline - time.monotonic()))
        if any(process.exitcode for process in processes):
            break
        if time.monotonic() >= deadline:
            alive = [rank for rank, process in enumerate(processes) if process.exitcode is None]
            raise RankError(f"ranks {alive} of {len(processes)} were still running after {timeout:g} s")
    if any(process.exitcode for process in processes):  # its exit code may come later than the end of its sentinel
        raise RankError(_cause(processes, folder))


def _cause(processes: Sequence[BaseProcess], folder: Path) -> str:
    """Return the earliest failure: the broken connections of the other ranks are only its consequences."""
    for rank, process in enumerate(processes):
        if process.exitcode is not None and process.exitcode < 0:
            return f"rank {rank} of {len(processes)} was ended by signal {-process.exitcode}"
    files = [_failure(folder, rank) for rank in range(len(processes))]
    reports = [pickle.loads(file.read_bytes()) for file in files if file.exists()]
    if reports:
        return str(min(reports)[1])
    return f"ranks ended with exit codes {[process.exitcode for process in processes]} and said nothing"


def _end(processes: Sequence[BaseProcess]) -> None:
    """Leave no process behind."""
    for process in processes:
        if process.pid is not None:
            process.kill()
            process.join()
