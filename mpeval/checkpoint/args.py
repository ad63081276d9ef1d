"""From what Megatron pickled as `args`, the tensors' shapes and the user's settings to a `ModelConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpeval.config import ModelConfig, head_candidates
from mpeval.errors import CheckpointError, ConfigError, shown

Shapes = Mapping[str, tuple[int, ...]]

SUPPORTED = (
    "supported: GPT and BERT with learned or rotary positions, layer norm or RMSNorm, GELU or SwiGLU, grouped queries"
)
NONE: tuple[Any, ...] = (None, 0, False, "", "none", [])
UNSUPPORTED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("num_experts", NONE, "mixture of experts"),
    ("num_moe_experts", NONE, "mixture of experts"),
    ("multi_latent_attention", NONE, "multi-latent attention"),
    ("is_hybrid_model", NONE, "state-space layers"),
    ("hybrid_override_pattern", NONE, "state-space layers"),
    ("hybrid_layer_pattern", NONE, "state-space layers"),
    ("experimental_attention_variant", NONE, "another kind of attention"),
    ("squared_relu", NONE, "squared ReLU"),
    ("quick_gelu", NONE, "quick GELU"),
    ("normalization", (None, "LayerNorm", "RMSNorm"), "another kind of norm"),
    ("apply_layernorm_1p", NONE, "layer norm with 1 + weight"),
    ("layernorm_zero_centered_gamma", NONE, "layer norm with 1 + weight"),
    (
        "position_embedding_type",
        (None, "learned_absolute", "rope"),
        "positions that are neither learned nor rotary",
    ),
    ("no_rope_freq", NONE, "layers without rotary positions"),
    ("window_size", NONE, "sliding-window attention"),
    ("window_attn_skip_freq", NONE, "sliding-window attention"),
    ("qk_l2_norm", NONE, "L2 norm of queries and keys"),
    ("softmax_type", (None, "vanilla"), "another softmax than the usual"),
    ("attention_output_gate", NONE, "gated attention output"),
    ("glu_linear_offset", (*NONE, 0.0), "an offset in SwiGLU"),
    ("activation_func_clamp_value", NONE, "clamped activations"),
    ("mtp_num_layers", NONE, "multi-token prediction"),
    ("retro_add_retriever", NONE, "retrieval (RETRO)"),
    ("heterogeneous_layers_config_path", NONE, "layers that differ from one another"),
)
"""(argument, values this reader handles, what any other value means)."""
FOREIGN_TENSORS = (
    (("mlp.router", "mlp.experts", "local_experts"), "mixture of experts"),
    (("linear_q_down_proj", "linear_kv_down_proj", "linear_kv_up_proj"), "multi-latent attention"),
    ((".mixer.", "A_log", "conv1d"), "state-space layers"),
    (("inter_attention", "cross_attention", "cross_attn"), "a decoder with cross-attention (T5, RETRO)"),
)
"""(parts of a stored name, the kind of model that has them)."""

_WRONG = "a shard is missing or belongs to another model, or a `--set` value is wrong"
UNKNOWN_VOCAB = "padded table (true size unknown)"


def argument(args: Mapping[str, Any], spellings: Sequence[str], kind: Any, path: Path, hint: str) -> tuple[Any, str]:
    """Return the first of several spellings of an argument that is there, with its origin; (None, "") if none is.

    Raises:
        CheckpointError: its value is not of `kind` (a type or union of types; True is not a number).
    """
    for spelling in spellings:
        value = args.get(spelling)
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value, f"args.{spelling}"
        if value is not None:
            raise CheckpointError(
                f"`{path}` says `{spelling}` is `{shown(value)}`, which is no {getattr(kind, '__name__', 'number')}",
                f"the file's arguments are damaged; {hint}",
            )
    return None, ""


def refuse_unsupported(args: Mapping[str, Any], path: Path) -> None:
    """Refuse a model that would be computed wrongly, naming the argument that says so."""
    for name, handled, what in UNSUPPORTED:
        if args.get(name) not in handled:
            raise CheckpointError(
                f"`{path}` holds a model with {what} (`{name}` is `{shown(args[name])}`), "
                "which this version cannot compute",
                SUPPORTED,
            )


def refuse_ignored_order(args: Mapping[str, Any], overrides: Mapping[str, Any], path: Path) -> None:
    """Refuse a Megatron-core model said to add residuals to its norms' outputs: that code ignores the argument."""
    name = "apply_residual_connection_post_layernorm"
    if args.get(name) and "post_norm" not in overrides:
        raise CheckpointError(
            f"`{path}` says `{name}`, which Megatron-core accepts but does not compute",
            "say which order the model was trained with: `--set post_norm=false` (what Megatron-core computes) or "
            "`--set post_norm=true`",
        )


