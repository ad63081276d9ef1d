"""The token table's gradient as a sparse tensor of the rows that were looked up, against index_add in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mpeval.parallel.gradients import Gradients
from mpeval.parallel.group import Axis, Group
from mpeval.parallel.layers import VocabEmbedding

ROWS, HIDDEN = 50, 8


def summed(dtype: torch.dtype, *, sparse: bool, micro: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Return the bucket's gradient after several backward passes, each with (ids, gradient of the vectors)."""
    table = VocabEmbedding(ROWS, HIDDEN, axis=Group.single().tp, dtype=dtype)
    table.sparse = sparse
    nn.init.normal_(table.weight)
    gradients = Gradients({"table": table.weight}, Group.single().dp)
    for ids, upstream in micro:
        table(ids).backward(upstream.to(dtype))
    return gradients.views["table"]


@pytest.fixture
def micro() -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(3)
    return [
        (
            torch.randint(0, 20, (3, time), generator=draw),  # every row several times, 30 rows never
            torch.randn(3, time, HIDDEN, generator=draw).bfloat16().float(),
        )
        for time in (40, 25, 1)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_gradients_of_several_passes_add_up_in_float32(
    dtype: torch.dtype, micro: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    expected = torch.zeros(ROWS, HIDDEN, dtype=torch.float64)
    for ids, upstream in micro:
        expected.index_add_(0, ids.flatten(), upstream.double().flatten(0, 1))
    found = summed(dtype, sparse=True, micro=micro)
    assert found.dtype == torch.float32
    assert not found.is_sparse
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)
    dense = summed(dtype, sparse=False, micro=micro)  # below float32 it rounds the sum of each pass
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found, dense, rtol=tolerance, atol=tolerance)
    assert (found[20:] == 0).all()


def test_a_rank_adds_nothing_to_rows_that_it_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpeval.parallel.layers.leave", lambda x, _: x)
    ids, upstream = torch.tensor([[0, 26, 27, 49, 27]]), torch.randn(1, 5, HIDDEN)
    table = VocabEmbedding(ROWS, HIDDEN, axis=Axis(rank=1, ranks=2))
    table.sparse = True
    nn.init.normal_(table.weight)
    gradients = Gradients({"table": table.weight}, Group.single().dp)
    table(ids).backward(upstream)
    expected = torch.zeros(25, HIDDEN)
    expected[1], expected[2], expected[24] = upstream[0, 1], upstream[0, 2] + upstream[0, 4], upstream[0, 3]
    torch.testing.assert_close(gradients.views["table"], expected)
