"""Checkpoints as each era of Megatron-LM wrote them, and what their models compute: none of it shared with mpeval.

The weights of a model are kept under plain names, at full size and with queries, keys and values apart.  `write`
assembles every stored layout from them, `dense` computes the same model from its formulas, and `damage` breaks what
`write` wrote.  Nothing here may import the package: it is what the package is judged by.
"""

from __future__ import annotations

import enum
import io
import math
import os
import pickle
import pickletools
import random
import shutil
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional as F

Tensor = torch.Tensor
Weights = Mapping[str, Tensor]

LAYERS, HIDDEN, HEADS, WIDTH, CONTEXT = 4, 64, 4, 16, 64
VOCAB, PADDED = 300, 512
TRACKER = "latest_checkpointed_iteration.txt"
ITERATION = 500
RESIDUAL_FROM_NORM = "bert-post"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One way in which a checkpoint may be stored; the defaults are a plain one of 2022."""

    arch: Literal["gpt", "llama", "bert", "bert-post"] = "gpt"
    version: float | None = 3.0
    """`checkpoint_version`; None: the key is absent, QKV rows are [3, heads, width]."""
    names: Literal["legacy-2019", "legacy", "legacy-2023", "mcore-local", "mcore-te"] = "legacy"
    tp: int = 1
    pp: int = 1
    vpp: int = 1
    """Virtual chunks of each pipeline stage."""
    stages: tuple[int, ...] | None = None
    """Layers of each pipeline stage where they are uneven."""
    tied: bool = True
    args: bool = True
    gelu: Literal["tanh", "erf", "openai"] = "tanh"
    """`openai`: the tanh approximation by `--openai-gelu`, which BERT's language model head follows too."""
    container: Literal["zip", "pickle"] = "zip"
    model_file: Literal["model_optim_rng.pt", "model_rng.pt"] = "model_optim_rng.pt"
    """`model_rng.pt`: the optimizer of each data rank is in a folder of its own, tensors share one storage."""
    release: bool = False

    @property
    def core(self) -> bool:
        """Whether the names are Megatron-core's."""
        return self.names.startswith("mcore")

    @property
    def bert(self) -> bool:
        """Whether the model is a BERT of either residual order."""
        return self.arch.startswith("bert")

    @property
    def possible(self) -> bool:
        """Whether a Megatron of any year could have written this.

        Megatron-core of today takes no residual from a norm's output and knows no `openai_gelu`; untied output
        layers, rotary positions and its names are younger than the QKV orders of versions 0 and 1.
        """
        modern = self.version in {2.0, 3.0}
        rules = (
            self.names != "legacy-2019" or (self.version != 3.0 and self.arch != "llama" and self.tied),
            not self.core or modern,
            self.arch != "llama" or (modern and self.tp <= 2 and self.args and self.gelu == "erf"),
            self.arch != RESIDUAL_FROM_NORM or not self.core,
            self.tied or (modern and (self.core or not self.bert)),
            self.vpp == 1 or (self.pp > 1 and self.stages is None and LAYERS % (self.pp * self.vpp) == 0),
            len(self.stages) == self.pp if self.stages else LAYERS % self.pp == 0,
            self.gelu != "openai" or (self.args and not self.core),
            self.model_file != "model_rng.pt" or (self.names == "legacy" and self.version == 3.0),
        )
        return all(rules)

    def __str__(self) -> str:
        """Name a test case."""
        version = "v0" if self.version is None else f"v{self.version:g}"
        stages = "stages" + "+".join(map(str, self.stages)) if self.stages else f"pp{self.pp}"
        words = [self.arch, version, self.names, f"tp{self.tp}", stages, self.gelu, self.container]
        words += [f"vpp{self.vpp}"] if self.vpp > 1 else []
        words += [] if self.tied else ["untied"]
        words += [] if self.args else ["noargs"]
        words += ["release"] if self.release else []
        words += ["data-ranks"] if self.model_file == "model_rng.pt" else []
        return "-".join(words)


# --- weights -------------------------------------------------------------------------------------------------------


