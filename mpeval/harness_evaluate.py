"""Evaluate a checkpoint on tasks of lm-eval: its prompts, filters and metrics, mpeval's engine and records.

The path of one document: `cli.evaluate` -> `run` -> lm-eval's `evaluate` -> `harness/model.py` -> `scoring.score`.
"""

from __future__ import annotations

import logging
import os
import random
import sys
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mpeval import evaluate, launch
from mpeval.checkpoint.open import open_checkpoint
from mpeval.checkpoint.sharded import ShardedCheckpoint
from mpeval.errors import DataError, UsageError, suggest
from mpeval.evaluate import Options, publish
from mpeval.finetuned import read_finetuned
from mpeval.harness_results import Measured, protocol_of, results_of
from mpeval.journal import Journal
from mpeval.leaderboard.store import check_store
from mpeval.parallel.group import broadcast_object, gather_objects
from mpeval.provenance import check_causal, digest_of, with_tokenizer
from mpeval.results import RunResults
from mpeval.score_cache import identity_digest
from mpeval.tokenizer import Tokenizer

if TYPE_CHECKING:
    from mpeval.harness import LanguageModel
    from mpeval.harness.answers import Answers
    from mpeval.models.gpt import GPT
    from mpeval.parallel.group import Group

SEEDS = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
"""What lm-eval seeds by default, so that examples before questions are the same ones."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What was asked of lm-eval; `tasks` is None where nothing was."""

    tasks: str | None = None
    shots: int | None = None
    include: Path | None = None

    @property
    def names(self) -> list[str]:
        """Names of tasks, groups and tags, or patterns of them."""
        return [name.strip() for name in (self.tasks or "").split(",") if name.strip()]


def run(options: Options, asked: Asked) -> None:
    """Evaluate on lm-eval's tasks if any are asked for, else on mpeval's own.

    Raises:
        UsageError: both, neither, or options of the other kind.
    """
    _check_options(options, asked)
    if asked.tasks is None:
        evaluate.run(options)
        return
    options = replace(options, device=launch.device_of(options.device))
    launch.start(options.tp, options.dp, run_rank, (options, asked), check=lambda tp, _: plan(options, tp))


_OF_OWN_TASKS = ("tasks", "split", "from_predictions", "megatron_exact", "allow_modified_data")
_HARNESS_ONLY = {"shots": "--num-fewshot", "include": "--include-path"}


def _check_options(options: Options, asked: Asked) -> None:
    if asked.tasks is None:
        for name, option in _HARNESS_ONLY.items():
            if getattr(asked, name) is not None:
                raise UsageError(f"`{option}` is for tasks of lm-eval", "name some by `--harness TASK,...`")
        if not options.tasks:
            raise UsageError(
                "there is nothing to evaluate on", "give `--task TASK`, or `--harness TASK,...` for tasks of lm-eval"
            )
        return
    for name in _OF_OWN_TASKS:
        if getattr(options, name):
            option = f"--{name.replace('_', '-')}".replace("--tasks", "--task")
            raise UsageError(f"`{option}` says nothing about tasks of lm-eval", f"leave out `{option}` or `--harness`")
    if not asked.names:
        raise UsageError(f"`--harness {asked.tasks!r}` names no task", "give names, such as `--harness arc_easy`")
    if asked.include is not None and not asked.include.is_dir():
        found = "is a file" if asked.include.exists() else "does not exist"
        raise UsageError(f"`--include-path {asked.include}` {found}", "give a folder of task files (*.yaml)")
    if options.limit is not None and options.limit < 1:
        raise UsageError(f"`--limit {options.limit}` leaves nothing to score", "give 1 or more")


def plan(options: Options, tp: int) -> tuple[ShardedCheckpoint, Tokenizer]:
    """Check the store, checkpoint headers and tokenizer; no weight is read.

    Raises:
        MpevalError: whatever is missing or does not fit.
    """
    if options.record:
        check_store(options.record)
    checkpoint = open_checkpoint(options.checkpoint, dict(options.settings))
    checkpoint.config.check_ranks(tp)
    check_causal(checkpoint, options.checkpoint)
    return with_tokenizer(checkpoint, options.tokenizer, options.checkpoint)


def run_rank(world: launch.World | None, job: tuple[Options, Asked]) -> None:
    """Evaluate as one rank; rank 0 writes and prints."""
    options, asked = job
    tp, dp = launch.sizes(options.tp, options.dp, world)
    with launch.joined(world, tp=tp, dp=dp, device=options.device) as group:
        checkpoint, tokenizer = plan(options, tp)
        shown = group.world.rank == 0 and not options.quiet and sys.stderr.isatty()
        with _quiet(bars=not shown):
            loaded = load_tasks(options, asked)
            check_documents(loaded["tasks"], options.limit, dp)
            results = evaluate_tasks(checkpoint, tokenizer, loaded, options, group)
        if group.world.rank == 0:
            publish(results, options)


