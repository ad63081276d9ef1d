"""Start the ranks of a run on this machine, or join those that torchrun or Slurm started.

Everything the environment says about ranks is read here and nowhere else.  A rank that fails leaves its report in
a store that all ranks watch; rank 0 prints it and every rank ends within seconds, whatever it was waiting for.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from mpeval.errors import LaunchError, MpevalError, UsageError

if TYPE_CHECKING:
    from mpeval.parallel.group import Group

GRACE = 5.0
"""Seconds that the other ranks get to end by themselves after one has failed."""
_FAILURE = "mpeval/failure/{}"
"""Where the first failure of an attempt is reported: a store may outlive the ranks that it was made for."""
_PEER_GONE = re.compile(r"Connection (closed|reset) by peer|another rank ended in the middle", re.IGNORECASE)
"""What gloo says in every surviving rank once one is gone, or `parallel.host` does."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process's place among the ranks of a run."""

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    address: str
    """Where ranks meet: `host:port`, or the folder of a file store (local ranks)."""
    attempt: int = 0
    """How often the launcher has started these ranks again after a failure."""


def world_of(environment: Mapping[str, str]) -> World | None:
    """Read the ranks that torchrun or a Slurm step announces; None for a process started by hand.

    Raises:
        LaunchError: the variables are incomplete or no numbers.
    """
    if "RANK" in environment and "WORLD_SIZE" in environment:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
        rank, ranks, local, local_ranks, attempt = _numbers(
            environment, names, defaults={"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "TORCHELASTIC_RESTART_COUNT": 0}
        )
        host, port = environment.get("MASTER_ADDR"), environment.get("MASTER_PORT")
        if not host or not port:
            raise LaunchError(
                "`RANK` is set but `MASTER_ADDR` or `MASTER_PORT` is not", "start the ranks with torchrun"
            )
        return World(
            rank=rank,
            ranks=ranks,
            local_rank=local,
            local_ranks=local_ranks,
            address=f"{host}:{port}",
            attempt=attempt,
        )
    if "SLURM_PROCID" in environment and _in_slurm_step(environment):
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
        slurm = ("SLURM_PROCID", tasks, "SLURM_LOCALID")
        rank, ranks, local = _numbers(environment, slurm, defaults={"SLURM_LOCALID": 0})
        if ranks == 1:
            return None
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
        host = environment.get("MASTER_ADDR") or first_host(nodes)
        # steps of one job may run side by side: each meets at a port of its own
        job, step = (int(environment.get(name, "0")) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
        port = environment.get("MASTER_PORT") or str(
            20000 + (31 * job + step) % 12000
        )  # below the usual ephemeral ports
        local_ranks = int(re.split(r"[(,]", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))[0])
        return World(rank=rank, ranks=ranks, local_rank=local, local_ranks=local_ranks, address=f"{host}:{port}")
    return None


def _in_slurm_step(environment: Mapping[str, str]) -> bool:
    """Tell a task started by `srun` from the batch script itself, which has a process id of 0 too."""
    return "SLURM_STEP_ID" in environment or "SLURM_STEPID" in environment


def _numbers(environment: Mapping[str, str], names: tuple[str, ...], defaults: Mapping[str, int]) -> list[int]:
    values = []
    for name in names:
        text = environment.get(name, str(defaults[name]) if name in defaults else "")
        if not text.isdecimal():
            raise LaunchError(
                f"the environment variable `{name}` is `{text}`, not a number", "start with torchrun or srun"
            )
        values.append(int(text))
    return values


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list: `gpu[003-007,9],login` begins with `gpu003`."""
    match = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if not match:
        raise LaunchError("Slurm's node list is empty, so the ranks cannot meet", "set `MASTER_ADDR`")
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", match[0])


def sizes(tp: int | None, dp: int | None, world: World | None) -> tuple[int, int]:
    """Settle tensor- and data-parallel size against the ranks there are (started by hand: whatever is asked for)."""
    for name, size in (("--tp", tp), ("--dp", dp)):
        if size is not None and size < 1:
            raise UsageError(f"`{name} {size}` is not a number of ranks", "give 1 or more")
    if world is None:
        return tp or 1, dp or 1
    tp = tp or (world.ranks // dp if dp and world.ranks % dp == 0 else 1)
    dp = dp or max(1, world.ranks // tp)
    if tp * dp != world.ranks:
        raise UsageError(
            f"--tp {tp} x --dp {dp} makes {tp * dp} ranks, the launcher started {world.ranks}",
            f"give a `--tp` that divides {world.ranks}, without `--dp`",
        )
    return tp, dp


def device_of(name: str) -> str:
    """Return `cpu` or `cuda` for `--device`; `auto` is the GPU where torch sees one.

    Raises:
        UsageError: a GPU is asked for and there is none.
    """
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("`--device cuda`: torch sees no GPU here", "use `--device cpu`, or install torch for CUDA")
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def start(
    tp: int | None,
    dp: int | None,
    rank: Callable[[World | None, Any], None],
    job: Any,
    *,
    check: Callable[[int, int], object],
    graceful: bool = False,
) -> None:
    """Run `rank(world, job)` with as many ranks as asked for: here, as new local processes, or as one that was started.

    Before new processes, `check` gets their tensor- and data-parallel sizes: a mistake is better reported once.
    `rank` is a function that another process can import; `graceful` as in `run_local`.
    """
    world = world_of(os.environ)
    tp, dp = sizes(tp, dp, world)
    if world is None and tp * dp > 1:
        check(tp, dp)
        run_local(tp * dp, rank, job, graceful=graceful)
    else:
        rank(world, job)


def run_local(ranks: int, entry: Callable[[World, Any], None], argument: Any, *, graceful: bool = False) -> None:
    """Run `entry(world, argument)` in `ranks` new processes of this machine and wait for all.

    With `graceful`, SIGTERM and SIGINT are passed on to the ranks, which end by themselves; a second one ends them.

    Raises:
        LaunchError: a rank died without a word (killed, out of memory).
        SystemExit: a rank failed and rank 0 has printed why.
    """
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="mpeval-") as folder:
        processes = [
            context.Process(
                target=entry,
                args=(World(rank=r, ranks=ranks, local_rank=r, local_ranks=ranks, address=folder), argument),
                name=f"rank {r}",
            )
            for r in range(ranks)
        ]
        try:
            for process in processes:
                process.start()
            with _passing_on(processes) if graceful else nullcontext():
                _wait(processes)
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
            for process in processes:
                if process.pid is not None:
                    process.join()


@contextmanager
def _passing_on(processes: Sequence[BaseProcess]) -> Iterator[None]:
    """Pass the first SIGTERM or SIGINT on to all ranks; let a second one interrupt as usual."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        del number, frame
        restore()
        for process in processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    try:
        yield
    finally:
        restore()


def _wait(processes: Sequence[BaseProcess]) -> None:
    """Wait until all ranks have ended; once one has failed, the others get `GRACE` seconds."""
    from multiprocessing.connection import wait

    deadline = float("inf")
    first_dead: BaseProcess | None = None
    while running := [process for process in processes if process.exitcode is None]:
        wait([process.sentinel for process in running], timeout=max(0.0, min(deadline - time.monotonic(), 3600.0)))
        failed = [process for process in processes if process.exitcode]
        if failed and first_dead is None:
            first_dead, deadline = failed[0], time.monotonic() + GRACE
        if time.monotonic() >= deadline:
            break
    silent = [process for process in processes if process.exitcode is not None and process.exitcode < 0]
    if silent:
        codes = ", ".join(f"{process.name} was ended by signal {-(process.exitcode or 0)}" for process in silent)
        raise LaunchError(f"the run failed: {codes}", "signal 9 is often the system running out of memory")
    if first_dead is not None:
        raise SystemExit(first_dead.exitcode)


@contextmanager
def joined(world: World | None, *, tp: int, dp: int, device: str) -> Iterator[Group]:
    """Meet the other ranks and yield this process's `Group`; a failure inside is reported to all ranks.

    Without a `world` the process is alone and torch.distributed is not touched.
    """
    import torch

    from mpeval.parallel.group import Group

    where = torch.device(f"cuda:{world.local_rank if world else 0}" if device == "cuda" else device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    if world is None or world.ranks == 1:
        yield Group.single(where)
        return
    if where.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.local_ranks))
    try:
        watch = _meet(world, where.type)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise LaunchError(
            f"rank {world.rank} of {world.ranks} could not meet the others at `{world.address}`: {reason}",
            "check that all ranks were started and that `MASTER_ADDR` and `MASTER_PORT` can be reached from each node",
        ) from error
    try:
        yield Group.create(tp=tp, dp=dp, device=where)
        torch.distributed.barrier()
        watch.stop()
        torch.distributed.destroy_process_group()
    except BaseException as error:
        watch.fail(error)