def weights(arch: str, tied: bool, seed: int) -> dict[str, Tensor]:
    """Draw a model whose norms, biases and scores are far from trivial, so that any mistake shows in its logits."""
    stream = torch.Generator().manual_seed(seed)

    def draw(*shape: int, mean: float = 0.0, std: float = 0.15) -> Tensor:
        return torch.randn(shape, generator=stream) * std + mean

    drawn = {"tokens": draw(PADDED, HIDDEN)}
    if arch != "llama":
        drawn["positions"] = draw(CONTEXT, HIDDEN)
    for layer in range(LAYERS):
        block = _draw_gated_block(draw) if arch == "llama" else _draw_block(draw)
        drawn |= {f"block{layer}.{name}": value for name, value in block.items()}
    drawn |= _draw_norm(draw, "end", biased=arch != "llama")
    if not tied:
        drawn["table"] = draw(PADDED, HIDDEN)
    return drawn | (_draw_bert(draw) if arch.startswith("bert") else {})


def _draw_norm(draw: Callable[..., Tensor], name: str, biased: bool = True) -> dict[str, Tensor]:
    drawn = {f"{name}.scale": draw(HIDDEN, mean=1.0, std=0.2)}
    return drawn | ({f"{name}.shift": draw(HIDDEN)} if biased else {})


def _draw_block(draw: Callable[..., Tensor]) -> dict[str, Tensor]:
    drawn = _draw_norm(draw, "norm1") | _draw_norm(draw, "norm2")
    for name in ("q", "k", "v"):
        drawn[name] = draw(HEADS, WIDTH, HIDDEN)
        drawn[f"{name}_shift"] = draw(HEADS, WIDTH)
    for name, rows, columns in (("mix", HIDDEN, HIDDEN), ("wide", 4 * HIDDEN, HIDDEN), ("narrow", HIDDEN, 4 * HIDDEN)):
        drawn[name] = draw(rows, columns)
        drawn[f"{name}_shift"] = draw(rows)
    return drawn


def _draw_gated_block(draw: Callable[..., Tensor]) -> dict[str, Tensor]:
    drawn = _draw_norm(draw, "norm1", biased=False) | _draw_norm(draw, "norm2", biased=False)
    drawn |= {"q": draw(HEADS, WIDTH, HIDDEN), "k": draw(2, WIDTH, HIDDEN), "v": draw(2, WIDTH, HIDDEN)}
    drawn |= {"gate": draw(168, HIDDEN), "up": draw(168, HIDDEN)}
    return drawn | {"mix": draw(HIDDEN, HIDDEN), "narrow": draw(HIDDEN, 168)}


def _draw_bert(draw: Callable[..., Tensor]) -> dict[str, Tensor]:
    drawn = {"types": draw(2, HIDDEN), "mlm": draw(HIDDEN, HIDDEN), "mlm_shift": draw(HIDDEN)}
    drawn |= _draw_norm(draw, "mlm_norm") | {"tokens_shift": draw(PADDED)}
    drawn |= {"pool": draw(HIDDEN, HIDDEN), "pool_shift": draw(HIDDEN)}
    return drawn | {"pair": draw(2, HIDDEN), "pair_shift": draw(2)}


# --- what the models compute ---------------------------------------------------------------------------------------


def dense(
    arch: str,
    weights: Weights,
    ids: Tensor,
    tokentypes: Tensor | None = None,
    padding_mask: Tensor | None = None,
    *,
    gelu: str = "tanh",
    head_gelu: str = "erf",
    vocab: int = VOCAB,
) -> Any:
    """Compute logits [batch, time, vocab], for BERT also those of the binary head [batch, 2]."""
    seen = torch.ones_like(ids) if padding_mask is None else padding_mask
    time = ids.shape[1]
    visible = seen.bool()[:, None, None, :].expand(-1, 1, time, -1)
    if not arch.startswith("bert"):
        visible = visible & torch.ones(time, time, dtype=torch.bool).tril()
    x = weights["tokens"][ids]
    if "positions" in weights:
        x = x + weights["positions"][:time]
    if tokentypes is not None:
        x = x + weights["types"][tokentypes]
    for layer in range(LAYERS):
        x = _dense_block(_part(weights, f"block{layer}."), x, visible, arch == RESIDUAL_FROM_NORM, gelu)
    x = _dense_norm(weights, "end", x)
    table = weights.get("table", weights["tokens"])
    if not arch.startswith("bert"):
        return (x @ table.T)[..., :vocab]
    pooled = torch.tanh(_affine(weights, "pool", x[:, 0]))
    x = _dense_norm(weights, "mlm_norm", _dense_gelu(_affine(weights, "mlm", x), head_gelu))
    return (x @ table.T + weights["tokens_shift"])[..., :vocab], _affine(weights, "pair", pooled)


