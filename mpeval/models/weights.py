"""New weights: drawn full-size from a seed, then cut, so that no layout changes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping

import torch

from mpeval.config import ModelConfig
from mpeval.models.transformer import Transformer
from mpeval.parallel.layout import cut_of, split

Tensor = torch.Tensor


def draw_full(config: ModelConfig, name: str, seed: int) -> Tensor:
    """Draw one parameter at full size, float32: N(0, std), std/sqrt(2 layers) before residual adds, norms 1 and 0.

    The stream depends on (seed, name) only, and padding rows have a stream of their own: neither the
    tensor-parallel size nor the padding it causes changes a weight (Megatron-LM paper, section 4).
    """
    shape = config.shapes()[name]
    if name.endswith("bias"):
        return torch.zeros(shape)
    if "norm" in name:
        return torch.ones(shape)
    std = config.init_std
    if name.endswith(("attention.out.weight", "mlp.down.weight")):
        std /= (2 * config.layers) ** 0.5
    if not cut_of(name).vocab:
        return torch.randn(shape, generator=_stream(seed, name)) * std
    rows, hidden = shape
    true = torch.randn(config.vocab, hidden, generator=_stream(seed, name))
    padding = torch.randn(rows - config.vocab, hidden, generator=_stream(seed, name + ".padding"))
    return torch.cat([true, padding]) * std


def _stream(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def draw_weights(model: Transformer, seed: int) -> None:
    """Fill a model with new weights, drawn full-size from `seed` and then cut for this rank."""
    fill_weights(model, lambda name: draw_full(model.config, name, seed), into=dict(model.named_parameters()))


@torch.no_grad()
def fill_weights(model: Transformer, weight: Callable[[str], Tensor], into: Mapping[str, Tensor]) -> None:
    """Fill tensors, by parameter name, with this rank's parts of the full tensors that `weight` returns by name."""
    tp = model.group.tp
    for name, parameter in into.items():
        parameter.copy_(split(name, weight(name), tp.ranks)[tp.rank])
