"""What a finetuning run needs, checked before a weight is read: checkpoint, head, recipe, tokenizer, data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from mpeval.checkpoint.open import open_checkpoint
from mpeval.checkpoint.sharded import ShardedCheckpoint
from mpeval.config import ModelConfig
from mpeval.data import Data, load_data
from mpeval.errors import ConfigError, OutputError, UsageError
from mpeval.finetune_recipe import FinetuneRecipe, default_recipe, find_finetune_recipe
from mpeval.finetuned import SEEDS_FILE
from mpeval.leaderboard.store import check_store
from mpeval.provenance import with_tokenizer
from mpeval.running import CACHE, check_output
from mpeval.tasks.base import Task
from mpeval.tasks.build import build_task
from mpeval.tasks.cards import Card, Protocol, select_fitting
from mpeval.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `mpeval finetune` was asked to do."""

    checkpoint: Path
    task: str
    output: Path
    data: Path | None = None
    recipe: str | None = None
    settings: tuple[str, ...] = ()
    tokenizer: Path | None = None
    tp: int | None = None
    dp: int | None = None
    seeds: int = 1
    init_head: bool = False
    device: str = "auto"
    record: Path | None = None
    allow_modified_data: bool = False
    quiet: bool = False
    draw: bool = True
    """Whether loss curves are drawn at the end."""
    command: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything checked before a weight is read; the same for every seed but for the recipe's seed."""

    checkpoint: ShardedCheckpoint
    config: ModelConfig
    drawn: tuple[str, ...]
    """Parameters that the checkpoint lacks and that are to be drawn."""
    recipe: FinetuneRecipe
    tokenizer: Tokenizer
    card: Card
    protocol: Protocol
    train: tuple[Task, Data]
    dev: tuple[Task, Data]


def plan(options: Options, tp: int, dp: int) -> Plan:
    """Check checkpoint headers, recipe, tokenizer and data, in that order.

    Raises:
        MpevalError: whatever is missing or does not fit.
    """
    if options.seeds < 1:
        raise UsageError(f"`--seeds {options.seeds}` leaves nothing to do", "give 1 or more")
    if options.record:
        check_store(options.record)
    _check_outputs(options)
    checkpoint = open_checkpoint(options.checkpoint)
    card, protocol = _chosen(options, checkpoint.config.family)
    checkpoint, tokenizer = with_tokenizer(checkpoint, options.tokenizer, options.checkpoint)
    config = checkpoint.config
    name = options.recipe or default_recipe(protocol.id, config.parameters())
    recipe = find_finetune_recipe(name, options.settings)
    config, drawn = with_head(recipe.config(checkpoint.config), protocol, options)
    config.check_ranks(tp)
    config = _padded(config, tp)
    tokenizer = replace(tokenizer, cache=options.output / CACHE)
    train, dev = (
        task_of(card, protocol, card.split_for(protocol, role), tokenizer, config, options) for role in _ROLES
    )
    batch = recipe.resolved(config, len(train[0].items)).training.batch
    if batch % dp:
        raise ConfigError(f"`batch` must be a multiple of the {dp} data-parallel ranks", "give it by `--set batch=N`")
    return Plan(
        checkpoint=checkpoint,
        config=config,
        drawn=drawn,
        recipe=recipe,
        tokenizer=tokenizer,
        card=card,
        protocol=protocol,
        train=train,
        dev=dev,
    )


def _check_outputs(options: Options) -> None:
    """Refuse an output folder that holds something else than a run, or than runs that differ in their seeds.

    Raises:
        OutputError: it does, or is a file.
    """
    output = options.output
    if options.seeds == 1 or not output.is_dir():
        check_output(output)
        return
    own = {CACHE, SEEDS_FILE}
    others = [item.name for item in output.iterdir() if item.name not in own and not item.name.startswith("seed-")]
    if others:
        listed = ", ".join(f"`{name}`" for name in sorted(others)[:6])
        raise OutputError(
            f"`{output}` holds something else than runs of several seeds: {listed}", "give another folder"
        )
    for run in output.glob("seed-*"):
        check_output(run)


_ROLES: tuple[Literal["train_split", "dev_split"], ...] = ("train_split", "dev_split")


def _chosen(options: Options, family: str) -> tuple[Card, Protocol]:
    found = select_fitting([options.task], family, f"`{options.checkpoint}` holds")
    if len(found) > 1:
        raise UsageError(
            f"`--task {options.task}` means {len(found)} protocols",
            f"name one: {', '.join(f'`{protocol.id}`' for _, protocol in found)}",
        )
    card, protocol = found[0]
    if not card.split_for(protocol, "train_split"):
        raise UsageError(f"nothing is finetuned on `{protocol.id}`", "choose `race`, `piqa`, `mnli`, `qqp` or `squad`")
    if protocol.per:
        whole = [item.id for item in card.protocols if item.head == protocol.head and not item.per]
        raise UsageError(
            f"`{protocol.id}` compares log-probabilities per {protocol.per}, finetuning those of whole options",
            f"finetune under {' or '.join(f'`{name}`' for name in whole)}, then evaluate under `{protocol.id}`",
        )
    return card, protocol


def with_head(config: ModelConfig, protocol: Protocol, options: Options) -> tuple[ModelConfig, tuple[str, ...]]:
    """Return the model with the head that a protocol reads, and which parameters are to be drawn for it.

    Pretraining heads that finetuning does not use are left behind, as Megatron does.

    Raises:
        UsageError: the checkpoint has the head of another task, and `--init-head` was not given.
    """
    if protocol.head == "lm":
        if options.init_head:
            raise UsageError(
                f"`--init-head` draws no head: `{protocol.id}` reads the language model's own", "leave it out"
            )
        return config, ()
    classes = protocol.options if protocol.head == "classification" else 0
    fits = config.task_head == protocol.head and config.classes == classes
    if config.task_head and not fits and not options.init_head:
        raise UsageError(
            f"`{options.checkpoint}` has a {config.task_head} head, `{protocol.id}` needs a {protocol.head} head",
            "give `--init-head` to put a new one in its place",
        )
    changed = config.changed(
        "finetuning",
        lm_head=False,
        binary_head=False,
        pooler=config.pooler or protocol.head != "span",
        tokentypes=config.tokentypes or (2 if config.family == "bert" else 0),
        multichoice_head=protocol.head == "multichoice",
        span_head=protocol.head == "span",
        classes=classes,
    )
    head = () if fits and not options.init_head else (f"{protocol.head}_head.weight", f"{protocol.head}_head.bias")
    known = config.shapes()
    return changed, (*head, *(name for name in changed.shapes() if name not in known and name not in head))


def _padded(config: ModelConfig, tp: int) -> ModelConfig:
    """Return the model with a token table of as many rows as `tp` ranks can share out."""
    rows = config.padded_vocab
    return config if rows % tp == 0 else config.changed("finetuning", padded_vocab=-(-rows // (128 * tp)) * 128 * tp)


def task_of(
    card: Card, protocol: Protocol, split: str, tokenizer: Tokenizer, config: ModelConfig, options: Options
) -> tuple[Task, Data]:
    """Read one set of a benchmark and tokenize it for a model."""
    data = load_data(card, options.data, split, allow_modified=options.allow_modified_data)
    return build_task(card, protocol, data, tokenizer, config.context), data
