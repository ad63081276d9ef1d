"""The boards as files of Every Eval Ever 0.3.0, one for each record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpeval.leaderboard.boards import Board
from mpeval.leaderboard.exports.export import Export, metrics, pretty, rows, scaled, seconds, shots, unit
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.store import Number
from mpeval.leaderboard.text import slug
from mpeval.results import Metric

VERSION = "0.3.0"
BOUNDS: dict[str, tuple[float | str, float | str]] = {
    "proportion": (0, 100),
    "perplexity": (1, "inf"),
    "bits": (0, "inf"),
    "number": ("-inf", "inf"),
}
"""Least and greatest score by unit; that format writes what has no bound as text."""


def export(content: Sequence[Board]) -> Export:
    """Return `eee/HASH.json` of each record, under the same name and id whenever it is made."""
    files = {f"eee/{row.entry.identity()[7:23]}.json": pretty(document(row.entry)) for _, row in rows(content)}
    return Export(files=files, earlier="eee/*.json")


def document(entry: Number) -> dict[str, Any]:
    """Return one record in that format; whatever it has no field for stands in `additional_details`, as text."""
    identity = entry.identity()
    measured = isinstance(entry, Record)
    made: dict[str, Any] = {
        "schema_version": VERSION,
        "evaluation_id": f"{slug(entry.task)}/{slug(entry.model.name)}/{identity[7:]}",
        "retrieved_timestamp": str(int(seconds(entry.created_at))),
    }
    if entry.date:
        moment = entry.created_at if measured else f"{entry.date}T00:00:00Z"
        made["evaluation_timestamp"] = str(int(seconds(moment)))
    return {
        **made,
        "source_metadata": _source(entry),
        "eval_library": {"name": "mpeval", "version": _version(entry)},
        "model_info": _model(entry),
        "evaluation_results": [_result(entry, metric) for metric in metrics(entry)],
    }


def _version(entry: Number) -> str:
    """Return the version that measured a number, or that wrote down what a source says."""
    if isinstance(entry, Record):
        return entry.mpeval_version
    from mpeval import __version__

    return __version__


def _source(entry: Number) -> dict[str, Any]:
    """Return where a number comes from; who the evaluator was, neither kind of record says."""
    shared = {"source_organization_name": "unknown", "evaluator_relationship": "other"}
    if isinstance(entry, Record):
        return {"source_type": "evaluation_run", "source_name": "mpeval", **shared}
    source = entry.source
    details = {"url": source.url, "locator": source.locator, "quote": source.quote, "evidence": source.evidence}
    return {
        "source_type": "documentation",
        "source_name": f"{source.title}, {source.locator}",
        **shared,
        "additional_details": {key: value for key, value in details.items() if value},
    }


def _model(entry: Number) -> dict[str, Any]:
    model = entry.model
    details = {"deployment_type": "unknown", "model_availability": "unknown"}
    if model.parameters:
        details["parameters"] = f"{model.parameters:.0f}"
    if isinstance(entry, Record):
        details |= {"checkpoint": entry.model.digest, "iteration": str(entry.model.iteration), "dtype": entry.dtype}
        details |= {"layout": f"tp {entry.layout.tp} x dp {entry.layout.dp}", "command": entry.command}
    elif entry.model.family:
        details["family"] = entry.model.family
    return {"name": model.name, "id": f"unknown/{slug(model.name) or 'model'}", "additional_details": details}


def _result(entry: Number, metric: Metric) -> dict[str, Any]:
    words = metric.name.replace("_", " ")
    details = {
        "protocol": entry.protocol,
        "split": entry.part,
        "kind": entry.kind,
        "record_id": entry.identity(),
        **{key: value for key, value in (("shots", shots(entry)), ("flags", ", ".join(entry.flags))) if value},
    }
    if isinstance(entry, Record):
        details["data"] = entry.data.digest
    return {
        "evaluation_name": f"{entry.title} {entry.part}: {words}",
        "source_data": {"dataset_name": entry.title, "source_type": "other", "additional_details": details},
        "metric_config": {
            "lower_is_better": metric.direction == "min",
            "metric_id": metric.name,
            "metric_name": words,
            "metric_unit": unit(metric),
            "score_type": "continuous",
            "min_score": BOUNDS[metric.unit][0],
            "max_score": BOUNDS[metric.unit][1],
        },
        "score_details": {"score": scaled(metric.value, metric), **_uncertainty(entry, metric)},
    }


def _uncertainty(entry: Number, metric: Metric) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if metric.stderr is not None:
        found["standard_error"] = {"value": scaled(metric.stderr, metric), "method": "analytic"}
    if metric.low is not None and metric.high is not None:
        found["confidence_interval"] = {
            "lower": scaled(metric.low, metric),
            "upper": scaled(metric.high, metric),
            "confidence_level": 0.95,
            "method": metric.interval or "unknown",
        }
    if entry.n and metric is entry.metric:
        found["num_samples"] = entry.n
    return {"uncertainty": found} if found else {}
