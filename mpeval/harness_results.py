"""lm-eval's results as mpeval's: one `Result` for each task and group, one line of samples for each document."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from mpeval.errors import DataError
from mpeval.results import DataInfo, HarnessInfo, Metric, Result
from mpeval.statistics import (
    accuracy_metric,
    mean_metric,
    mean_perplexity_metric,
    number_metric,
    ratio_perplexity_metrics,
)

Sample = dict[str, Any]
NOT_CONFIGURED = ("metadata", "dataset_kwargs", "dataset_path", "dataset_name", "num_fewshot")
"""What says where data are, or is said apart: no part of a configuration's digest."""
DEFAULT_FILTER = "none"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What lm-eval returned, and what it cannot tell."""

    found: Mapping[str, Any]
    """`lm_eval.evaluate`'s own dictionary, samples included."""
    version: str
    cut: Mapping[tuple[str, int], int]
    """Tokens lost on the left, by task and document."""
    tokens: Mapping[str, int]
    """Input tokens read in this run, by task."""
    asked: Set[tuple[str, int]]
    """The documents, by task, that no earlier run into the same folder had answered whole."""
    seconds: float
    """Of all tasks; each gets a share by its tokens."""
    flags: Mapping[str, tuple[str, ...]]
    """What a task's data say of themselves."""


def protocol_of(task: str, shots: int) -> str:
    """Return the id under which results of a task of lm-eval stand; other numbers of examples are other protocols."""
    return f"lm-eval/{task}" + (f"/{shots}-shot" if shots else "")


def config_digest(config: Mapping[str, Any]) -> str:
    """Return the sha256 of a task's configuration: templates, functions' text, filters, metrics, settings."""
    kept = {key: value for key, value in config.items() if key not in NOT_CONFIGURED}
    text = json.dumps(kept, sort_keys=True, default=str)
    return "sha256:" + hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", text).encode()).hexdigest()


def results_of(measured: Measured) -> tuple[list[Result], list[Sample]]:
    """Return the results of tasks and of groups that have a number of their own, and all samples in order."""
    found = measured.found
    results: list[Result] = []
    lines: list[Sample] = []
    for name in found["samples"]:
        samples = sorted(found["samples"][name], key=lambda sample: int(sample["doc_id"]))
        protocol = protocol_of(name, _shots(found, name))
        lines += [_line(protocol, name, sample, measured) for sample in samples]
        results.append(_of_task(name, samples, measured))
    by_task = {result.task: result for result in results}
    for name in found.get("groups", {}):
        results.append(_of_group(name, _leaves(found, name), by_task, measured))
    return results, lines


def _shots(found: Mapping[str, Any], name: str) -> int:
    return int(found["n-shot"].get(name) or 0)


def _leaves(found: Mapping[str, Any], name: str) -> list[str]:
    """Return the tasks of a group, of groups within it too."""
    children = found["group_subtasks"].get(name)
    return [name] if children is None else [leaf for child in children for leaf in _leaves(found, child)]


def _of_task(name: str, samples: Sequence[Sample], measured: Measured) -> Result:
    found = measured.found
    config, shots = found["configs"][name], _shots(found, name)
    documents = {int(sample["doc_id"]) for sample in samples}
    total = int(found["n-samples"][name]["original"])
    truncated = len({document for task, document in measured.cut if task == name} & documents)
    metrics, odd = _metrics(found["results"][name], found["higher_is_better"].get(name, {}), samples)
    if not metrics:
        raise DataError(f"lm-eval gives no number for `{name}`", "choose a task with a metric")
    seconds = measured.seconds * measured.tokens.get(name, 0) / max(1, sum(measured.tokens.values()))
    digest = config_digest(config)
    flags = [
        f"lm-eval-{measured.version}",
        f"config-{digest.removeprefix('sha256:')[:8]}",
        *measured.flags[name],
        *odd,
    ]
    flags += ["partial"] if len(documents) < total else []
    flags += ["truncated"] if truncated else []
    return Result(
        task=name,
        protocol=protocol_of(name, shots),
        protocol_version=str(found["versions"].get(name)),
        title=str(config.get("task_alias") or name),
        split=str(config.get("test_split") or config.get("validation_split") or ""),
        metrics=metrics,
        n=len(documents),
        n_correct=_correct(metrics[0], len(documents)),
        items=len(documents),
        items_total=total,
        truncated=truncated,
        flags=flags,
        data=DataInfo(source=_source(config), digest=_data_digest(samples), rows_expected=total),
        seconds=round(seconds, 3),
        tokens_per_second=round(measured.tokens.get(name, 0) / seconds, 1) if seconds else None,
        items_resumed=len(documents - {document for task, document in measured.asked if task == name}),
        harness=HarnessInfo(
            version=measured.version, task_version=str(found["versions"].get(name)), config=digest, shots=shots
        ),
    )


