"""GPT-2 of transformers, its own random weights brought into the split model: the same logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks

from mpeval.config import Gelu, ModelConfig
from mpeval.models.gpt import GPT
from mpeval.parallel.group import Group
from mpeval.parallel.layout import split

Tensors = dict[str, torch.Tensor]
BLOCK = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}


def _config(gelu: Gelu, tied: bool) -> ModelConfig:
    return ModelConfig(
        layers=2, hidden=32, heads=4, ffn=48, context=16, vocab=37, padded_vocab=40, gelu=gelu, tied=tied
    )


def _gpt2(config: ModelConfig) -> Any:
    """Return their model with every weight random, biases and norms included."""
    from transformers import GPT2Config, GPT2LMHeadModel

    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab,
            n_positions=config.context,
            n_embd=config.hidden,
            n_layer=config.layers,
            n_head=config.heads,
            n_inner=config.ffn,
            activation_function="gelu_new" if config.gelu == "tanh" else "gelu",
            tie_word_embeddings=config.tied,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in sorted(theirs.named_parameters()):
            centre = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=draw))
    return theirs


def _renamed(state: Tensors, config: ModelConfig) -> Tensors:
    """Rename; transpose their linear weights, which multiply from the right; sort QKV rows by head, not by kind."""
    pad = torch.full((config.padded_vocab - config.vocab, config.hidden), 7.0)  # would win, if it were let in
    ours = {
        "embedding.word.weight": torch.cat([state["transformer.wte.weight"], pad]),
        "embedding.position.weight": state["transformer.wpe.weight"],
        "final_norm.weight": state["transformer.ln_f.weight"],
        "final_norm.bias": state["transformer.ln_f.bias"],
    }
    if not config.tied:
        ours["head.weight"] = torch.cat([state["lm_head.weight"], pad])
    for layer in range(config.layers):
        for mine, name in BLOCK.items():
            for kind in ("weight", "bias"):
                value = state[f"transformer.h.{layer}.{name}.{kind}"].t()
                if mine == "attention.qkv":
                    parts = [part.split(config.head_dim) for part in value.chunk(3)]
                    value = torch.cat([part[head] for head in range(config.heads) for part in parts])
                ours[f"layers.{layer}.{mine}.{kind}"] = value
    return ours


def _logits(group: Group, config: ModelConfig, full: Tensors, ids: torch.Tensor) -> torch.Tensor:
    model = GPT(config, group).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.copy_(split(name, full[name], group.tp.ranks)[group.tp.rank])
    return model(ids)


@pytest.mark.parametrize("gelu", ["erf", "tanh"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_logits_equal_those_of_transformers_with_its_own_weights(tp: int, gelu: Gelu, tied: bool) -> None:
    config = _config(gelu, tied)
    theirs = _gpt2(config)
    ids = torch.randint(0, config.vocab, (3, 16), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        expected = theirs(ids).logits
    full = _renamed({name: value.detach() for name, value in theirs.state_dict().items()}, config)
    assert full.keys() == config.shapes().keys()
    assert expected.std() > 0.5
    for logits in run_ranks(_logits, tp, config, full, ids):
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