def refuse_foreign(stored: str, path: Path) -> None:
    """Refuse a tensor whose name tells a kind of model that is not computed here."""
    for parts, what in FOREIGN_TENSORS:
        if any(part in stored for part in parts):
            raise CheckpointError(
                f"`{path}` holds a model with {what} (tensor `{stored}`), which this version cannot compute", SUPPORTED
            )


def gelu_of(args: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (flavour, origin): Megatron's fused and OpenAI kernels compute tanh, everything else erf."""
    for name in ("openai_gelu", "bias_gelu_fusion"):
        if args.get(name):
            return "tanh", f"args.{name}"
    if "bias_gelu_fusion" in args:
        return "erf", "args.bias_gelu_fusion"
    return None


class Gather:
    """Collects configuration values: the user's settings first, then the file's arguments, then shapes."""

    def __init__(self, args: Mapping[str, Any], overrides: Mapping[str, Any], path: Path) -> None:
        """Keep the sources; `path` is for messages."""
        self.args, self.overrides, self.path = args, overrides, path
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}

    def put(self, name: str, *spellings: str, kind: Any = int, otherwise: tuple[Any, str] = (None, "")) -> None:
        """Set `name` from the user, else from the first argument of `spellings` that is there, else `otherwise`."""
        if name in self.overrides:
            self.values[name], self.origins[name] = self.overrides[name], "--set"
            return
        value, origin = argument(self.args, spellings, kind, self.path, "the value can be given by `--set`")
        if value is None:
            value, origin = otherwise
        if value is not None:
            self.values[name], self.origins[name] = value, origin

    def require(self, name: str, candidates: list[Any]) -> None:
        """Demand a value that neither file nor user gave; candidates are offered, never chosen."""
        if name not in self.values:
            choices = " or ".join(f"`--set {name}={value}`" for value in candidates)
            raise ConfigError(f"`{self.path}` does not say the model's `{name}`", f"give it: {choices}")

    def config(self) -> ModelConfig:
        """Return the configuration of what was put, refusing what the user set and nothing asked for."""
        idle = [name for name in self.overrides if name not in self.values and name != "checkpoint_version"]
        if idle:
            raise ConfigError(
                f"`--set {idle[0]}` has no effect on the model in `{self.path}`",
                "leave it out, or set what gives it a meaning, such as `rope=true` for `rope_base`",
            )
        return ModelConfig(**self.values, origins=self.origins)


def config_of(args: Mapping[str, Any], shapes: Shapes, overrides: Mapping[str, Any], path: Path) -> ModelConfig:
    """Put a configuration together and check it against every tensor.

    Args:
        args: the file's Megatron arguments; may be empty.
        shapes: the full shape of each canonical tensor found.
        overrides: values the user set, which win.
        path: the checkpoint, for messages.

    Raises:
        CheckpointError: a tensor is missing, left over, or of another shape than the configuration says.
        ConfigError: a value is nowhere to be found.
    """
    refuse_unsupported(args, path)
    for name in ("embedding.word.weight", "layers.0.mlp.down.weight", "layers.0.attention.qkv.weight"):
        if name not in shapes:
            raise CheckpointError(f"`{path}` has no tensor `{name}`", "it is incomplete, or no GPT or BERT")
    for name, shape in shapes.items():
        matrix = name.endswith(".weight") and "norm" not in name
        if len(shape) != 1 + matrix or 0 in shape:
            raise CheckpointError(f"`{path}`: `{name}` has shape {list(shape)}, which no such weight has", _WRONG)
    take = Gather(args, overrides, path)
    _put_sizes(take, shapes)
    _put_choices(take, shapes)
    _put_positions(take, shapes)
    _put_heads(take, shapes)
    _put_training(take)
    config = take.config()
    refuse_more_than_stored(config, shapes, path)
    check_shapes(config, shapes, path)
    return config


