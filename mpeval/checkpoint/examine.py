"""Look at a checkpoint's values: statistics of each tensor, what is wrong with it, how it differs from another."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from mpeval.checkpoint.logical import LogicalTensor, largest_gap
from mpeval.checkpoint.sharded import ShardedCheckpoint
from mpeval.checkpoint.stored import THREADS, Advance, ignored
from mpeval.errors import CheckpointError
from mpeval.parallel.layout import cut_of


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What the values of one tensor are like; padding rows count."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    norm: float
    """Euclidean norm of the finite values, summed in float64."""
    not_finite: int
    """How many values are NaN or infinite."""


def statistics(checkpoint: ShardedCheckpoint, advance: Advance = ignored) -> Iterator[Statistics]:
    """Yield the statistics of each tensor, in model order."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(_statistics, checkpoint.tensors.values())
        for tensor, item in zip(checkpoint.tensors.values(), found, strict=True):
            advance(tensor.nbytes)
            yield item


def _statistics(tensor: LogicalTensor) -> Statistics:
    total, bad = 0.0, 0
    for bounds in tensor.chunks():
        values = tensor.peek(bounds)
        finite = values.isfinite()
        bad += int((~finite).sum())
        total += values.double().masked_fill_(~finite, 0.0).square_().sum().item()
    return Statistics(name=tensor.name, shape=tensor.shape, dtype=tensor.dtype, norm=total**0.5, not_finite=bad)


def problems(checkpoint: ShardedCheckpoint, advance: Advance = ignored) -> Iterator[str]:
    """Yield what is wrong with the values: copies that differ, NaN and infinity.  A sound checkpoint yields nothing."""
    yield from (error.message for error in checkpoint.unequal_copies())
    for found in statistics(checkpoint, advance):
        if found.not_finite:
            yield f"`{found.name}` holds {found.not_finite} values that are NaN or infinite"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How one tensor of two checkpoints compares."""

    name: str
    verdict: str
    """`equal`, `differs`, `only in A`, `only in B`, or `shapes` or `dtypes` that differ."""
    gap: float | None = None
    """Largest absolute difference; NaN where one has NaN and the other has not."""


def differences(left: ShardedCheckpoint, right: ShardedCheckpoint, advance: Advance = ignored) -> Iterator[Difference]:
    """Compare every tensor of two checkpoints, whatever their layouts; padding rows do not count."""
    names = list(dict.fromkeys([*left.tensors, *right.tensors]))
    with ThreadPoolExecutor(THREADS) as pool:
        for name, item in zip(names, pool.map(lambda name: _difference(name, left, right), names), strict=True):
            advance(left.tensor(name).nbytes if name in left.tensors else 0)
            yield item


def _difference(name: str, left: ShardedCheckpoint, right: ShardedCheckpoint) -> Difference:
    if name not in left.tensors or name not in right.tensors:
        return Difference(name=name, verdict="only in A" if name in left.tensors else "only in B")
    ours, theirs = left.tensor(name), right.tensor(name)
    rows = [side.config.vocab if cut_of(name).vocab else side.tensor(name).shape[0] for side in (left, right)]
    if rows[0] != rows[1] or ours.shape[1:] != theirs.shape[1:]:
        shapes = [[count, *tensor.shape[1:]] for count, tensor in zip(rows, (ours, theirs), strict=True)]
        return Difference(name=name, verdict=f"shapes {shapes[0]} and {shapes[1]}")
    gap = largest_gap(ours, theirs, rows[0])
    if gap == 0.0 and ours.dtype != theirs.dtype:
        return Difference(name=name, verdict=f"dtypes {ours.dtype} and {theirs.dtype}", gap=gap)
    return Difference(name=name, verdict="equal" if gap == 0.0 else "differs", gap=gap)


def settings_that_differ(left: ShardedCheckpoint, right: ShardedCheckpoint) -> list[tuple[str, str, str]]:
    """Return (name, value in A, value in B) of what the two models compute differently; padding does not count."""
    ours, theirs = left.config.computed(), right.config.computed()
    names = [name for name in ours if ours[name] != theirs[name]]
    return [(name, str(ours[name]), str(theirs[name])) for name in names]


def digests(checkpoint: ShardedCheckpoint, dtype: str | None = None, advance: Advance = ignored) -> dict[str, str]:
    """Return the digest of every tensor, several at a time; with `dtype`, those it has after a conversion."""
    made: dict[str, str] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: checkpoint.tensor_digest(name, dtype), checkpoint.tensors)
        for name, digest in zip(checkpoint.tensors, found, strict=True):
            made[name] = digest
            advance(checkpoint.tensor(name).nbytes)
    return made


def refuse_overflow(checkpoint: ShardedCheckpoint, dtype: str | None) -> None:
    """Refuse a dtype that finite values of the checkpoint would become infinite in."""
    import torch

    if dtype is None:
        return
    limit = torch.finfo(getattr(torch, dtype)).max

    def too_large(name: str) -> float:
        tensor, worst = checkpoint.tensor(name), 0.0
        if dtype == tensor.dtype:
            return 0.0
        for bounds in tensor.chunks():
            values = tensor.peek(bounds)
            worst = max(worst, values.masked_fill(~values.isfinite(), 0).abs().max().double().item())
        return worst if worst > limit else 0.0

    with ThreadPoolExecutor(THREADS) as pool:
        for name, worst in zip(checkpoint.tensors, pool.map(too_large, checkpoint.tensors), strict=True):
            if worst:
                raise CheckpointError(
                    f"`{checkpoint.path}`: `{name}` holds values up to {worst:.3g}, which {dtype} cannot hold",
                    "convert to `--dtype bfloat16`, or keep the dtype",
                )


def refuse_different(before: dict[str, str], after: dict[str, str], where: str) -> None:
    """Refuse a copy whose tensors do not have the digests of the original."""
    wrong = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
    if wrong:
        listed = ", ".join(f"`{name}`" for name in wrong[:4])
        raise CheckpointError(
            f"what was written to `{where}` differs from the source in {len(wrong)} tensors: {listed}",
            "the disk may be faulty or the source changed meanwhile; nothing was kept. Run the command again",
        )