def _part(weights: Weights, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _affine(w: Weights, name: str, x: Tensor) -> Tensor:
    result = x @ w[name].T
    return result + w[f"{name}_shift"] if f"{name}_shift" in w else result


def _dense_norm(w: Weights, name: str, x: Tensor) -> Tensor:
    if f"{name}.shift" in w:
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.scale"]
    return x + w[f"{name}.shift"] if f"{name}.shift" in w else x


def _dense_gelu(x: Tensor, flavour: str) -> Tensor:
    if flavour == "erf":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) / 2


def _dense_block(w: Weights, x: Tensor, visible: Tensor, residual_from_norm: bool, gelu: str) -> Tensor:
    normed = _dense_norm(w, "norm1", x)
    x = (normed if residual_from_norm else x) + _dense_attention(w, normed, visible)
    normed = _dense_norm(w, "norm2", x)
    if "gate" in w:
        inner = F.silu(_affine(w, "gate", normed)) * _affine(w, "up", normed)
    else:
        inner = _dense_gelu(_affine(w, "wide", normed), gelu)
    return (normed if residual_from_norm else x) + _affine(w, "narrow", inner)


def _dense_attention(w: Weights, x: Tensor, visible: Tensor) -> Tensor:
    q, k, v = (torch.einsum("btc,nwc->bntw", x, w[name]) for name in "qkv")
    if "q_shift" in w:
        q, k, v = (value + w[f"{name}_shift"][:, None] for name, value in zip("qkv", (q, k, v), strict=True))
    if "gate" in w:
        q, k = _rotate(q), _rotate(k)
    k, v = (value.repeat_interleave(HEADS // value.shape[1], 1) for value in (k, v))
    scores = (q @ k.transpose(2, 3) / math.sqrt(WIDTH)).masked_fill(~visible, -10000.0)
    return _affine(w, "mix", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def _rotate(x: Tensor) -> Tensor:
    """Turn feature i and feature i + width/2 of position t by t * 10000^(-2i/width)."""
    half = x.shape[-1] // 2
    speeds = 10000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    angles = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * speeds
    left, right = x[..., :half], x[..., half:]
    return torch.cat([left * angles.cos() - right * angles.sin(), right * angles.cos() + left * angles.sin()], -1)


# --- names ---------------------------------------------------------------------------------------------------------

_LEGACY_BLOCK = {
    "norm1": "input_layernorm.{}",
    "qkv": "self_attention.query_key_value.{}",
    "mix": "self_attention.dense.{}",
    "norm2": "post_attention_layernorm.{}",
    "wide": "mlp.dense_h_to_4h.{}",
    "narrow": "mlp.dense_4h_to_h.{}",
}
_CORE_BLOCK = {
    "norm1": "input_layernorm.{}",
    "qkv": "self_attention.linear_qkv.{}",
    "mix": "self_attention.linear_proj.{}",
    "norm2": "pre_mlp_layernorm.{}",
    "wide": "mlp.linear_fc1.{}",
    "narrow": "mlp.linear_fc2.{}",
}
_BLOCK_NAMES = {
    "legacy-2019": {part: name.replace("self_attention", "attention") for part, name in _LEGACY_BLOCK.items()},
    "legacy": _LEGACY_BLOCK,
    "legacy-2023": {part: name.replace("layernorm", "norm") for part, name in _LEGACY_BLOCK.items()},
    "mcore-local": _CORE_BLOCK,
    "mcore-te": _CORE_BLOCK
    | {"norm1": "self_attention.linear_qkv.layer_norm_{}", "norm2": "mlp.linear_fc1.layer_norm_{}"},
}
_LINEAR = ("qkv", "mix", "wide", "narrow")


# --- one rank's share ----------------------------------------------------------------------------------------------


def _share(tensor: Tensor, dim: int, spec: Spec, rank: int) -> Tensor:
    return tensor.chunk(spec.tp, dim)[rank]


def _qkv(spec: Spec, w: Weights, suffix: str, rank: int) -> Tensor:
    """Interleave a rank's queries, keys and values [heads, width, ...] as its version of Megatron does."""
    q, k, v = (_share(w[name + suffix], 0, spec, rank) for name in "qkv")
    if spec.version is None:
        return torch.stack([q, k, v]).flatten(0, 2)
    if spec.version == 1.0:
        return torch.stack([q, k, v], dim=2).flatten(0, 2)
    groups = k.shape[0]
    q = q.reshape(groups, q.shape[0] // groups, *q.shape[1:])
    return torch.cat([q, k[:, None], v[:, None]], dim=1).flatten(0, 2)


def _block(spec: Spec, w: Weights, rank: int) -> dict[str, Tensor]:
    """Return one layer's stored tensors on one tensor rank by part and kind, `qkv.weight`."""
    stored = {f"{norm}.weight": w[f"{norm}.scale"] for norm in ("norm1", "norm2")}
    stored["qkv.weight"] = _qkv(spec, w, "", rank)
    stored["mix.weight"] = _share(w["mix"], 1, spec, rank)
    stored["narrow.weight"] = _share(w["narrow"], 1, spec, rank)
    if "gate" in w:
        stored["wide.weight"] = torch.cat([_share(w[name], 0, spec, rank) for name in ("gate", "up")])
        return stored
    stored |= {f"{norm}.bias": w[f"{norm}.shift"] for norm in ("norm1", "norm2")}
    stored["qkv.bias"] = _qkv(spec, w, "_shift", rank)
    stored |= {"mix.bias": w["mix_shift"], "narrow.bias": w["narrow_shift"]}
    wide = {"wide.weight": w["wide"], "wide.bias": w["wide_shift"]}
    return stored | {name: _share(value, 0, spec, rank) for name, value in wide.items()}


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """A run of layers that one rank holds under one `model` key."""

    layers: range
    first: bool
    last: bool


def _chunks(spec: Spec, pp: int) -> list[_Chunk]:
    """Return a stage's chunks: with virtual stages the layers go round all ranks once for each chunk."""
    if spec.stages:
        start = sum(spec.stages[:pp])
        runs = [range(start, start + spec.stages[pp])]
    else:
        length = LAYERS // (spec.pp * spec.vpp)
        starts = [(chunk * spec.pp + pp) * length for chunk in range(spec.vpp)]
        runs = [range(start, start + length) for start in starts]
    return [
        _Chunk(
            layers=run,
            first=pp == 0 and index == 0,
            last=pp == spec.pp - 1 and index == spec.vpp - 1,
        )
        for index, run in enumerate(runs)
    ]


def _stack(spec: Spec, w: Weights, chunk: _Chunk, rank: int) -> dict[str, Any]:
    """Return the layers of a chunk, numbered from 0, and the final norm where the stack ends."""
    flat: dict[str, Any] = OrderedDict()
    names = _BLOCK_NAMES[spec.names]
    for local, layer in enumerate(chunk.layers):
        for stored, value in _block(spec, _part(w, f"block{layer}."), rank).items():
            part, kind = stored.split(".")
            flat[f"layers.{local}.{names[part].format(kind)}"] = value
        if spec.core:
            flat |= {f"layers.{local}.{names[part].format('_extra_state')}": _extra_state(spec) for part in _LINEAR}
    if chunk.last:
        final = "final_norm" if spec.names == "legacy-2023" else "final_layernorm"
        flat |= {f"{final}.{kind}": value for kind, value in _affine_norm(w, "end").items()}
        if spec.names == "mcore-te":
            flat[f"{final}._extra_state"] = torch.arange(5, dtype=torch.uint8)
    return flat


def _extra_state(spec: Spec) -> io.BytesIO | None:
    return io.BytesIO(b"scales of an 8-bit format") if spec.names == "mcore-te" else None


def _affine_norm(w: Weights, name: str) -> dict[str, Tensor]:
    kinds = {"weight": f"{name}.scale", "bias": f"{name}.shift"}
    return {kind: w[stored] for kind, stored in kinds.items() if stored in w}


def _linear(w: Weights, name: str, prefix: str = "") -> dict[str, Tensor]:
    return {f"{prefix}weight": w[name], f"{prefix}bias": w[f"{name}_shift"]}


def _embedding(spec: Spec, w: Weights, rank: int) -> dict[str, Tensor]:
    tables = {"word": _share(w["tokens"], 0, spec, rank)}
    tables |= {kind: w[name] for kind, name in (("position", "positions"), ("tokentype", "types")) if name in w}
    return {f"{kind}_embeddings": table for kind, table in tables.items()}


def _has_copy(spec: Spec, chunk: _Chunk) -> bool:
    return chunk.last and spec.tied and spec.pp > 1


def _legacy_model(spec: Spec, w: Weights, chunk: _Chunk, rank: int) -> dict[str, Any]:
    """Nest a chunk as the classes of megatron/model did."""
    language: dict[str, Any] = {}
    if chunk.first:
        language["embedding"] = {name: OrderedDict(weight=table) for name, table in _embedding(spec, w, rank).items()}
    language["transformer" if spec.names == "legacy-2019" else "encoder"] = _stack(spec, w, chunk, rank)
    model: dict[str, Any] = {"language_model": language}
    if chunk.last and not spec.tied:
        language["output_layer"] = OrderedDict(weight=_share(w["table"], 0, spec, rank))
    if chunk.last and spec.bert:
        norm = "norm" if spec.names == "legacy-2023" else "layernorm"
        language["pooler"] = OrderedDict(_linear(w, "pool", "dense."))
        model["lm_head"] = OrderedDict(bias=_share(w["tokens_shift"], 0, spec, rank))
        model["lm_head"] |= _linear(w, "mlm", "dense.")
        model["lm_head"] |= {f"{norm}.{kind}": value for kind, value in _affine_norm(w, "mlm_norm").items()}
        model["binary_head"] = OrderedDict(_linear(w, "pair"))
    if _has_copy(spec, chunk):
        model["word_embeddings_for_head"] = OrderedDict(weight=_share(w["tokens"], 0, spec, rank))
    return model


def _core_model(spec: Spec, w: Weights, chunk: _Chunk, rank: int) -> dict[str, Any]:
    """List a chunk flat as megatron/core does."""
    flat: dict[str, Any] = OrderedDict()
    if chunk.first:
        flat |= {f"embedding.{name}.weight": table for name, table in _embedding(spec, w, rank).items()}
    stack = "encoder" if spec.bert else "decoder"
    flat |= {f"{stack}.{name}": value for name, value in _stack(spec, w, chunk, rank).items()}
    if chunk.last and spec.bert:
        flat |= _linear(w, "mlm", "lm_head.dense.") | _linear(w, "pair", "binary_head.")
        flat |= {f"lm_head.layer_norm.{kind}": value for kind, value in _affine_norm(w, "mlm_norm").items()}
        flat |= _linear(w, "pool", "pooler.dense.")
        flat["output_layer.bias"] = _share(w["tokens_shift"], 0, spec, rank)
    if chunk.last:
        flat["output_layer._extra_state"] = None
    if _has_copy(spec, chunk) or (chunk.last and not spec.tied):
        flat["output_layer.weight"] = _share(w["tokens" if spec.tied else "table"], 0, spec, rank)
    return flat


# --- what lies beside the model ------------------------------------------------------------------------------------


def _enum(module: str, name: str) -> Any:
    return enum.Enum(name, {"first": 1, "second": 2}, module=module, qualname=name)


_SCALER = type("DynamicLossScaler", (), {"__module__": "fp16.loss_scaler"})
_CLASSES: dict[str, Any] = {
    "megatron.model.enums": _enum("megatron.model.enums", "AttnMaskType"),
    "megatron.core.enums": _enum("megatron.core.enums", "ModelType"),
    "megatron.core.rerun_state_machine": _enum("megatron.core.rerun_state_machine", "RerunMode"),
    "fp16.loss_scaler": _SCALER,
}
"""Classes that Megatron pickles by name; no reader may need their modules."""


@contextmanager
def megatron_present() -> Iterator[None]:
    """Let pickle find `_CLASSES` under their modules."""
    made = {}
    for module, item in _CLASSES.items():
        made[module] = ModuleType(module)
        setattr(made[module], item.__name__, item)
        parents = module.split(".")[:-1]
        made |= {name: ModuleType(name) for end in range(len(parents)) if (name := ".".join(parents[: end + 1]))}
    hidden = {name: sys.modules[name] for name in made if name in sys.modules}
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]
        sys.modules.update(hidden)


def _arguments(spec: Spec) -> Namespace:
    """Return the command line arguments that this version of Megatron would have stored."""
    values: dict[str, Any] = {
        "num_layers": LAYERS,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "max_position_embeddings": CONTEXT,
        "seq_length": CONTEXT,
        "layernorm_epsilon": 1e-5,
        "apply_residual_connection_post_layernorm": spec.arch == RESIDUAL_FROM_NORM,
        "openai_gelu": spec.gelu == "openai",
        "bias_gelu_fusion": spec.gelu == "tanh",
        "onnx_safe": None,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "init_method_std": 0.02,
        "padded_vocab_size": PADDED,
        "vocab_size": VOCAB,
        "make_vocab_size_divisible_by": PADDED // spec.tp,
        "tokenizer_type": "BertWordPieceLowerCase" if spec.bert else "GPT2BPETokenizer",
        "apply_query_key_layer_scaling": spec.version is None,
        "params_dtype": torch.float32,
        "fp16": False,
        "model_parallel_size" if (spec.version or 0) < 3 else "tensor_model_parallel_size": spec.tp,
    }
    if spec.version is not None or spec.pp > 1:
        values |= {"pipeline_model_parallel_size": spec.pp, "ffn_hidden_size": 4 * HIDDEN, "kv_channels": WIDTH}
    values |= _later_arguments(spec) if spec.version in {2.0, 3.0} else {}
    return Namespace(**values | (_gated_arguments() if spec.arch == "llama" else {}))


def _later_arguments(spec: Spec) -> dict[str, Any]:
    return {
        "position_embedding_type": "learned_absolute",
        "add_position_embedding": True,
        "rotary_base": 10000,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "normalization": "LayerNorm",
        "norm_epsilon": 1e-5,
        "swiglu": False,
        "squared_relu": False,
        "add_bias_linear": True,
        "add_qkv_bias": False,
        "group_query_attention": False,
        "num_query_groups": 1,
        "untie_embeddings_and_output_weights": not spec.tied,
        "virtual_pipeline_model_parallel_size": spec.vpp if spec.vpp > 1 else None,
        "num_layers_per_virtual_pipeline_stage": LAYERS // spec.pp // spec.vpp if spec.vpp > 1 else None,
        "decoder_first_pipeline_num_layers": spec.stages[0] if spec.stages else None,
        "decoder_last_pipeline_num_layers": spec.stages[-1] if spec.stages else None,
        "standalone_embedding_stage": bool(spec.stages and spec.stages[0] == 0),
        "num_experts": None,
        "multi_latent_attention": False,
        "qk_layernorm": False,
        "bert_binary_head": True,
        "use_mcore_models": spec.core,
        "model_type": _CLASSES["megatron.core.enums" if spec.version == 3.0 else "megatron.model.enums"].first,
    }


def _gated_arguments() -> dict[str, Any]:
    return {
        "position_embedding_type": "rope",
        "normalization": "RMSNorm",
        "swiglu": True,
        "bias_gelu_fusion": False,
        "add_bias_linear": False,
        "group_query_attention": True,
        "num_query_groups": 2,
        "ffn_hidden_size": 168,
    }


def _random_states() -> dict[str, Any]:
    return {
        "random_rng_state": random.Random(1).getstate(),
        "np_rng_state": np.random.RandomState(1).get_state(),
        "torch_rng_state": torch.arange(16, dtype=torch.uint8),
        "cuda_rng_state": torch.arange(16, dtype=torch.uint8),
        "rng_tracker_states": {"model-parallel-rng": torch.arange(16, dtype=torch.uint8)},
    }


def _beside(spec: Spec) -> dict[str, Any]:
    """Return the entries of a file that are no part of the model."""
    iteration = "total_iters" if spec.names == "legacy-2019" and spec.version is None else "iteration"
    entries: dict[str, Any] = {iteration: 0 if spec.release else ITERATION}
    if spec.version is not None:
        entries["checkpoint_version"] = spec.version
    if spec.args:
        entries["args"] = _arguments(spec)
    if spec.model_file == "model_optim_rng.pt" and not spec.release:
        entries |= _optimizer(spec)
    if spec.version == 3.0:
        entries |= {"opt_param_scheduler": {"max_lr": 1e-4}, "rng_state": [_random_states()]}
        entries |= {"rerun_state_machine": {"mode": _CLASSES["megatron.core.rerun_state_machine"].first}}
        return entries | {"num_floating_point_operations_so_far": 1.5e12, "content_metadata": {"distrib_optim": False}}
    return entries | {"lr_scheduler": {"start_lr": 1e-4}} | _random_states()


def _optimizer(spec: Spec) -> dict[str, Any]:
    state = {"state": {0: {"exp_avg": torch.ones(7), "exp_avg_sq": torch.ones(7)}}, "param_groups": [{"lr": 1e-4}]}
    if spec.version is None:
        scaler = _SCALER()
        scaler.__dict__["cur_scale"] = 1024.0
        return {"optimizer": {"optimizer_state_dict": state, "fp32_from_fp16": [[torch.ones(7)]], "scaler": scaler}}
    return {"optimizer": {"optimizer": state, "grad_scaler": {"scale": 1.0}, "fp32_from_fp16_params": [torch.ones(7)]}}


# --- files ---------------------------------------------------------------------------------------------------------


def write(spec: Spec, root: Path, weights: Weights) -> Path:
    """Write a checkpoint under `root` as `spec` says; return `root`."""
    assert spec.possible, f"no Megatron writes {spec}"
    folder = root / ("release" if spec.release else f"iter_{ITERATION:07d}")
    for pp in range(spec.pp):
        for tp in range(spec.tp):
            place = f"mp_rank_{tp:02d}" + (f"_{pp:03d}" if spec.pp > 1 else "")
            _save(spec, folder / place / spec.model_file, _content(spec, weights, tp, pp))
            for data in range(2) if spec.model_file == "model_rng.pt" else ():
                _save(spec, folder / f"{place}_{data:03d}" / "optim.pt", _optimizer(spec))
    (root / TRACKER).write_text("release" if spec.release else str(ITERATION))
    return root


def _content(spec: Spec, weights: Weights, tp: int, pp: int) -> dict[str, Any]:
    make = _core_model if spec.core else _legacy_model
    models = [make(spec, weights, chunk, tp) for chunk in _chunks(spec, pp)]
    models = [_map(model, _in_one_storage(model) if spec.model_file == "model_rng.pt" else _own) for model in models]
    if spec.vpp == 1:
        return _beside(spec) | {"model": models[0]}
    return _beside(spec) | {f"model{index}": model for index, model in enumerate(models)}


def _own(tensor: Tensor) -> Tensor:
    """Return a tensor with a storage of its own: torch.save writes whole storages."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _in_one_storage(model: Any) -> Callable[[Tensor], Tensor]:
    """Return how to move tensors into one buffer, where the distributed optimizer keeps all parameters."""
    buffer = torch.full((sum(tree[key].numel() for tree, key, _ in _leaves(model)) + 3,), math.nan)
    end = buffer.numel()

    def move(tensor: Tensor) -> Tensor:
        nonlocal end
        end -= tensor.numel()
        view = buffer[end : end + tensor.numel()].view(tensor.shape)
        return view.copy_(tensor)

    return move


def _map(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    if isinstance(tree, dict):
        return type(tree)((key, _map(value, change)) for key, value in tree.items())
    return change(tree) if isinstance(tree, Tensor) else tree


def _gpu(storage: Any) -> str:
    return "cuda:1"


@contextmanager
def _on_a_gpu() -> Iterator[None]:
    """Let torch.save note that tensors were on a GPU, as Megatron's always are."""
    tag = torch.serialization.location_tag
    torch.serialization.location_tag = _gpu
    try:
        yield
    finally:
        torch.serialization.location_tag = tag


def _save(spec: Spec, path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with megatron_present(), _on_a_gpu():
        torch.save(content, path, _use_new_zipfile_serialization=spec.container == "zip")


# --- damage --------------------------------------------------------------------------------------------------------


class _Attack:
    """Pickles to a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


CANARY = "touched"
"""The file in the root that exists once code of a hostile checkpoint has run."""


def damage(kind: str, root: Path) -> Path:
    """Damage the checkpoint under `root` in a way of `DAMAGES`; return `root`.

    Most kinds need two tensor ranks and two pipeline stages, a hostile prologue or epilogue the old container.
    """
    DAMAGES[kind](root)
    return root


def _files(root: Path, pattern: str = "*") -> list[Path]:
    found = sorted(root.glob(f"*/mp_rank_{pattern}/model*.pt"))
    assert found, f"no shard {pattern} under {root}"
    return found


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Load a shard, change it, and save it in the container it had."""
    zipped = path.read_bytes()[:2] == b"PK"
    with megatron_present():
        content = torch.load(path, map_location="cpu", weights_only=False)
        change(content)
        torch.save(content, path, _use_new_zipfile_serialization=zipped)


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[dict[str, Any], str, str]]:
    """Yield (its dictionary, its key, its dotted name) of each tensor of a model."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        elif isinstance(value, Tensor):
            yield tree, key, prefix + key


def _leaf(content: dict[str, Any], *endings: str) -> tuple[dict[str, Any], str]:
    for tree, key, name in _leaves(content["model"]):
        if name.endswith(endings):
            return tree, key
    raise AssertionError(f"no tensor ends in {endings}")


_NORM = ("layers.1.input_layernorm.weight", "layers.1.self_attention.linear_qkv.layer_norm_weight")
_NARROW_BIAS = ("layers.1.mlp.dense_4h_to_h.bias", "layers.1.mlp.linear_fc2.bias")
_WIDE = ("layers.1.mlp.dense_h_to_4h.weight", "layers.1.mlp.linear_fc1.weight")
_COPY = ("word_embeddings_for_head.weight", "output_layer.weight")


def _missing_shard(root: Path) -> None:
    shutil.rmtree(_files(root, "01*")[0].parent)


def _missing_tracker(root: Path) -> None:
    (root / TRACKER).unlink()


def _shift(path: Path, by: float, *endings: str) -> None:
    def change(content: dict[str, Any]) -> None:
        tree, key = _leaf(content, *endings)
        tree[key].view(-1)[3] += by

    _edit(path, change)


def _not_a_number(root: Path) -> None:
    _shift(_files(root, "01*")[0], math.nan, *_WIDE)


def _unequal_norm(root: Path) -> None:
    _shift(_files(root, "01*")[0], 0.5, *_NORM)


def _wrong_tied_copy(root: Path) -> None:
    _shift(_files(root, "*_001")[0], 0.5, *_COPY)


def _hostile(root: Path) -> None:
    command = f"touch '{root / CANARY}'"
    _edit(_files(root, "01*")[0], lambda content: content.update(rerun_state_machine=_Attack(command)))


def _truncated(root: Path) -> None:
    path = _files(root, "01*")[0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def _beginning_only(root: Path) -> None:
    path = _files(root, "01*")[0]
    path.write_bytes(path.read_bytes()[:1000])


def _hostile_prologue(root: Path) -> None:
    """Put an attack into the third pickle of a file of the old container, before the one with the tensors."""
    path = _files(root, "01*")[0]
    data = path.read_bytes()
    stream = io.BytesIO(data)
    starts = [stream.tell() for _ in range(4) if list(pickletools.genops(stream))]
    attack = pickle.dumps(_Attack(f"touch '{root / CANARY}'"), protocol=2)
    path.write_bytes(data[: starts[1]] + attack + data[starts[2] :])


def _hostile_epilogue(root: Path) -> None:
    """Put an attack where a file of the old container lists its storages."""
    path = _files(root, "01*")[0]
    stream = io.BytesIO(path.read_bytes())
    starts = [stream.tell() for _ in range(5) if list(pickletools.genops(stream))]
    attack = pickle.dumps([_Attack(f"touch '{root / CANARY}'")], protocol=2)
    path.write_bytes(stream.getvalue()[: starts[3]] + attack + stream.getvalue()[starts[4] :])


def _missing_tensor(root: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        tree, key = _leaf(content, *_NARROW_BIAS)
        del tree[key]

    for path in _files(root, "*_000"):
        _edit(path, change)


def _missing_on_one_rank(root: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        tree, key = _leaf(content, *_NARROW_BIAS)
        del tree[key]

    _edit(_files(root, "01_000")[0], change)


def _unknown_tensor(root: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        tree, key = _leaf(content, *_NARROW_BIAS)
        tree[key.replace("mlp.", "mlp.surprise.")] = torch.ones(HIDDEN)

    for path in _files(root, "*_000"):
        _edit(path, change)


def _missing_layer(root: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for tree, key, name in list(_leaves(content["model"])):
            if "layers.1." in name:
                del tree[key]

    for path in _files(root, "*_001"):
        _edit(path, change)


def _no_arguments(root: Path) -> None:
    for path in _files(root):
        _edit(path, lambda content: content.pop("args"))


def _no_version(root: Path) -> None:
    for path in _files(root):
        _edit(path, lambda content: content.pop("checkpoint_version"))


def _experts(root: Path) -> None:
    for path in _files(root):
        _edit(path, lambda content: vars(content["args"]).update(num_experts=8, moe_router_topk=2))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "missing shard": _missing_shard,
    "missing tracker": _missing_tracker,
    "not a number": _not_a_number,
    "unequal norm": _unequal_norm,
    "wrong tied copy": _wrong_tied_copy,
    "hostile pickle": _hostile,
    "hostile prologue": _hostile_prologue,
    "hostile epilogue": _hostile_epilogue,
    "truncated file": _truncated,
    "beginning only": _beginning_only,
    "missing tensor": _missing_tensor,
    "missing tensor on one rank": _missing_on_one_rank,
    "unknown tensor": _unknown_tensor,
    "missing layer": _missing_layer,
    "mixture of experts": _experts,
    "no arguments": _no_arguments,
    "no version": _no_version,
}
"""How a checkpoint can be damaged, by name."""