def _put_sizes(take: Gather, shapes: Shapes) -> None:
    rows, hidden = shapes["embedding.word.weight"]
    layers = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))
    take.put("layers", "num_layers", otherwise=(layers, "shapes"))
    take.put("hidden", "hidden_size", otherwise=(hidden, "shapes"))
    take.put("heads", "num_attention_heads")
    # a head count set by hand makes the width that the file says, which went with another count, meaningless
    take.put("head_dim", *(() if "heads" in take.overrides else ("kv_channels",)))
    take.put("ffn", "ffn_hidden_size", otherwise=(shapes["layers.0.mlp.down.weight"][1], "shapes"))
    take.put("padded_vocab", otherwise=(rows, "shapes"))
    take.put("vocab", "vocab_size", otherwise=(rows, UNKNOWN_VOCAB))
    take.require("heads", head_candidates(hidden))
    grouped = ("num_query_groups",) if take.args.get("group_query_attention") else ()
    take.put("kv_heads", *grouped, otherwise=(_kv_heads(take, shapes), "shapes"))


def _kv_heads(take: Gather, shapes: Shapes) -> int | None:
    """Return how many key-value heads the rows of the QKV weight leave beside the query heads."""
    heads, hidden = take.values["heads"], take.values["hidden"]
    width = take.values.get("head_dim") or (hidden // heads if heads > 0 else 0)
    spare = shapes["layers.0.attention.qkv.weight"][0] - heads * width
    return spare // (2 * width) if width > 0 and spare > 0 and spare % (2 * width) == 0 else None


def _put_choices(take: Gather, shapes: Shapes) -> None:
    bert = any(name.startswith(("embedding.tokentype.", "lm_head.", "binary_head.")) for name in shapes)
    take.put("family", kind=str, otherwise=("bert" if bert else "gpt", "tensors"))
    take.put("swiglu", "swiglu", kind=bool, otherwise=("layers.0.mlp.gate.weight" in shapes, "shapes"))
    if not take.values["swiglu"]:
        take.put("gelu", kind=str, otherwise=gelu_of(take.args) or (None, ""))
        take.require("gelu", ["tanh", "erf"])
    norms = {"LayerNorm": "layernorm", "RMSNorm": "rmsnorm"}
    named = take.args.get("normalization")
    plain = any(name.endswith("attention_norm.bias") for name in shapes)
    seen = ("layernorm" if plain else "rmsnorm", "tensors")
    take.put("norm", kind=str, otherwise=(norms[named], "args.normalization") if named else seen)
    take.put("post_norm", "apply_residual_connection_post_layernorm", kind=bool, otherwise=(False, "default"))
    take.put("qk_norm", "qk_layernorm", kind=bool, otherwise=(_any(shapes, "attention.query_norm.weight"), "tensors"))
    take.put("linear_bias", "add_bias_linear", kind=bool, otherwise=(_any(shapes, "attention.out.bias"), "tensors"))
    rows = (_any(shapes, "attention.qkv.bias"), "tensors")
    if take.args.get("add_qkv_bias"):
        rows = (True, "args.add_qkv_bias")
    elif "add_bias_linear" in take.args:
        rows = (take.values["linear_bias"], take.origins["linear_bias"])
    take.put("qkv_bias", kind=bool, otherwise=rows)
    take.put("tied", kind=bool, otherwise=_tied(take.args, shapes))


def _any(shapes: Shapes, ending: str) -> bool:
    return any(name.endswith(ending) for name in shapes)


def _put_positions(take: Gather, shapes: Shapes) -> None:
    table = shapes.get("embedding.position.weight")
    kind = take.args.get("position_embedding_type")
    named = (kind == "rope", "args.position_embedding_type") if kind else None
    if take.args.get("use_rotary_position_embeddings"):
        named = (True, "args.use_rotary_position_embeddings")
    take.put("rope", kind=bool, otherwise=named or ((False, "tensors") if table else (None, "")))
    take.require("rope", ["true"])
    if not take.values["rope"]:
        take.put("context", otherwise=(table[0] if table else None, "shapes"))
    else:
        take.put("context", "max_position_embeddings", "seq_length")
        _put_rope(take)
    take.require("context", [2048, 4096])


def _put_rope(take: Gather) -> None:
    number = int | float
    take.put("rope_base", "rotary_base", kind=number, otherwise=(10000.0, "default"))
    take.put("rope_percent", "rotary_percent", kind=number, otherwise=(1.0, "default"))
    take.put("rope_interleaved", "rotary_interleaved", kind=bool, otherwise=(False, "default"))
    stretch = take.args.get("rotary_seq_len_interpolation_factor")
    llama = take.args.get("use_rope_scaling")
    if stretch and llama:
        raise CheckpointError(
            f"`{take.path}` stretches rotary positions twice (`rotary_seq_len_interpolation_factor`, "
            "`use_rope_scaling`), which this version cannot compute",
            SUPPORTED,
        )
    named = ("llama3", "args.use_rope_scaling") if llama else ("none", "default")
    named = ("linear", "args.rotary_seq_len_interpolation_factor") if stretch else named
    take.put("rope_scaling", kind=str, otherwise=named)
    if take.values["rope_scaling"] == "linear":
        take.put("rope_factor", "rotary_seq_len_interpolation_factor", kind=number)
    elif take.values["rope_scaling"] == "llama3":
        take.put("rope_factor", "rope_scaling_factor", kind=number, otherwise=(8.0, "default"))
    for name in ("rope_low", "rope_high", "rope_original"):
        take.put(name)


def _put_heads(take: Gather, shapes: Shapes) -> None:
    """Set what the tensors outside the blocks say: token types, and the heads that are there."""
    take.put("tokentypes", otherwise=(shapes.get("embedding.tokentype.weight", (0,))[0], "tensors"))
    take.put("lm_head", kind=bool, otherwise=(_any(shapes, "lm_head.dense.weight"), "tensors"))
    if take.values["lm_head"]:
        openai = bool(take.args.get("openai_gelu"))
        source = "args.openai_gelu" if "openai_gelu" in take.args else "default"
        take.put("lm_head_gelu", kind=str, otherwise=("tanh" if openai else "erf", source))
    for name, tensor in (
        ("pooler", "pooler.dense.weight"),
        ("binary_head", "binary_head.weight"),
        ("multichoice_head", "multichoice_head.weight"),
        ("span_head", "span_head.weight"),
    ):
        take.put(name, kind=bool, otherwise=(_any(shapes, tensor), "tensors"))
    take.put("classes", otherwise=(shapes.get("classification_head.weight", (0,))[0], "tensors"))


def _put_training(take: Gather) -> None:
    number = int | float
    take.put("eps", "norm_epsilon", "layernorm_epsilon", kind=number, otherwise=(1e-5, "default"))
    take.put("dropout", "hidden_dropout", kind=number, otherwise=(0.1, "default"))
    take.put("attention_dropout", "attention_dropout", kind=number, otherwise=(0.1, "default"))
    take.put("init_std", "init_method_std", kind=number, otherwise=(0.02, "default"))


def _tied(args: Mapping[str, Any], shapes: Shapes) -> tuple[bool, str]:
    name = "untie_embeddings_and_output_weights"
    return (not args[name], f"args.{name}") if args.get(name) is not None else ("head.weight" not in shapes, "tensors")


def refuse_more_than_stored(config: ModelConfig, shapes: Shapes, path: Path) -> None:
    """Refuse counts that no tensor could bear out, before anything is enumerated up to them."""
    widest = max((extent for shape in shapes.values() for extent in shape), default=0)
    for name, count, limit in (
        ("layers", config.layers, len(shapes)),
        ("heads", config.heads, widest),
        ("kv_heads", config.kv_heads, widest),
        ("classes", config.classes, widest),
    ):
        if count > limit:
            raise CheckpointError(f"`{path}` says it has {count} {name}, its tensors leave room for {limit}", _WRONG)


def check_shapes(config: ModelConfig, shapes: Shapes, path: Path) -> None:
    """Refuse tensors that are missing, left over, or of another shape than the configuration says."""
    expected = config.shapes()
    missing = [name for name in expected if name not in shapes]
    surplus = [name for name in shapes if name not in expected]
    if missing or surplus:
        parts = [f"missing {_some(missing)}"] if missing else []
        parts += [f"left over {_some(surplus)}"] if surplus else []
        raise CheckpointError(f"`{path}` does not hold the model its arguments describe: {'; '.join(parts)}", _WRONG)
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise CheckpointError(
                f"`{path}`: tensor `{name}` has shape {list(shapes[name])}, the configuration says {list(shape)}",
                _WRONG,
            )


def _some(names: list[str]) -> str:
    listed = ", ".join(f"`{name}`" for name in names[:4])
    return f"{listed} and {len(names) - 4} more" if len(names) > 4 else listed
