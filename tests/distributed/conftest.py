"""What the tests on real ranks share: the sizes of tensor parallelism, a small model, and a dense one to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from torch.nn import functional as F

from mpeval.config import ModelConfig

Weights = Mapping[str, torch.Tensor]


@pytest.fixture(params=[1, 2, 4], ids="tp{}".format)
def tp(request: pytest.FixtureRequest) -> int:
    """Run the test at each tensor-parallel size."""
    return int(request.param)


@pytest.fixture
def config() -> ModelConfig:
    """Return a model small enough for many ranks, whose weights are large enough to tell right from wrong."""
    return ModelConfig(
        layers=2,
        hidden=32,
        heads=4,
        ffn=48,
        context=16,
        vocab=37,
        padded_vocab=40,
        gelu="tanh",
        init_std=0.15,
    )


@pytest.fixture(scope="session")
def dense_logits() -> Callable[[Weights, ModelConfig, torch.Tensor], torch.Tensor]:
    """Return a GPT of one process that shares no code with the package: (weights, config, ids) -> all logits."""
    return _dense_logits


def _dense_logits(weights: Weights, config: ModelConfig, ids: torch.Tensor) -> torch.Tensor:
    x = weights["embedding.word.weight"][ids] + weights["embedding.position.weight"][: ids.shape[1]]
    for layer in range(config.layers):
        w = {name.removeprefix(f"layers.{layer}."): value for name, value in weights.items()}
        x = x + _dense_attention(w, config, _norm(w, "attention_norm", x, config))
        wide = F.linear(_norm(w, "mlp_norm", x, config), w["mlp.up.weight"], w["mlp.up.bias"])
        x = x + F.linear(_gelu(wide, config.gelu), w["mlp.down.weight"], w["mlp.down.bias"])
    table = weights["embedding.word.weight" if config.tied else "head.weight"]
    return _norm(weights, "final_norm", x, config) @ table.T


def _norm(w: Weights, name: str, x: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + config.eps).rsqrt()
    return centred * scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def _gelu(x: torch.Tensor, flavour: str) -> torch.Tensor:
    if flavour == "tanh":
        return 0.5 * x * (1 + torch.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def _dense_attention(w: Weights, config: ModelConfig, x: torch.Tensor) -> torch.Tensor:
    batch, time, hidden = x.shape
    mixed = F.linear(x, w["attention.qkv.weight"], w["attention.qkv.bias"])
    query, key, value = mixed.view(batch, time, config.heads, 3, config.head_dim).unbind(3)
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / config.head_dim**0.5
    future = torch.ones(time, time, dtype=torch.bool).triu(1)
    shares = scores.masked_fill(future, float("-inf")).softmax(-1)
    result = torch.einsum("bhqk,bkhd->bqhd", shares, value).reshape(batch, time, hidden)
    return F.linear(result, w["attention.out.weight"], w["attention.out.bias"])
