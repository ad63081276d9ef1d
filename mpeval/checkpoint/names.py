"""One canonical naming behind every Megatron era's: what a stored tensor is called in mpeval."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Literal

Naming = Literal["megatron-core", "megatron"]

_BLOCK: dict[Naming, dict[str, str]] = {
    "megatron-core": {
        "attention_norm": "input_layernorm",
        "attention.qkv": "self_attention.linear_qkv",
        "attention.query_norm": "self_attention.q_layernorm",
        "attention.key_norm": "self_attention.k_layernorm",
        "attention.out": "self_attention.linear_proj",
        "mlp_norm": "pre_mlp_layernorm",
        "mlp.up": "mlp.linear_fc1",
        "mlp.down": "mlp.linear_fc2",
    },
    "megatron": {
        "attention_norm": "input_layernorm",
        "attention.qkv": "self_attention.query_key_value",
        "attention.query_norm": "self_attention.q_layernorm",
        "attention.key_norm": "self_attention.k_layernorm",
        "attention.out": "self_attention.dense",
        "mlp_norm": "post_attention_layernorm",
        "mlp.up": "mlp.dense_h_to_4h",
        "mlp.down": "mlp.dense_4h_to_h",
    },
}
"""Stems inside a block.  With SwiGLU the file's tensor of `mlp.up` holds `mlp.gate` above `mlp.up` (`FUSED`)."""
FUSED = ("mlp.gate", "mlp.up")

_STACK: dict[Naming, dict[str, str]] = {
    "megatron-core": {"gpt": "decoder.", "bert": "encoder."},
    "megatron": {"gpt": "language_model.encoder.", "bert": "language_model.encoder."},
}


def _ends(naming: Naming) -> dict[str, str]:
    """Return stems outside the blocks; a full name where the last part differs too."""
    core = naming == "megatron-core"
    model = "" if core else "language_model."
    return {
        "embedding.word": f"{model}embedding.word_embeddings",
        "embedding.position": f"{model}embedding.position_embeddings",
        "embedding.tokentype": f"{model}embedding.tokentype_embeddings",
        "head.weight": f"{model}output_layer.weight",
        "lm_head.dense": "lm_head.dense",
        "lm_head.norm": "lm_head.layer_norm" if core else "lm_head.layernorm",
        "lm_head.bias": "output_layer.bias" if core else "lm_head.bias",
        "pooler.dense": f"{model}pooler.dense",
        "binary_head": "binary_head",
        "multichoice_head": "multichoice_head",
        "classification_head": "classification_head",
        "span_head": "span_head",
    }


@cache
def _canonical(naming: Naming) -> tuple[dict[str, str], dict[str, str]]:
    """Return the tables read backwards: stems inside a block, stems and names outside."""
    block = {theirs: ours for ours, theirs in _BLOCK[naming].items()}
    return block, {theirs: ours for ours, theirs in _ends(naming).items()}


TIED_COPY = {"megatron-core": "output_layer.weight", "megatron": "word_embeddings_for_head.weight"}
"""The last pipeline stage's copy of a tied token table."""


def stored_name(name: str, naming: Naming, family: str = "gpt", layer_offset: int = 0) -> str:
    """Return the name under which a file stores canonical `name`; layers count from `layer_offset` on."""
    stem, _, kind = name.rpartition(".")
    stack = _STACK[naming][family]
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", stem):
        return f"{stack}layers.{int(match[1]) - layer_offset}.{_BLOCK[naming][match[2]]}.{kind}"
    if stem == "final_norm":
        return f"{stack}final_layernorm.{kind}"
    ends = _ends(naming)
    return ends[name] if name in ends else f"{ends[stem]}.{kind}"


def stored_together(names: Iterable[str], swiglu: bool) -> Iterator[tuple[str, list[str]]]:
    """Yield (canonical name that a stored tensor goes by, canonical names in it, one above the other)."""
    for name in names:
        if FUSED[0] not in name:
            yield name, [name.replace(FUSED[1], half) for half in FUSED] if swiglu and FUSED[1] in name else [name]


def naming_of(names: list[str]) -> Naming | None:
    """Tell which era's names a file uses; None when neither fits."""
    if any(name.startswith("language_model.") for name in names):
        return "megatron"
    core = ("decoder.", "encoder.", "embedding.")
    return "megatron-core" if any(name.startswith(core) for name in names) else None


def canonical_name(stored: str, naming: Naming, layer_offset: int = 0) -> str | None:
    """Return mpeval's name of a stored tensor in its plain spelling, or None for one that no model here has."""
    stem, _, kind = stored.rpartition(".")
    if kind not in {"weight", "bias"}:
        return None
    block, ends = _canonical(naming)
    for stack in _STACK[naming].values():
        if not stem.startswith(stack):
            continue
        rest = stem.removeprefix(stack)
        if rest == "final_layernorm":
            return f"final_norm.{kind}"
        if match := re.fullmatch(r"layers\.(\d+)\.(.+)", rest):
            inner = block.get(match[2])
            return f"layers.{int(match[1]) + layer_offset}.{inner}.{kind}" if inner else None
    return ends.get(stored) or (f"{ends[stem]}.{kind}" if stem in ends else None)


def layer_index(stored: str, naming: Naming) -> int | None:
    """Return the stage-local layer number of a stored name, None outside the stack."""
    stacks = "|".join(map(re.escape, sorted(set(_STACK[naming].values()))))
    match = re.match(rf"(?:{stacks})layers\.(\d+)\.", stored)
    return int(match[1]) if match else None


_SPELLINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^language_model\.transformer\.", "language_model.encoder."),
        (r"^(language_model\..*layers\.\d+)\.attention\.", r"\1.self_attention."),
        (r"^(language_model\..*)\b(input|post_attention|final)_norm\.", r"\1\2_layernorm."),
        (r"^lm_head\.norm\.", "lm_head.layernorm."),
        (r"^((?:de|en)coder\.layers\.(?:\d+\.)?)self_attention\.linear_qkv\.layer_norm_", r"\1input_layernorm."),
        (r"^((?:de|en)coder\.layers\.(?:\d+\.)?)mlp\.linear_fc1\.layer_norm_", r"\1pre_mlp_layernorm."),
    )
)


def plain_spelling(stored: str) -> str:
    """Bring the spellings of one naming together.

    Legacy files say `transformer` or `encoder`, `attention` or `self_attention`, `*_norm` or `*_layernorm`;
    Transformer Engine keeps a norm's weights inside the linear layer that follows it.
    """
    for pattern, replacement in _SPELLINGS:
        stored = pattern.sub(replacement, stored)
    return stored


def engine_spelling(stored: str) -> str:
    """Return a Megatron-core name as Transformer Engine and torch_dist containers spell it: `plain_spelling` undone."""
    stored = re.sub(r"\binput_layernorm\.(?=weight|bias)", "self_attention.linear_qkv.layer_norm_", stored)
    return re.sub(r"\bpre_mlp_layernorm\.(?=weight|bias)", "mlp.linear_fc1.layer_norm_", stored)
