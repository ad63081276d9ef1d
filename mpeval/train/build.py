"""Everything one rank trains with, built from a recipe: new, or as a checkpoint of any layout has it."""

from __future__ import annotations

from pathlib import Path

import torch

from mpeval.checkpoint.training import Progress, TrainingState
from mpeval.config import ModelConfig
from mpeval.corpus.samples import Samples
from mpeval.estimate import flops_per_sequence
from mpeval.models.bert import BERT
from mpeval.models.gpt import GPT
from mpeval.models.weights import draw_weights
from mpeval.parallel.dropout import DropoutStreams
from mpeval.parallel.group import Group
from mpeval.recipe import Recipe
from mpeval.train.batches import Feeder
from mpeval.train.loop import Run
from mpeval.train.metrics import Metrics
from mpeval.train.objectives import objective_of
from mpeval.train.optimizer import TrainingOptimizer
from mpeval.train.roof import matmul_roof


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
    """Make model, optimizer, batches and metrics of this rank (collective).

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
    model = (BERT if config.family == "bert" else GPT)(config, group, getattr(torch, training.dtype))
    model.recompute = training.recompute
    optimizer = TrainingOptimizer(model, training)
    progress = _begun(optimizer, training.seed) if state is None else _resumed(optimizer, state, config, training.seed)
    micro_batch = recipe.micro_batch(group.dp.ranks)

    def feeder(samples: Samples) -> Feeder:
        return Feeder(samples, batch=training.batch, micro_batch=micro_batch, vocab=config.vocab, group=group)

    scored = 1.0 if config.family == "gpt" else training.mask_share
    run = Run(
        recipe=recipe,
        model=model,
        optimizer=optimizer,
        objective=objective_of(config.family, order=config.binary_head),
        feeder=feeder(train),
        validation=feeder(valid) if valid is not None else None,
        output=output,
        keep=keep,
        metrics=Metrics(output, progress.step) if group.world.rank == 0 else None,
        flops_per_step=training.batch * flops_per_sequence(config, recipe.sequence, scored=scored),
        roof=matmul_roof(training.dtype, group),
    )
    return run, progress


def _begun(optimizer: TrainingOptimizer, seed: int) -> Progress:
    """Draw new weights in float32 and return the start of a run."""
    draw_weights(optimizer.model, seed, into=optimizer.masters)
    optimizer.publish()
    optimizer.model.streams = DropoutStreams(seed, optimizer.model.group)
    return Progress(step=0, samples=0, updates=0)


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
