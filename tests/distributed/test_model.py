"""The split GPT against a dense one and against transformers: logits, loss, every gradient, every new weight."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch.nn import functional as F
from transformers_weights import to_transformers

from mpeval.config import ModelConfig
from mpeval.errors import ConfigError
from mpeval.models.gpt import GPT
from mpeval.models.weights import draw_full, draw_weights
from mpeval.parallel.dropout import DropoutStreams
from mpeval.parallel.group import Group
from mpeval.parallel.layout import merge
from mpeval.parallel.vocab import cross_entropy

TP = pytest.mark.parametrize("tp", [1, 2, 4])
SIZES: dict[str, Any] = {"layers": 2, "hidden": 32, "heads": 4, "ffn": 64, "context": 16, "vocab": 50, "init_std": 0.2}
Tensors = dict[str, torch.Tensor]


def _config(gelu: str = "erf", padded_vocab: int = 56, tied: bool = True) -> ModelConfig:
    return ModelConfig(**SIZES, gelu=gelu, padded_vocab=padded_vocab, tied=tied)  # type: ignore[arg-type]


def _ids() -> torch.Tensor:
    return torch.randint(0, 50, (3, 12), generator=torch.Generator().manual_seed(5))


def _weights(config: ModelConfig) -> Tensors:
    """Return full weights in which biases and norms are no longer zeros and ones."""
    draw = torch.Generator().manual_seed(9)
    return {
        name: draw_full(config, name, 7) + 0.1 * torch.randn(shape, generator=draw)
        for name, shape in config.shapes().items()
    }


def _fill(model: GPT, config: ModelConfig) -> None:
    from mpeval.parallel.layout import split

    tp = model.group.tp
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(split(name, _weights(config)[name], tp.ranks)[tp.rank])


def _dense_loss(config: ModelConfig) -> Tensors:
    """Loss and gradients of the model written down once more, in plain torch, from full tensors."""
    full = {name: tensor.requires_grad_() for name, tensor in _weights(config).items()}
    ids = _ids()
    x = full["embedding.word.weight"][ids] + full["embedding.position.weight"][: ids.shape[1]]
    for number in range(config.layers):
        p = {name.split(".", 2)[2]: value for name, value in full.items() if name.startswith(f"layers.{number}.")}
        y = F.layer_norm(x, (32,), p["attention_norm.weight"], p["attention_norm.bias"], config.eps)
        qkv = F.linear(y, p["attention.qkv.weight"], p["attention.qkv.bias"]).view(3, 12, 4, 3, 8)
        q, k, v = (qkv[..., part, :].transpose(1, 2) for part in range(3))
        causal = torch.full((12, 12), float("-inf")).triu(1)
        mixed = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(8) + causal, dim=-1) @ v
        mixed = mixed.transpose(1, 2).reshape(3, 12, 32)
        x = x + F.linear(mixed, p["attention.out.weight"], p["attention.out.bias"])
        y = F.layer_norm(x, (32,), p["mlp_norm.weight"], p["mlp_norm.bias"], config.eps)
        wide = F.gelu(F.linear(y, p["mlp.up.weight"], p["mlp.up.bias"]))
        x = x + F.linear(wide, p["mlp.down.weight"], p["mlp.down.bias"])
    x = F.layer_norm(x, (32,), full["final_norm.weight"], full["final_norm.bias"], config.eps)
    logits = F.linear(x, full["embedding.word.weight" if config.tied else "head.weight"])[..., :50]
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    grads = {name: value.grad for name, value in full.items() if value.grad is not None}
    return {"loss": loss.detach(), "logits": logits.detach(), **grads}


def _split_loss(group: Group, config: ModelConfig) -> Tensors:
    model = GPT(config, group).eval()
    _fill(model, config)
    ids = _ids()
    local = model.local_logits(model.hidden(ids))[:, :-1]
    loss = cross_entropy(local, ids[:, 1:], first=model.first_id, axis=group.tp).mean()
    loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {"loss": loss.detach(), "logits": model(ids).detach(), **grads}


@TP
@pytest.mark.parametrize("tied", [True, False])
def test_loss_logits_and_every_gradient_equal_a_dense_model(tp: int, tied: bool) -> None:
    config = _config(tied=tied)
    dense, ranks = _dense_loss(config), run_ranks(_split_loss, tp, config)
    for rank in ranks:
        torch.testing.assert_close(rank["loss"], dense["loss"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(rank["logits"], dense["logits"], rtol=1e-4, atol=2e-5)
    assert set(ranks[0]) == set(dense) == {*config.shapes(), "loss", "logits"}
    for name in config.shapes():
        merged = merge(name, [rank[name] for rank in ranks])
        torch.testing.assert_close(merged, dense[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def _replicated_gradients(group: Group) -> Tensors:
    config = _config()
    found = _split_loss(group, config)
    return {
        name: found[name] for name in ("layers.0.attention_norm.weight", "layers.1.mlp.down.bias", "final_norm.bias")
    }


def test_gradients_of_replicated_parameters_are_equal_on_all_ranks() -> None:
    first, *others = run_ranks(_replicated_gradients, 4)
    for other in others:
        for name, grad in first.items():
            torch.testing.assert_close(other[name], grad, rtol=0, atol=1e-7)


def _new_weights(group: Group) -> Tensors:
    model = GPT(_config(padded_vocab=64), group)
    draw_weights(model, 11)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@TP
def test_new_weights_do_not_depend_on_the_number_of_ranks(tp: int) -> None:
    config = _config(padded_vocab=64)
    ranks = run_ranks(_new_weights, tp)
    for name in config.shapes():
        assert torch.equal(merge(name, [rank[name] for rank in ranks]), draw_full(config, name, 11))


def test_new_weights_do_not_depend_on_the_padding_and_have_the_paper_s_spread() -> None:
    small, large = _config(padded_vocab=56), _config(padded_vocab=64)
    name = "embedding.word.weight"
    assert torch.equal(draw_full(small, name, 1)[:50], draw_full(large, name, 1)[:50])
    assert not torch.equal(draw_full(small, name, 1), draw_full(small, name, 2))
    wide = ModelConfig(**{**SIZES, "hidden": 256, "ffn": 1024, "layers": 8}, gelu="erf", padded_vocab=50)
    assert draw_full(wide, "layers.3.mlp.up.weight", 1).std().item() == pytest.approx(0.2, rel=0.02)
    assert draw_full(wide, "layers.3.mlp.down.weight", 1).std().item() == pytest.approx(0.2 / 4, rel=0.02)
    assert draw_full(wide, "layers.3.attention.out.weight", 1).std().item() == pytest.approx(0.2 / 4, rel=0.02)


def _logits(group: Group, config: ModelConfig) -> torch.Tensor:
    model = GPT(config, group).eval()
    _fill(model, config)
    with torch.no_grad():
        result: torch.Tensor = model(_ids())
    return result


@TP
@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_logits_equal_those_of_transformers_gpt2(tp: int, gelu: str) -> None:
    config = _config(gelu)
    dense = GPT(config).eval().requires_grad_(False)
    _fill(dense, config)
    with torch.no_grad():
        theirs = to_transformers(dense)(_ids()).logits
    assert theirs.std() > 0.3
    for logits in run_ranks(_logits, tp, config):
        torch.testing.assert_close(logits, theirs, rtol=0, atol=1e-4)


def test_the_two_gelus_differ_more_than_the_tolerance() -> None:
    erf, tanh = (_logits(Group.single(), _config(gelu)) for gelu in ("erf", "tanh"))
    assert (erf - tanh).abs().max() > 2e-4


def test_chosen_positions_equal_the_same_positions_of_the_whole() -> None:
    model = GPT(_config()).eval().requires_grad_(False)
    _fill(model, _config())
    at = torch.tensor([0, 5, 11, 13, 35])
    whole = model.hidden(_ids()).flatten(0, 1)[at]
    torch.testing.assert_close(model.hidden(_ids(), at), whole, rtol=1e-5, atol=1e-6)


def _trained_step(group: Group) -> tuple[float, torch.Tensor]:
    config = _config()
    model = GPT(config, group).train()
    _fill(model, config)
    model.streams = DropoutStreams(3, group)
    ids = _ids()
    loss = cross_entropy(model.local_logits(model.hidden(ids)), ids, first=model.first_id, axis=group.tp).mean()
    loss.backward()
    grad = model.final_norm.weight.grad
    assert grad is not None
    return loss.item(), grad


def test_training_with_dropout_keeps_the_tensor_ranks_in_step() -> None:
    first, *others = run_ranks(_trained_step, 4)
    for loss, grad in others:
        assert loss == pytest.approx(first[0], abs=1e-6)
        torch.testing.assert_close(grad, first[1], rtol=0, atol=1e-6)


def test_training_without_dropout_streams_is_refused() -> None:
    with pytest.raises(RuntimeError, match="dropout streams"):
        GPT(_config()).train()(_ids())


def test_ranks_that_do_not_divide_the_heads_are_refused() -> None:
    with pytest.raises(ConfigError, match="tensor-parallel size 3 does not divide the model's heads 4"):
        _config().check_ranks(3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_single_precision(dtype: torch.dtype) -> None:
    exact = _logits(Group.single(), _config())
    model = GPT(_config()).eval().requires_grad_(False)
    _fill(model, _config())
    half = model.to(dtype)(_ids())
    assert half.dtype is torch.float32
    assert (half - exact).abs().mean() < 0.05 * exact.std()
