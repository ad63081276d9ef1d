"""Summed losses without whole logits, against `torch.nn.functional.cross_entropy` on real ranks: values, gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from making import BERT as SHAPE_OF_BERT
from ranks import run_ranks
from torch.nn import functional as F

from mpeval.config import ModelConfig
from mpeval.models.bert import BERT
from mpeval.models.gpt import GPT
from mpeval.models.weights import draw_weights
from mpeval.parallel import vocab
from mpeval.parallel.group import Axis, Group
from mpeval.parallel.layout import merge
from mpeval.parallel.ops import enter
from mpeval.parallel.vocab import linear_cross_entropy

VOCAB, PADDED, HIDDEN = 37, 44, 16
Tensors = dict[str, torch.Tensor]


def _given(positions: int, dtype: torch.dtype = torch.float32) -> Tensors:
    """Return positions, a table, a bias, targets and weights, drawn so that the softmax is neither flat nor sure."""
    draw = torch.Generator().manual_seed(positions)
    return {
        "x": torch.randn(positions, HIDDEN, generator=draw).to(dtype),
        "table": torch.randn(PADDED, HIDDEN, generator=draw).to(dtype),
        "bias": torch.randn(PADDED, generator=draw).to(dtype),
        "targets": torch.randint(0, VOCAB, (positions,), generator=draw),
        "weights": torch.rand(positions, generator=draw),
    }


def _ours(group: Group, given: Tensors, bias: bool) -> Tensors:
    """Return the loss and this rank's gradients, of an upstream gradient that is not 1."""
    size = PADDED // group.tp.ranks
    first = group.tp.rank * size
    x = given["x"].clone().requires_grad_()
    table, shift = (given[name][first : first + size].clone().requires_grad_() for name in ("table", "bias"))
    columns = max(0, min(size, VOCAB - first))
    loss = linear_cross_entropy(
        enter(x, group.tp),
        table[:columns],
        given["targets"],
        bias=shift[:columns] if bias else None,
        first=first,
        axis=group.tp,
        weights=given["weights"],
    )
    (3.0 * loss).backward()
    found = {"loss": loss.detach(), "x": x.grad, "table": table.grad, "bias": shift.grad}
    return {name: value for name, value in found.items() if value is not None}


def _expected(given: Tensors, bias: bool) -> Tensors:
    exact = {name: given[name].double().requires_grad_() for name in ("x", "table", "bias")}
    logits = F.linear(exact["x"], exact["table"][:VOCAB], exact["bias"][:VOCAB] if bias else None)
    loss = (F.cross_entropy(logits, given["targets"], reduction="none") * given["weights"]).sum()
    (3.0 * loss).backward()
    found = {"loss": loss.detach(), **{name: value.grad for name, value in exact.items()}}
    return {name: value for name, value in found.items() if value is not None}


def _error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the length of the difference, relative to the expected vector's."""
    assert found.shape == expected.shape
    size = expected.norm().item()
    return (found.double() - expected).norm().item() / size if size else found.norm().item()


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 1.5e-2), (torch.float16, 2e-3)], ids=str
)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])
@pytest.mark.parametrize("positions", [vocab.CHUNK + 5, 7, 0])
def test_loss_and_gradients_equal_torch(tp: int, positions: int, bias: bool, dtype: torch.dtype, limit: float) -> None:
    given = _given(positions, dtype)
    ranks = run_ranks(_ours, tp, given, bias)
    expected = _expected(given, bias)
    assert set(ranks[0]) == set(expected)
    for rank in ranks:
        assert rank["x"].dtype == rank["table"].dtype == dtype
        assert rank["loss"].dtype == torch.float32
        assert _error(rank["loss"], expected["loss"]) < limit
        assert _error(rank["x"], expected["x"]) < limit
    for name in ("table", "bias")[: 1 + bias]:
        assert _error(torch.cat([rank[name] for rank in ranks]), expected[name]) < limit


def test_a_rank_without_true_columns_takes_part() -> None:
    given = _given(5)
    given["targets"] = given["targets"] % 10
    small = {**given, "table": given["table"][:10], "bias": given["bias"][:10]}

    def work(group: Group) -> torch.Tensor:
        mine = slice(0, 10) if group.tp.rank == 0 else slice(10, 10)
        return linear_cross_entropy(
            given["x"], small["table"][mine], given["targets"], first=10 * group.tp.rank, axis=group.tp
        )

    expected = F.cross_entropy(given["x"] @ small["table"].T, given["targets"], reduction="sum")
    for loss in run_ranks(work, 3):
        torch.testing.assert_close(loss, expected)


def test_only_asked_for_gradients_are_made_and_none_without_grad_mode() -> None:
    given = _given(6)
    table = given["table"][:VOCAB].clone().requires_grad_()
    with torch.no_grad():
        loss = linear_cross_entropy(given["x"], table, given["targets"], first=0, axis=Axis())
    assert not loss.requires_grad
    again = linear_cross_entropy(given["x"], table, given["targets"], first=0, axis=Axis())
    again.backward()
    assert torch.equal(loss, again)
    assert table.grad is not None
    assert given["x"].grad is None


