"""Pretrain a GPT or BERT: check everything, build or resume, train, and say what came of it.

The path of one step: `cli_train.pretrain` -> `pretrain.run` -> `loop.fit` -> `loop.step` -> `GPT.loss_sum`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpeval import launch
from mpeval.config import ModelConfig
from mpeval.corpus.indexed import IndexedDataset
from mpeval.corpus.samples import Part, Samples, SpecialIds, open_samples
from mpeval.errors import UsageError
from mpeval.recipe import Recipe, find_recipe
from mpeval.running import CACHE, opening, saved_state, say_stopped, start, take_folder, train_shown
from mpeval.tokenizer import Tokenizer, find_tokenizer

if TYPE_CHECKING:
    from mpeval.checkpoint.training import Progress, TrainingState
    from mpeval.parallel.group import Group
    from mpeval.train.loop import Run

SPECIAL = {"cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]", "pad": "[PAD]"}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `mpeval pretrain` was asked to do."""

    recipe: str
    data: tuple[str, ...]
    tokenizer: Path | None = None
    output: Path | None = None
    settings: tuple[str, ...] = ()
    tp: int | None = None
    dp: int | None = None
    device: str = "auto"
    keep: int = 0
    tensorboard: bool = False
    quiet: bool = False
    draw: bool = True
    """Whether the loss curve is drawn at the end."""
    command: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything checked before a weight is drawn or read."""

    recipe: Recipe
    config: ModelConfig
    tokenizer: Tokenizer
    corpora: tuple[tuple[float, IndexedDataset], ...]
    output: Path
    state: TrainingState | None


def run(options: Options) -> None:
    """Pretrain with as many ranks as asked for; every rank makes the same plan, the first one prints."""
    start(options, plan, _work)


def _work(options: Options, group: Group) -> None:
    pretrain(plan(options, group.tp.ranks, group.dp.ranks), options, group)


def plan(options: Options, tp: int, dp: int) -> Plan:
    """Check recipe, tokenizer, data and output folder, in that order.

    Raises:
        MpevalError: whatever is missing or does not fit.
    """
    recipe = find_recipe(options.recipe, options.settings)
    recipe.micro_batch(dp)
    if not options.data:
        raise UsageError("no data to train on", "give `--data PREFIX`, as `mpeval preprocess` wrote it")
    if options.output is None:
        raise UsageError("no folder to write to", "give `--output DIR`")
    if options.keep < 0:
        raise UsageError(f"`--keep {options.keep}` is not a number of checkpoints", "give 1 or more, or 0 for all")
    tokenizer = find_tokenizer(options.tokenizer, [])
    config = recipe.config(tokenizer.size, tp)
    config.check_ranks(tp)
    corpora = weighted(options.data)
    state = saved_state(options.output, config)
    return Plan(recipe=recipe, config=config, tokenizer=tokenizer, corpora=corpora, output=options.output, state=state)


def weighted(data: Sequence[str]) -> tuple[tuple[float, IndexedDataset], ...]:
    """Open `[WEIGHT] PREFIX ...` as Megatron reads it: all corpora have a weight, or none (then their size decides).

    Raises:
        DataError: a corpus is missing or damaged.
        UsageError: a weight without a corpus, or some with and some without.
    """
    made: list[tuple[float | None, str]] = []
    weight: float | None = None
    weights = 0
    for word in data:
        if weight is None and (number := _number(word)) is not None:
            weight, weights = number, weights + 1
        else:
            made.append((weight, word))
            weight = None
    if weight is not None or weights not in {0, len(made)}:
        raise UsageError(
            f"`--data {' '.join(data)}` gives some corpora a weight and others none",
            "write `--data 0.3 FIRST 0.7 SECOND`, or no weight at all",
        )
    opened = [(given, IndexedDataset(prefix)) for given, prefix in made]
    return tuple((float(corpus.tokens) if given is None else given, corpus) for given, corpus in opened)


def _number(word: str) -> float | None:
    if Path(f"{word}.idx").exists():
        return None
    try:
        return float(word)
    except ValueError:
        return None


def pretrain(made: Plan, options: Options, group: Group) -> None:
    """Build or resume this rank's part of the run, train it, and report on the first rank."""
    from mpeval.parallel.gradients import barrier
    from mpeval.train.build import build
    from mpeval.train.saving import clean

    barrier(group.world)  # every rank has looked at the output folder before the first one writes to it
    if group.world.rank == 0:
        corpora = [[weight, dataset.digest] for weight, dataset in made.corpora]
        take_folder(made.output, made.recipe, made.tokenizer, {"data": corpora})
        clean(made.output)
        train, valid = _samples(made)
        barrier(group.world)
    else:
        barrier(group.world)
        train, valid = _samples(made)
    ready, progress = build(
        made.recipe,
        made.config,
        group,
        train=train,
        valid=valid,
        state=made.state,
        output=made.output,
        keep=options.keep,
    )
    _train(ready, progress, made, options)


