"""Sums over ranks of one machine through memory that they share, where gloo would send them through a socket."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mpeval.parallel.group import Axis

Tensor = torch.Tensor
PLACE = Path("/dev/shm")
"""Files that are memory, of this machine alone."""
SLOT = 4 << 20
"""Bytes of one rank's part of a sum; longer tensors are summed a slot at a time."""
LEAST = 16 << 10
"""Shorter tensors are not worth it: gloo's time for them is that of waking the other rank."""
MOST_RANKS = 8
"""Every rank reads what every rank wrote, which with more ranks is slower than passing sums around."""
ENDED = "another rank ended in the middle of a sum"


class HostMemory:
    """Two slots for each rank, used in turn, and a pipe from each rank to each other one, by which they wait.

    In turn: who writes a slot has waited, since its last use, for all to come to the sum in between, and they came
    there with what they had to read.  The pipes wake a sleeping rank, so that more ranks than cores do no harm, and
    end when a rank does.
    """

    def __init__(self, rank: int, slots: Sequence[Sequence[Tensor]], readers: list[int], writers: list[int]) -> None:
        """Take `slots` [2][ranks], uint8 tensors of `SLOT` bytes, and the pipes, closed when this object goes."""
        self.rank = rank
        self.slots, self.readers, self.writers = slots, readers, writers
        self.turn = 0
        weakref.finalize(self, _close, [*readers, *writers])

    def takes(self, x: Tensor) -> bool:
        """Tell whether a tensor is summed here; all ranks must answer alike, so only shape and dtype count."""
        return x.is_floating_point() and x.numel() * x.element_size() >= LEAST

    def summed(self, x: Tensor) -> Tensor:
        """Return the sum of the tensors `x` of all ranks, in the order of ranks and rounded once to x's dtype."""
        flat = x.detach().reshape(-1)
        result = torch.empty_like(flat)
        step = SLOT // x.element_size()
        for low in range(0, len(flat), step):
            part = flat[low : low + step]
            slots = [slot.view(x.dtype)[: len(part)] for slot in self.slots[self.turn]]
            self.turn = 1 - self.turn
            slots[self.rank].copy_(part)
            self._wait()
            _add(slots, result[low : low + step])
        return result.view(x.shape)

    def _wait(self) -> None:
        """Wait until every rank has come here."""
        try:
            for pipe in self.writers:
                os.write(pipe, b"\0")
            come = [os.read(pipe, 1) for pipe in self.readers]
        except BrokenPipeError as error:
            raise RuntimeError(ENDED) from error
        if not all(come):
            raise RuntimeError(ENDED)


def _add(slots: Sequence[Tensor], to: Tensor) -> None:
    if len(slots) == 2:  # in one step, which rounds once in any dtype
        torch.add(slots[0], slots[1], out=to)
        return
    total = slots[0].to(torch.promote_types(to.dtype, torch.float32), copy=True)
    for slot in slots[1:]:
        total += slot
    to.copy_(total)


def _close(pipes: Sequence[int]) -> None:
    for pipe in pipes:
        with suppress(OSError):
            os.close(pipe)


def host_memory(axis: Axis) -> HostMemory | None:
    """Set up shared memory for the ranks of `axis` (collective); None where they share none, or there are too many.

    The files have names only while this runs, so that a run leaves nothing behind, however it ends later.
    """
    from mpeval.parallel.group import broadcast_object, gather_objects

    if not 1 < axis.ranks <= MOST_RANKS:
        return None
    folder = broadcast_object(_made(axis.ranks) if axis.rank == 0 else None, axis)
    if folder is None:
        return None
    writers: list[int] = []
    try:
        slots = _opened(folder, axis.ranks)
        readers = _pipes(folder, axis, reading=True) if slots else []
        if all(gather_objects(bool(readers), axis)):
            # every pipe has its reader now, so that none of these waits
            writers = _pipes(folder, axis, reading=False)
        good = all(gather_objects(bool(writers), axis))
    finally:
        if axis.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
    if not good:
        _close([*readers, *writers])
        return None
    for pipe in readers:
        os.set_blocking(pipe, True)
    return HostMemory(axis.rank, slots, readers, writers)


def _made(ranks: int) -> Path | None:
    """Make the memory and the pipes; None where there is no room for them (a container may have little)."""
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix="mpeval-", dir=PLACE))
        with (folder / "memory").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 2 * ranks * SLOT)
        for one in range(ranks):
            for other in range(ranks):
                if one != other:
                    os.mkfifo(folder / f"{one}-{other}", 0o600)
    except (OSError, AttributeError):
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        return None
    return folder


def _opened(folder: Path, ranks: int) -> list[list[Tensor]]:
    """Map the memory; nothing where its name says nothing on this machine, or nothing to this user."""
    path = folder / "memory"
    if not os.access(path, os.R_OK | os.W_OK):
        return []
    memory = torch.from_file(str(path), shared=True, size=2 * ranks * SLOT, dtype=torch.uint8)
    return [[memory[(turn * ranks + rank) * SLOT :][:SLOT] for rank in range(ranks)] for turn in range(2)]


def _pipes(folder: Path, axis: Axis, *, reading: bool) -> list[int]:
    """Open this rank's ends of the pipes from, or to, every other rank; none if one of them cannot be."""
    mode = (os.O_RDONLY | os.O_NONBLOCK if reading else os.O_WRONLY) | os.O_CLOEXEC
    found: list[int] = []
    try:
        for rank in range(axis.ranks):
            if rank != axis.rank:
                name = f"{rank}-{axis.rank}" if reading else f"{axis.rank}-{rank}"
                found.append(os.open(folder / name, mode))
    except OSError:  # too many files are open, or another user's ranks made them
        _close(found)
        return []
    return found
