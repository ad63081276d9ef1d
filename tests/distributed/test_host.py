"""Sums through shared memory are the sums, on every rank the same bits, and end with a rank instead of hanging."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import RankError, run_ranks

from mpeval import launch
from mpeval.parallel import host
from mpeval.parallel.group import Group
from mpeval.parallel.ops import all_reduced

pytestmark = pytest.mark.skipif(not host.PLACE.is_dir(), reason=f"no `{host.PLACE}` on this machine")
RANKS = pytest.mark.parametrize("ranks", [2, 3, 4])


def drawn(rank: int, shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * seed + rank)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def summed(group: Group, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[torch.Tensor]:
    assert group.tp.memory is not None
    return [all_reduced(drawn(group.tp.rank, shape, dtype, seed), group.tp) for seed, shape in enumerate(shapes)]


@RANKS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_sum_is_exact_up_to_one_rounding_and_equal_on_every_rank(ranks: int, dtype: torch.dtype) -> None:
    shapes = [(64, 128), (3, 5000), (1, 8192), (7, 11, 999)]
    found = run_ranks(summed, ranks, shapes, dtype)
    for number, shape in enumerate(shapes):
        parts = [drawn(rank, shape, dtype, number) for rank in range(ranks)]
        exact = torch.stack([part.double() for part in parts]).sum(dim=0)
        for rank in range(ranks):
            assert torch.equal(found[rank][number], found[0][number])
        assert found[0][number].dtype == dtype
        assert found[0][number].shape == shape
        reach = 2 * torch.finfo(dtype).eps * torch.stack([part.double().abs() for part in parts]).sum(dim=0)
        assert ((found[0][number].double() - exact).abs() <= reach).all()
        if dtype in (torch.bfloat16, torch.float16):  # rounded once, not once for each rank
            in_order = parts[0].float()
            for part in parts[1:]:
                in_order = in_order + part.float()
            assert torch.equal(found[0][number], in_order.to(dtype))


@RANKS
def test_a_tensor_longer_than_a_slot_is_summed_in_parts(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "SLOT", 32 << 10)
    shape = (50_001,)
    found = run_ranks(summed, ranks, [shape, shape, (8192,)], torch.float32)
    for number, size in ((0, shape), (1, shape), (2, (8192,))):
        expected = sum(drawn(rank, size, torch.float32, number) for rank in range(ranks))
        for rank in range(ranks):
            torch.testing.assert_close(found[rank][number], expected)


def _many(group: Group, times: int) -> float:
    """Sum tensors of changing sizes, the rank that is late changing too; return the largest error."""
    worst = 0.0
    for number in range(times):
        x = torch.full((5000 + 37 * number,), float(number + group.tp.rank))
        if number % group.tp.ranks == group.tp.rank:
            torch.randn(200_000).sort()
        expected = sum(float(number + rank) for rank in range(group.tp.ranks))
        worst = max(worst, float((all_reduced(x, group.tp) - expected).abs().max()))
    return worst


@RANKS
def test_no_rank_overtakes_another(ranks: int) -> None:
    assert run_ranks(_many, ranks, 60) == [0.0] * ranks


def _not_contiguous(group: Group) -> tuple[torch.Tensor, torch.Tensor]:
    x = drawn(group.tp.rank, (128, 96), torch.float32).T
    before = x.clone()
    total = all_reduced(x, group.tp)
    assert torch.equal(x, before)
    return total, before


def test_the_input_may_lie_in_any_order_and_is_left_alone() -> None:
    found = run_ranks(_not_contiguous, 2)
    for total, _ in found:
        torch.testing.assert_close(total, found[0][1] + found[1][1])


def _what_goes_where(group: Group) -> list[bool]:
    memory = group.tp.memory
    assert memory is not None
    big = torch.ones(host.LEAST)
    return [memory.takes(big), memory.takes(big[:10]), memory.takes(big.long())]


def test_small_tensors_and_integers_are_left_to_gloo() -> None:
    assert run_ranks(_what_goes_where, 2) == [[True, False, False]] * 2


def _sum_and_state(group: Group) -> tuple[bool, float]:
    return group.tp.memory is None, float(all_reduced(torch.ones(10_000), group.tp).mean())


def test_without_the_folder_gloo_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "PLACE", tmp_path / "none")
    assert run_ranks(_sum_and_state, 2) == [(True, 2.0)] * 2


def test_without_room_gloo_sums_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(host, "PLACE", tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    assert run_ranks(_sum_and_state, 2) == [(True, 2.0)] * 2
    assert not list(tmp_path.iterdir())


def _one_sees_nothing(group: Group) -> tuple[bool, float]:
    return group.tp.memory is None, float(all_reduced(torch.ones(10_000), group.tp).mean())


def test_ranks_that_do_not_see_the_same_memory_use_gloo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = host._opened

    def elsewhere(folder: Path, ranks: int) -> Any:
        return [] if torch.distributed.get_rank() == 1 else opened(folder, ranks)

    monkeypatch.setattr(host, "PLACE", tmp_path)
    monkeypatch.setattr(host, "_opened", elsewhere)
    assert run_ranks(_one_sees_nothing, 2) == [(True, 2.0)] * 2
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "PLACE", tmp_path)
    assert run_ranks(_sum_and_state, 3) == [(False, 3.0)] * 3
    assert not list(tmp_path.iterdir())


def _one_leaves(group: Group) -> None:
    all_reduced(torch.ones(10_000), group.tp)
    if group.tp.rank == 1:
        os._exit(3)
    all_reduced(torch.ones(10_000), group.tp)


def test_a_rank_that_dies_ends_the_sum_of_the_others() -> None:
    with pytest.raises(RankError):
        run_ranks(_one_leaves, 2, timeout=30)


def _says_who_left(group: Group) -> str:
    all_reduced(torch.ones(10_000), group.tp)
    memory = group.tp.memory
    assert memory is not None
    if group.tp.rank == 1:
        for pipe in [*memory.writers, *memory.readers]:
            os.close(pipe)
        return "left"
    try:
        all_reduced(torch.ones(10_000), group.tp)
    except RuntimeError as error:
        return str(error)
    return "nothing noticed"


def test_a_broken_pipe_is_an_error_and_no_wait() -> None:
    assert run_ranks(_says_who_left, 2) == [host.ENDED, "left"]


@pytest.mark.parametrize("reading", [True, False])
def test_a_rank_that_cannot_open_a_pipe_sends_all_to_gloo(
    reading: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = os.open

    def refused(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if Path(path).name == ("0-1" if reading else "1-0") and torch.distributed.get_rank() == 1:
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, *rest, **more)

    def work(group: Group) -> tuple[tuple[bool, float], int]:
        gc.collect()
        return _sum_and_state(group), sum(map(_is_pipe, os.listdir("/proc/self/fd")))

    monkeypatch.setattr(host, "PLACE", tmp_path)
    monkeypatch.setattr(os, "open", refused)
    assert run_ranks(work, 2) == [((True, 2.0), 0)] * 2
    assert not list(tmp_path.iterdir())


def _is_pipe(number: str) -> bool:
    """Tell whether an open file is one of ours."""
    try:
        return os.readlink(f"/proc/self/fd/{number}").partition(" ")[0].endswith(("/0-1", "/1-0"))
    except OSError:
        return False


def _of_parameters(group: Group) -> list[Any]:
    x = torch.ones(10_000, requires_grad=True)
    for _ in range(3):
        total = all_reduced(x, group.tp)
    assert group.tp.memory is not None
    return [total.requires_grad, float(total.mean()), any(slot.requires_grad for slot in group.tp.memory.slots[0])]


def test_what_needs_gradients_leaves_none_in_the_memory() -> None:
    assert run_ranks(_of_parameters, 2) == [[False, 2.0, False]] * 2


def _again_and_again(group: Group) -> tuple[float, int]:
    for _ in range(5):
        another = Group.create(tp=2, dp=2)
        total = float(all_reduced(torch.full((10_000,), 1.0 + group.world.rank), another.tp).mean())
        del another
    gc.collect()
    return total, sum(map(_is_pipe, os.listdir("/proc/self/fd")))


def test_groups_side_by_side_are_apart_and_close_what_they_opened() -> None:
    assert run_ranks(_again_and_again, 4, tp=2) == [(3.0, 2), (3.0, 2), (7.0, 2), (7.0, 2)]


def test_the_end_of_another_rank_is_told_as_gloos_is() -> None:
    world = launch.World(rank=1, ranks=2, local_rank=1, local_ranks=2, address="x")
    said = launch.describe(RuntimeError(host.ENDED), world)
    assert said == "rank 1 of 2 lost its connection to another rank, which died without a word\n"
