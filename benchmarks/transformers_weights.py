"""The weights of a GPT in `transformers.GPT2LMHeadModel`: one copy of the renaming, for benchmarks and tests."""

from __future__ import annotations

from typing import Any

from mpeval.models.gpt import GPT


def to_transformers(model: GPT) -> Any:
    """Copy the weights into `GPT2LMHeadModel`: QKV rows become [3, heads, dim], linear weights are transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = model.config
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=config.vocab,
            n_positions=config.context,
            n_embd=config.hidden,
            n_layer=config.layers,
            n_head=config.heads,
            n_inner=config.ffn,
            activation_function="gelu_new" if config.gelu == "tanh" else "gelu",
            bos_token_id=config.vocab - 1,
            eos_token_id=config.vocab - 1,
        )
    ).eval()
    ours = dict(model.named_parameters())
    state = {
        "transformer.wte.weight": ours["embedding.word.weight"][: config.vocab],
        "transformer.wpe.weight": ours["embedding.position.weight"],
        "lm_head.weight": ours["embedding.word.weight"][: config.vocab],
        "transformer.ln_f.weight": ours["final_norm.weight"],
        "transformer.ln_f.bias": ours["final_norm.bias"],
    }
    names = {"attention_norm": "ln_1", "mlp_norm": "ln_2", "attention.out": "attn.c_proj"}
    names |= {"mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj", "attention.qkv": "attn.c_attn"}
    for layer in range(config.layers):
        for mine, hers in names.items():
            for kind in ("weight", "bias"):
                value = ours[f"layers.{layer}.{mine}.{kind}"]
                if mine == "attention.qkv":
                    value = value.unflatten(0, (config.heads, 3, config.head_dim)).transpose(0, 1).flatten(0, 2)
                if kind == "weight" and "norm" not in mine:
                    value = value.T
                state[f"transformer.h.{layer}.{hers}.{kind}"] = value
    theirs.load_state_dict(state, strict=True)
    return theirs.to(ours["final_norm.weight"].dtype)
