"""Which ranks drop the same elements, and which do not."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks

from mpeval.parallel.dropout import DropoutStreams, dropout
from mpeval.parallel.group import Group

Masks = dict[str, torch.Tensor]


def _masks(group: Group) -> Masks:
    torch.manual_seed(group.world.rank)
    before = torch.get_rng_state()
    streams = DropoutStreams(42, group)
    ones = torch.ones(1000)
    found = {name: dropout(ones, 0.1, streams, name) for name in ("shared", "own")}
    assert torch.equal(torch.get_rng_state(), before)
    return found


def test_tensor_ranks_share_one_stream_and_differ_in_the_other() -> None:
    ranks = run_ranks(_masks, 4, tp=2)  # ranks 0, 1 are one replica, 2, 3 the other
    assert torch.equal(ranks[0]["shared"], ranks[1]["shared"])
    assert torch.equal(ranks[2]["shared"], ranks[3]["shared"])
    assert not torch.equal(ranks[0]["shared"], ranks[2]["shared"])
    own = [rank["own"] for rank in ranks]
    for number, mask in enumerate(own):
        assert not torch.equal(mask, ranks[number]["shared"])
        assert not any(torch.equal(mask, other) for other in own[:number])


def test_the_rate_is_kept_and_the_rest_scaled_up() -> None:
    streams = DropoutStreams(1, Group.single())
    dropped = dropout(torch.ones(200_000), 0.1, streams)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.1, abs=0.005)
    assert dropped.max().item() == pytest.approx(1 / 0.9)


def test_the_gradient_passes_where_nothing_was_dropped() -> None:
    streams = DropoutStreams(1, Group.single())
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(7, 9, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
        dropped = dropout(x, 0.25, streams)
        (grad,) = torch.autograd.grad(dropped.sum(), x)
        expected = torch.where(dropped == 0, 0.0, torch.ones_like(x) / 0.75)
        torch.testing.assert_close(grad, expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-6, atol=0)
        assert 0 < (dropped == 0).sum() < 63


@pytest.mark.parametrize("rate", [2**-16, 0.1, 0.5, 0.9, 1 - 2**-16])
def test_each_of_four_elements_of_a_number_is_dropped_at_the_rate(rate: float) -> None:
    size = 1 << 20
    masks = DropoutStreams(3, Group.single()).masks(size, rate, "own")
    kept = masks == -1
    assert torch.equal(kept, masks != 0)
    for share in (*(kept[offset::4].float().mean().item() for offset in range(4)), kept.float().mean().item()):
        assert abs(share - (1 - rate)) < 5 * (rate * (1 - rate) / (size / 4)) ** 0.5


def test_a_stream_moves_on_and_can_be_put_back() -> None:
    streams = DropoutStreams(1, Group.single())
    position = streams.state()
    first, second = (dropout(torch.ones(100), 0.5, streams) for _ in range(2))
    streams.restore(position)
    assert not torch.equal(first, second)
    assert torch.equal(dropout(torch.ones(100), 0.5, streams), first)


def test_without_streams_nothing_is_dropped() -> None:
    x = torch.randn(10)
    assert dropout(x, 0.5, None) is x