def _meet(world: World, device: str) -> _Watch:
    """Initialise torch.distributed and a second connection that carries nothing but failures."""
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    folder = Path(world.address)
    if folder.is_dir():
        store: Any = dist.FileStore(str(folder / "store"), world.ranks)  # type: ignore[attr-defined]
        watched: Any = dist.FileStore(str(folder / "watch"), world.ranks)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.ranks)
    else:
        host, _, port = world.address.rpartition(":")
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, port
        met, _, _ = next(iter(dist.rendezvous("env://", world.rank, world.ranks)))  # type: ignore[attr-defined]
        # torchrun's store outlives ranks that it starts again: what the dead ones left in it must not be found
        store = dist.PrefixStore(f"mpeval/{world.attempt}", met)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.ranks)
        watched = dist.TCPStore(host, int(port), None, False)  # type: ignore[attr-defined]
    return _Watch(watched, world)


class _Watch:
    """A thread that looks every half second whether any rank has reported a failure."""

    def __init__(self, store: Any, world: World) -> None:
        self.store, self.world = store, world
        self.key = _FAILURE.format(world.attempt)
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True, name="watch")
        self.thread.start()

    def _look(self) -> None:
        while not self.done.wait(0.5):
            report = self._reported()
            if report is not None:
                if self.world.rank == 0:
                    self._print(report)
                os._exit(int(report.partition("\n")[0]))

    def _reported(self) -> str | None:
        try:
            return str(self.store.get(self.key).decode()) if self.store.check([self.key]) else None
        except (RuntimeError, ValueError):  # the store is gone, and with it the rank that kept it
            return None

    def _print(self, report: str) -> None:
        sys.stderr.write(report.partition("\n")[2])
        sys.stderr.flush()

    def stop(self) -> None:
        """End the thread, after all ranks have finished."""
        self.done.set()
        self.thread.join()

    def fail(self, error: BaseException) -> None:
        """Report this rank's failure unless another rank was first; rank 0 prints whichever came first; then exit.

        When one rank dies, the others see broken connections: those are consequences, and wait for the cause.
        """
        self.done.set()
        mine = f"{_exit_code(error)}\n{describe(error, self.world)}"
        try:
            if isinstance(error, RuntimeError):
                time.sleep(1.0)
            report = str(self.store.compare_set(self.key, "", mine).decode())
        except (RuntimeError, ValueError):
            report = mine
        if self.world.rank == 0:
            self._print(report)
        elif report == mine:
            time.sleep(2.0)
        os._exit(int(report.partition("\n")[0]))


def _exit_code(error: BaseException) -> int:
    if isinstance(error, MpevalError):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1


def describe(error: BaseException, world: World) -> str:
    """Return the text that a person sees: message and hint of a user's mistake, a traceback of anything else."""
    if isinstance(error, MpevalError):
        return format_error(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted\n"
    if _PEER_GONE.search(str(error)):
        return f"rank {world.rank} of {world.ranks} lost its connection to another rank, which died without a word\n"
    where = f"rank {world.rank} of {world.ranks} on {socket.gethostname()} failed:\n"
    return where + "".join(traceback.format_exception(error))


def format_error(error: MpevalError) -> str:
    """Return `error: ...`, a blank line and `hint: ...`."""
    return f"error: {error.message}\n\nhint: {error.hint}\n"
