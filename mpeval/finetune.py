"""Finetune a checkpoint on a task: its questions, one epoch after the other, the best epoch kept; over several seeds.

The path of one step: `cli_finetune.finetune` -> `finetune.run` -> `loop.fit` -> `loop.step` -> `head_logits`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from mpeval import evaluate
from mpeval.checkpoint.open import open_checkpoint
from mpeval.data import Data
from mpeval.finetune_plan import Options, Plan, plan, task_of
from mpeval.finetuned import (
    EVALUATIONS,
    SEEDS_FILE,
    Epoch,
    Finetuned,
    Seeds,
    read_finetuned,
    selected,
    spread_of,
    write_finetuned,
)
from mpeval.folders import write_atomically
from mpeval.journal import RESULTS_FILE, SAMPLES_FILE
from mpeval.leaderboard.records import records_of
from mpeval.leaderboard.store import append
from mpeval.parallel.group import broadcast_object
from mpeval.predictions.members import read_results
from mpeval.provenance import digest_of, name_of_run
from mpeval.recipe import Recipe
from mpeval.results import RunResults, TrainingInfo
from mpeval.running import opening, saved_state, say_stopped, start, take_folder, train_shown
from mpeval.tasks.base import Task

if TYPE_CHECKING:
    from mpeval.checkpoint.training import Progress
    from mpeval.parallel.group import Group
    from mpeval.train.loop import Run

__all__ = ["Options", "finetune", "finetune_seeds", "plan", "run"]

MICRO_TOKENS = {"cpu": 2048, "cuda": 32768}
"""Tokens per forward pass, padding included, where the recipe says nothing."""


def run(options: Options) -> None:
    """Finetune with as many ranks as asked for; every rank makes the same plan, the first one prints."""
    start(options, plan, _work)


def _work(options: Options, group: Group) -> None:
    finetune_seeds(plan(options, group.tp.ranks, group.dp.ranks), options, group)


def finetune_seeds(made: Plan, options: Options, group: Group) -> None:
    """Finetune from every seed, then say which run is the median and evaluate that one on the test set."""
    from mpeval.report import line

    talks = group.world.rank == 0 and not options.quiet
    if talks:
        line(_begins(made, options), stderr=True)
    digest = digest_of(made.checkpoint, group)
    runs: dict[Path, Finetuned] = {}
    for offset in range(options.seeds):
        recipe = made.recipe.seeded(offset)
        folder = options.output / f"seed-{recipe.training['seed']}" if options.seeds > 1 else options.output
        finished = finetune(replace(made, recipe=recipe), digest, folder, options, group)
        if finished is None:
            return
        runs[folder] = finished
    seeds = spread_of(list(runs.values()))
    chosen = next(folder for folder, run in runs.items() if run.training.seed == seeds.chosen)
    test = _test_results(made, chosen, options, group) if options.seeds > 1 else None
    if group.world.rank == 0:
        folders = [folder / EVALUATIONS / run.dev_split for folder, run in runs.items()]
        folders += [chosen / EVALUATIONS / test.results[0].split] if test else []
        results = {folder: _results_in(folder) for folder in folders}
        if options.seeds > 1:
            write_atomically(options.output / SEEDS_FILE, seeds.to_json())
            results |= {
                folder: selected(results[folder], seeds.spread) for folder in folders if folder.is_relative_to(chosen)
            }
        _publish(results, runs, seeds, options)


def _test_results(made: Plan, folder: Path, options: Options, group: Group) -> RunResults | None:
    """Evaluate the chosen run on the task's test set (collective), if it has one whose answers are public."""
    split = made.card.split_for(made.protocol)
    if split in {made.train[1].split, made.dev[1].split} or not made.card.split_named(split).labelled:
        return None
    test = task_of(made.card, made.protocol, split, made.tokenizer, made.config, options)
    return _scored(made, folder, test, folder / EVALUATIONS / split, options, group)


def _begins(made: Plan, options: Options) -> str:
    """Say what is trained on, and which parameters are new."""
    task, data = made.train
    drawn = f"new, drawn from the seed: {', '.join(made.drawn)}" if made.drawn else "nothing drawn: the head is there"
    return (
        f"{made.protocol.id}: {len(task.items):,} questions of the {data.split} split, {made.recipe.name}; {drawn} "
        f"({options.checkpoint} is left as it is)"
    )