def _of_group(name: str, tasks: Sequence[str], by_task: Mapping[str, Result], measured: Measured) -> Result:
    """Return a group's own numbers; their intervals treat all documents as one set where the number is their mean."""
    found, members = measured.found, [by_task[task] for task in tasks]
    samples = [
        {**sample, "doc_id": f"{task}/{sample['doc_id']}"} for task in tasks for sample in found["samples"][task]
    ]
    metrics, odd = _metrics(found["groups"][name], found["higher_is_better"].get(name, {}), samples)
    if not metrics:
        raise DataError(f"lm-eval gives no number for the group `{name}`", "name its tasks instead")
    shots = {member.harness.shots for member in members if member.harness}
    text = "\n".join(f"{member.task} {member.harness.config if member.harness else ''}" for member in members)
    digest = "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    inherited = dict.fromkeys(flag for member in members for flag in member.flags if not flag.startswith("config-"))
    n = sum(member.n for member in members)
    data = hashlib.sha256("\n".join(member.data.digest for member in members).encode()).hexdigest()
    version = str(found["versions"].get(name))
    seconds = sum(member.seconds for member in members)
    tokens = sum(measured.tokens.get(task, 0) for task in tasks)
    return Result(
        task=name,
        protocol=protocol_of(name, max(shots) if len(shots) == 1 else 0),
        protocol_version=version,
        title=str(found["groups"][name].get("alias") or name).strip(" -"),
        split="+".join(dict.fromkeys(member.split for member in members)),
        metrics=metrics,
        n=n,
        n_correct=_correct(metrics[0], n),
        items=n,
        items_total=sum(member.items_total for member in members),
        truncated=sum(member.truncated for member in members),
        flags=[*inherited, f"config-{digest.removeprefix('sha256:')[:8]}", *odd],
        data=DataInfo(
            source=" + ".join(dict.fromkeys(member.data.source for member in members)),
            digest=f"sha256:{data}",
            rows_expected=sum(member.data.rows_expected for member in members),
        ),
        seconds=round(seconds, 3),
        tokens_per_second=round(tokens / seconds, 1) if seconds else None,
        items_resumed=sum(member.items_resumed for member in members),
        harness=HarnessInfo(
            version=measured.version,
            task_version=version,
            config=digest,
            shots=max(shots, default=0),
            tasks=list(tasks),
        ),
    )


def _source(config: Mapping[str, Any]) -> str:
    parts = [str(config[key]) for key in ("dataset_path", "dataset_name") if config.get(key)]
    folder = (config.get("metadata") or {}).get("data")
    return " ".join(parts) or "a function of the task" + (f", {folder}" if folder else "")


def _data_digest(samples: Iterable[Sample]) -> str:
    """Return the sha256 of what was asked: lm-eval's digests of each document, its prompt and its target."""
    keys = ("doc_id", "doc_hash", "prompt_hash", "target_hash")
    lines = dict.fromkeys(" ".join(str(sample.get(key)) for key in keys) for sample in samples)
    return "sha256:" + hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _correct(metric: Metric, n: int) -> int | None:
    """Return how many are right where the first metric is the share of these."""
    count = metric.value * n
    whole = (
        metric.unit == "proportion" and metric.interval == "wilson" and math.isclose(count, round(count), abs_tol=1e-6)
    )
    return round(count) if whole else None


# ---- metrics ----


