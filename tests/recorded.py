"""Records of numbers, measured and reported, with as much of them changed as a test wants."""

from __future__ import annotations

from typing import Any

from mpeval.leaderboard.records import Record
from mpeval.leaderboard.reported import Reported, ReportedModel, Source, reported
from mpeval.results import CheckpointInfo, DataInfo, Layout, Metric

CHECKPOINT: dict[str, Any] = {
    "name": "gpt-345m",
    "path": "runs/gpt-345m",
    "digest": "sha256:aa",
    "format": "megatron-core",
    "version": 3.0,
    "iteration": 500000,
    "grid": (2, 1),
    "parameters": 354_871_296,
    "gelu": "tanh",
    "vocab": 50257,
    "padded_vocab": 50304,
}
ACCURACY = Metric(name="accuracy", value=0.45, unit="proportion", direction="max", stderr=0.01, low=0.43, high=0.47)


def metric_of(value: float, **changes: Any) -> Metric:
    return ACCURACY.model_copy(update={"value": value, "low": value - 0.01, "high": value + 0.01} | changes)


def record(value: float = 0.45, **changes: Any) -> Record:
    """Return a record of LAMBADA; `name` and `digest` are those of its checkpoint."""
    model = CheckpointInfo(**CHECKPOINT | {key: changes.pop(key) for key in list(changes) if key in CHECKPOINT})
    fields: dict[str, Any] = {
        "created_at": "2026-01-02T03:04:05Z",
        "task": "lambada",
        "title": "LAMBADA",
        "protocol": "lambada/megatron-strict",
        "protocol_version": "1",
        "metric": metric_of(value),
        "other_metrics": [],
        "n": 5153,
        "n_correct": 2319,
        "flags": [],
        "model": model,
        "data": DataInfo(source="lambada_test.jsonl", digest="sha256:dd", rows_expected=5153),
        "tokenizer_digest": "sha256:tt",
        "layout": Layout(tp=2, dp=1),
        "dtype": "float32",
        "device": "cpu",
        "seconds": 10.5,
        "tokens_per_second": 1234.5,
        "command": "mpeval evaluate runs/gpt-345m --task lambada",
        "mpeval_version": "0.1.0",
        "torch_version": "2.13.0",
    }
    return Record(**fields | changes)


def published(values: dict[str, str], n: int = 5153, **changes: Any) -> Reported:
    """Return what a paper prints of LAMBADA; `n` items are those of the first value."""
    fields: dict[str, Any] = {
        "created_at": "2026-01-02T03:04:05Z",
        "task": "lambada",
        "title": "LAMBADA",
        "protocol": "paper",
        "split": "test",
        "unit": "proportion",
        "model": ReportedModel(name="megatron-8.3b"),
        "source": Source(title="A paper", url="https://example.org/a", locator="Table 1"),
    }
    return reported(values=values, items={next(iter(values)): n}, **fields | changes)
