"""Splitting and merging are inverse for every kind of parameter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpeval.config import ModelConfig
from mpeval.parallel.layout import bounds, cut_of, merge, split

NAMES = [
    "embedding.word.weight",
    "embedding.position.weight",
    "head.weight",
    "layers.3.attention.qkv.weight",
    "layers.3.attention.qkv.bias",
    "layers.3.attention.out.weight",
    "layers.3.attention.out.bias",
    "layers.3.mlp.up.weight",
    "layers.3.mlp.down.weight",
    "layers.3.mlp_norm.bias",
    "final_norm.weight",
]


@given(st.sampled_from(NAMES), st.sampled_from([1, 2, 3, 4, 8]), st.integers(1, 5), st.integers(1, 5))
@settings(deadline=None, max_examples=150)
def test_merging_undoes_splitting_for_every_parameter(name: str, ranks: int, rows: int, columns: int) -> None:
    shape = (rows * ranks,) if name.endswith(("bias", "norm.weight")) else (rows * ranks, columns * ranks)
    full = torch.randn(shape)
    assert torch.equal(merge(name, split(name, full, ranks)), full)


@given(st.integers(1, 60), st.integers(1, 8))
@settings(deadline=None)
def test_a_vocabulary_of_any_size_is_padded_with_zeros_and_cut_back(rows: int, ranks: int) -> None:
    full = torch.randn(rows, 3)
    shards = split("embedding.word.weight", full, ranks)
    assert len({shard.shape for shard in shards}) == 1
    assert torch.equal(merge("embedding.word.weight", shards, rows), full)
    assert not merge("embedding.word.weight", shards)[rows:].any()
    for rank, shard in enumerate(shards):
        low, high = bounds(rows, rank, ranks, cut_of("embedding.word.weight"))
        assert torch.equal(shard[: max(0, rows - low)], full[low:high])


def test_every_parameter_of_a_model_has_a_rule() -> None:
    config = ModelConfig(
        layers=2, hidden=8, heads=2, ffn=16, context=4, vocab=9, padded_vocab=12, gelu="erf", tied=False
    )
    for name, shape in config.shapes().items():
        dim = cut_of(name).dim
        assert dim is None or dim < len(shape)
    with pytest.raises(KeyError, match="no layout rule"):
        cut_of("layers.0.mystery.weight")


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be cut into 3 equal shards"):
        split("layers.0.mlp.up.bias", torch.zeros(8), 3)
