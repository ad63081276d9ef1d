"""What a model is: sizes and choices, checked once, with the origin of every value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, Literal, get_args

from mpeval.errors import ConfigError, suggest

Gelu = Literal["erf", "tanh"]
DTYPES = ("float32", "bfloat16", "float16")
NORMS = ("layernorm", "rmsnorm")
ROPE_SCALINGS = ("none", "linear", "llama3")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A transformer's architecture.  Sizes are those of the whole model, never of a shard.

    The defaults are GPT-2's choices, so that what differs from it is what one has to name.
    """

    layers: int
    """Number of transformer blocks."""
    hidden: int
    """Width of the residual stream."""
    heads: int
    """Attention heads."""
    ffn: int
    """Width of the feed-forward layer."""
    context: int
    """Longest input in tokens: rows of the position table, or what rotary positions were trained for."""
    vocab: int
    """True vocabulary: the tokens that a tokenizer can produce."""
    padded_vocab: int
    """Rows of the token table, with the padding that Megatron appends."""
    gelu: Gelu | None = None
    """`erf` (exact) or `tanh` (the approximation of GPT-2 and of Megatron's fused kernel); none with SwiGLU."""
    family: str = "gpt"
    """`gpt` attends to the left; `bert` to all that is not padding."""
    kv_heads: int = 0
    """Heads of keys and values, each serving heads / kv_heads query heads (0: as many as `heads`)."""
    head_dim: int = 0
    """Width of one attention head (0: hidden / heads)."""
    swiglu: bool = False
    """Whether the feed-forward layer is down(silu(gate(x)) * up(x)), arXiv 2002.05202."""
    norm: str = "layernorm"
    """`layernorm` or `rmsnorm` (arXiv 1910.07467), of all norms."""
    post_norm: bool = False
    """Whether residuals are added to a norm's output: Google BERT's original order, (a) in the paper's figure 7."""
    qk_norm: bool = False
    """Whether each head's queries and keys are normalised."""
    linear_bias: bool = True
    """Whether linear layers have biases."""
    qkv_bias: bool = True
    """Whether the QKV layer has one, which it may have alone."""
    rope: bool = False
    """Whether positions are rotations of queries and keys (arXiv 2104.09864), not a table."""
    rope_base: float = 10000.0
    """Base of the rotation's wavelengths."""
    rope_percent: float = 1.0
    """Share of each head's width that is rotated."""
    rope_interleaved: bool = False
    """Whether neighbouring features are rotated together, not features half the width apart."""
    rope_scaling: str = "none"
    """How wavelengths are stretched: `none`, `linear` or `llama3`."""
    rope_factor: float = 1.0
    """By how much."""
    rope_low: float = 1.0
    """llama3: wavelengths above rope_original / rope_low are stretched by the whole factor."""
    rope_high: float = 4.0
    """llama3: wavelengths below rope_original / rope_high are not stretched."""
    rope_original: int = 8192
    """llama3: context before stretching."""
    tokentypes: int = 0
    """BERT: rows of the token type table."""
    lm_head: bool = False
    """BERT: whether there is a masked language model head (dense, GELU, norm, tied table plus bias)."""
    lm_head_gelu: Gelu = "erf"
    """BERT: GELU of that head, exact even where Megatron's fused kernel computes tanh in the blocks."""
    pooler: bool = False
    """Whether tanh(dense(first position)) is computed, which the heads below read."""
    binary_head: bool = False
    """BERT: whether sentence order (or the next sentence) is predicted."""
    multichoice_head: bool = False
    """Whether there is a head that scores one option of a question."""
    classes: int = 0
    """Classes of a classification head; 0: there is none."""
    span_head: bool = False
    """Whether there is a head that scores each position as an answer's first and as its last; it reads no pooler."""
    eps: float = 1e-5
    """Epsilon of the norms."""
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
        """Fill in what follows from other values, and refuse what no model can have."""
        for name in ("layers", "hidden", "heads", "ffn", "context", "vocab", "padded_vocab"):
            self._need(name, getattr(self, name) >= 1, "at least 1")
        if not self.kv_heads:
            object.__setattr__(self, "kv_heads", self.heads)
        if not self.head_dim:
            self._check_division("hidden size", self.hidden, self.heads, "heads")
            object.__setattr__(self, "head_dim", self.hidden // self.heads)
        self._check_division("number of heads", self.heads, self.kv_heads, "kv_heads")
        if self.vocab > self.padded_vocab:
            raise ConfigError(
                f"vocabulary {self.vocab} is larger than its table of {self.padded_vocab} rows",
                "a `--set` value is wrong, or the table was cut",
            )
        for name, known in (
            ("gelu", (None,) if self.swiglu else get_args(Gelu)),
            ("lm_head_gelu", get_args(Gelu)),
            ("family", ("gpt", "bert")),
            ("norm", NORMS),
            ("rope_scaling", ROPE_SCALINGS),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"unknown `{name}`: `{getattr(self, name)}`", f"known: {', '.join(f'`{item}`' for item in known)}"
                )
        self._need("rope_percent", 0 < self.rope_percent <= 1, "above 0 and at most 1")
        self._need("rope_percent", not self.rope or self.rope_width % 2 == 0, "such that an even width is rotated")
        for name in ("rope_base", "rope_factor", "rope_low", "rope_high", "rope_original", "eps"):
            self._need(name, 0 < getattr(self, name) < 1e30, "above 0 and finite")
        for name in ("tokentypes", "classes"):
            self._need(name, getattr(self, name) >= 0, "at least 0")
        self._need("pooler", self.pooler or not (self.binary_head or self.multichoice_head or self.classes), "true")
        if len(self._task_heads()) > 1:
            raise ConfigError(
                f"a model has one task head, not {' and '.join(f'`{name}`' for name in self._task_heads())}",
                "keep the one that the task reads",
            )

    def _need(self, name: str, holds: bool, what: str) -> None:
        if not holds:
            raise ConfigError(
                f"`{name}` must be {what}, not {getattr(self, name)}", "a `--set` value is wrong, or no model is stored"
            )

    def _check_division(self, what: str, size: int, parts: int, name: str) -> None:
        if parts < 1 or size % parts:
            usual = f"; usual: {_listed(head_candidates(size))}" if name == "heads" else ""
            raise ConfigError(
                f"{what} {size} is not divisible by {parts} {name}",
                f"give one that divides it by `--set {name}=N`{usual}",
            )

    def _task_heads(self) -> list[str]:
        there = {"multichoice": self.multichoice_head, "classification": self.classes, "span": self.span_head}
        return [name for name, value in there.items() if value]

    @property
    def task_head(self) -> str | None:
        """The head that finetuning added: `multichoice`, `classification` or `span`."""
        return next(iter(self._task_heads()), None)

    @property
    def rope_width(self) -> int:
        """How many features of each head are rotated."""
        return int(self.head_dim * self.rope_percent)

    @property
    def qkv_rows(self) -> int:
        """Rows of the QKV weight: for each key-value head its query heads, one key and one value head."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def activation(self) -> str:
        """The feed-forward activation in words."""
        return "SwiGLU" if self.swiglu else f"GELU {self.gelu}"

    def computed(self) -> dict[str, Any]:
        """Return what decides a model's outputs: everything but padding, dropout and initialisation."""
        silent = {"padded_vocab", "dropout", "attention_dropout", "init_std", "origins"}
        return {name: value for name, value in vars(self).items() if name not in silent}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the full (unsharded) shape of every parameter, in model order."""
        return dict(_shapes(self))

    def _all_shapes(self) -> dict[str, tuple[int, ...]]:
        h = self.hidden
        shapes: dict[str, tuple[int, ...]] = {"embedding.word.weight": (self.padded_vocab, h)}
        if not self.rope:
            shapes["embedding.position.weight"] = (self.context, h)
        if self.tokentypes:
            shapes["embedding.tokentype.weight"] = (self.tokentypes, h)
        block = self._block_shapes()
        for layer in range(self.layers):
            shapes |= {f"layers.{layer}.{name}": shape for name, shape in block.items()}
        shapes |= self._norm_shapes("final_norm", h)
        if not self.tied:
            shapes["head.weight"] = (self.padded_vocab, h)
        return shapes | self._head_shapes()

    def _block_shapes(self) -> dict[str, tuple[int, ...]]:
        h, f, mixed = self.hidden, self.ffn, self.heads * self.head_dim
        shapes = self._norm_shapes("attention_norm", h)
        shapes |= _linear_shapes("attention.qkv", self.qkv_rows, h, bias=self.qkv_bias)
        if self.qk_norm:
            shapes |= self._norm_shapes("attention.query_norm", self.head_dim)
            shapes |= self._norm_shapes("attention.key_norm", self.head_dim)
        shapes |= _linear_shapes("attention.out", h, mixed, bias=self.linear_bias)
        shapes |= self._norm_shapes("mlp_norm", h)
        if self.swiglu:
            shapes |= _linear_shapes("mlp.gate", f, h, bias=self.linear_bias)
        shapes |= _linear_shapes("mlp.up", f, h, bias=self.linear_bias)
        return shapes | _linear_shapes("mlp.down", h, f, bias=self.linear_bias)

    def _head_shapes(self) -> dict[str, tuple[int, ...]]:
        h = self.hidden
        shapes: dict[str, tuple[int, ...]] = {}
        if self.lm_head:
            shapes |= _linear_shapes("lm_head.dense", h, h)
            shapes |= self._norm_shapes("lm_head.norm", h)
            shapes["lm_head.bias"] = (self.padded_vocab,)
        shapes |= _linear_shapes("pooler.dense", h, h) if self.pooler else {}
        shapes |= _linear_shapes("binary_head", 2, h) if self.binary_head else {}
        shapes |= _linear_shapes("multichoice_head", 1, h) if self.multichoice_head else {}
        shapes |= _linear_shapes("classification_head", self.classes, h) if self.classes else {}
        return shapes | (_linear_shapes("span_head", 2, h) if self.span_head else {})

    def _norm_shapes(self, name: str, width: int) -> dict[str, tuple[int, ...]]:
        weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (width,)}
        return weight if self.norm == "rmsnorm" else weight | {f"{name}.bias": (width,)}

    def parameters(self) -> int:
        """Count the parameters of the whole model, padding rows included."""
        return sum(math.prod(shape) for shape in self.shapes().values())

    def check_ranks(self, tp: int) -> None:
        """Refuse a tensor-parallel size that cannot cut this model."""
        for what, size in (("heads", self.heads), ("kv_heads", self.kv_heads), ("ffn", self.ffn)):
            if size % tp:
                fits = [n for n in range(1, self.kv_heads + 1) if self.kv_heads % n == 0 and self.ffn % n == 0]
                raise ConfigError(
                    f"tensor-parallel size {tp} does not divide the model's {what} {size}",
                    f"sizes that fit: {_listed(fits)}",
                )

    def changed(self, origin: str, **values: Any) -> ModelConfig:
        """Return a copy with `values` replaced and their origin recorded."""
        return replace(self, **values, origins={**self.origins, **dict.fromkeys(values, origin)})


@lru_cache(maxsize=8)
def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Make the shapes of a model once: writers ask for them with every tensor."""
    return config._all_shapes()


def _linear_shapes(name: str, outputs: int, inputs: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    weight: dict[str, tuple[int, ...]] = {f"{name}.weight": (outputs, inputs)}
    return weight | {f"{name}.bias": (outputs,)} if bias else weight


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def head_candidates(hidden: int) -> list[int]:
    """Return head counts that give the usual head widths, best known first."""
    return [hidden // width for width in (64, 96, 128, 80, 32, 16) if hidden % width == 0 and hidden >= width]


def parse_overrides(settings: list[str]) -> dict[str, Any]:
    """Turn `["heads=16", "gelu=tanh"]` into typed values of `ModelConfig`; unknown names are errors."""
    known = {item.name: str(item.type) for item in fields(ModelConfig) if item.name != "origins"}
    known["checkpoint_version"] = "float"  # of the file, not of the model: it decides the order of QKV rows
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or name not in known:
            raise ConfigError(f"`--set {setting}` is not NAME=VALUE of a known name", suggest(name, list(known)))
        values[name] = _typed(name, text, known[name])
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
