"""What every task offers: items to score, judgements of scores, and numbers from judgements.  No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mpeval.items import Item, Scored
from mpeval.results import Metric
from mpeval.tasks.cards import Card
from mpeval.tasks.cards import Protocol as CardProtocol

__all__ = ["Item", "Sample", "Task", "sample_line"]

Sample = dict[str, Any]
"""One line of `samples.jsonl`: task, id, target, prediction, log_probability, greedy, correct, tokens, and more."""


class Task(Protocol):
    """A benchmark under one protocol, with its data tokenized."""

    card: Card
    protocol: CardProtocol
    flags: tuple[str, ...]
    items: Sequence[Item]

    def judge(self, item: Item, scored: Any) -> Sample:
        """Turn the score of one item (`AnyScore`, of the kind its request gets) into its line of `samples.jsonl`."""

    def summarise(self, samples: Sequence[Sample]) -> tuple[list[Metric], int, int | None]:
        """Return metrics (the primary one first), the number of observations, and how many are correct."""

    def constants(self) -> Mapping[str, Any]:
        """Return what can be known of the protocol without a model."""


def sample_line(task: Task, item: Item, scored: Scored, **more: Any) -> Sample:
    """Return the fields that the samples of every task share, then `more`."""
    line: Sample = {
        "task": task.protocol.id,
        "id": item.id,
        **more,
        "log_probability": scored.log_probability,
        "greedy": scored.greedy,
        "tokens": len(scored.log_probabilities),
    }
    return line | ({"cut": scored.cut} if scored.cut else {})
