"""The boards as metadata of Hugging Face: `model-index` of a model card, and files of `.eval_results`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from mpeval.leaderboard.boards import Board
from mpeval.leaderboard.exports.export import (
    Export,
    hub_of,
    left_out,
    metrics,
    printed,
    rows,
    scaled,
    shots,
    unit,
    whole_benchmark,
)
from mpeval.leaderboard.published import card_of
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.store import Number
from mpeval.results import Metric

INDEX = "model-index.yaml"
RESULTS = "eval-results.yaml"
TASKS = {
    **dict.fromkeys(("cloze", "perplexity"), "text-generation"),
    "choice": "multiple-choice",
    "pair": "text-classification",
    "span": "question-answering",
}
"""The hub's name for what a card's kind of benchmark asks."""
TYPES = {"acc": "accuracy", "acc_norm": "accuracy", "exact": "exact_match"}
GROUPS = {"accuracy_middle": "middle", "accuracy_high": "high"}
"""Subsets of a benchmark that are tasks of their own there."""


def export_model_index(content: Sequence[Board]) -> Export:
    """Return `model-index.yaml`: one YAML document for each model, to be put into its card."""
    made = [{"model-index": [{"name": name, "results": results}]} for name, results in model_index(content).items()]
    return Export(files={INDEX: "".join(f"---\n{to_yaml(document)}" for document in made)})


def model_index(content: Sequence[Board]) -> dict[str, list[dict[str, Any]]]:
    """Return the `results` of each model's `model-index`, by the model's name.

    Metrics share a result only where task, data set, set, revision, arguments (protocol, shots, flags, weights) and
    source are all the same: the hub's own library takes the first one's arguments and source for all.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for _, row in rows(content):
        entry = row.entry
        result = _result(entry)
        key = json.dumps(result, sort_keys=True)
        kept = found.setdefault(entry.model.name, {}).setdefault(key, result | {"metrics": []})
        kept["metrics"] += [_metric(entry, metric) for metric in metrics(entry)]
        if "source" in kept:
            kept["source"] = kept.pop("source")
    return {name: list(results.values()) for name, results in found.items()}


def _result(entry: Number) -> dict[str, Any]:
    """Return all of a result but its metrics."""
    card, hub = card_of(entry.task), hub_of(entry)
    said = shots(entry)
    dataset: dict[str, Any] = {"type": hub.id if hub else entry.task, "name": entry.title}
    if hub:
        dataset |= {"config": hub.config, "split": hub.split}
        if re.fullmatch(r"[0-9a-f]{40}", hub.revision):
            dataset["revision"] = hub.revision
    else:
        dataset["split"] = entry.part
    args: dict[str, Any] = {"protocol": entry.protocol, "kind": entry.kind}
    if said:
        args |= {"num_few_shot": int(said)} if re.fullmatch(r"\d{1,9}", said) else {"shots": said}
    args |= {"flags": list(entry.flags)} if entry.flags else {}
    if isinstance(entry, Record):
        args |= {"protocol_version": entry.protocol_version, "dtype": entry.dtype}
        args |= {"data": entry.data.digest, "checkpoint": entry.model.digest}
    task = "fill-mask" if "masked" in entry.metric.name else TASKS.get(card.kind if card else "", "other")
    result = {
        "task": {"type": task, "name": card.category if card else entry.title},
        "dataset": dataset | {"args": args},
    }
    if not isinstance(entry, Record):
        result["source"] = {"name": f"{entry.source.title}, {entry.source.locator}", "url": entry.source.url}
    return result


def _metric(entry: Number, metric: Metric) -> dict[str, Any]:
    args: dict[str, Any] = {"unit": unit(metric)}
    for name, value in (("stderr", metric.stderr), ("ci_low", metric.low), ("ci_high", metric.high)):
        if value is not None:
            args[name] = scaled(value, metric)
    args |= {"interval": metric.interval} if metric.interval else {}
    args |= {"n": entry.n} if entry.n and metric is entry.metric else {}
    args |= {"record_id": entry.identity()}
    return {
        "type": metric_type(metric.name),
        "name": metric.name.replace("_", " "),
        "value": _value(entry, metric),
        "args": args,
    }


def metric_type(name: str) -> str:
    """Return the hub's name for a kind of metric."""
    for kind in ("accuracy", "perplexity"):
        if name.startswith(kind) or name.endswith(kind):
            return kind
    return TYPES.get(name, name)


def _value(entry: Number, metric: Metric) -> float:
    """Return a metric's value as it is shown; printed figures as they are printed."""
    said = printed(entry, metric)
    value = float(said) if said else scaled(metric.value, metric)
    assert value is not None
    return value


def export_eval_results(content: Sequence[Board]) -> Export:
    """Return `eval-results.yaml`, a list as the files in a model's folder `.eval_results` have it.

    An entry has neither metric nor direction, flag nor model, so that only accuracies of whole benchmarks are in it;
    the notes say the rest.
    """
    entries: list[dict[str, Any]] = []
    reasons: list[str] = []
    for _, row in rows(content):
        for metric in metrics(row.entry):
            reason = _unfit(row.entry, metric)
            if reason:
                reasons.append(reason)
            else:
                entries.append(_eval_result(row.entry, metric))
    return Export(files={RESULTS: to_yaml(entries)}, notes=left_out(reasons, RESULTS))


def _unfit(entry: Number, metric: Metric) -> str:
    """Say why a metric cannot be an entry, empty if it can."""
    if metric.unit != "proportion":
        kind = "perplexity" if metric.unit == "perplexity" else metric.unit
        return f"of {kind}: the format cannot say that lower is better" if metric.direction == "min" else f"of {kind}"
    if not (metric.name in {"accuracy", "acc"} or metric.name in GROUPS):
        return f"of {metric.name.replace('_', ' ')}: the format has accuracies only"
    if not whole_benchmark(entry):
        return "flagged, or of other questions than the benchmark's"
    card = card_of(entry.task)
    if not card or entry.part != card.split or not hub_of(entry):
        return "of a benchmark that the hub is not known to have, or of another set than its usual one"
    return ""


def _eval_result(entry: Number, metric: Metric) -> dict[str, Any]:
    hub = hub_of(entry)
    assert hub
    said = shots(entry)
    notes = [
        entry.model.name,
        entry.kind,
        f"{said}-shot" if said.isdigit() else said,
        f"protocol {entry.protocol}",
        f"{hub.split} set",
        "accuracy in percent",
        f"n={entry.n}" if entry.n and metric is entry.metric else "",
        f"standard error {scaled(metric.stderr, metric):.2f}" if metric.stderr is not None else "",
    ]
    made: dict[str, Any] = {
        "dataset": {"id": hub.id, "task_id": GROUPS.get(metric.name, hub.config)},
        "value": _value(entry, metric),
    }
    if re.fullmatch(r"[0-9a-f]{40}", hub.revision):
        made["dataset"]["revision"] = hub.revision
    if entry.date:
        made["date"] = entry.date
    if not isinstance(entry, Record):
        made["source"] = {"url": entry.source.url, "name": f"{entry.source.title}, {entry.source.locator}"}
    return {**made, "notes": "; ".join(note for note in notes if note)}


def to_yaml(value: Any) -> str:
    """Return block YAML of ASCII only, keys in the order given."""
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=False, width=100_000))
