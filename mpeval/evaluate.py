"""Evaluate a checkpoint on benchmarks: check, load, score, judge, report.

The path of one item: `cli.evaluate` -> `evaluate.run` -> `task.items` -> `scoring.score_any` -> `task.judge`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpeval import __version__, launch
from mpeval.checkpoint.open import open_checkpoint
from mpeval.checkpoint.sharded import ShardedCheckpoint
from mpeval.data import Data, load_data
from mpeval.errors import CheckpointError, UsageError
from mpeval.finetuned import Finetuned, read_finetuned
from mpeval.items import Item
from mpeval.journal import SAMPLES_FILE, Journal
from mpeval.leaderboard.records import records_of
from mpeval.leaderboard.store import append, check_store
from mpeval.parallel.group import broadcast_object
from mpeval.provenance import checkpoint_info, digest_of, with_tokenizer
from mpeval.results import DataInfo, Layout, Result, RunResults, now
from mpeval.rounds import Keeper, Scorer
from mpeval.score_cache import ScoreCache
from mpeval.tasks.base import Sample, Task
from mpeval.tasks.build import build_task, check_head
from mpeval.tasks.cards import select, select_fitting
from mpeval.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mpeval.models.bert import BERT
    from mpeval.models.gpt import GPT
    from mpeval.parallel.group import Group


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `mpeval evaluate` was asked to do."""

    checkpoint: Path
    tasks: tuple[str, ...]
    tp: int | None = None
    dp: int | None = None
    dtype: str | None = None
    device: str = "auto"
    data: Path | None = None
    tokenizer: Path | None = None
    split: str | None = None
    limit: int | None = None
    output: Path | None = None
    cache: Path | None = None
    from_predictions: Path | None = None
    json: bool = False
    record: Path | None = None
    megatron_exact: bool = False
    allow_modified_data: bool = False
    batch_tokens: int | None = None
    settings: tuple[tuple[str, Any], ...] = ()
    quiet: bool = False
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything checked before a weight is read."""

    checkpoint: ShardedCheckpoint
    tokenizer: Tokenizer
    tasks: tuple[tuple[Task, Data], ...]


def run(options: Options) -> None:
    """Evaluate with as many ranks as asked for: here, as new local processes, or as one of torchrun's or Slurm's."""
    if options.from_predictions is not None:
        publish(_rescored(options, options.from_predictions), options)
        return
    options = replace(options, device=launch.device_of(options.device))
    launch.start(options.tp, options.dp, run_rank, options, check=lambda tp, _: plan(options, tp))


def _rescored(options: Options, path: Path) -> RunResults:
    """Score stored predictions again; the model is looked at only to see that they are its own."""
    from mpeval.parallel.group import Group
    from mpeval.predictions.rescore import from_predictions

    for name in _OF_A_MODEL:
        if getattr(options, name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"`{option}` says nothing about stored predictions", f"leave out `{option}`")
    if len(options.tasks) > 1:
        raise UsageError("`--from-predictions` scores one task", "give one `--task`")
    if options.record:
        check_store(options.record)
    found = from_predictions(
        path,
        options.tasks[0],
        data=options.data,
        split=options.split,
        allow_modified_data=options.allow_modified_data,
        name=str(options.checkpoint),
        command=options.command,
    )
    digest = digest_of(open_checkpoint(options.checkpoint), Group.single())
    if found.checkpoint.digest not in {digest, "unknown"}:
        raise CheckpointError(
            f"`{path}` was predicted by {found.checkpoint.digest[:19]}, `{options.checkpoint}` is {digest[:19]}",
            f"give the checkpoint it came from (`{found.checkpoint.path}`), or that one's own predictions",
        )
    return found


_OF_A_MODEL = (
    "tp",
    "dp",
    "dtype",
    "tokenizer",
    "limit",
    "output",
    "cache",
    "megatron_exact",
    "batch_tokens",
    "settings",
)


def run_rank(world: launch.World | None, options: Options) -> None:
    """Evaluate as one rank; every rank holds the same plan, rank 0 writes and prints."""
    tp, dp = launch.sizes(options.tp, options.dp, world)
    with launch.joined(world, tp=tp, dp=dp, device=options.device) as group:
        made = plan(options, tp)
        results = evaluate(made, options, group)
        if group.world.rank == 0:
            publish(results, options)


def plan(options: Options, tp: int) -> Plan:
    """Check tasks, checkpoint headers, tokenizer and data, in that order; no weight is read.

    Raises:
        MpevalError: whatever is missing or does not fit.
    """
    names = list(options.tasks)
    select(names)  # a name that no task has needs no checkpoint to be refused
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"`--limit {options.limit}` leaves nothing to score", "give 1 or more")
    if options.record:
        check_store(options.record)
    checkpoint = open_checkpoint(options.checkpoint, dict(options.settings))
    checkpoint.config.check_ranks(tp)
    names = _as_finetuned(names, checkpoint)
    chosen = select_fitting(names, checkpoint.config.family, f"`{options.checkpoint}` holds")
    for card, protocol in chosen:
        check_head(checkpoint.config, card, protocol, f"`{options.checkpoint}`")
    checkpoint, tokenizer = with_tokenizer(checkpoint, options.tokenizer, options.checkpoint)
    tasks: list[tuple[Task, Data]] = []
    loaded: dict[tuple[str, str], Data] = {}
    for card, protocol in chosen:
        split = options.split or card.split_for(protocol)
        if (card.name, split) not in loaded:
            data = load_data(card, options.data, split, allow_modified=options.allow_modified_data)
            loaded[card.name, split] = data
        task = build_task(card, protocol, loaded[card.name, split], tokenizer, checkpoint.config.context)
        tasks.append((task, loaded[card.name, split]))
    return Plan(checkpoint=checkpoint, tokenizer=tokenizer, tasks=tuple(tasks))


def _as_finetuned(names: Sequence[str], checkpoint: ShardedCheckpoint) -> list[str]:
    """Let the bare name of a task stand for the protocol that the checkpoint was finetuned under."""
    run = read_finetuned(checkpoint.root)
    return [run.protocol if run and name == run.task else name for name in names]


def evaluate(made: Plan, options: Options, group: Group, model: GPT | BERT | None = None) -> RunResults:
    """Load this rank's shard, score what no earlier run into the same folder has scored, and sum up (collective).

    With `model`, in evaluation mode, nothing is loaded: it holds the weights of the plan's checkpoint.
    """
    from mpeval.checkpoint.load import load_model

    digest = digest_of(made.checkpoint, group)
    weights = identity_of(made.checkpoint, made.tokenizer, options, digest)
    # rank 0's refusal of the output folder ends the other ranks too: they wait for the next line
    journal = Journal(options.output, weights | _of_tasks(made)) if group.world.rank == 0 else None
    results: list[Result] = []
    order: list[tuple[str, str]] = []
    for task, data in made.tasks:
        items = task.items[: options.limit]
        keeper = _keeper(journal, task, data, weights, options)
        todo = _unscored(task, items, keeper, group)
        if todo and model is None:
            model = load_model(made.checkpoint, group, weights["dtype"])
            model.prepack()
        seconds, tokens = 0.0, 0
        if model is not None:
            scorer = Scorer(
                model=model,
                megatron_exact=options.megatron_exact,
                batch_tokens=options.batch_tokens,
                quiet=options.quiet,
            )
            seconds, tokens = scorer.score_all(task, todo, len(items) - len(todo), keeper)
        order += [(task.protocol.id, item.id) for item in items]
        if journal:
            samples = [journal.samples[task.protocol.id, item.id] for item in items]
            resumed = len(items) - len(todo)
            results.append(_result(task, data, samples, seconds=seconds, tokens=tokens, resumed=resumed))
    finetuned = read_finetuned(made.checkpoint.root)
    results = [_marked(result, finetuned) for result in results]
    run_results = results_document(made.checkpoint, finetuned, weights, results, options, group)
    if journal:
        journal.finish(order, run_results.to_json())
    return run_results


def identity_of(checkpoint: ShardedCheckpoint, tokenizer: Tokenizer, options: Options, digest: str) -> dict[str, Any]:
    """Return what any sample's numbers depend on; the number of ranks is not among it."""
    return {
        "checkpoint": digest,
        "tokenizer": tokenizer.digest,
        "dtype": options.dtype or checkpoint.dtype,
        "megatron_exact": options.megatron_exact,
        "model": checkpoint.config.computed(),
    }