def finetune(made: Plan, digest: str, folder: Path, options: Options, group: Group) -> Finetuned | None:
    """Train one run to its end and keep the best epoch (collective); None if it was asked to stop before.

    `digest` is that of the checkpoint it begins with, which takes as long as reading the whole of it.

    After each epoch the dev set is evaluated by the code of `mpeval evaluate`.  A killed run goes on where it was:
    inside an epoch, or inside the evaluation after it.
    """
    from mpeval.parallel.gradients import barrier
    from mpeval.train.answers import answer_objective
    from mpeval.train.build import build_finetuning
    from mpeval.train.questions import Epochs, QuestionSamples
    from mpeval.train.saving import clean

    recipe = made.recipe.resolved(made.config, len(made.train[0].items))
    training = recipe.training
    state = None
    found = read_finetuned(folder)
    if found is None or found.best is None:
        state = saved_state(folder, made.config)
    barrier(group.world)  # every rank has looked at the output folder before the first one writes to it
    if group.world.rank == 0:
        take_folder(folder, recipe, made.tokenizer, _identity(made, digest))
        clean(folder)
    barrier(group.world)
    if found and found.best is not None:
        if group.world.rank == 0:
            _finish(found, folder)
        barrier(group.world)
        return found
    epochs = Epochs(questions=len(made.train[0].items), batch=training.batch, seed=training.seed)
    run, progress = build_finetuning(
        recipe,
        made.config,
        group,
        samples=QuestionSamples(made.train[0].items, epochs, made.config.context),
        micro_tokens=made.recipe.micro_tokens or MICRO_TOKENS.get(group.device.type, MICRO_TOKENS["cuda"]),
        objective=answer_objective(made.protocol.head),
        pretrained=made.checkpoint,
        drawn=made.drawn,
        state=state,
        output=folder,
        keep=0,
    )
    described = found or _described(made, recipe, digest)
    return _epochs(run, progress, described, made, folder, options, per_epoch=epochs.steps)


def _identity(made: Plan, digest: str) -> dict[str, str]:
    return {
        "pretrained": digest,
        "protocol": f"{made.protocol.id} {made.protocol.version}",
        "train data": made.train[1].digest,
        "dev data": made.dev[1].digest,
        "drawn": ", ".join(made.drawn),
    }


def _described(made: Plan, recipe: Recipe, digest: str) -> Finetuned:
    training = recipe.training
    return Finetuned(
        task=made.card.name,
        protocol=made.protocol.id,
        protocol_version=made.protocol.version,
        train_split=made.train[1].split,
        dev_split=made.dev[1].split,
        pretrained=digest,
        drawn=list(made.drawn),
        training=TrainingInfo(
            seed=training.seed,
            questions=len(made.train[0].items),
            steps=0,
            epochs=0.0,
            recipe=recipe.name,
            learning_rate=training.lr,
            batch=training.batch,
        ),
        epochs=[],
    )


def _epochs(
    run: Run,
    progress: Progress,
    described: Finetuned,
    made: Plan,
    folder: Path,
    options: Options,
    *,
    per_epoch: int,
) -> Finetuned | None:
    """Train epoch by epoch and evaluate after each; return the description of the finished run."""
    from mpeval.parallel.gradients import barrier
    from mpeval.report import line
    from mpeval.train.saving import keep_only

    group, steps = run.model.group, run.recipe.training.steps
    first = group.world.rank == 0
    talks = first and not options.quiet
    if talks:
        line(opening(run, progress), stderr=True)
    ends = [*range(per_epoch, steps, per_epoch), steps]
    for number, end in enumerate(ends, start=1):
        if any(epoch.step == end for epoch in described.epochs):
            continue
        if progress.step < end:
            progress, stopped, _ = train_shown(run, progress, title=run.recipe.name, talks=talks, until=end)
            if stopped:
                if first:
                    say_stopped(progress, steps, options.command)
                return None
        described = _after_epoch(run, number, end, described, made, folder, options)
        if first:
            if talks:
                line(_epoch_line(described.epochs[-1], described.dev_split))
            keep_only(folder, {described.kept().step, end})
    best = described.kept()
    finished = described.model_copy(
        update={
            "best": best.step,
            "training": described.training.model_copy(
                update={"steps": best.step, "epochs": round(best.step / per_epoch, 3)}
            ),
        }
    )
    if first:
        _finish(finished, folder)
    barrier(group.world)
    return finished


def _epoch_line(epoch: Epoch, split: str) -> str:
    from mpeval.report import show_interval, show_metric

    metric = epoch.metric
    return (
        f"epoch {epoch.epoch}, step {epoch.step}: {split} {metric.name} {show_metric(metric)} ({show_interval(metric)})"
    )