def _metrics(
    scores: Mapping[str, Any], higher: Mapping[str, Any], samples: Sequence[Sample]
) -> tuple[list[Metric], list[str]]:
    """Return lm-eval's numbers with error bars, and flags for those that are undefined."""
    metrics, odd = [], []
    for key, value in scores.items():
        name, _, chosen = key.partition(",")
        if not chosen or name.endswith("_stderr") or isinstance(value, str) or not _is_number(value):
            continue
        own = [sample for sample in samples if sample["filter"] == chosen and name in sample]
        shown = name if chosen == DEFAULT_FILTER else f"{name}/{chosen}"
        if not math.isfinite(value):
            odd.append(f"undefined-{shown}")
            continue
        direction = "min" if higher.get(name) is False else "max"
        metric = _with_bars(shown, float(value), direction, own)
        metrics.append(metric.model_copy(update={"value": float(value), "direction": direction}))
    return metrics, odd


def _with_bars(name: str, value: float, direction: Any, samples: Sequence[Sample]) -> Metric:
    """Find what kind of number lm-eval made of the documents' own, and return it with that kind's error bars.

    A number that is neither a mean nor a perplexity of theirs, such as a corpus' BLEU, has none.
    """
    key = name.partition("/")[0]
    values = [sample[key] for sample in samples]
    clusters = [str(sample["doc_id"]) for sample in samples]
    perplexity = "perplexity" in key and value > 0
    if values and all(map(_is_number, values)):
        plain = [float(item) for item in values]
        mean = math.fsum(plain) / len(plain)
        if _equal(mean, value):
            if set(plain) <= {0.0, 1.0}:
                return accuracy_metric(round(sum(plain)), len(plain), name)
            if direction == "max" and min(plain) >= 0 and max(plain) <= 1:
                return mean_metric(name, plain, clusters)
            return number_metric(name, plain, direction)
        if perplexity and _equal(-mean, math.log(value)):
            return mean_perplexity_metric(name, [-item for item in plain])
    if values and perplexity and all(map(_is_ratio, values)):
        losses, weights = [-float(item[0]) for item in values], [float(item[1]) for item in values]
        if _equal(math.fsum(losses) / math.fsum(weights), math.log(value)):
            return ratio_perplexity_metrics(losses, weights, {name: 1.0})[0]
    share = direction == "max" and 0 <= value <= 1
    return Metric(name=name, value=value, unit="proportion" if share else "number", direction=direction)


def _equal(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-12)


def _is_ratio(value: Any) -> bool:
    """Tell a log-probability with what it is divided by from other pairs."""
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_number, value)) and value[1] > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (hasattr(value, "dtype") and getattr(value, "ndim", 1) == 0)


# ---- samples ----


def _line(protocol: str, name: str, sample: Sample, measured: Measured) -> Sample:
    """Return one line of `samples.jsonl`; a task with several filters has one of each document for each."""
    number, chosen = int(sample["doc_id"]), sample["filter"]
    names = [metric for metric in sample["metrics"] if metric in sample]
    line: Sample = {
        "task": protocol,
        "id": f"{number:05d}" + ("" if chosen == DEFAULT_FILTER else f"/{chosen}"),
        "target": _plain(sample["target"]),
        **_answers(sample),
        "metrics": {metric: _plain(sample[metric]) for metric in names},
        "doc_hash": sample["doc_hash"],
        "prompt_hash": sample["prompt_hash"],
    }
    judged = "acc" if "acc" in names else next(iter(names), None)
    if judged is not None and sample[judged] in (0, 1):
        line["correct"] = bool(sample[judged])
    cut = measured.cut.get((name, number))
    return line | ({"cut": cut} if cut else {})


def _answers(sample: Sample) -> Sample:
    """Return what the model answered: texts, or log-probabilities with whether they are greedy."""
    first = [answers[0] for answers in sample["resps"]]
    if all(isinstance(answer, str) for answer in first):
        return {"prediction": _plain(_alone(sample["filtered_resps"])), "generated": _plain(_alone(sample["resps"]))}
    if all(isinstance(answer, tuple | list) for answer in first):
        logs, greedy = [float(answer[0]) for answer in first], [bool(answer[1]) for answer in first]
        if len(first) == 1:
            return {"log_probability": logs[0], "greedy": greedy[0]}
        return {"log_probabilities": logs, "greedy": greedy}
    return {"log_probability": float(first[0])} if len(first) == 1 else {"log_probabilities": [float(x) for x in first]}


def _alone(values: Any) -> Any:
    """Return what is in lists of one."""
    while isinstance(values, list) and len(values) == 1:
        values = values[0]
    return values


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold, a text of it otherwise."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if _is_number(value):
        number = float(value)
        return number if math.isfinite(number) else str(number)
    return str(value)