def _samples(made: Plan) -> tuple[Samples, Samples | None]:
    """Open the training samples of the whole run and the validation samples, if they are evaluated."""
    training, family = made.recipe.training, made.recipe.family
    folder = made.corpora[0][1].prefix.parent
    cache = (folder if os.access(folder, os.W_OK) else made.output) / CACHE

    def part(name: Part, samples: int) -> Samples:
        return open_samples(
            "bert" if family == "bert" else "gpt",
            made.corpora,
            split=training.split,
            part=name,
            samples=samples,
            sequence=made.recipe.sequence,
            seed=training.seed,
            cache=cache,
            special=special_ids(made.tokenizer) if family == "bert" else None,
            short_share=training.short_share,
            mask_share=training.mask_share,
            ngrams=training.mask_ngrams,
            binary_head=made.config.binary_head,
        )

    valid = part("valid", training.evaluate_batches * training.batch) if training.evaluate_every else None
    # how often documents are repeated decides their order: the same for a run that stops before its decay ends
    return part("train", max(training.steps, training.decay_steps) * training.batch), valid


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """Return the ids that BERT samples are built with, and which pieces go on with a word.

    Raises:
        TokenizerError: the tokenizer lacks one: it is not a BERT's.
    """
    import numpy as np

    ids = {name: tokenizer.special_id(token) for name, token in SPECIAL.items()}
    return SpecialIds(**ids, vocab=tokenizer.size, continuation=np.array(tokenizer.continuations()))


def _train(ready: Run, progress: Progress, made: Plan, options: Options) -> None:
    """Train with progress on the screen, then say how it ended."""
    from mpeval.report import line

    first = ready.model.group.world.rank == 0
    talks = first and not options.quiet
    if talks:
        line(opening(ready, progress), stderr=True)
    board = _board(made.output, progress.step) if options.tensorboard and first else None
    progress, stopped, last = train_shown(ready, progress, title=made.recipe.name, talks=talks, board=board)
    if board:
        board.close()
    if first:
        _close(progress, stopped, last, made, options)


def _board(output: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError(
            "`--tensorboard` needs the package `tensorboard`", "pip install 'mpeval[tensorboard]'"
        ) from error
    return SummaryWriter(str(output / "tensorboard"), purge_step=step + 1)


def _close(progress: Progress, stopped: bool, last: dict[str, Any], made: Plan, options: Options) -> None:
    """Draw the loss curve and say where everything is, and how to go on."""
    from mpeval.plot import plot
    from mpeval.report import line

    steps = made.recipe.training.steps
    if stopped:
        say_stopped(progress, steps, options.command)
        return
    if not last and not options.quiet:
        end = made.recipe.identity()["decay_steps"]
        line(f"`{made.output}` already holds all {steps} steps; more with `--set steps=N --set decay_steps={end}`")
    if not last:
        return
    drawn = plot([made.output], None) if options.draw else []
    if options.quiet:
        return
    valid = f", validation loss {last['valid_loss']:.4f}" if "valid_loss" in last else ""
    loss = f"{last['loss']:.4f}" if last["loss"] is not None else "overflowed"
    line(
        f"step {progress.step}: loss {loss}{valid}, {last['tokens_per_second']:,.0f} tokens/s, "
        f"{100 * last['roof_share']:.0f} % of the matmul roof"
    )
    line(f"checkpoint {made.output / f'iter_{progress.step:07d}'}; metrics {made.output / 'metrics.jsonl'}")
    line(f"loss curve {', '.join(str(path) for path in drawn)}")


def dry_run(options: Options, *, as_json: bool) -> None:
    """Print what a run would cost, without data or weights; the device need not be there."""
    from mpeval.estimate import as_dict, estimate, show
    from mpeval.report import table

    recipe = find_recipe(options.recipe, options.settings)
    tp, dp = launch.sizes(options.tp, options.dp, None)
    recipe.micro_batch(dp)
    usual = {"bert": 30522}.get(recipe.family, 50257)
    vocab = find_tokenizer(options.tokenizer, []).size if options.tokenizer else usual
    recipe.config(vocab, tp).check_ranks(tp)
    device = launch.device_of("auto") if options.device == "auto" else options.device
    made = estimate(recipe, vocab=vocab, tp=tp, dp=dp, device=device)
    if as_json:
        sys.stdout.write(json.dumps(as_dict(made), indent=2) + "\n")
        return
    title = f"{recipe.name} on tp {tp} x dp {dp}, {vocab:,} tokens"
    table(title, ("what", "value", "how"), show(made), right=("value",))
