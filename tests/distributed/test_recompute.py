"""Blocks computed again in the backward pass: the same losses and gradients to the bit, dropout included."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from making import BERT as SHAPE_OF_BERT
from making import TODAY
from ranks import run_ranks

from mpeval.config import ModelConfig
from mpeval.models.bert import BERT
from mpeval.models.gpt import GPT
from mpeval.models.transformer import Transformer
from mpeval.models.weights import draw_weights
from mpeval.parallel.dropout import DropoutStreams
from mpeval.parallel.group import Group

Tensors = dict[str, torch.Tensor]


def _loss(model: Transformer, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    shape = (2, model.config.context)
    ids = torch.randint(0, model.config.vocab, (2, model.config.context + 1), generator=draw)
    if isinstance(model, GPT):
        return model.loss_sum(ids)
    assert isinstance(model, BERT)
    labels = torch.where(torch.rand(shape, generator=draw) < 0.3, ids[:, 1:], -1)
    padding = torch.ones(shape, dtype=torch.bool)
    padding[0, 11:] = seed % 2 == 0
    return torch.stack(model.loss_sums(ids[:, 1:], ids[:, 1:] % 2, padding, labels, torch.tensor([0, 1]))).sum()


def _train(group: Group, config: ModelConfig, recompute: bool, steps: int) -> Tensors:
    """Return losses, summed gradients and where the streams are after some accumulated backward passes."""
    model = (BERT if config.family == "bert" else GPT)(config, group).train()
    draw_weights(model, 3)
    model.streams = DropoutStreams(5, group)
    model.recompute = recompute
    found: Tensors = {}
    for step in range(steps):
        loss = _loss(model, step)
        loss.backward()
        found[f"loss {step}"] = loss.detach()
    found |= {f"stream {name}": value for name, value in model.streams.state().items()}
    return found | {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("kind", ["gpt", "today", "bert"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_gradients_and_streams_are_the_same_to_the_bit(config: ModelConfig, ranks: int, kind: str) -> None:
    config = replace(config, **{"gpt": {}, "today": TODAY, "bert": SHAPE_OF_BERT}[kind])
    kept = run_ranks(_train, ranks, config, False, 3)
    again = run_ranks(_train, ranks, config, True, 3)
    assert {"loss 2", "stream own", *config.shapes()} <= set(kept[0])
    for one, other in zip(kept, again, strict=True):
        assert set(one) == set(other)
        assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert len({float(kept[0][f"loss {step}"]) for step in range(3)}) == 3


def test_nothing_but_block_inputs_is_kept(config: ModelConfig) -> None:
    """Count the floats that autograd saves: with recomputation a block keeps its input only."""

    def saved(recompute: bool) -> int:
        counted = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal counted
            counted += tensor.numel() * (not isinstance(tensor, torch.nn.Parameter))
            return tensor

        model = GPT(replace(config, layers=6, vocab=5, padded_vocab=5)).train()
        draw_weights(model, 3)
        model.streams = DropoutStreams(5, Group.single())
        model.recompute = recompute
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = _loss(model, 0)
        loss.backward()
        return counted

    assert saved(recompute=True) < saved(recompute=False) / 5


def test_evaluation_recomputes_nothing(config: ModelConfig) -> None:
    model = GPT(config).eval()
    draw_weights(model, 3)
    plain = _loss(model, 0)
    model.recompute = True
    assert torch.equal(_loss(model, 0), plain)
