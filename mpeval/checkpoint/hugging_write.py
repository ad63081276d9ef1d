"""Write a Hugging Face folder that `from_pretrained` loads with no missing and no unexpected key."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from mpeval.checkpoint.args import UNKNOWN_VOCAB
from mpeval.checkpoint.hugging_names import Kind, Rows, rows_of
from mpeval.checkpoint.safetensors import write_safetensors
from mpeval.checkpoint.stored import Advance, ignored
from mpeval.checkpoint.torchzip import Planned
from mpeval.checkpoint.weights import Weights
from mpeval.checkpoint.write import in_parts
from mpeval.config import ModelConfig
from mpeval.errors import CheckpointError

FILE_BYTES = 5_000_000_000
"""A larger model is cut into several files, as transformers does."""
_KEEP = "keep a Megatron format: `--format megatron-core`"


def fill_hugging_face(folder: Path, weights: Weights, *, advance: Advance = ignored) -> None:
    """Write `config.json` and safetensors into a folder.  One tensor is in memory at a time.

    Args:
        folder: where to.
        weights: the model; padding rows of its vocabulary are left out.
        advance: called with the bytes of each tensor written.

    Raises:
        CheckpointError: the model is none that transformers can express, with what it lacks.
    """
    kind = hugging_kind(weights.config)
    planned = _planned(kind, weights, advance)
    dtype = str(weights.dtype("embedding.word.weight")).removeprefix("torch.")
    text = json.dumps(hugging_config(weights.config, dtype), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    groups = _groups(planned)
    for number, names in enumerate(groups, start=1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        write_safetensors(folder / file, {name: planned[name] for name in names})
    if len(groups) > 1:
        (folder / "model.safetensors.index.json").write_text(_index(planned, groups), encoding="utf-8")


def _planned(kind: Kind, weights: Weights, advance: Advance) -> dict[str, Planned]:
    """Plan every stored tensor from the rows of canonical ones that make it."""
    parts: dict[str, list[Rows]] = defaultdict(list)
    for row in rows_of(kind, weights.config, hugging_vocab(weights.config)):
        parts[row.theirs].append(row)
    return {name: _tensor(weights, rows, advance) for name, rows in parts.items()}


def _tensor(weights: Weights, rows: list[Rows], advance: Advance) -> Planned:
    first = rows[0]
    inner = weights.config.shapes()[first.ours][1:]
    shape = (max(row.start + row.rows for row in rows), *inner)
    dtype = weights.dtype(first.ours)

    def pieces() -> Iterator[torch.Tensor]:
        for row in sorted(rows, key=lambda row: row.start):
            box = [(row.at, row.at + row.rows), *((0, extent) for extent in inner)]
            yield from in_parts(weights, row.ours, box, advance)

    def turned() -> Iterator[torch.Tensor]:
        made, at = torch.empty(shape, dtype=dtype), 0
        for piece in pieces():
            made[at : at + piece.shape[0]] = piece
            at += piece.shape[0]
        yield made.t()

    make = turned if first.transposed else pieces
    return Planned(shape=shape[::-1] if first.transposed else shape, dtype=dtype, make=make)


def _groups(planned: dict[str, Planned]) -> list[list[str]]:
    groups: list[list[str]] = [[]]
    held = 0
    for name, item in planned.items():
        size = item.nbytes
        if groups[-1] and held + size > FILE_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups


def _index(planned: dict[str, Planned], groups: list[list[str]]) -> str:
    total = sum(item.nbytes for item in planned.values())
    places = {
        name: f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        for number, names in enumerate(groups, start=1)
        for name in names
    }
    return json.dumps({"metadata": {"total_size": total}, "weight_map": places}, indent=2) + "\n"


def hugging_kind(config: ModelConfig) -> Kind:
    """Return the kind of Hugging Face model that computes the same.

    Raises:
        CheckpointError: there is none, with the values it cannot express.
    """
    kinds: list[Kind] = ["llama", "qwen2", "qwen3", "gpt2"] if config.family == "gpt" else ["megatron-bert", "bert"]
    lacking = {kind: [text for holds, text in _needs(kind, config) if not holds] for kind in kinds}
    for kind in kinds:
        if not lacking[kind]:
            return kind
    nearest = min(kinds, key=lambda kind: len(lacking[kind]))
    raise CheckpointError(
        f"no Hugging Face model computes this one; the nearest, `{nearest}`, needs {', '.join(lacking[nearest])}", _KEEP
    )


def _needs(kind: Kind, config: ModelConfig) -> list[tuple[bool, str]]:
    """Return what a kind of model demands of a configuration: (whether it holds, in words)."""
    plain = config.head_dim * config.heads == config.hidden
    if kind in {"llama", "qwen2", "qwen3"}:
        biases = {"llama": config.linear_bias == config.qkv_bias, "qwen2": config.qkv_bias and not config.linear_bias}
        return [
            (config.rope and config.norm == "rmsnorm" and config.swiglu, "rotary positions, RMSNorm and SwiGLU"),
            (config.rope_percent == 1.0 and not config.rope_interleaved, "whole, not interleaved rotations"),
            (not config.post_norm, "`post_norm=false`"),
            (config.qk_norm == (kind == "qwen3"), f"`qk_norm={str(kind == 'qwen3').lower()}`"),
            (biases.get(kind, not config.linear_bias and not config.qkv_bias), "other biases"),
            (not (config.pooler or config.span_head), "no pooler and no task head"),
        ]
    common = [
        (
            not (config.rope or config.norm == "rmsnorm" or config.swiglu),
            "learned positions, layer norm and GELU",
        ),
        (config.linear_bias and config.qkv_bias, "biases"),
        (config.kv_heads == config.heads and plain, "as many key-value heads as heads, of width hidden / heads"),
        (not config.qk_norm, "`qk_norm=false`"),
    ]
    if kind == "gpt2":
        return [
            *common,
            (not config.post_norm, "`post_norm=false`"),
            (not (config.pooler or config.span_head), "no pooler and no task head"),
        ]
    return [
        *common,
        (config.post_norm == (kind == "bert"), f"`post_norm={str(kind == 'bert').lower()}`"),
        (config.tokentypes > 0, "token types"),
        (config.tied, "a tied output layer"),
        (_bert_class(config) is not None, f"another set of heads than {_heads(config)}"),
    ]


def _heads(config: ModelConfig) -> str:
    names = ("lm_head", "pooler", "binary_head", "multichoice_head", "span_head")
    held = [*(name for name in names if getattr(config, name)), *(["classification_head"] if config.classes else [])]
    return " + ".join(held) or "none"


def _bert_class(config: ModelConfig) -> str | None:
    """Return which class of transformers has exactly these heads."""
    return {
        "lm_head + pooler + binary_head": "ForPreTraining",
        "lm_head": "ForMaskedLM",
        "pooler": "Model",
        "pooler + binary_head": "ForNextSentencePrediction",
        "pooler + multichoice_head": "ForMultipleChoice",
        "pooler + classification_head": "ForSequenceClassification",
        "span_head": "ForQuestionAnswering",
    }.get(_heads(config))


def not_expressed(config: ModelConfig) -> list[str]:
    """Return what the written model computes differently, in words."""
    if config.lm_head and config.gelu != config.lm_head_gelu:
        return [
            f"transformers has one activation: its masked language model head will compute GELU {config.gelu}, "
            f"this model's computes GELU {config.lm_head_gelu}; logits differ slightly, hidden states do not"
        ]
    return []


def hugging_vocab(config: ModelConfig) -> int:
    """Return how many rows of the vocabulary are written: the true ones, or all where nobody knows."""
    return config.padded_vocab if config.origins.get("vocab") == UNKNOWN_VOCAB else config.vocab


def hugging_config(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """Return the content of `config.json`, in the spelling that transformers 4 and 5 both read."""
    kind = hugging_kind(config)
    common: dict[str, Any] = {
        "model_type": kind,
        "vocab_size": hugging_vocab(config),
        "dtype": dtype,
        "initializer_range": config.init_std,
    }
    if kind == "gpt2":
        return common | _gpt2_config(config)
    sizes = {
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn,
        "max_position_embeddings": config.context,
        "tie_word_embeddings": config.tied,
    }
    return common | sizes | (_bert_config(config, kind) if config.family == "bert" else _llama_config(config, kind))


def _gpt2_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "n_layer": config.layers,
        "n_embd": config.hidden,
        "n_head": config.heads,
        "n_inner": config.ffn,
        "n_positions": config.context,
        "activation_function": "gelu_new" if config.gelu == "tanh" else "gelu",
        "layer_norm_epsilon": config.eps,
        "tie_word_embeddings": config.tied,
        "embd_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
    }


def _bert_config(config: ModelConfig, kind: Kind) -> dict[str, Any]:
    labels = {f"LABEL_{number}": number for number in range(config.classes)}
    names = {"id2label": {str(number): label for label, number in labels.items()}, "label2id": labels} if labels else {}
    return {
        "architectures": [f"{'Bert' if kind == 'bert' else 'MegatronBert'}{_bert_class(config)}"],
        "hidden_act": "gelu_new" if config.gelu == "tanh" else "gelu",
        "type_vocab_size": config.tokentypes,
        "layer_norm_eps": config.eps,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
        **names,
    }


def _llama_config(config: ModelConfig, kind: Kind) -> dict[str, Any]:
    architecture = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[kind]
    scaling: dict[str, Any] | None = None
    if config.rope_scaling != "none":
        scaling = {"rope_type": config.rope_scaling, "factor": config.rope_factor}
    if scaling and config.rope_scaling == "llama3":
        scaling |= {
            "low_freq_factor": config.rope_low,
            "high_freq_factor": config.rope_high,
            "original_max_position_embeddings": config.rope_original,
        }
    return {
        "architectures": [f"{architecture}ForCausalLM"],
        "hidden_act": "silu",
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.eps,
        "rope_theta": config.rope_base,
        "rope_scaling": scaling,
        "attention_dropout": config.attention_dropout,
        **({"attention_bias": config.linear_bias, "mlp_bias": config.linear_bias} if kind == "llama" else {}),
    }
