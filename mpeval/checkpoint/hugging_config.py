"""A Hugging Face `config.json` and a `ModelConfig`: each made from the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpeval.checkpoint.args import Shapes
from mpeval.checkpoint.hugging_names import Kind
from mpeval.config import ModelConfig
from mpeval.errors import CheckpointError, ConfigError, shown, suggest

GELUS = {
    "gelu": "erf",
    "gelu_python": "erf",
    "gelu_new": "tanh",
    "gelu_fast": "tanh",
    "gelu_pytorch_tanh": "tanh",
}
KINDS: tuple[Kind, ...] = ("gpt2", "bert", "megatron-bert", "llama", "qwen2", "qwen3")
REFUSED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("scale_attn_by_inverse_layer_idx", (None, False), "attention scaled by layer"),
    ("scale_attn_weights", (None, True), "unscaled attention"),
    ("add_cross_attention", (None, False), "cross-attention"),
    ("is_decoder", (None, False), "a causal BERT"),
    ("position_embedding_type", (None, "absolute"), "relative positions"),
    ("use_sliding_window", (None, False), "sliding-window attention"),
    ("quantization_config", (None,), "quantised weights"),
)
"""(setting, values this reader handles, what any other value means)."""


TABLES: dict[Kind, str] = {
    "gpt2": "transformer.wte.weight",
    "bert": "bert.embeddings.word_embeddings.weight",
    "megatron-bert": "bert.embeddings.word_embeddings.weight",
    "llama": "model.embed_tokens.weight",
    "qwen2": "model.embed_tokens.weight",
    "qwen3": "model.embed_tokens.weight",
}
"""The token table of each kind."""


class Settings:
    """The values of one `config.json`, each looked up with its type and the default that transformers has for it."""

    def __init__(self, path: Path, values: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
        """Keep the sources; `path` is for messages."""
        self.path, self.values, self.overrides = path, values, overrides
        self.found: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def put(self, name: str, *spellings: str, kind: Any = int, default: Any = None) -> Any:
        """Set `name` from the user, else from the first of `spellings` in the file, else to `default`."""
        value, origin = default, "default of transformers"
        for spelling in reversed(spellings):
            if self.values.get(spelling) is not None:
                value, origin = self.values[spelling], f"config.{spelling}"
        if name in self.overrides:
            value, origin = self.overrides[name], "--set"
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            wanted = " or ".join(f"`{spelling}`" for spelling in spellings)
            raise CheckpointError(
                f"`{self.path}` has no usable {wanted}: found `{shown(value)}`", f"give it by `--set {name}=VALUE`"
            )
        self.found[name], self.origins[name] = value, origin
        return value

    def say(self, name: str, value: Any, origin: str) -> None:
        """Set `name` to what follows from other things, unless the user sets it."""
        given = name in self.overrides
        self.found[name] = self.overrides[name] if given else value
        self.origins[name] = "--set" if given else origin

    def get(self, name: str, kind: Any, default: Any) -> Any:
        """Return a setting that no single value of the configuration is made of.

        Raises:
            CheckpointError: it is not of `kind`.
        """
        value = self.values.get(name)
        if value is None and (name not in self.values or kind is not str):
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise CheckpointError(f"`{self.path}` has no usable `{name}`: found `{shown(value)}`", "mend the file")
        return value

    def config(self) -> ModelConfig:
        """Return the configuration of what was set, refusing what the user set and nothing asked for."""
        rest = [name for name in self.overrides if name not in self.found]
        if rest:
            raise ConfigError(
                f"`--set {rest[0]}` does not apply to `{self.path.parent}`: its `config.json` and tensors decide it",
                f"what can be set: {', '.join(f'`{name}`' for name in sorted(self.found))}",
            )
        return ModelConfig(**self.found, origins=self.origins)


def kind_of(path: Path, values: Mapping[str, Any]) -> Kind:
    """Return the kind of model a `config.json` describes, refusing what would be computed wrongly."""
    named = values.get("model_type")
    for kind in KINDS:
        if named == kind:
            break
    else:
        raise CheckpointError(
            f"`{path}` describes a model of type `{shown(named)}`, which this version does not read",
            suggest(str(named), list(KINDS)),
        )
    for name, handled, what in REFUSED:
        if values.get(name) not in handled:
            raise CheckpointError(
                f"`{path}` describes a model with {what} (`{name}` is `{shown(values[name])}`), which this version "
                "cannot compute",
                f"types read: {', '.join(f'`{item}`' for item in KINDS)}",
            )
    return kind


def read_config(path: Path, values: Mapping[str, Any], shapes: Shapes, overrides: Mapping[str, Any]) -> ModelConfig:
    """Return the architecture that a `config.json` and the stored tensors, by name with prefix, describe."""
    kind = kind_of(path, values)
    take = Settings(path, values, overrides)
    if kind == "gpt2":
        _read_gpt2(take)
    elif kind in {"bert", "megatron-bert"}:
        _read_bert(take, kind, shapes)
    else:
        _read_llama(take, kind, shapes)
    table = shapes.get(TABLES[kind], ())
    take.say("padded_vocab", table[0] if table else take.found["vocab"], "tensors")
    if "vocab" not in overrides and take.found["vocab"] != take.found["padded_vocab"]:
        raise CheckpointError(
            f"`{path}` says its vocabulary is {take.found['vocab']}, its table has {take.found['padded_vocab']} rows",
            "the files belong to different models; or give the true size by `--set vocab=N`",
        )
    return take.config()


def _read_gpt2(take: Settings) -> None:
    number = int | float
    take.put("layers", "n_layer", "num_hidden_layers")
    hidden = take.put("hidden", "n_embd", "hidden_size")
    take.put("heads", "n_head", "num_attention_heads")
    take.put("ffn", "n_inner", default=4 * hidden)
    take.put("context", "n_positions", "max_position_embeddings", "n_ctx", default=1024)
    take.put("vocab", "vocab_size")
    _put_gelu(take, "gelu", "activation_function", "gelu_new")
    take.put("eps", "layer_norm_epsilon", kind=number, default=1e-5)
    take.put("tied", "tie_word_embeddings", kind=bool, default=True)
    take.put("dropout", "resid_pdrop", kind=number, default=0.1)
    take.put("attention_dropout", "attn_pdrop", kind=number, default=0.1)
    take.put("init_std", "initializer_range", kind=number, default=0.02)


def _put_gelu(take: Settings, name: str, setting: str, default: str) -> None:
    value = take.get(setting, str, default)
    if value not in GELUS and name not in take.overrides:
        raise CheckpointError(
            f"`{take.path}`: the activation `{shown(value)}` is none that this version computes",
            f"known: {', '.join(f'`{item}`' for item in GELUS)}",
        )
    take.say(name, GELUS.get(value), f"config.{setting}" if setting in take.values else "default of transformers")


def _put_sizes(take: Settings) -> None:
    number = int | float
    take.put("layers", "num_hidden_layers")
    take.put("hidden", "hidden_size")
    take.put("heads", "num_attention_heads")
    take.put("ffn", "intermediate_size")
    take.put("context", "max_position_embeddings")
    take.put("vocab", "vocab_size")
    take.put("init_std", "initializer_range", kind=number, default=0.02)


def _read_bert(take: Settings, kind: Kind, names: Shapes) -> None:
    number = int | float
    _put_sizes(take)
    take.say("family", "bert", "config.model_type")
    take.say("post_norm", kind == "bert", "config.model_type")
    take.put("tokentypes", "type_vocab_size", default=2)
    _put_gelu(take, "gelu", "hidden_act", "gelu")
    take.put("eps", "layer_norm_eps", kind=number, default=1e-12)
    take.put("tied", "tie_word_embeddings", kind=bool, default=True)
    take.put("dropout", "hidden_dropout_prob", kind=number, default=0.1)
    take.put("attention_dropout", "attention_probs_dropout_prob", kind=number, default=0.1)
    take.say("lm_head", "cls.predictions.transform.dense.weight" in names, "tensors")
    take.say("lm_head_gelu", take.found["gelu"], take.origins["gelu"])
    take.say("pooler", "bert.pooler.dense.weight" in names, "tensors")
    take.say("binary_head", "cls.seq_relationship.weight" in names, "tensors")
    choice = any("MultipleChoice" in str(item) for item in take.get("architectures", list, []))
    head = names.get("classifier.weight", ())
    take.say("multichoice_head", bool(head) and choice, "config.architectures")
    labels = take.get("num_labels", int, len(take.get("id2label", dict, {})) or None)
    if head and not choice and labels not in {None, head[0]}:
        raise CheckpointError(
            f"`{take.path}` says there are {labels} classes, `classifier.weight` has {head[0]} rows",
            "the files belong to different models",
        )
    take.say("classes", head[0] if head and not choice else 0, "tensors")
    take.say("span_head", "qa_outputs.weight" in names, "tensors")


def _read_llama(take: Settings, kind: Kind, names: Shapes) -> None:
    number = int | float
    _put_sizes(take)
    if take.get("hidden_act", str, "silu") != "silu":
        raise CheckpointError(
            f"`{take.path}`: the activation `{shown(take.values['hidden_act'])}` is none that this version computes",
            "known: `silu`",
        )
    for name, value in (("swiglu", True), ("rope", True), ("norm", "rmsnorm"), ("qk_norm", kind == "qwen3")):
        take.say(name, value, "config.model_type")
    take.put("kv_heads", "num_key_value_heads", default=take.found["heads"])
    width = 128 if kind == "qwen3" else take.found["hidden"] // max(1, take.found["heads"])
    take.put("head_dim", "head_dim", default=width)
    take.put("eps", "rms_norm_eps", kind=number, default=1e-6)
    take.put("tied", "tie_word_embeddings", kind=bool, default=False)
    take.say("dropout", 0.0, "config.model_type")
    take.put("attention_dropout", "attention_dropout", kind=number, default=0.0)
    take.say("linear_bias", "model.layers.0.self_attn.o_proj.bias" in names, "tensors")
    take.say("qkv_bias", "model.layers.0.self_attn.q_proj.bias" in names, "tensors")
    _read_rope(take)


def _read_rope(take: Settings) -> None:
    """Read rotary settings, which transformers keeps in `rope_parameters`, before version 5 in two other places.

    What a kind of stretching needs and has no default is demanded; where transformers has one, it is that.
    """
    stretch = {**take.get("rope_scaling", dict, {}), **take.get("rope_parameters", dict, {})}
    inner = Settings(take.path, stretch, take.overrides)
    inner.found, inner.origins = take.found, take.origins
    named = inner.get("rope_type", str, inner.get("type", str, "default"))
    partial = inner.get("partial_rotary_factor", int | float, take.get("partial_rotary_factor", int | float, 1.0))
    layered = any(isinstance(value, dict) for value in stretch.values())
    if named not in {"default", "linear", "llama3"} or partial != 1.0 or layered:
        raise CheckpointError(
            f"`{take.path}` has rotary positions of the kind `{shown(named)}`, by layer or in part, "
            "which this version cannot compute",
            "known: `default`, `linear`, `llama3`, the same in all layers and whole",
        )
    number = int | float
    outer = take.get("rope_theta", number, 10000.0)
    inner.put("rope_base", "rope_theta", kind=number, default=outer)
    take.say("rope_scaling", "none" if named == "default" else named, "config.rope_scaling")
    if named != "default":
        inner.put("rope_factor", "factor", kind=number)
    if named == "llama3":
        inner.put("rope_low", "low_freq_factor", kind=number)
        inner.put("rope_high", "high_freq_factor", kind=number)
        original = inner.get("original_max_position_embeddings", int, take.found["context"])
        own = take.get("original_max_position_embeddings", int, original)
        take.say("rope_original", own, "config.original_max_position_embeddings")
