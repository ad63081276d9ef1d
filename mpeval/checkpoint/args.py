"""From what Megatron pickled as `args`, the tensors' shapes and the user's settings to a `ModelConfig`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpeval.config import ModelConfig, head_candidates
from mpeval.errors import CheckpointError, ConfigError

SUPPORTED = "supported: GPT-2 as in the Megatron-LM paper, with learned positions, layer norm and GELU"
UNSUPPORTED: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("num_experts", (None, 0), "mixture of experts"),
    ("multi_latent_attention", (None, False), "multi-latent attention"),
    ("swiglu", (None, False), "SwiGLU"),
    ("squared_relu", (None, False), "squared ReLU"),
    ("quick_gelu", (None, False), "quick GELU"),
    ("normalization", (None, "LayerNorm"), "RMSNorm"),
    ("apply_layernorm_1p", (None, False), "layer norm with 1 + weight"),
    ("qk_layernorm", (None, False), "QK norm"),
    ("position_embedding_type", (None, "learned_absolute"), "other than learned positions"),
    ("add_bias_linear", (None, True), "linear layers without bias"),
    ("apply_residual_connection_post_layernorm", (None, False), "post-layer-norm"),
    ("virtual_pipeline_model_parallel_size", (None, 1), "virtual pipeline chunks"),
)
"""(argument, values this reader handles, what any other value means)."""


_WRONG = "a shard is missing or belongs to another model, or a `--set` value is wrong"


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
                f"`{path}` says `{spelling}` is `{value}`, which is no {getattr(kind, '__name__', 'number')}",
                f"the file's arguments are damaged; {hint}",
            )
    return None, ""


def refuse_unsupported(args: Mapping[str, Any], path: Path) -> None:
    """Refuse a model that would be computed wrongly, naming the argument that says so."""
    for name, handled, what in UNSUPPORTED:
        if args.get(name) not in handled:
            raise CheckpointError(
                f"`{path}` holds a model with {what} (`{name}` is `{args[name]}`), which this version cannot compute",
                SUPPORTED,
            )
    heads, groups = args.get("num_attention_heads"), args.get("num_query_groups")
    if args.get("group_query_attention") and groups not in {None, heads}:
        raise CheckpointError(
            f"`{path}` holds a model with grouped queries ({groups} groups of {heads} heads), which this version "
            "cannot compute",
            SUPPORTED,
        )


def gelu_of(args: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return (flavour, origin): Megatron's fused and OpenAI kernels compute tanh, everything else erf."""
    for name in ("openai_gelu", "bias_gelu_fusion"):
        if args.get(name):
            return "tanh", f"args.{name}"
    if "bias_gelu_fusion" in args:
        return "erf", "args.bias_gelu_fusion"
    return None


class _Gather:
    """Collects configuration values: the user's settings first, then the file's arguments, then shapes."""

    def __init__(self, args: Mapping[str, Any], overrides: Mapping[str, Any], path: Path) -> None:
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


def config_of(
    args: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], overrides: Mapping[str, Any], path: Path
) -> ModelConfig:
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
    for name in ("embedding.word.weight", "embedding.position.weight", "layers.0.mlp.up.weight"):
        if name not in shapes:
            raise CheckpointError(f"`{path}` has no tensor `{name}`", "it is incomplete, or no GPT-2 model")
    if len(shapes["embedding.word.weight"]) != 2:
        raise CheckpointError(f"`{path}`: `embedding.word.weight` has shape {shapes['embedding.word.weight']}", _WRONG)
    rows, hidden = shapes["embedding.word.weight"]
    layers = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("layers."))
    take = _Gather(args, overrides, path)
    number = int | float
    take.put("layers", "num_layers", otherwise=(layers, "shapes"))
    take.put("hidden", "hidden_size", otherwise=(hidden, "shapes"))
    take.put("heads", "num_attention_heads")
    take.put("ffn", "ffn_hidden_size", otherwise=(shapes["layers.0.mlp.up.weight"][0], "shapes"))
    take.put("context", otherwise=(shapes["embedding.position.weight"][0], "shapes"))
    take.put("padded_vocab", otherwise=(rows, "shapes"))
    take.put("vocab", "vocab_size", otherwise=(rows, UNKNOWN_VOCAB))
    take.put("gelu", otherwise=gelu_of(args) or (None, ""))
    take.put("eps", "norm_epsilon", "layernorm_epsilon", kind=number, otherwise=(1e-5, "default"))
    take.put("tied", otherwise=_tied(args, shapes))
    take.put("dropout", "hidden_dropout", kind=number, otherwise=(0.1, "default"))
    take.put("attention_dropout", "attention_dropout", kind=number, otherwise=(0.1, "default"))
    take.put("init_std", "init_method_std", kind=number, otherwise=(0.02, "default"))
    take.require("heads", head_candidates(hidden))
    take.require("gelu", ["tanh", "erf"])
    config = ModelConfig(**take.values, origins=take.origins)
    _check_head_width(args, config, path)
    _check_shapes(config, shapes, path)
    return config


def _tied(args: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> tuple[bool, str]:
    name = "untie_embeddings_and_output_weights"
    return (not args[name], f"args.{name}") if args.get(name) is not None else ("head.weight" not in shapes, "shapes")


UNKNOWN_VOCAB = "padded table (true size unknown)"


def _check_head_width(args: Mapping[str, Any], config: ModelConfig, path: Path) -> None:
    width = args.get("kv_channels")
    if width is not None and width * config.heads != config.hidden:
        raise CheckpointError(
            f"`{path}` has {config.heads} heads of width {width}, which do not make hidden size {config.hidden}",
            "models whose heads are wider or narrower than hidden / heads are not supported",
        )


def _check_shapes(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
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