def results_document(
    checkpoint: ShardedCheckpoint,
    finetuned: Finetuned | None,
    weights: Mapping[str, Any],
    results: list[Result],
    options: Options,
    group: Group,
) -> RunResults:
    """Return results with all that is to be known of the run; `weights` is its `identity_of`."""
    import torch

    return RunResults(
        created_at=now(),
        training=finetuned.training if finetuned else None,
        checkpoint=checkpoint_info(checkpoint, options.checkpoint, weights["checkpoint"], finetuned),
        tokenizer_digest=weights["tokenizer"],
        layout=Layout(tp=group.tp.ranks, dp=group.dp.ranks),
        dtype=weights["dtype"],
        device=_device_name(group),
        megatron_exact=weights["megatron_exact"],
        results=results,
        command=options.command or shlex.join(sys.argv),
        mpeval_version=__version__,
        torch_version=torch.__version__,
    )


def _keeper(
    journal: Journal | None, task: Task, data: Data, weights: Mapping[str, Any], options: Options
) -> Keeper | None:
    """Return where rank 0 keeps what was scored; None on the other ranks."""
    if journal is None:
        return None
    if options.cache is None:
        return Keeper(journal=journal)
    own = {"protocol": task.protocol.id, "version": task.protocol.version, "data": data.digest}
    return Keeper(journal=journal, cache=ScoreCache(options.cache, {**weights, **own}))


