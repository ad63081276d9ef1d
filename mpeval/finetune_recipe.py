"""A finetuning recipe: how long and how fast to train on a task's questions, whatever the pretrained model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from mpeval.config import ModelConfig
from mpeval.errors import ConfigError
from mpeval.recipe import (
    MODEL_NAMES,
    TRAINING_NAMES,
    Recipe,
    Training,
    checked,
    names_in,
    parsed,
    read_tables,
    recipe_file,
)

NOT_USED = frozenset(
    {"micro_batch", "sequence", "split", "mask_share", "mask_ngrams", "short_share", "evaluate_every"}
    | {"evaluate_batches", "vocab_divisor", "warmup_steps", "decay_steps"}
)
"""Settings of pretraining that say nothing here; a file may hold their defaults, as a run's own `recipe.toml` does."""
DROPOUTS = ("dropout", "attention_dropout")
_HEADS = frozenset({"lm_head", "binary_head", "multichoice_head", "span_head", "pooler", "tokentypes", "init_std"})
SIZES = ((200e6, "small"), (800e6, "336m"), (2.5e9, "1.3b"), (float("inf"), "3.9b"))
"""Up to how many parameters of a model which of a task's recipes is the default."""


@dataclass(frozen=True, kw_only=True)
class FinetuneRecipe:
    """How to finetune: what a file says and `--set` changes, before model and questions are known."""

    name: str
    description: str = ""
    epochs: int = 0
    """Passes over the training questions; `steps` above 0 end the run there instead."""
    warmup_share: float = 0.0
    """Share of all steps in which the learning rate rises linearly from 0."""
    micro_tokens: int = 0
    """Tokens per forward pass on one data-parallel rank, padding included (0: what suits the device)."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Dropout rates to finetune with; whatever else of a model is given must be the checkpoint's."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `Training`."""

    def seeded(self, offset: int) -> FinetuneRecipe:
        """Return the recipe with the seed that comes `offset` after its own."""
        seed = int(self.training.get("seed", Training.seed)) + offset
        return replace(self, training={**self.training, "seed": seed})

    def config(self, pretrained: ModelConfig) -> ModelConfig:
        """Return the pretrained model with this recipe's dropout.

        Raises:
            ConfigError: the recipe is for another model.
        """
        for name, value in self.model.items():
            if name not in {*DROPOUTS, *_HEADS} and getattr(pretrained, name) != value:
                raise ConfigError(
                    f"the recipe `{self.name}` is for a model with {name} {value}, the checkpoint's is "
                    f"{getattr(pretrained, name)}",
                    "give another by `--recipe`; one without [model] fits every checkpoint",
                )
        return pretrained.changed(self.name, **{name: self.model[name] for name in DROPOUTS if name in self.model})

    def resolved(self, config: ModelConfig, questions: int) -> Recipe:
        """Return what to do in steps, for a model and so many training questions.

        Raises:
            ConfigError: no step comes out of it.
        """
        batch = int(self.training["batch"])
        if questions < batch:
            raise ConfigError(
                f"{questions} training questions do not fill a batch of {batch}", "give a smaller one: `--set batch=N`"
            )
        steps = int(self.training.get("steps", 0)) or self.epochs * (questions // batch)
        values = {**self.training, "steps": steps, "warmup_steps": round(steps * self.warmup_share)}
        model = {name: getattr(config, name) for name in MODEL_NAMES}
        return Recipe(name=self.name, description=self.description, model=model, training=Training(**values))


_OWN = {item.name: str(item.type) for item in fields(FinetuneRecipe) if item.type in {"int", "float"}}
_TYPES = {
    **{item.name: str(item.type) for item in fields(ModelConfig) if item.name in MODEL_NAMES},
    **{item.name: str(item.type) for item in fields(Training)},
    **_OWN,
}
SETTINGS = tuple(name for name in _TYPES if name not in NOT_USED and (name not in MODEL_NAMES or name in DROPOUTS))
"""What `--set` may change."""


def finetune_recipe_names() -> list[str]:
    """Return the names of the finetuning recipes that come with the package."""
    return names_in(_folder())


def _folder() -> Path:
    return Path(__file__).resolve().parent / "recipes" / "finetune"


def default_recipe(protocol: str, parameters: int) -> str:
    """Return the name of the recipe for a model of so many parameters: the protocol's own, or its task's."""
    size = next(name for most, name in SIZES if parameters < most)
    own = f"{protocol.replace('/', '-')}-{size}"
    return own if own in finetune_recipe_names() else f"{protocol.partition('/')[0]}-{size}"


def find_finetune_recipe(name: str, settings: Iterable[str] = ()) -> FinetuneRecipe:
    """Return the finetuning recipe of a name or TOML path, with `NAME=VALUE` settings applied.

    Raises:
        UsageError: no such recipe.
        ConfigError: an unknown or impossible setting.
    """
    recipe = _read(recipe_file(name, _folder(), "finetuning recipe"))
    changes = parsed(settings, {key: _TYPES[key] for key in SETTINGS})
    return _made({**_flat(recipe), **changes}, recipe.name, recipe.description, "`--set`") if changes else recipe


def _read(path: Path) -> FinetuneRecipe:
    raw = read_tables(path, MODEL_NAMES, [*TRAINING_NAMES, *_OWN])
    where = f"the recipe `{path}`"
    values = {key: checked(key, value, where, _TYPES) for key, value in {**raw["model"], **raw["training"]}.items()}
    if values.get("steps") and "warmup_share" not in values:  # a run's own recipe says it in steps
        values["warmup_share"] = values.pop("warmup_steps", 0) / values["steps"]
    defaults = {item.name: item.default for item in fields(Training)}
    for key in NOT_USED & values.keys():
        if values.pop(key) != defaults[key]:
            raise ConfigError(f"{where}: `{key}` says nothing about finetuning", "remove it")
    return _made(values, str(raw.get("name", path.stem)), str(raw.get("description", "")), where)


def _flat(recipe: FinetuneRecipe) -> dict[str, Any]:
    return {**recipe.model, **recipe.training, **{name: getattr(recipe, name) for name in _OWN}}


def _made(values: Mapping[str, Any], name: str, description: str, where: str) -> FinetuneRecipe:
    missing = [key for key in ("batch", "lr") if key not in values]
    missing += [] if values.get("epochs") or values.get("steps") else ["epochs"]
    if missing:
        raise ConfigError(
            f"{where} does not say {', '.join(f'`{key}`' for key in missing)}",
            "a finetuning recipe has [training] epochs, batch, lr",
        )
    for key, low, high in (("epochs", 0, float("inf")), ("micro_tokens", 0, float("inf")), ("warmup_share", 0, 1)):
        if not low <= values.get(key, 0) <= high:
            raise ConfigError(f"{where}: `{key}` cannot be {values[key]}", f"give another by `--set {key}=...`")
    recipe = FinetuneRecipe(
        name=name,
        description=description,
        **{key: values[key] for key in _OWN if key in values},
        model={key: values[key] for key in MODEL_NAMES if key in values},
        training={key: values[key] for key in values if key in TRAINING_NAMES},
    )
    Training(**{**recipe.training, "steps": max(1, int(recipe.training.get("steps", 0)))})  # refuses what cannot be
    return recipe
