"""The one training loop: batches in, weights, metrics and checkpoints out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mpeval.checkpoint.training import Progress
from mpeval.errors import TrainingError
from mpeval.models.transformer import Transformer
from mpeval.parallel.gradients import any_rank, summed_over
from mpeval.parallel.group import gather_objects
from mpeval.recipe import Recipe
from mpeval.train.batches import Fed, Feeder
from mpeval.train.metrics import Metrics
from mpeval.train.objectives import Objective
from mpeval.train.optimizer import TrainingOptimizer
from mpeval.train.saving import save
from mpeval.train.stop import StopRequest

Tensor = torch.Tensor
Record = dict[str, Any]
Notice = Callable[[Record], None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything that one rank trains with."""

    recipe: Recipe
    model: Transformer
    optimizer: TrainingOptimizer
    objective: Objective
    feeder: Feeder
    validation: Feeder | None
    output: Path
    keep: int
    metrics: Metrics | None
    """Only on the first rank of the world."""
    cost: Callable[[Fed], tuple[float, float]]
    """Tokens and floating point operations of a step over all ranks, from what this rank takes of it."""
    roof: float
    """Floating point operations per second of all ranks' matrix products together."""


def fit(run: Run, progress: Progress, notice: Notice, until: int | None = None) -> tuple[Progress, bool]:
    """Train from `progress` to step `until`, or until a signal asks for an end.

    Args:
        run: what to train with.
        progress: where the run is.
        notice: called with the metrics of each step, on every rank.
        until: the step to stop after (default: the recipe's last).

    Returns:
        Where the run is now, always saved, and whether it was asked to stop before all was done.

    Raises:
        TrainingError: the loss or the gradients are no numbers any more.
    """
    training = run.recipe.training
    last = training.steps if until is None else until
    end = progress.samples + (last - progress.step) * training.batch
    saved = progress.step
    run.model.train()
    with StopRequest() as stop, run.feeder.ahead(progress.samples, end) as batches:
        for fed in batches:
            begin = time.perf_counter()
            record = step(run, progress, fed)
            progress = _advanced(run, progress)
            record |= _speed(run, fed, time.perf_counter() - begin)
            if training.evaluate_every and progress.step % training.evaluate_every == 0 and run.validation:
                record["valid_loss"] = evaluate(run)
            if run.metrics:
                run.metrics.append(record)
            notice(record)
            stopping = any_rank(stop.asked, run.model.group)
            if stopping or (training.save_every and progress.step % training.save_every == 0):
                _save(run, progress)
                saved = progress.step
            if stopping:  # after step `until` its caller has more to do
                return progress, until is not None or progress.step < last
    if saved != progress.step:
        _save(run, progress)
    return progress, False


def step(run: Run, progress: Progress, fed: Fed) -> Record:
    """Take one optimizer step and return its metrics.

    Each loss is a mean over the items of the whole batch: sums are divided by counts over all micro-batches and
    data-parallel ranks, so that no layout changes it.
    """
    optimizer = run.optimizer
    means, local = _accumulate(run, fed)
    loss = sum(means.values())
    lr = run.recipe.training.lr_at(optimizer.steps + 1)
    norm = optimizer.finish_gradients()
    record: Record = {"step": progress.step + 1, "loss": loss}
    record |= means if len(means) > 1 else {}
    record |= {"lr": lr, "grad_norm": norm if math.isfinite(norm) else None}
    overflow = not (math.isfinite(loss) and math.isfinite(norm))
    if overflow and not optimizer.scale.dynamic:
        raise _diverged(run, progress, fed, loss=loss, norm=norm, local=local)
    if optimizer.scale.dynamic:
        record |= {"loss_scale": optimizer.scale.value, "skipped": int(overflow)}
        record["loss"] = loss if math.isfinite(loss) else None
    if overflow:
        if optimizer.scale.value <= optimizer.scale.smallest:
            raise _diverged(run, progress, fed, loss=loss, norm=norm, local=local)
        optimizer.scale.overflowed()
    else:
        optimizer.step(lr, norm)
    return record