def _unscored(task: Task, items: Sequence[Item], keeper: Keeper | None, group: Group) -> list[Item]:
    """Return the items that neither an earlier run into the same folder nor the cache has scored (collective)."""
    done: set[str] = set()
    if keeper is not None:
        keeper.take_known(task.protocol.id, items)
        done = {item.id for item in items if (task.protocol.id, item.id) in keeper.journal.samples}
    done = broadcast_object(done, group.world)
    return [item for item in items if item.id not in done]


def _of_tasks(made: Plan) -> dict[str, Any]:
    """Return what the samples of each task depend on besides."""
    return {
        **{f"data of {task.protocol.id}": data.digest for task, data in made.tasks},
        **{f"version of {task.protocol.id}": task.protocol.version for task, _ in made.tasks},
    }


def _marked(result: Result, run: Finetuned | None) -> Result:
    """Say of a result by a head that was finetuned on another task which one that was."""
    if run is None or result.task == run.task:
        return result
    return result.model_copy(update={"flags": [*result.flags, f"finetuned-on-{run.task}"]})


def _result(task: Task, data: Data, samples: list[Sample], *, seconds: float, tokens: int, resumed: int) -> Result:
    metrics, n, correct = task.summarise(samples)
    truncated = sum("cut" in sample for sample in samples)
    flags = [*task.flags]
    flags += ["partial"] if len(samples) < len(task.items) else []
    flags += ["truncated"] if truncated else []
    return Result(
        task=task.card.name,
        protocol=task.protocol.id,
        protocol_version=task.protocol.version,
        title=task.card.title,
        split=data.split,
        metrics=metrics,
        n=n,
        n_correct=correct,
        items=len(samples),
        items_total=len(task.items),
        truncated=truncated,
        flags=flags,
        data=DataInfo(
            source=data.source, digest=data.digest, rows_expected=task.card.split_named(data.split).published.rows
        ),
        seconds=round(seconds, 3),
        tokens_per_second=round(tokens / seconds, 1) if seconds else None,
        items_resumed=resumed,
    )


def _device_name(group: Group) -> str:
    import torch

    return torch.cuda.get_device_name(group.device) if group.device.type == "cuda" else "cpu"


def publish(results: RunResults, options: Options) -> None:
    """Print the results, and append them to a leaderboard if asked to."""
    from mpeval.report import line, recorded, results_table

    if options.json:
        sys.stdout.write(results.to_json())
        sys.stdout.flush()
    if not options.quiet:
        results_table(results, stderr=options.json)
    if options.record:
        samples = options.output / SAMPLES_FILE if options.output else options.from_predictions
        found = records_of(results, samples, options.record)
        recorded(append(options.record, found), options.record, stderr=options.json)
    if options.output and not options.quiet:
        line(f"results and samples are in {options.output}", stderr=options.json)
