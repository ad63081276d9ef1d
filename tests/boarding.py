"""Lines of a leaderboard for tests: those of the Megatron-LM paper, and a measured one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recorded import record

from mpeval.leaderboard.boards import Board, boards
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.reported import Reported, ReportedModel, Source, Unit, reported
from mpeval.results import DataInfo, Metric

TITLE = "Megatron-LM: Training Multi-Billion Parameter Language Models Using Model Parallelism"
URL = "https://arxiv.org/abs/1909.08053v4"


def paper(locator: str, **changes: str) -> Source:
    return Source(**{"title": TITLE, "url": URL, "locator": locator, "date": "2019-09-17", **changes})


def published(
    task: str,
    title: str,
    values: Mapping[str, str],
    model: ReportedModel,
    *,
    unit: Unit = "proportion",
    items: Mapping[str, int] | None = None,
    source: Source | None = None,
    protocol: str = "",
    split: str = "test",
) -> Reported:
    return reported(
        created_at="2026-01-31T12:00:00Z",
        task=task,
        title=title,
        protocol=protocol or f"{task}/megatron",
        split=split,
        values=values,
        items=items or {},
        unit=unit,
        model=model,
        source=source or paper("Table 3"),
    )


def megatron() -> list[Reported]:
    """Return the three lines that the paper has on Papers With Code."""
    gpt = ReportedModel(name="Megatron-LM 8.3B", family="gpt", parameters=8.3e9, shots="0")
    bert = ReportedModel(name="Megatron-BERT (ensemble)", family="bert", shots="finetuned")
    race = {"accuracy": "90.9", "accuracy_middle": "93.1", "accuracy_high": "90.0"}
    return [
        published("wikitext103", "WikiText-103", {"adjusted_perplexity": "10.81"}, gpt, unit="perplexity"),
        published("lambada", "LAMBADA", {"accuracy": "66.51"}, gpt, items={"accuracy": 5153}),
        published(
            *("race", "RACE", race, bert),
            items={"accuracy": 4934, "accuracy_middle": 1436, "accuracy_high": 3498},
            source=paper("Table 5"),
        ),
    ]


def measured(value: float = 0.45, **changes: Any) -> Record:
    """Return a measured accuracy on LAMBADA; `name` and `digest` are those of its checkpoint."""
    metric = Metric(
        name="accuracy",
        value=value,
        unit="proportion",
        direction="max",
        stderr=0.007,
        low=value - 0.0137,
        high=value + 0.0137,
        interval="wilson",
    )
    perplexity = Metric(
        name="target_perplexity", value=12.3456789, unit="perplexity", direction="min", stderr=0.5, low=11.4, high=13.3
    )
    data = DataInfo(source="x.jsonl", digest="sha256:dd", rows_expected=5153)
    return record(**{"metric": metric, "other_metrics": [perplexity], "data": data} | changes)


def the_boards() -> list[Board]:
    """Return the boards of the paper's lines."""
    return boards(megatron())