def _accumulate(run: Run, fed: Fed) -> tuple[Mapping[str, float], float]:
    """Sum the gradients of a step over micro-batches and ranks; return the mean losses, and this rank's own sum."""
    optimizer, objective, group = run.optimizer, run.objective, run.model.group
    own = [objective.counts(part) for part in fed.micro]
    counts = [max(1.0, count) for count in summed_over([sum(column) for column in zip(*own, strict=True)], group)]
    optimizer.gradients.zero()
    totals = [torch.zeros((), dtype=torch.float64, device=group.device) for _ in counts]
    for number, part in enumerate(fed.micro, start=1):
        with optimizer.gradients.summing() if number == len(fed.micro) else nullcontext():
            sums = objective.sums(run.model, part)
            loss = torch.stack([value / count for value, count in zip(sums, counts, strict=True)]).sum()
            (loss * optimizer.scale.value).backward()  # type: ignore[no-untyped-call]
        totals = [total + value.detach().double() for total, value in zip(totals, sums, strict=True)]
    local = [float(total) for total in totals]
    means = [total / count for total, count in zip(summed_over(local, group), counts, strict=True)]
    return dict(zip(objective.names, means, strict=True)), sum(local)


def _diverged(run: Run, progress: Progress, fed: Fed, *, loss: float, norm: float, local: float) -> TrainingError:
    """Say at which step, on which ranks and from which documents a loss or gradient came that is no number."""
    rank = run.model.group.world.rank
    guilty = math.isfinite(loss) or not math.isfinite(local)  # a gradient may come from any rank
    mine = (rank, run.feeder.documents(fed.numbers)) if guilty else None
    found = [item for item in gather_objects(mine, run.model.group.world) if item]
    what = f"the gradient norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
    where = "; ".join(
        f"rank {rank}, whose batch is of documents {', '.join(f'`{name}`' for name in names[:8])}"
        + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        for rank, names in found
    )
    return TrainingError(
        f"step {progress.step + 1}: {what} on {where}",
        "nothing of this step was saved; look at those documents, or give another `--output` and a lower "
        "`--set lr=...`, a longer `--set warmup_steps=...` or `--set dtype=float32`",
    )


def _advanced(run: Run, progress: Progress) -> Progress:
    optimizer = run.optimizer
    return Progress(
        step=progress.step + 1,
        samples=progress.samples + run.recipe.training.batch,
        updates=optimizer.steps,
        loss_scale=optimizer.scale.value,
        good_steps=optimizer.scale.good_steps,
    )


def _speed(run: Run, fed: Fed, seconds: float) -> Record:
    tokens, operations = run.cost(fed)
    rate = operations / seconds
    return {
        "seconds": round(seconds, 4),
        "tokens_per_second": round(tokens / seconds, 1),
        "flops_per_second": round(rate),
        "roof_share": round(rate / run.roof, 4),
    }


def _save(run: Run, progress: Progress) -> None:
    save(
        run.output,
        model=run.model,
        optimizer=run.optimizer,
        progress=progress,
        recipe=run.recipe,
        keep=run.keep,
    )


@torch.no_grad()
def evaluate(run: Run) -> float:
    """Return the loss of the first `evaluate_batches` batches of the validation split, without dropout."""
    assert run.validation is not None
    training, group = run.recipe.training, run.model.group
    run.model.eval()
    sums = [0.0] * len(run.objective.names)
    counts = [0.0] * len(sums)
    for number in range(training.evaluate_batches):
        for part in run.validation.moved(run.validation.fetch(number * training.batch)).micro:
            found = run.objective.sums(run.model, part)
            sums = [a + float(b) for a, b in zip(sums, found, strict=True)]
            counts = [a + b for a, b in zip(counts, run.objective.counts(part), strict=True)]
    run.model.train()
    sums, counts = summed_over(sums, group), summed_over(counts, group)
    return sum(a / max(1.0, b) for a, b in zip(sums, counts, strict=True))
