"""A recipe: what to train and how, as a TOML file says it and `--set` changes it; checked once."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mpeval.config import DTYPES, ModelConfig
from mpeval.errors import ConfigError, UsageError, suggest

SCHEDULES = ("cosine", "linear", "constant")
_FREE = "steps save_every evaluate_every evaluate_batches micro_batch recompute shard_optimizer bucket_megabytes"
FREE = frozenset(_FREE.split(" "))
"""Settings that a resumed run may change: what was computed so far does not depend on them."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained: batch, optimizer, schedule, precision, and how often to save and evaluate."""

    steps: int
    """Optimizer steps of the whole run."""
    batch: int
    """Sequences per optimizer step, over all data-parallel ranks and micro-batches."""
    micro_batch: int = 0
    """Sequences per forward pass on one data-parallel rank (0: all of the rank's share at once)."""
    sequence: int = 0
    """Tokens per sequence (0: the model's context)."""
    lr: float
    """Highest learning rate."""
    min_lr: float = 0.0
    """Learning rate after the decay."""
    warmup_steps: int = 0
    """Steps in which the learning rate rises linearly from 0."""
    decay_steps: int = 0
    """Step at which the decay ends, counted from the start (0: the last step)."""
    schedule: str = "cosine"
    """Decay after the warm-up: `cosine`, `linear` or `constant`."""
    weight_decay: float = 0.01
    """Decoupled weight decay, of matrices only: biases and norms have none."""
    beta1: float = 0.9
    """Adam's decay of the first moment."""
    beta2: float = 0.999
    """Adam's decay of the second moment."""
    adam_eps: float = 1e-8
    """Adam's epsilon."""
    clip: float = 1.0
    """Largest global gradient norm (0: no clipping)."""
    dtype: str = "float32"
    """Dtype of weights in forward and backward; below float32 the optimizer keeps float32 copies."""
    loss_scale: float = 65536.0
    """float16: the first dynamic loss scale."""
    loss_scale_window: int = 1000
    """float16: steps without overflow after which the scale doubles."""
    seed: int = 1234
    """Seed of weights, sample order, masking and dropout."""
    split: str = "969,30,1"
    """Shares of the documents for training, validation and test."""
    mask_share: float = 0.15
    """BERT: share of tokens that are predicted."""
    mask_ngrams: int = 3
    """BERT: longest run of whole words masked together."""
    short_share: float = 0.1
    """BERT: share of samples that are shorter than the sequence on purpose."""
    save_every: int = 0
    """Steps between checkpoints (0: only at the end)."""
    evaluate_every: int = 0
    """Steps between losses on the validation split (0: none)."""
    evaluate_batches: int = 8
    """Batches of each such loss."""
    recompute: bool = False
    """Whether each layer's activations are computed again in the backward pass and not kept."""
    shard_optimizer: bool = False
    """Whether optimizer state is shared out over the data-parallel ranks."""
    bucket_megabytes: float = 25.0
    """Size of the gradient buckets that are summed while the backward pass goes on."""
    vocab_divisor: int = 128
    """The token table has a multiple of this x tp rows."""

    def __post_init__(self) -> None:
        """Refuse what no run can have."""
        at_least = {"steps": 1, "batch": 1, "evaluate_batches": 1, "mask_ngrams": 1, "vocab_divisor": 1}
        at_least |= {"loss_scale_window": 1}
        at_least |= dict.fromkeys(("micro_batch", "sequence", "warmup_steps", "decay_steps", "save_every"), 0)
        at_least |= dict.fromkeys(("evaluate_every", "weight_decay", "clip", "min_lr", "short_share", "seed"), 0)
        for name, low in at_least.items():
            _need(name, getattr(self, name), getattr(self, name) >= low, f"at least {low}")
        for name in ("lr", "adam_eps", "loss_scale", "bucket_megabytes", "mask_share"):
            _need(name, getattr(self, name), 0 < getattr(self, name) < math.inf, "above 0 and finite")
        for name in ("beta1", "beta2", "mask_share", "short_share"):
            _need(name, getattr(self, name), 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        _need("schedule", self.schedule, self.schedule in SCHEDULES, f"one of {', '.join(SCHEDULES)}")
        _need("dtype", self.dtype, self.dtype in DTYPES, f"one of {', '.join(DTYPES)}")
        _need("min_lr", self.min_lr, self.min_lr <= self.lr, f"at most lr {self.lr:g}")
        end = self.decay_steps or self.warmup_steps
        _need("warmup_steps", self.warmup_steps, self.warmup_steps <= end, f"at most decay_steps {end}")

    def lr_at(self, step: int) -> float:
        """Return the learning rate of optimizer step `step`, counted from 1 (section 5 of arXiv 1909.08053).

        A linear rise over `warmup_steps`, then one cosine half-wave or a line down to `min_lr` at `decay_steps`.
        """
        if step <= self.warmup_steps:
            return self.lr * step / self.warmup_steps
        if self.schedule == "constant":
            return self.lr
        span = (self.decay_steps or self.steps) - self.warmup_steps
        share = min(1.0, (step - self.warmup_steps) / span) if span > 0 else 1.0
        left = 0.5 * (1.0 + math.cos(math.pi * share)) if self.schedule == "cosine" else 1.0 - share
        return self.min_lr + (self.lr - self.min_lr) * left


MODEL_NAMES = tuple(
    item.name for item in fields(ModelConfig) if item.name not in {"vocab", "padded_vocab", "origins", "classes"}
)
"""What a recipe may say about a model; the vocabulary is the tokenizer's."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A model without its vocabulary, and how to train it."""

    name: str
    training: Training
    model: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ModelConfig`; `ffn` may be left out (4 x hidden)."""
    description: str = ""

    def config(self, vocab: int, tp: int = 1) -> ModelConfig:
        """Return the model for a tokenizer of `vocab` tokens, its table padded as Megatron pads it for `tp` ranks."""
        multiple = self.training.vocab_divisor * tp
        rows = -(-vocab // multiple) * multiple
        config = ModelConfig(**self.model, vocab=vocab, padded_vocab=rows, origins=dict.fromkeys(self.model, self.name))
        _need("sequence", self.training.sequence, self.sequence <= config.context, f"at most {config.context}")
        return config

    @property
    def family(self) -> str:
        """`gpt` or `bert`."""
        return str(self.model.get("family", "gpt"))

    @property
    def sequence(self) -> int:
        """Tokens per sequence."""
        return self.training.sequence or int(self.model["context"])

    def values(self) -> dict[str, Any]:
        """Return every setting by name."""
        return {**self.model, **asdict(self.training)}

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide what is computed: a run may not change them when it goes on.

        Of `decay_steps` its meaning counts: where it is left to `steps`, another number of steps is another schedule.
        """
        values = {name: value for name, value in self.values().items() if name not in FREE}
        return {**values, "decay_steps": self.training.decay_steps or self.training.steps}

    def micro_batch(self, dp: int) -> int:
        """Return the sequences per forward pass on each of `dp` data-parallel ranks.

        Raises:
            ConfigError: the batch cannot be cut so.
        """
        batch = self.training.batch
        _need("batch", batch, batch % dp == 0, f"a multiple of the {dp} data-parallel ranks")
        size = self.training.micro_batch or batch // dp
        _need("micro_batch", size, (batch // dp) % size == 0, f"a divisor of the {batch // dp} sequences of a rank")
        return size

    def toml(self) -> str:
        """Return the recipe as a file that `read_recipe` reads to the same recipe."""
        lines = [f"name = {_literal(self.name)}", f"description = {_literal(self.description)}", "", "[model]"]
        lines += [f"{name} = {_literal(value)}" for name, value in self.model.items()]
        lines += ["", "[training]"]
        lines += [f"{name} = {_literal(value)}" for name, value in asdict(self.training).items()]
        return "\n".join(lines) + "\n"


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return names_in(_folder())


def _folder() -> Path:
    return Path(__file__).resolve().parent / "recipes"


def find_recipe(name: str, settings: Iterable[str] = ()) -> Recipe:
    """Return the recipe of a name or TOML path, with `NAME=VALUE` settings applied.

    Raises:
        UsageError: no such recipe.
        ConfigError: an unknown or impossible setting.
    """
    return changed(read_recipe(recipe_file(name, _folder(), "recipe")), settings)


def recipe_file(name: str, folder: Path, kind: str) -> Path:
    """Return the file of a recipe: `name` is that of one in `folder`, or the path of a TOML file.

    Raises:
        UsageError: there is no such `kind` of recipe.
    """
    path, names = Path(name), names_in(folder)
    if name in names:
        path = folder / f"{name}.toml"
    elif path.suffix != ".toml":
        raise UsageError(f"no {kind} `{name}`", f"{suggest(name, names)} (or the path of a TOML file)")
    if not path.is_file():
        raise UsageError(f"no such recipe: `{path}` does not exist", f"recipes: {', '.join(names)}")
    return path


def names_in(folder: Path) -> list[str]:
    """Return the names of the recipes in a folder."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def read_recipe(path: Path) -> Recipe:
    """Read a recipe's file; unknown keys are errors that suggest the nearest known one."""
    raw = read_tables(path, MODEL_NAMES, TRAINING_NAMES)
    values = {**raw["model"], **raw["training"]}
    typed = {name: checked(name, value, f"the recipe `{path}`") for name, value in values.items()}
    return _made(str(raw.get("name", path.stem)), str(raw.get("description", "")), typed, str(path))


def read_tables(path: Path, model_names: Sequence[str], training_names: Sequence[str]) -> dict[str, Any]:
    """Read a recipe's file and check that its tables `model` and `training` hold known names only."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the recipe `{path}` is no TOML: {error}", "compare it with the recipes in `mpeval/recipes`"
        ) from error
    for key in raw.keys() - {"name", "description", "model", "training"}:
        raise ConfigError(f"the recipe `{path}` has an unknown key `{key}`", suggest(key, ["model", "training"]))
    for key in ("model", "training"):
        if not isinstance(raw.get(key, {}), dict):
            raise ConfigError(f"the recipe `{path}`: `{key}` is {raw[key]!r}, not a table", f"write it as `[{key}]`")
    for table, known in (("model", model_names), ("training", training_names)):
        for key in raw.setdefault(table, {}):
            if key not in known:
                raise ConfigError(f"the recipe `{path}` has an unknown `{table}.{key}`", suggest(key, list(known)))
    return raw


def changed(recipe: Recipe, settings: Iterable[str]) -> Recipe:
    """Return the recipe with `NAME=VALUE` settings applied; unknown names are errors with a suggestion."""
    values = parsed(settings)
    if not values:
        return recipe
    merged = {**recipe.model, **asdict(recipe.training), **values}
    if "hidden" in values and "ffn" not in values and recipe.model["ffn"] == 4 * recipe.model["hidden"]:
        merged.pop("ffn")
    if merged.get("swiglu") and "gelu" not in values:
        merged.pop("gelu", None)
    return _made(recipe.name, recipe.description, merged, "`--set`")


def _made(name: str, description: str, values: Mapping[str, Any], where: str) -> Recipe:
    model = {key: values[key] for key in MODEL_NAMES if key in values}
    missing = [key for key in ("layers", "hidden", "heads", "context") if key not in model]
    missing += [key for key in ("steps", "batch", "lr") if key not in values]
    if missing:
        raise ConfigError(
            f"{where} does not say {', '.join(f'`{key}`' for key in missing)}",
            "a recipe has [model] layers, hidden, heads, context and [training] steps, batch, lr",
        )
    model.setdefault("ffn", 4 * model["hidden"])
    if model.get("family") == "bert":
        model = {**BERT, **model}
    if not model.get("swiglu"):
        model.setdefault("gelu", "tanh")
    training = Training(**{key: values[key] for key in TRAINING_NAMES if key in values})
    recipe = Recipe(name=name, description=description, model=model, training=training)
    recipe.config(vocab=max(2, int(training.vocab_divisor)))
    return recipe


BERT: dict[str, Any] = {"tokentypes": 2, "lm_head": True, "pooler": True, "binary_head": True}
"""What a BERT's recipe need not say: token types and both pretraining heads."""
_TYPES = {item.name: str(item.type) for item in fields(ModelConfig) if item.name in MODEL_NAMES}
TRAINING_NAMES = tuple(item.name for item in fields(Training))
_TYPES |= {item.name: str(item.type) for item in fields(Training)}


def _kind(name: str, types: Mapping[str, str]) -> str:
    return types[name] if types[name] in {"int", "float", "bool"} else "str"


def checked(name: str, value: Any, where: str, types: Mapping[str, str] = _TYPES) -> Any:
    """Return a TOML value if it is of the setting's type; a whole number may stand for a float."""
    kind = _kind(name, types)
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value).__name__ != kind:
        raise ConfigError(f"{where}: `{name}` is {value!r}, not a value of type {kind}", f"e.g. {_example(name, kind)}")
    return value


def parsed(settings: Iterable[str], types: Mapping[str, str] = _TYPES) -> dict[str, Any]:
    """Return the values of `NAME=VALUE` settings; unknown names are errors with a suggestion."""
    values: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip().removeprefix("model.").removeprefix("training.")
        if not equals or name not in types:
            raise ConfigError(f"`--set {setting}` is not NAME=VALUE of a known name", suggest(name, list(types)))
        values[name] = _parsed(name, text.strip(), types)
    return values


def _parsed(name: str, text: str, types: Mapping[str, str]) -> Any:
    kind = _kind(name, types)
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text.lower()]
        return int(text.replace("_", "")) if kind == "int" else float(text) if kind == "float" else text
    except (ValueError, KeyError):
        hint = f"e.g. `--set {_example(name, kind).replace(' ', '')}`"
        raise ConfigError(f"`--set {name}={text}`: `{text}` is not a value of type {kind}", hint) from None


def _example(name: str, kind: str) -> str:
    return f"{name} = {({'int': '16', 'float': '1e-4', 'bool': 'true'}).get(kind, SCHEDULES[0])}"


def _literal(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else repr(value)


def _need(name: str, value: Any, holds: bool, what: str) -> None:
    if not holds:
        raise ConfigError(f"`{name}` must be {what}, not {value}", f"give another by `--set {name}=...`")
