"""Scores of questions with options or classes: over all, and over each group of them.  No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpeval.errors import DataError
from mpeval.results import Metric
from mpeval.statistics import clustered_accuracy_metric

FIRST = ("middle", "high")
"""Groups that come first, in this order, whatever the order of the files."""


def summarise_choices(samples: Sequence[dict[str, Any]]) -> tuple[list[Metric], int, int]:
    """Return accuracies, the number of questions, and how many are right, of lines of `samples.jsonl`.

    The first metric, `accuracy`, is over all questions pooled; `accuracy_GROUP` follows for each group that there is.
    Where samples say so (`correct_norm`), the last, `accuracy_norm`, chooses by likelihood per character.
    Standard errors treat questions of one passage as one cluster (`statistics.clustered_accuracy_metric`).

    Raises:
        DataError: no samples, or a question whose answer nobody has published.
    """
    if not samples:
        raise DataError("there is no question to sum up", "score one at least")
    unknown = [sample["id"] for sample in samples if sample["target"] == -1]
    if unknown:
        raise DataError(
            f"{len(unknown):,} of {len(samples):,} questions have no published answer, the first is `{unknown[0]}`",
            "score a split whose answers are known",
        )
    metrics = [_accuracy(samples, "accuracy")]
    for group in groups_of(samples):
        metrics.append(_accuracy([sample for sample in samples if sample.get("group") == group], f"accuracy_{group}"))
    if all("correct_norm" in sample for sample in samples):
        metrics.append(_accuracy(samples, "accuracy_norm", "correct_norm"))
    return metrics, len(samples), sum(bool(sample["correct"]) for sample in samples)


def groups_of(samples: Sequence[dict[str, Any]]) -> list[str]:
    """Return the groups that samples belong to, `middle` before `high`, others as they first appear."""
    found = [group for group in dict.fromkeys(sample.get("group", "") for sample in samples) if group]
    return [*(group for group in FIRST if group in found), *(group for group in found if group not in FIRST)]


def cluster_of(sample: Mapping[str, Any]) -> str:
    """Return what a sample shares with others: its passage, or itself alone."""
    return str(sample.get("passage") or sample["id"])


def _accuracy(samples: Sequence[dict[str, Any]], name: str, key: str = "correct") -> Metric:
    correct = [bool(sample[key]) for sample in samples]
    return clustered_accuracy_metric(correct, [cluster_of(sample) for sample in samples], name)