@contextmanager
def _quiet(*, bars: bool) -> Iterator[None]:
    """Keep lm-eval's notes to itself meanwhile, and with `bars` its progress bars and those of its libraries."""
    from functools import partial

    if bars:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when the hub's library is imported
    from lm_eval.api import task

    loggers = [logging.getLogger(name) for name in ("lm_eval", "mpeval.harness")]
    before, bar = [each.level for each in loggers], task.tqdm
    had = task.datasets.are_progress_bars_disabled()
    try:
        for each in loggers:
            each.setLevel(logging.ERROR)
        if bars:
            task.tqdm = partial(bar, disable=True)
            task.datasets.disable_progress_bars()
        yield
    finally:
        task.tqdm = bar
        if bars and not had:
            task.datasets.enable_progress_bars()
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


# ---- tasks ----


def load_tasks(options: Options, asked: Asked) -> dict[str, Any]:
    """Return lm-eval's dictionary of tasks and groups, with examples before questions as asked for.

    lm-eval's own 14,000 task files are looked through, which takes seconds, only for a name that `--include-path` has
    not.

    Raises:
        UsageError: an unknown name, a task that needs more than text, or that runs code of the model's.
        DataError: a task that cannot be loaded.
    """
    manager, names = _manager(options, asked)
    try:
        loaded = cast(dict[str, Any], manager.load(names))
    except Exception as error:  # task files, their functions and `datasets` raise anything at all; the cause is kept
        reason = next(iter(str(error).splitlines()), "")
        if isinstance(error, ValueError) and "Duplicate" in reason:
            raise UsageError(f"`--harness {asked.tasks}`: {reason}", "name a group or its tasks, not both") from error
        raise DataError(
            f"lm-eval cannot load `{asked.tasks}`: {type(error).__name__}: {reason}",
            "see that its data can be reached, or read local files by a task of your own in `--include-path`",
        ) from error
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise UsageError(
                f"`{name}` runs code that the model writes", "use `mpeval harness run --confirm_run_unsafe_code ...`"
            )
        if getattr(task, "MULTIMODAL", False):
            raise UsageError(f"`{name}` asks about images or sound", "choose tasks of text")
        _set_shots(task, asked.shots)
    if asked.shots and not any(task.get_config("num_fewshot") for task in loaded["tasks"].values()):
        raise UsageError(
            f"`--num-fewshot {asked.shots}`: `{asked.tasks}` is asked without examples, by its own definition",
            "leave the option out",
        )
    if options.data and not any(task.get_config("custom_dataset") for task in loaded["tasks"].values()):
        raise UsageError(
            "`--data` is for tasks that read a folder, and none of these does",
            "leave it out, or use such as those of `--include-path tasks/harness`",
        )
    return loaded


def _manager(options: Options, asked: Asked) -> tuple[Any, list[str]]:
    """Return lm-eval's index of tasks, and those of the names that are in it."""
    from lm_eval.tasks import TaskManager

    metadata = {"data": str(options.data.resolve())} if options.data else None
    own = str(asked.include.resolve()) if asked.include else None
    if own is not None:
        manager = TaskManager(include_path=own, include_defaults=False, metadata=metadata)
        found = [manager.match_tasks([name]) for name in asked.names]
        if all(found):
            return manager, _flat(found)
    manager = TaskManager(include_path=own, metadata=metadata)
    found = [manager.match_tasks([name]) for name in asked.names]
    for name, matches in zip(asked.names, found, strict=True):
        if not matches:
            raise UsageError(f"lm-eval has no task `{name}`", _near(name, manager.all_tasks))
    return manager, _flat(found)


def _flat(found: Sequence[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(name for matches in found for name in matches))


def _near(name: str, known: list[str]) -> str:
    """Say the nearest name; of thousands a list would help nobody."""
    near = [task for task in known if name.lower() in task.lower()] or known
    said = suggest(name, near)
    return said if said.startswith("did") else "`mpeval harness ls tasks` lists them all"


def _set_shots(task: Any, shots: int | None) -> None:
    """Set how many examples go before each question; a task that fixes none keeps none, as in lm-eval."""
    fixed = task.get_config("num_fewshot")
    if shots is not None and fixed != 0:
        task.set_config(key="num_fewshot", value=shots)
    elif fixed is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=SEEDS["fewshot"])


def check_documents(tasks: Mapping[str, Any], limit: int | None, dp: int) -> None:
    """Refuse data-parallel ranks that would have no document of a task: lm-eval cannot sum up nothing.

    Raises:
        UsageError: there are such.
    """
    for name, task in tasks.items():
        count = min(len(task.eval_docs), limit or len(task.eval_docs))
        if count < dp:
            raise UsageError(
                f"`{name}` has {count} documents for {dp} data-parallel ranks", f"give `--dp {max(1, count)}` or less"
            )


