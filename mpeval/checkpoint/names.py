"""One canonical naming behind every era's: what a stored tensor is called in mpeval, and which to ignore."""

from __future__ import annotations

import re
from typing import Literal

Naming = Literal["megatron-core", "megatron"]

_BLOCK = {
    "megatron-core": (
        ("attention_norm", "input_layernorm"),
        ("attention.qkv", "self_attention.linear_qkv"),
        ("attention.out", "self_attention.linear_proj"),
        ("mlp_norm", "pre_mlp_layernorm"),
        ("mlp.up", "mlp.linear_fc1"),
        ("mlp.down", "mlp.linear_fc2"),
    ),
    "megatron": (
        ("attention_norm", "input_layernorm"),
        ("attention.qkv", "self_attention.query_key_value"),
        ("attention.out", "self_attention.dense"),
        ("mlp_norm", "post_attention_layernorm"),
        ("mlp.up", "mlp.dense_h_to_4h"),
        ("mlp.down", "mlp.dense_4h_to_h"),
    ),
}
_ENDS = {
    "megatron-core": (
        ("embedding.word", "embedding.word_embeddings"),
        ("embedding.position", "embedding.position_embeddings"),
        ("final_norm", "decoder.final_layernorm"),
        ("head", "output_layer"),
    ),
    "megatron": (
        ("embedding.word", "language_model.embedding.word_embeddings"),
        ("embedding.position", "language_model.embedding.position_embeddings"),
        ("final_norm", "language_model.encoder.final_layernorm"),
        ("head", "language_model.output_layer"),
    ),
}
_STACK = {"megatron-core": "decoder.layers.", "megatron": "language_model.encoder.layers."}
TIED_COPY = {"megatron-core": "output_layer.weight", "megatron": "word_embeddings_for_head.weight"}
"""The last pipeline stage's copy of a tied token table."""


def stored_name(name: str, naming: Naming, layer_offset: int = 0) -> str:
    """Return the name under which a file stores canonical `name`; layers count from `layer_offset` on."""
    stem, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", stem):
        inner = dict(_BLOCK[naming])[match[2]]
        return f"{_STACK[naming]}{int(match[1]) - layer_offset}.{inner}.{kind}"
    return f"{dict(_ENDS[naming])[stem]}.{kind}"


def _canonical_table(naming: Naming) -> dict[str, str]:
    return {stored: ours for ours, stored in (*_BLOCK[naming], *_ENDS[naming])}


def naming_of(names: list[str]) -> Naming | None:
    """Tell which era's names a file uses; None when neither fits."""
    if any(name.startswith("language_model.") for name in names):
        return "megatron"
    return "megatron-core" if any(name.startswith(("decoder.", "embedding.")) for name in names) else None


def canonical_name(stored: str, naming: Naming, layer_offset: int = 0) -> str | None:
    """Return mpeval's name of a stored tensor, or None for a name that no GPT of this naming has."""
    table = _canonical_table(naming)
    stem, _, kind = stored.rpartition(".")
    if kind not in {"weight", "bias"}:
        return None
    if match := re.fullmatch(re.escape(_STACK[naming]) + r"(\d+)\.(.+)", stem):
        inner = table.get(match[2])
        return f"layers.{int(match[1]) + layer_offset}.{inner}.{kind}" if inner else None
    outer = table.get(stem)
    return f"{outer}.{kind}" if outer and "." not in outer.removeprefix("embedding.") else None


def layer_index(stored: str, naming: Naming) -> int | None:
    """Return the stage-local layer number of a stored name, None outside the stack."""
    match = re.match(re.escape(_STACK[naming]) + r"(\d+)\.", stored)
    return int(match[1]) if match else None


_SPELLINGS = (
    (r"^language_model\.transformer\.", "language_model.encoder."),
    (r"^(language_model\..*layers\.\d+)\.attention\.", r"\1.self_attention."),
    (r"^(language_model\..*)\b(input|post_attention|final)_norm\.", r"\1\2_layernorm."),
    (r"^(decoder\.layers\.\d+)\.self_attention\.linear_qkv\.layer_norm_", r"\1.input_layernorm."),
    (r"^(decoder\.layers\.\d+)\.mlp\.linear_fc1\.layer_norm_", r"\1.pre_mlp_layernorm."),
)


def plain_spelling(stored: str) -> str:
    """Bring the spellings of one naming together.

    Legacy files say `transformer` or `encoder`, `attention` or `self_attention`, `*_norm` or `*_layernorm`;
    Transformer Engine keeps a norm's weights inside the linear layer that follows it.
    """
    for pattern, replacement in _SPELLINGS:
        stored = re.sub(pattern, replacement, stored)
    return stored
