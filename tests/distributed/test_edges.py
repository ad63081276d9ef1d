"""Corners of operators, layers and losses: other dimensions, strided inputs, ranks that own nothing, exact ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from torch.nn import functional as F

from mpeval.parallel.group import Group
from mpeval.parallel.layers import RowLinear, VocabEmbedding
from mpeval.parallel.ops import enter, gather, leave, scatter
from mpeval.parallel.vocab import cross_entropy, token_scores

Tensors = dict[str, torch.Tensor]


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _strided(group: Group, name: str, options: dict[str, int]) -> Tensors:
    """Send a transposed tensor through an operator and a transposed gradient back."""
    operator: Any = {"enter": enter, "leave": leave, "gather": gather, "scatter": scatter}[name]
    x = _draw(8, 4, seed=group.tp.rank).T.requires_grad_()
    out = operator(x, group.tp, **options)
    weight = _draw(*reversed(out.shape), seed=10 + group.tp.rank).T
    kept = x.detach().clone(), weight.clone()
    (grad,) = torch.autograd.grad(out, x, weight)
    assert torch.equal(x.detach(), kept[0])
    assert torch.equal(weight, kept[1])
    return {"x": x.detach(), "out": out.detach(), "weight": weight, "grad": grad}


@pytest.mark.parametrize(
    ("name", "options", "forward", "backward"),
    [
        ("enter", {}, "same", "sum"),
        ("leave", {}, "sum", "same"),
        ("gather", {"dim": 0}, "join", "part"),
        ("scatter", {"dim": 0}, "part", "join"),
    ],
)
def test_operators_take_strided_tensors_along_any_dimension_and_write_to_none(
    tp: int, name: str, options: dict[str, int], forward: str, backward: str
) -> None:
    ranks = run_ranks(_strided, tp, name, options)

    def expected(kind: str, key: str, rank: int) -> torch.Tensor:
        values = [found[key] for found in ranks]
        if kind == "part":
            return values[rank].chunk(tp, 0)[rank]
        return {"same": values[rank], "sum": torch.stack(values).sum(0), "join": torch.cat(values)}[kind]

    for rank, found in enumerate(ranks):
        torch.testing.assert_close(found["out"], expected(forward, "x", rank))
        torch.testing.assert_close(found["grad"], expected(backward, "weight", rank))


def _bias_only(group: Group) -> torch.Tensor:
    layer = RowLinear(8, 3, axis=group.tp)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.constant_(layer.bias, 5.0)
    return layer(torch.ones(2, 8 // group.tp.ranks)).detach()


def test_the_bias_of_a_row_layer_is_added_once(tp: int) -> None:
    for out in run_ranks(_bias_only, tp):
        assert torch.equal(out, torch.full((2, 3), 5.0))


def _few_rows(group: Group) -> torch.Tensor:
    layer = VocabEmbedding(5, 3, axis=group.tp)
    table = torch.cat([_draw(5, 3), torch.full((8, 3), 99.0)])  # a row that no id names must never be read
    local = layer.weight.shape[0]
    with torch.no_grad():
        layer.weight.copy_(table[group.tp.rank * local : (group.tp.rank + 1) * local])
    return layer(torch.arange(5)).detach()


def test_the_embedding_is_bit_equal_when_a_rank_owns_no_token(tp: int) -> None:
    for out in run_ranks(_few_rows, tp):
        assert torch.equal(out, _draw(5, 3))


def _masked_logits() -> torch.Tensor:
    logits = 5 * _draw(2, 3, 12)
    logits[..., 5:] = float("-inf")  # at four ranks of three columns, the last two own padding alone
    return logits


def _masked_loss(group: Group, targets: torch.Tensor) -> Tensors:
    local = _masked_logits().chunk(group.tp.ranks, -1)[group.tp.rank].contiguous().requires_grad_()
    losses = cross_entropy(local, targets, first=group.tp.rank * local.shape[-1], axis=group.tp)
    losses.sum().backward()
    assert local.grad is not None
    return {"losses": losses.detach(), "grad": local.grad}


def test_masked_padding_columns_count_for_nothing_in_loss_and_gradient(tp: int) -> None:
    targets = torch.tensor([[0, 4, 2], [3, 1, 4]])
    ranks = run_ranks(_masked_loss, tp, targets)
    logits = _masked_logits()
    probabilities = logits[..., :5].softmax(-1)
    grad = F.pad(probabilities - F.one_hot(targets, 5), (0, 7))
    for found in ranks:
        torch.testing.assert_close(found["losses"], -probabilities.log().gather(-1, targets[..., None]).squeeze(-1))
    torch.testing.assert_close(torch.cat([found["grad"] for found in ranks], -1), grad)


def _half_loss(group: Group) -> torch.Tensor:
    local = _draw(4, 12).bfloat16().chunk(group.tp.ranks, -1)[group.tp.rank].contiguous().requires_grad_()
    losses = cross_entropy(local, torch.arange(4), first=group.tp.rank * local.shape[-1], axis=group.tp)
    losses.sum().backward()
    assert losses.dtype is torch.float32
    assert local.grad is not None
    return local.grad


def test_the_gradient_of_half_precision_logits_is_rounded_once(tp: int) -> None:
    logits = _draw(4, 12).bfloat16().float()
    expected = (logits.softmax(-1) - F.one_hot(torch.arange(4), 12)).bfloat16()
    merged = torch.cat(run_ranks(_half_loss, tp), -1)
    assert merged.dtype is torch.bfloat16
    torch.testing.assert_close(merged, expected, rtol=2**-8, atol=1e-7)


def _whole_numbers() -> torch.Tensor:
    return torch.randint(-3, 3, (64, 512), generator=torch.Generator().manual_seed(3)).float()


def _best(group: Group, logits: torch.Tensor) -> torch.Tensor:
    local = logits.chunk(group.tp.ranks, -1)[group.tp.rank]
    first = group.tp.rank * local.shape[-1]
    return token_scores(local, torch.zeros(64, dtype=torch.int64), first=first, axis=group.tp).best


@pytest.mark.parametrize("start", [0, 200, 500])
def test_of_many_exact_ties_the_lowest_id_wins_on_every_rank(tp: int, start: int) -> None:
    logits = _whole_numbers()
    logits[:, :start] = -9.0  # so that the first of the equal maxima lies on a later rank
    lowest = np.argmax(logits.numpy(), axis=-1)  # documented to return the first
    assert int((logits == logits.max(-1, keepdim=True).values).sum(-1).min()) >= (2 if start < 500 else 1)
    for best in run_ranks(_best, tp, logits):
        assert best.tolist() == lowest.tolist()


def _extreme(group: Group, logits: torch.Tensor) -> Tensors:
    local = logits.chunk(group.tp.ranks, -1)[group.tp.rank]
    place: dict[str, Any] = {"first": group.tp.rank * local.shape[-1], "axis": group.tp}
    targets = torch.tensor([1, 6])
    logs = token_scores(local, targets, **place).log_probabilities
    return {"logs": logs, "losses": cross_entropy(local, targets, **place)}


def test_logits_that_overflow_an_exponential_have_finite_scores(tp: int) -> None:
    logits = torch.tensor([[1e4, 1e4, 0, 0, 0, 0, 0, 0], [-1e4, -1e4, -1e4, -1e4, -1e4, -1e4, -2e4, -1e4]])
    expected = torch.log_softmax(logits.double(), -1)[[0, 1], [1, 6]].float()
    for found in run_ranks(_extreme, tp, logits):
        torch.testing.assert_close(found["logs"], expected)
        torch.testing.assert_close(found["losses"], -expected)
