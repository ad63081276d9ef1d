"""Everything one rank trains with, built from a recipe: new, or as a checkpoint of any layout has it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import torch

from mpeval.checkpoint.sharded import ShardedCheckpoint
from mpeval.checkpoint.training import Progress, TrainingState
from mpeval.checkpoint.weights import StoredWeights
from mpeval.config import ModelConfig
from mpeval.corpus.samples import Samples
from mpeval.estimate import flops_per_sequence
from mpeval.models.bert import BERT
from mpeval.models.gpt import GPT
from mpeval.models.weights import draw_full, fill_weights
from mpeval.parallel.dropout import DropoutStreams
from mpeval.parallel.group import Group
from mpeval.recipe import Recipe
from mpeval.train.batches import Even, Fed, Feeder
from mpeval.train.loop import Run
from mpeval.train.metrics import Metrics
from mpeval.train.objectives import Objective, objective_of
from mpeval.train.optimizer import TrainingOptimizer
from mpeval.train.questions import Packed, QuestionSamples
from mpeval.train.roof import matmul_roof

Tensor = torch.Tensor


def build(
    recipe: Recipe,
    config: ModelConfig,
    group: Group,
    *,
    train: Samples,
    valid: Samples | None,
    state: TrainingState | None,
    output: Path,
    keep: int = 0,
) -> tuple[Run, Progress]:
    """Make what one rank pretrains with (collective).

    Args:
        recipe: what to train and how.
        config: its model with the tokenizer's vocabulary, padded for this run's tensor ranks.
        group: the ranks of this run.
        train: samples of the whole run.
        valid: samples of the validation loss, if there is to be one.
        state: a saved run to go on from, of any layout; None to begin.
        output: the run's folder, which exists.
        keep: checkpoints to leave there (0: all).

    Returns:
        What `loop.fit` takes: the run, and where it is.
    """
    training = recipe.training
    optimizer, progress = _optimizer(recipe, config, group, state, lambda name: draw_full(config, name, training.seed))
    arrangement = Even(recipe.micro_batch(group.dp.ranks))

    def feeder(samples: Samples) -> Feeder:
        return Feeder(samples, batch=training.batch, arrangement=arrangement, vocab=config.vocab, group=group)

    scored = 1.0 if config.family == "gpt" else training.mask_share
    tokens = float(training.batch * recipe.sequence)
    operations = training.batch * flops_per_sequence(config, recipe.sequence, scored=scored)
    run = Run(
        recipe=recipe,
        model=optimizer.model,
        optimizer=optimizer,
        objective=objective_of(config.family, order=config.binary_head),
        feeder=feeder(train),
        validation=feeder(valid) if valid is not None else None,
        output=output,
        keep=keep,
        metrics=Metrics(output, progress.step) if group.world.rank == 0 else None,
        cost=lambda _: (tokens, operations),
        roof=matmul_roof(training.dtype, group),
    )
    return run, progress


def build_finetuning(
    recipe: Recipe,
    config: ModelConfig,
    group: Group,
    *,
    samples: QuestionSamples,
    micro_tokens: int,
    objective: Objective,
    pretrained: ShardedCheckpoint,
    drawn: Collection[str],
    state: TrainingState | None,
    output: Path,
    keep: int,
) -> tuple[Run, Progress]:
    """Make what one rank finetunes with (collective).

    Args:
        recipe: the whole recipe, its model being `config`.
        config: the pretrained model with the head of the task, padded for this run's tensor ranks.
        group: the ranks of this run.
        samples: the questions.
        micro_tokens: tokens of a micro-batch, padding included.
        objective: what is minimised.
        pretrained: where weights come from.
        drawn: parameters that are drawn from the recipe's seed instead.
        state: a saved run to go on from, of any layout; None to begin.
        output: the run's folder, which exists.
        keep: checkpoints to leave there (0: all).

    Returns:
        What `loop.fit` takes: the run, and where it is.
    """
    training = recipe.training
    stored = StoredWeights(pretrained, config, "float32")

    def weight(name: str) -> Tensor:
        return draw_full(config, name, training.seed) if name in drawn else stored.read(name)

    optimizer, progress = _optimizer(recipe, config, group, state, weight)
    # a micro-batch reads few rows of the token table, and no output layer gives the others a gradient
    optimizer.model.embedding.word.sparse = group.device.type == "cpu" and config.task_head is not None

    def cost(fed: Fed) -> tuple[float, float]:
        lengths = [int(length) for part in fed.micro for length in part["lengths"]]
        operations = sum(flops_per_sequence(config, length, scored=0.0) for length in lengths)
        return float(sum(lengths) * group.dp.ranks), operations * group.dp.ranks

    run = Run(
        recipe=recipe,
        model=optimizer.model,
        optimizer=optimizer,
        objective=objective,
        feeder=Feeder(samples, batch=training.batch, arrangement=Packed(micro_tokens), vocab=config.vocab, group=group),
        validation=None,
        output=output,
        keep=keep,
        metrics=Metrics(output, progress.step) if group.world.rank == 0 else None,
        cost=cost,
        roof=matmul_roof(training.dtype, group),
    )
    return run, progress


def _optimizer(
    recipe: Recipe,
    config: ModelConfig,
    group: Group,
    state: TrainingState | None,
    weight: Callable[[str], Tensor],
) -> tuple[TrainingOptimizer, Progress]:
    """Make model and optimizer, begun with the full tensors that `weight` returns by name, or as a run saved them."""
    training = recipe.training
    model = (BERT if config.family == "bert" else GPT)(config, group, getattr(torch, training.dtype))
    model.recompute = training.recompute
    optimizer = TrainingOptimizer(model, training)
    if state is not None:
        return optimizer, _resumed(optimizer, state, config, training.seed)
    fill_weights(model, weight, into=optimizer.masters)
    optimizer.publish()
    model.streams = DropoutStreams(training.seed, group)
    return optimizer, Progress(step=0, samples=0, updates=0)


def _resumed(optimizer: TrainingOptimizer, state: TrainingState, config: ModelConfig, seed: int) -> Progress:
    """Fill model, optimizer and random streams with what was saved, cut for this run's ranks."""
    group, progress = optimizer.model.group, state.progress
    with torch.no_grad():
        for name, value in state.weights(config, group.tp, str(optimizer.training.dtype)).items():
            optimizer.parameters[name].copy_(value)
    kinds = {kind: state.moments(kind, config, group.tp) for kind in state.optimizer}
    optimizer.write(kinds, progress.updates)
    if optimizer.scale.dynamic:
        optimizer.scale.value, optimizer.scale.good_steps = progress.loss_scale, progress.good_steps
    saved = state.streams_of(group.tp, group.dp)
    # ranks that the saved run did not have begin streams of their own, which depend on where the run is
    streams = DropoutStreams(seed if saved else seed + 1 + progress.step, group)
    if saved:
        streams.restore(saved)
    optimizer.model.streams = streams
    return progress