# ---- one run ----


def evaluate_tasks(
    checkpoint: ShardedCheckpoint,
    tokenizer: Tokenizer,
    loaded: dict[str, Any],
    options: Options,
    group: Group,
    model: GPT | None = None,
) -> RunResults:
    """Load this rank's shard, let lm-eval ask it, and make its results mpeval's (collective).

    With `model`, in evaluation mode, nothing is loaded: it holds the weights of the checkpoint.
    """
    from lm_eval.evaluator import evaluate as ask

    from mpeval.checkpoint.load import load_model
    from mpeval.harness import LanguageModel

    weights = evaluate.identity_of(checkpoint, tokenizer, options, digest_of(checkpoint, group))
    # rank 0's refusal of the output folder ends the other ranks too: they wait for the answers that are known
    journal = Journal(options.output, weights | _identity(loaded["tasks"])) if group.world.rank == 0 else None
    answers = _answers(options, weights, group)
    if model is None:
        model = cast("GPT", load_model(checkpoint, group, weights["dtype"]))
        model.prepack()
    random.seed(SEEDS["random"])
    _seed_numpy_and_torch()
    lm = LanguageModel(model, tokenizer, batch_tokens=options.batch_tokens, answers=answers, shown=not options.quiet)
    found = ask(lm=lm, task_dict=loaded, limit=options.limit, bootstrap_iters=0, log_samples=True)
    measured = _measured(lm, found, loaded)
    results, samples = results_of(measured) if found is not None else ([], [])
    finetuned = read_finetuned(checkpoint.root)
    run_results = evaluate.results_document(checkpoint, finetuned, weights, results, options, group)
    if journal:
        journal.append(samples)
        journal.finish([(sample["task"], sample["id"]) for sample in samples], run_results.to_json())
    return run_results


def _answers(options: Options, weights: Mapping[str, Any], group: Group) -> Answers:
    """Return the answers that these weights gave before, into the output folder or the cache (collective).

    New ones are written to both; a run adds a file of its own to the cache, which others may read meanwhile.
    """
    from mpeval.harness.answers import FILE, Answers, read_answers

    folders = []
    if options.output is not None:
        folders.append((options.output, f"{group.dp.rank:03d}"))
    if options.cache is not None:
        folders.append((options.cache / f"answers-{identity_digest(weights)}", uuid.uuid4().hex))
    known: dict[str, Any] = {}
    if group.world.rank == 0:
        for folder, _ in folders:
            known |= read_answers(folder)
    paths = [folder / FILE.format(own) for folder, own in folders] if group.tp.rank == 0 else []
    return Answers(broadcast_object(known, group.world), *paths)


def _identity(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """Return what, besides the model, samples of these tasks depend on."""
    import lm_eval

    from mpeval.harness_results import config_digest

    made: dict[str, Any] = {"lm_eval": lm_eval.__version__}
    for name, task in tasks.items():
        protocol = protocol_of(name, int(task.get_config("num_fewshot") or 0))
        made[f"configuration of {protocol}"] = config_digest(task.dump_config())
    return made


def _seed_numpy_and_torch() -> None:
    import numpy as np
    import torch

    np.random.seed(SEEDS["numpy"])
    torch.manual_seed(SEEDS["torch"])


def _measured(lm: LanguageModel, found: Any, loaded: Mapping[str, Any]) -> Measured:
    """Gather from all data-parallel ranks what lm-eval does not: cut and resumed documents, tokens and seconds."""
    import lm_eval

    parts = gather_objects((lm.cut, lm.tokens, lm.asked, lm.seconds), lm.model.group.dp)
    tokens: Counter[str] = Counter()
    cut: dict[tuple[str, int], int] = {}
    asked: set[tuple[str, int]] = set()
    for cuts, counts, documents, _ in parts:
        tokens.update(counts)
        cut.update(cuts)
        asked |= documents
    return Measured(
        found=found or {},
        version=lm_eval.__version__,
        cut=cut,
        tokens=tokens,
        asked=asked,
        seconds=max(seconds for *_, seconds in parts),
        flags={name: _flags_of(task) for name, task in loaded["tasks"].items()},
    )


def _flags_of(task: Any) -> tuple[str, ...]:
    """Return what a task's data say of themselves, as those of `tasks/harness` do: `sample-rows` and the like."""
    info = getattr(task.eval_docs, "info", None)
    said = str(getattr(info, "description", "") or "")
    return tuple(said.removeprefix("flags:").split()) if said.startswith("flags:") else ()
