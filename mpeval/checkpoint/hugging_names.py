"""Where each row of a canonical tensor lies in a Hugging Face model: one table for reading and for writing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from mpeval.config import ModelConfig
from mpeval.parallel.layout import cut_of

Kind = Literal["gpt2", "bert", "megatron-bert", "llama", "qwen2", "qwen3"]
PREFIXES: dict[Kind, str] = {
    "gpt2": "transformer.",
    "bert": "bert.",
    "megatron-bert": "bert.",
    "llama": "model.",
    "qwen2": "model.",
    "qwen3": "model.",
}
"""What precedes a name in a model with a head; a bare model's file leaves it out."""
HEADS = ("lm_head.", "cls.", "classifier.", "qa_outputs.")
"""Beginnings of names that have no prefix."""
BUFFERS = re.compile(r"(.*\.)?(attn\.(masked_)?bias|position_ids|token_type_ids|rotary_emb\.inv_freq)")
"""Stored values that are no weights: masks and tables that every model builds for itself."""


class Rows(NamedTuple):
    """`rows` rows of canonical tensor `ours`, from `at` on, are those of `theirs` from `start` on."""

    ours: str
    at: int
    theirs: str
    start: int
    rows: int
    transposed: bool = False
    """Whether `theirs` is the transpose: its columns are meant (GPT-2's Conv1D)."""


def rows_of(kind: Kind, config: ModelConfig, vocab: int) -> Iterator[Rows]:
    """Yield where every row of every canonical tensor is, of the vocabulary its first `vocab` rows."""
    for name, shape in config.shapes().items():
        if "attention.qkv" in name:
            yield from _qkv(kind, config, name)
            continue
        theirs, transposed = _name(kind, config, name)
        yield Rows(name, 0, theirs, 0, vocab if cut_of(name).vocab else shape[0], transposed)


def _qkv(kind: Kind, config: ModelConfig, name: str) -> Iterator[Rows]:
    """Take the rows of each key-value head apart: its query heads, then its key, then its value."""
    _, layer, _, _, ending = name.split(".")
    width, shared = config.head_dim, config.heads // config.kv_heads
    for group in range(config.kv_heads):
        at = group * (shared + 2) * width
        for part, (first, rows) in enumerate(((group * shared, shared), (group, 1), (group, 1))):
            if kind == "gpt2":
                start = part * config.hidden + first * width
                yield Rows(
                    name, at, f"transformer.h.{layer}.attn.c_attn.{ending}", start, rows * width, ending == "weight"
                )
            else:
                block = (
                    f"bert.encoder.layer.{layer}.attention.self"
                    if "bert" in kind
                    else f"model.layers.{layer}.self_attn"
                )
                own = ("query", "key", "value") if "bert" in kind else ("q_proj", "k_proj", "v_proj")
                yield Rows(name, at, f"{block}.{own[part]}.{ending}", first * width, rows * width)
            at += rows * width


_GPT2 = {
    "embedding.word": "transformer.wte",
    "embedding.position": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "head": "lm_head",
    "attention_norm": "ln_1",
    "attention.out": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.up": "mlp.c_fc",
    "mlp.down": "mlp.c_proj",
}
_LLAMA = {
    "embedding.word": "model.embed_tokens",
    "final_norm": "model.norm",
    "head": "lm_head",
    "attention_norm": "input_layernorm",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "attention.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
_BERT = {
    "embedding.word": "bert.embeddings.word_embeddings",
    "embedding.position": "bert.embeddings.position_embeddings",
    "embedding.tokentype": "bert.embeddings.token_type_embeddings",
    "final_norm": "bert.encoder.ln",
    "head": "cls.predictions.decoder",
    "lm_head.dense": "cls.predictions.transform.dense",
    "lm_head.norm": "cls.predictions.transform.LayerNorm",
    "lm_head": "cls.predictions",
    "pooler.dense": "bert.pooler.dense",
    "binary_head": "cls.seq_relationship",
    "multichoice_head": "classifier",
    "classification_head": "classifier",
    "span_head": "qa_outputs",
    "attention_norm": "attention.ln",
    "attention.out": "attention.output.dense",
    "mlp_norm": "ln",
    "mlp.up": "intermediate.dense",
    "mlp.down": "output.dense",
}


def _name(kind: Kind, config: ModelConfig, name: str) -> tuple[str, bool]:
    """Return the name of a tensor that lies in one piece, and whether it is transposed."""
    stem, _, ending = name.rpartition(".")
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", stem)
    layer, inner = (int(match[1]), match[2]) if match else (None, stem)
    if kind == "bert" and (norm := _google_norm(config, layer, inner)):
        return f"{norm}.{ending}", False
    table, blocks = {"gpt2": (_GPT2, "transformer.h."), "bert": (_BERT, "bert.encoder.layer.")}.get(
        kind.removeprefix("megatron-"), (_LLAMA, "model.layers.")
    )
    theirs = table[inner] if layer is None else f"{blocks}{layer}.{table[inner]}"
    transposed = kind == "gpt2" and layer is not None and "norm" not in inner and ending == "weight"
    return f"{theirs}.{ending}", transposed


def _google_norm(config: ModelConfig, layer: int | None, inner: str) -> str | None:
    """Return Google BERT's name of a norm; the one before attention ends the block before, or the embedding."""
    if inner == "mlp_norm":
        return f"bert.encoder.layer.{layer}.attention.output.LayerNorm"
    if inner not in {"attention_norm", "final_norm"}:
        return None
    before = (config.layers if layer is None else layer) - 1
    return f"bert.encoder.layer.{before}.output.LayerNorm" if before >= 0 else "bert.embeddings.LayerNorm"