def _after_epoch(
    run: Run, number: int, step: int, described: Finetuned, made: Plan, folder: Path, options: Options
) -> Finetuned:
    """Evaluate the weights just saved on the dev set, and add what came of it to `finetune.json`."""
    group = run.model.group
    run.model.eval()
    if step == run.recipe.training.steps:
        run.model.prepack()  # its weights are saved, and nothing trains them any more
    output = folder / EVALUATIONS / f"{described.dev_split}-epoch-{number}"
    found = _scored(made, folder / f"iter_{step:07d}", made.dev, output, options, group, run)
    metric = broadcast_object(found.results[0].metrics[0] if found.results else None, group.world)
    assert metric is not None
    described = described.model_copy(
        update={"epochs": [*described.epochs, Epoch(epoch=number, step=step, metric=metric)]}
    )
    if group.world.rank == 0:
        write_finetuned(folder, described)
    return described


def _scored(
    made: Plan,
    checkpoint: Path,
    task: tuple[Task, Data],
    output: Path,
    options: Options,
    group: Group,
    run: Run | None = None,
) -> RunResults:
    """Evaluate a saved checkpoint as `mpeval evaluate` does; `run` holds its weights if they need not be loaded."""
    from mpeval.models.bert import BERT
    from mpeval.models.gpt import GPT

    asked = evaluate.Options(
        checkpoint=checkpoint,
        tasks=(made.protocol.id,),
        split=task[1].split,
        output=output,
        device=options.device,
        quiet=options.quiet,
        command=shlex.join(options.command),
    )
    opened = open_checkpoint(checkpoint)
    model = run.model if run is not None else None
    assert model is None or isinstance(model, BERT | GPT)
    return evaluate.evaluate(
        evaluate.Plan(checkpoint=opened, tokenizer=made.tokenizer, tasks=(task,)), asked, group, model
    )


def _finish(run: Finetuned, folder: Path) -> None:
    """Let the folder stand for its best epoch: description, weights, evaluation; done again it changes nothing."""
    import shutil

    from mpeval.checkpoint.write import write_tracker
    from mpeval.train.saving import keep_only

    best = run.kept()
    write_finetuned(folder, run)
    write_tracker(folder, folder / f"iter_{best.step:07d}")
    keep_only(folder, {best.step})
    place = folder / EVALUATIONS / run.dev_split
    if not place.exists():
        partial = place.with_name(f".{run.dev_split}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(place.with_name(f"{run.dev_split}-epoch-{best.epoch}"), partial)
        # when the epoch was evaluated it was not known yet that the run would stand for it, nor of the first what it is
        known = _results_in(partial)
        named = known.checkpoint.model_copy(update={"name": name_of_run(folder, run)})
        known = known.model_copy(update={"training": run.training, "checkpoint": named})
        write_atomically(partial / RESULTS_FILE, known.to_json())
        partial.replace(place)


def _results_in(evaluation: Path) -> RunResults:
    return read_results(evaluation / RESULTS_FILE, f"remove `{evaluation.parents[1]}` and train it again")


def _publish(
    results: Mapping[Path, RunResults], runs: Mapping[Path, Finetuned], seeds: Seeds, options: Options
) -> None:
    """Draw loss curves, print the results that are reported, and append all of them to a leaderboard if asked to.

    `results` are by the folders of their evaluations.
    """
    from mpeval.plot import plot
    from mpeval.report import line, recorded, results_table

    drawn = [plot([folder], None) for folder in runs if options.draw and not (folder / "loss.svg").exists()]
    if not options.quiet:
        if len(runs) > 1:
            _seeds_table(runs, seeds)
        for found in results.values():
            if len(runs) == 1 or found.seeds:
                results_table(found)
        line(f"checkpoint{'s' * (options.seeds > 1)}, metrics and predictions are in {options.output}")
        for paths in drawn:
            line(f"loss curve {', '.join(str(path) for path in paths)}")
    if options.record:
        records = [records_of(found, folder / SAMPLES_FILE, options.record) for folder, found in results.items()]
        recorded(append(options.record, [*chain.from_iterable(records)]), options.record)


def _seeds_table(runs: Mapping[Path, Finetuned], seeds: Seeds) -> None:
    """Print what each seed reached on the dev set, their spread, and which run is the median."""
    from mpeval.report import show_interval, show_metric, table

    rows = [
        [
            folder.name,
            show_metric(run.kept().metric),
            show_interval(run.kept().metric),
            "median: reported" if run.training.seed == seeds.chosen else "",
        ]
        for folder, run in runs.items()
    ]
    spread = seeds.spread
    deviation = f", standard deviation {100 * spread.deviation:.2f} points" if spread.deviation is not None else ""
    title = f"{spread.split} {spread.metric} of {len(rows)} seeds{deviation}"
    table(title, ("run", f"{spread.split} {spread.metric}", "95 % interval", ""), rows)
