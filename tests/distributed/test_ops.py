"""The four operators: values forward, gradients backward, inputs left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks

from mpeval.parallel.group import Axis, Group, broadcast_object, gather_objects
from mpeval.parallel.ops import all_reduced, enter, gather, leave, scatter

TP = pytest.mark.parametrize("tp", [1, 2, 4])


def _through(group: Group, name: str) -> dict[str, torch.Tensor]:
    """Send a tensor of this rank through one operator and weigh the output to see what comes back."""
    operator: Any = {"enter": enter, "leave": leave, "gather": gather, "scatter": scatter}[name]
    x = (torch.arange(8.0).reshape(2, 4) + 10 * group.tp.rank).requires_grad_()
    before = x.detach().clone()
    out = operator(x, group.tp)
    weight = torch.arange(float(out.numel())).reshape(out.shape) * (group.tp.rank + 1)
    (out * weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.detach(), before, rtol=0, atol=0)
    return {"x": before, "out": out.detach().clone(), "weight": weight, "grad": x.grad}


@TP
def test_enter_is_the_identity_and_sums_gradients(tp: int) -> None:
    ranks = run_ranks(_through, tp, "enter")
    for rank in ranks:
        torch.testing.assert_close(rank["out"], rank["x"])
        torch.testing.assert_close(rank["grad"], sum(other["weight"] for other in ranks))


@TP
def test_leave_sums_and_passes_gradients_on_unchanged(tp: int) -> None:
    ranks = run_ranks(_through, tp, "leave")
    for rank in ranks:
        torch.testing.assert_close(rank["out"], sum(other["x"] for other in ranks))
        torch.testing.assert_close(rank["grad"], rank["weight"])


@TP
def test_gather_concatenates_and_keeps_its_own_part_of_the_gradient(tp: int) -> None:
    ranks = run_ranks(_through, tp, "gather")
    for number, rank in enumerate(ranks):
        torch.testing.assert_close(rank["out"], torch.cat([other["x"] for other in ranks], dim=-1))
        torch.testing.assert_close(rank["grad"], rank["weight"].chunk(tp, dim=-1)[number])


@TP
def test_scatter_keeps_its_own_part_and_concatenates_gradients(tp: int) -> None:
    ranks = run_ranks(_through, tp, "scatter")
    for number, rank in enumerate(ranks):
        torch.testing.assert_close(rank["out"], rank["x"].chunk(tp, dim=-1)[number])
        torch.testing.assert_close(rank["grad"], torch.cat([other["weight"] for other in ranks], dim=-1))


def test_a_group_of_one_needs_no_process_group_and_returns_its_input() -> None:
    assert not torch.distributed.is_initialized()
    x = torch.randn(3, 4)
    for operator in (enter, leave, gather, scatter):
        assert operator(x, Axis()) is x
    assert all_reduced(x, Axis(), "max") is x
    assert gather_objects("a", Axis()) == ["a"]
    assert broadcast_object("a", Axis()) == "a"


def _places(group: Group) -> tuple[int, int, int, list[int], int]:
    return (
        group.tp.rank,
        group.dp.rank,
        group.world.rank,
        gather_objects(group.world.rank, group.tp),
        broadcast_object(group.world.rank, group.dp),
    )


def test_ranks_are_numbered_tensor_axis_first() -> None:
    assert run_ranks(_places, 4, tp=2) == [
        (0, 0, 0, [0, 1], 0),
        (1, 0, 1, [0, 1], 1),
        (0, 1, 2, [2, 3], 0),
        (1, 1, 3, [2, 3], 1),
    ]


def test_a_world_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(AssertionError, match="tp 3 x dp 0 needs 0 ranks"):
        run_ranks(_places, 2, tp=3)


def _max_and_min(group: Group) -> tuple[float, float]:
    x = torch.tensor([float(group.tp.rank)])
    return all_reduced(x, group.tp, "max").item(), all_reduced(x, group.tp, "min").item()


def test_reductions_other_than_the_sum() -> None:
    assert run_ranks(_max_and_min, 4) == [(3.0, 0.0)] * 4