def test_a_second_backward_pass_is_refused() -> None:
    given = _given(6)
    x = given["x"].clone().requires_grad_()
    loss = linear_cross_entropy(x, given["table"][:VOCAB], given["targets"], first=0, axis=Axis())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="earlier backward pass"):
        loss.backward()


def _gpt(group: Group, config: ModelConfig, ids: torch.Tensor, weights: torch.Tensor | None) -> Tensors:
    model = GPT(config, group).eval()
    draw_weights(model, 3)
    loss = model.loss_sum(ids, weights)
    loss.backward()
    grads = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    logits = model(ids[:, :-1])
    losses = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    expected = losses.sum() if weights is None else (losses * weights.flatten()).sum()
    theirs = torch.autograd.grad(expected, list(model.parameters()), allow_unused=True)
    for (name, _), other in zip(model.named_parameters(), theirs, strict=True):
        if group.tp.ranks == 1:
            torch.testing.assert_close(grads[name], other, rtol=1e-4, atol=1e-5)
    return {"loss": loss.detach(), "expected": expected.detach(), **grads}


@pytest.mark.parametrize("weighted", [True, False])
def test_gpt_s_loss_is_that_of_its_logits_on_any_number_of_ranks(config: ModelConfig, tp: int, weighted: bool) -> None:
    draw = torch.Generator().manual_seed(2)
    ids = torch.randint(0, config.vocab, (3, config.context + 1), generator=draw)
    weights = torch.rand(3, config.context, generator=draw) if weighted else None
    [alone] = run_ranks(_gpt, 1, config, ids, weights)
    ranks = run_ranks(_gpt, tp, config, ids, weights)
    for rank in ranks:
        torch.testing.assert_close(rank["loss"], rank["expected"], rtol=1e-5, atol=1e-5)
    for name in config.shapes():
        merged = merge(name, [rank[name] for rank in ranks])
        torch.testing.assert_close(merged, alone[name], rtol=1e-4, atol=1e-5)


def _batch(config: ModelConfig, padded: bool) -> Tensors:
    draw = torch.Generator().manual_seed(8)
    shape = (4, config.context)
    ids = torch.randint(0, config.vocab, shape, generator=draw)
    asked = torch.rand(shape, generator=draw) < 0.3
    real = torch.ones(shape, dtype=torch.bool)
    if padded:
        real[1, 9:] = False
        asked &= real
    return {
        "ids": ids,
        "tokentypes": torch.randint(0, 2, shape, generator=draw),
        "padding_mask": real,
        "labels": torch.where(asked, torch.randint(0, config.vocab, shape, generator=draw), -1),
        "order": torch.tensor([0, 1, 1, 0]),
    }


def _bert(group: Group, config: ModelConfig, batch: Tensors) -> Tensors:
    model = BERT(config, group).eval()
    draw_weights(model, 3)
    lm, order = model.loss_sums(**batch)
    (lm / 5 + order / 4).backward()
    grads = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    found: dict[str, Any] = {"lm": lm.detach(), "order": order.detach(), **grads}
    out = model(batch["ids"], batch["tokentypes"], batch["padding_mask"])
    lm = F.cross_entropy(out.logits.flatten(0, 1), batch["labels"].flatten(), ignore_index=-1, reduction="sum")
    found["expected lm"] = lm.detach()
    if config.binary_head:
        order = F.cross_entropy(out.binary_logits, batch["order"], reduction="sum")
    else:
        order = torch.zeros(())
    found["expected order"] = order.detach()
    if group.tp.ranks == 1:
        theirs = torch.autograd.grad(lm / 5 + order / 4, list(model.parameters()), allow_unused=True)
        for (name, _), other in zip(model.named_parameters(), theirs, strict=True):
            if name in grads or other is not None:
                torch.testing.assert_close(grads[name], other, rtol=1e-4, atol=1e-5)
    return found


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("changes", [{}, {"post_norm": True}, {"binary_head": False, "pooler": False}], ids=str)
def test_bert_s_losses_are_those_of_its_logits_on_any_number_of_ranks(
    config: ModelConfig, tp: int, changes: dict[str, Any], padded: bool
) -> None:
    config = replace(config, **(SHAPE_OF_BERT | changes))
    batch = _batch(config, padded)
    [alone] = run_ranks(_bert, 1, config, batch)
    ranks = run_ranks(_bert, tp, config, batch)
    for rank in ranks:
        for name in ("lm", "order"):
            torch.testing.assert_close(rank[name], rank[f"expected {name}"], rtol=1e-5, atol=1e-5)
    assert bool(ranks[0]["order"] > 0) is config.binary_head
    for name in config.shapes():
        merged = merge(name, [rank[name] for rank in ranks])
        torch.testing.assert_close(merged, alone[name], rtol=1e-4, atol=1e-5)


def test_a_batch_without_a_mask_has_no_masked_loss_and_still_gradients(config: ModelConfig) -> None:
    config = replace(config, **SHAPE_OF_BERT)
    model = BERT(config).eval()
    draw_weights(model, 3)
    batch = _batch(config, padded=False) | {"labels": torch.full((4, config.context), -1)}
    lm, order = model.loss_sums(**batch)
    (lm + order).backward()
    assert lm.item() == 0.0
    assert model.lm_head.bias.grad is not None
    assert not model.lm_head.bias.grad.any()
