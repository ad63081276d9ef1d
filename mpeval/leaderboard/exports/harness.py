"""What mpeval measured as results files of lm-eval, as its tables and its viewers read them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mpeval.leaderboard.boards import Board
from mpeval.leaderboard.exports.export import Export, file_name, left_out, metrics, rows, seconds
from mpeval.leaderboard.records import Record

NAMES = {"accuracy": "acc", "accuracy_norm": "acc_norm", "target_perplexity": "perplexity"}
"""lm-eval's own names of metrics."""


def export(content: Sequence[Board]) -> Export:
    """Return `lm-eval/MODEL/results_TIME.json` of each run; reported numbers are no runs and have none.

    A protocol stands as a task under its id, which is lm-eval's only where lm-eval's own task was run.
    """
    runs: dict[tuple[Any, ...], dict[str, Record]] = {}
    reported = 0
    for _, row in rows(content):
        entry = row.entry
        if not isinstance(entry, Record):
            reported += 1
            continue
        tasks = _run_of(runs, entry)
        tasks[_task(entry)] = entry
    files: dict[str, str] = {}
    for _, tasks in sorted(runs.items(), key=lambda item: [str(part) for part in item[0]]):
        text = json.dumps(document(tasks), indent=2, ensure_ascii=True, allow_nan=False)
        files[_path(next(iter(tasks.values())), files)] = text
    return Export(
        files=files,
        notes=left_out(["reported: not measured here"] * reported, "lm-eval"),
        earlier="lm-eval/*/results_*.json",
    )


def _run_of(runs: dict[tuple[Any, ...], dict[str, Record]], entry: Record) -> dict[str, Record]:
    """Return the run that a record belongs to: of the same model at the same time, in which its task is not yet."""
    number = 0
    while True:
        key = (entry.model.name, entry.created_at, entry.model.digest, entry.dtype, entry.layout, entry.members, number)
        tasks = runs.setdefault(tuple(map(str, key)), {})
        if _task(entry) not in tasks:
            return tasks
        number += 1


def _path(record: Record, used: dict[str, str]) -> str:
    """Return a path that lm-eval could have chosen; of runs that began in one second, some get microseconds."""
    folder = f"lm-eval/{file_name(record.model.name)}"
    time = record.created_at.removesuffix("Z").replace(":", "-")
    number = 0
    while True:
        path = f"{folder}/results_{time}{f'.{number:06}' if number else ''}.json"
        if path not in used:
            return path
        number += 1


def _task(record: Record) -> str:
    """Return the name that a result stands under."""
    if record.harness:
        return record.task
    return record.protocol if record.part == "test" else f"{record.protocol}@{record.part}"


def document(tasks: dict[str, Record]) -> dict[str, Any]:
    """Return the results of one run, by task, as lm-eval writes them."""
    tasks = dict(sorted(tasks.items()))
    first = next(iter(tasks.values()))
    began = seconds(first.created_at)
    taken = sum(record.seconds for record in tasks.values())
    shots = {name: record.harness.shots if record.harness else 0 for name, record in tasks.items()}
    return {
        "results": {name: _scores(name, record) for name, record in tasks.items()},
        "group_subtasks": {name: [] for name in tasks},
        "configs": {name: _config(name, record, shots[name]) for name, record in tasks.items()},
        "versions": {
            name: record.harness.task_version if record.harness else record.protocol_version
            for name, record in tasks.items()
        },
        "n-shot": shots,
        "higher_is_better": {
            name: {_key(metric.name)[0]: metric.direction == "max" for metric in metrics(record)}
            for name, record in tasks.items()
        },
        "n-samples": {
            name: {"original": max(record.n, _expected(record)), "effective": record.n}
            for name, record in tasks.items()
        },
        "config": _settings(first),
        "git_hash": None,
        "date": began,
        "model_source": "mpeval",
        "model_name": first.model.name,
        "model_name_sanitized": file_name(first.model.name),
        "start_time": 0.0,
        "end_time": taken,
        "total_evaluation_time_seconds": str(taken),
    }


def _expected(record: Record) -> int:
    """Return how many items a whole evaluation has, where the rows of the data are its items."""
    return record.data.rows_expected if "partial" in record.flags and record.n_correct is not None else record.n


def _key(name: str) -> tuple[str, str]:
    """Return lm-eval's metric and filter."""
    metric, _, chosen = name.partition("/")
    return NAMES.get(metric, metric), chosen or "none"


def _scores(name: str, record: Record) -> dict[str, Any]:
    scores: dict[str, Any] = {"alias": name, "name": name, "sample_len": record.n}
    for metric in metrics(record):
        key, chosen = _key(metric.name)
        scores[f"{key},{chosen}"] = metric.value
        scores[f"{key}_stderr,{chosen}"] = "N/A" if metric.stderr is None else metric.stderr
    return scores


def _config(name: str, record: Record, shots: int) -> dict[str, Any]:
    metadata = {
        "protocol": record.protocol,
        "version": record.protocol_version,
        "flags": record.flags,
        "record_id": record.identity(),
        "data": record.data.digest,
    }
    return {"task": name, "dataset_name": record.title, "num_fewshot": shots, "metadata": metadata}


def _settings(record: Record) -> dict[str, Any]:
    model = record.model
    return {
        "model": "mpeval",
        "model_args": f"checkpoint={model.path},tp={record.layout.tp},dp={record.layout.dp}",
        "model_num_parameters": model.parameters,
        "model_dtype": record.dtype,
        "model_revision": f"iteration {model.iteration}",
        "model_sha": model.digest,
        "batch_size": None,
        "batch_sizes": [],
        "device": record.device,
        "use_cache": None,
        "limit": record.n if "partial" in record.flags else None,
        "bootstrap_iters": 0,
        "gen_kwargs": None,
    }
