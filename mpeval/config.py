"""What a model is: sizes and choices, checked once, with the origin of every value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

from mpeval.errors import ConfigError, suggest

Gelu = Literal["erf", "tanh"]
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A transformer's architecture.  Sizes are those of the whole model, never of a shard."""

    layers: int
    """Number of transformer blocks."""
    hidden: int
    """Width of the residual stream."""
    heads: int
    """Attention heads; divides `hidden`."""
    ffn: int
    """Width of the feed-forward layer."""
    context: int
    """Rows of the position table: the longest input, in tokens."""
    vocab: int
    """True vocabulary: the tokens that a tokenizer can produce."""
    padded_vocab: int
    """Rows of the token table, with the padding that Megatron appends."""
    gelu: Gelu
    """`erf` (exact) or `tanh` (the approximation of GPT-2 and of Megatron's fused kernel)."""
    eps: float = 1e-5
    """Epsilon of layer norm."""
    tied: bool = True
    """Whether the output layer is the token table."""
    dropout: float = 0.1
    """Dropout of embeddings and of each branch's output, in training."""
    attention_dropout: float = 0.1
    """Dropout of attention probabilities, in training."""
    init_std: float = 0.02
    """Standard deviation of new weights."""
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Where each value came from: `args.num_layers`, `shapes`, `--set`, `default`."""

    def __post_init__(self) -> None:
        """Refuse sizes that no model can have."""
        for name in ("layers", "hidden", "heads", "ffn", "context", "vocab", "padded_vocab"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"`{name}` must be at least 1, not {getattr(self, name)}",
                    "a `--set` value is wrong, or no model is stored",
                )
        if self.hidden % self.heads:
            raise ConfigError(
                f"hidden size {self.hidden} is not divisible by {self.heads} heads",
                f"give one that divides it by `--set heads=N`; usual: {_listed(head_candidates(self.hidden))}",
            )
        if self.vocab > self.padded_vocab:
            raise ConfigError(
                f"vocabulary {self.vocab} is larger than its table of {self.padded_vocab} rows",
                "a `--set` value is wrong, or the table was cut",
            )
        if self.gelu not in get_args(Gelu):
            raise ConfigError(f"unknown `gelu`: `{self.gelu}`", "known: `erf`, `tanh`")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the full (unsharded) shape of every parameter, in model order."""
        h, f = self.hidden, self.ffn
        shapes: dict[str, tuple[int, ...]] = {
            "embedding.word.weight": (self.padded_vocab, h),
            "embedding.position.weight": (self.context, h),
        }
        for layer in range(self.layers):
            for name, shape in (
                ("attention_norm.weight", (h,)),
                ("attention_norm.bias", (h,)),
                ("attention.qkv.weight", (3 * h, h)),
                ("attention.qkv.bias", (3 * h,)),
                ("attention.out.weight", (h, h)),
                ("attention.out.bias", (h,)),
                ("mlp_norm.weight", (h,)),
                ("mlp_norm.bias", (h,)),
                ("mlp.up.weight", (f, h)),
                ("mlp.up.bias", (f,)),
                ("mlp.down.weight", (h, f)),
                ("mlp.down.bias", (h,)),
            ):
                shapes[f"layers.{layer}.{name}"] = shape
        shapes["final_norm.weight"] = shapes["final_norm.bias"] = (h,)
        if not self.tied:
            shapes["head.weight"] = (self.padded_vocab, h)
        return shapes

    def parameters(self) -> int:
        """Count the parameters of the whole model, padding rows included."""
        total = 0
        for shape in self.shapes().values():
            size = 1
            for extent in shape:
                size *= extent
            total += size
        return total

    def check_ranks(self, tp: int) -> None:
        """Refuse a tensor-parallel size that cannot cut this model."""
        for what, size in (("heads", self.heads), ("ffn", self.ffn)):
            if size % tp:
                fits = [n for n in range(1, self.heads + 1) if self.heads % n == 0 and self.ffn % n == 0]
                raise ConfigError(
                    f"tensor-parallel size {tp} does not divide the model's {what} {size}",
                    f"sizes that fit: {_listed(fits)}",
                )

    def changed(self, origin: str, **values: Any) -> ModelConfig:
        """Return a copy with `values` replaced and their origin recorded."""
        return replace(self, **values, origins={**self.origins, **dict.fromkeys(values, origin)})


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def head_candidates(hidden: int) -> list[int]:
    """Return head counts that give the usual head widths, best known first."""
    return [hidden // width for width in (64, 96, 128, 80, 32, 16) if hidden % width == 0 and hidden >= width]


def parse_overrides(settings: list[str]) -> dict[str, Any]:
    """Turn `["heads=16", "gelu=tanh"]` into typed values of `ModelConfig`; unknown names are errors."""
    known = {item.name: item.type for item in fields(ModelConfig) if item.name != "origins"}
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in known:
            raise ConfigError(f"`--set {setting}` is not NAME=VALUE of a known name", suggest(name, list(known)))
        values[name] = _typed(name, text, str(known[name]))
    return values


def _typed(name: str, text: str, kind: str) -> int | float | bool | str:
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        return int(text) if kind == "int" else float(text) if kind == "float" else text
    except (ValueError, KeyError):
        example = {"int": "16", "float": "1e-5", "bool": "true"}[kind]
        raise ConfigError(
            f"`--set {name}={text}`: `{text}` is not a value of type {kind}", f"e.g. `--set {name}={example}`"
        ) from None
