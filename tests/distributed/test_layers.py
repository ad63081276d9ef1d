"""Split layers against dense ones: outputs and every gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch.nn import functional as F

from mpeval.parallel.group import Group
from mpeval.parallel.layers import ColumnLinear, RowLinear, VocabEmbedding
from mpeval.parallel.ops import enter, scatter

TP = pytest.mark.parametrize("tp", [1, 2, 4])
Tensors = dict[str, torch.Tensor]


def _given() -> Tensors:
    draw = torch.Generator().manual_seed(0)
    shapes = {"x": (3, 5, 8), "w": (12, 8), "b": (12,), "v": (8, 12), "c": (8,), "table": (11, 8), "y": (3, 5, 8)}
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


def _dense() -> Tensors:
    given = {name: tensor.requires_grad_() for name, tensor in _given().items()}
    hidden = F.gelu(F.linear(given["x"], given["w"], given["b"]))
    out = F.linear(hidden, given["v"], given["c"])
    (out * given["y"].detach()).sum().backward()
    grads = {name: given[name].grad for name in ("x", "w", "b", "v", "c")}
    return {"out": out.detach(), **{name: grad for name, grad in grads.items() if grad is not None}}


def _split(group: Group) -> Tensors:
    given, axis = _given(), group.tp
    column, row = ColumnLinear(8, 12, axis=axis), RowLinear(12, 8, axis=axis)
    with torch.no_grad():
        column.weight.copy_(given["w"].chunk(axis.ranks)[axis.rank])
        column.bias.copy_(given["b"].chunk(axis.ranks)[axis.rank])
        row.weight.copy_(given["v"].chunk(axis.ranks, 1)[axis.rank])
        row.bias.copy_(given["c"])
    x = given["x"].requires_grad_()
    out = row(F.gelu(column(enter(x, axis))))
    (out * given["y"]).sum().backward()
    grads = {"x": x.grad, "w": column.weight.grad, "b": column.bias.grad, "v": row.weight.grad, "c": row.bias.grad}
    return {"out": out.detach(), **{name: grad for name, grad in grads.items() if grad is not None}}


@TP
def test_column_then_row_equals_two_dense_layers_in_output_and_every_gradient(tp: int) -> None:
    dense, ranks = _dense(), run_ranks(_split, tp)
    assert all(len(rank) == 6 for rank in ranks)
    for rank in ranks:
        for name in ("out", "x", "c"):  # equal on all ranks; the bias is counted once
            torch.testing.assert_close(rank[name], dense[name], rtol=1e-5, atol=1e-5)
    for name, dim in (("w", 0), ("b", 0), ("v", 1)):
        merged = torch.cat([rank[name] for rank in ranks], dim)
        torch.testing.assert_close(merged, dense[name], rtol=1e-5, atol=1e-5)


def _embedded(group: Group, rows: int) -> Tensors:
    axis = group.tp
    table = _given()["table"][:rows]
    layer = VocabEmbedding(rows, 8, axis=axis)
    local = -(-rows // axis.ranks)
    padded = torch.cat([table, torch.zeros(local * axis.ranks - rows, 8)])
    with torch.no_grad():
        layer.weight.copy_(padded.chunk(axis.ranks)[axis.rank])
    ids = torch.tensor([[0, rows - 1, 3], [3, 3, rows // 2]])
    out = layer(ids)
    (out * torch.arange(out.numel()).reshape(out.shape)).sum().backward()
    assert layer.weight.grad is not None
    return {"ids": ids, "out": out.detach(), "grad": layer.weight.grad}


@TP
@pytest.mark.parametrize("rows", [8, 11])
def test_the_embedding_equals_a_dense_one_also_when_rows_do_not_divide(tp: int, rows: int) -> None:
    ranks = run_ranks(_embedded, tp, rows)
    table = _given()["table"][:rows].requires_grad_()
    out = F.embedding(ranks[0]["ids"], table)
    (out * torch.arange(out.numel()).reshape(out.shape)).sum().backward()
    assert table.grad is not None
    for rank in ranks:
        torch.testing.assert_close(rank["out"], out.detach())
    merged = torch.cat([rank["grad"] for rank in ranks])
    torch.testing.assert_close(merged[:rows], table.grad)
    assert not merged[rows:].any()


def _uneven_weight(group: Group) -> None:
    ColumnLinear(8, 13, axis=group.tp)


def _uneven_input(group: Group) -> None:
    scatter(torch.zeros(2, 9), group.tp)


@pytest.mark.parametrize("what", [_uneven_weight, _uneven_input])
def test_sizes_that_do_not_divide_are_refused(what: Any) -> None:
    with pytest.raises(AssertionError, match="cannot be cut into 2 equal shards"):
        run_ranks(what, 2)
