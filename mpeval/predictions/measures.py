"""What of sample lines can be compared item by item: scores between 0 and 1, and losses with their documents.

Every number is checked here, so that a damaged line is named and not compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mpeval.errors import DataError, shown
from mpeval.predictions.lines import Predicted, Sample

TOKENS = "token_perplexity"
"""What the perplexity of lines with documents is called where no results say how the loss is scaled."""
_SAME = ("task", "id", "target", "passage", "group", "doc_hash", "prompt_hash")
"""What of a line `paired.join` compares, and `cluster_of` reads."""


LARGEST = 1e100
"""What no loss comes near; squares of smaller numbers, and sums of those, are floats."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One number of each of a protocol's lines."""

    metric: str
    kind: Literal["score", "loss"]
    lines: tuple[Sample, ...]
    """What says which item a line is about, with `score`, or `documents`: [document, loss in nats, weight] each."""


def measures_of(lines: Sequence[Predicted]) -> list[Measure]:
    """Return what can be compared of the lines of one protocol, the primary number first; it may be nothing.

    Raises:
        DataError: a line that lacks a number which the first one has, or whose number cannot be one.
    """
    first = lines[0].sample
    if "metrics" in first:
        return list(_of_harness(lines))
    if "documents" in first:
        return [_losses(TOKENS, lines, document_shares)]
    if "f1" in first:
        return [_scores(name, lines, name) for name in ("f1", "exact")]
    if "correct" not in first:
        return []
    made = [_scores("accuracy", lines, "correct")]
    if "correct_norm" in first:
        made.append(_scores("accuracy_norm", lines, "correct_norm"))
    if "log_probability" in first:
        made.append(_losses("target_perplexity", lines, _target))
    return made


def _scores(metric: str, lines: Sequence[Predicted], key: str) -> Measure:
    for line in lines:
        if key.startswith("correct"):
            right_or_wrong(line, key)
    made = tuple({**_identity(line), "score": _number(line, key, line.sample.get(key), 0, 1)} for line in lines)
    return Measure(metric=metric, kind="score", lines=made)


def _losses(metric: str, lines: Sequence[Predicted], documents: Callable[[Predicted], list[list[Any]]]) -> Measure:
    made = tuple({**_identity(line), "documents": documents(line)} for line in lines)
    return Measure(metric=metric, kind="loss", lines=made)


def _identity(line: Predicted) -> Sample:
    return {key: line.sample[key] for key in _SAME if key in line.sample}


def _target(line: Predicted) -> list[list[Any]]:
    """Return the loss of an item whose target counts as one, however many tokens it has."""
    return [[line.id, -log_probability_of(line), 1]]


def document_shares(line: Predicted) -> list[list[Any]]:
    """Return what of a line's loss each document has: [document, loss in nats, tokens].

    Raises:
        DataError: there is none, or it is something else.
    """
    found = line.sample.get("documents")
    if not isinstance(found, list) or not found:
        raise _wrong(line, "documents", found)
    for share in found:
        if not isinstance(share, list) or len(share) != 3 or type(share[0]) is not int:
            raise _wrong(line, "documents", share)
        for value, low in ((share[1], -math.inf), (share[2], 1)):
            _number(line, "documents", value, low)
    return found


def log_probability_of(line: Predicted) -> float:
    """Return the log-probability of a line's target.

    Raises:
        DataError: there is none, or it is something else.
    """
    return _number(line, "log_probability", line.sample.get("log_probability"))


def right_or_wrong(line: Predicted, key: str = "correct") -> bool:
    """Return whether a line says that it is right.

    Raises:
        DataError: it does not say.
    """
    value = line.sample.get(key)
    if not isinstance(value, bool):
        raise _wrong(line, key, value)
    return value


def _number(line: Predicted, key: str, value: object, low: float = -math.inf, high: float = math.inf) -> float:
    if not _is_number(value) or not low <= float(value) <= high:  # type: ignore[arg-type]
        raise _wrong(line, key, value)
    return float(value)  # type: ignore[arg-type]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < LARGEST  # NaN is smaller than nothing


def _wrong(line: Predicted, key: str, value: object) -> DataError:
    return DataError(
        f"{line.where} (`{line.id}`): `{key}` is {shown(value)}",
        "evaluate the model again; the line was changed after it was written, or is of something else",
    )


# ---- tasks of lm-eval ----


def _of_harness(lines: Sequence[Predicted]) -> Iterator[Measure]:
    """Yield of each filter the metrics that are right or wrong of each document, and one perplexity."""
    filters: dict[str, list[Predicted]] = {}
    for line in lines:
        if not isinstance(line.sample.get("metrics"), dict):
            raise _wrong(line, "metrics", line.sample.get("metrics"))
        filters.setdefault(line.id.partition("/")[2], []).append(line)
    for chosen, own in filters.items():
        perplexities = 0
        for name in own[0].sample["metrics"]:
            values = [line.sample["metrics"].get(name) for line in own]
            metric = f"{name}/{chosen}" if chosen else name
            if all(_is_number(value) and value in (0, 1) for value in values):
                lined = zip(own, values, strict=True)
                made = tuple({**_identity(line), "score": float(value)} for line, value in lined)
                yield Measure(metric=metric, kind="score", lines=made)
            elif "perplexity" in name and not perplexities:
                perplexities += 1  # the others are of the same losses
                yield _losses(metric, own, _log_likelihood(name))


def _log_likelihood(name: str) -> Callable[[Predicted], list[list[Any]]]:
    """Return what reads a document's loss out of lm-eval's number for it: a log-likelihood, or one and its weight."""

    def documents(line: Predicted) -> list[list[Any]]:
        value = line.sample["metrics"].get(name)
        if isinstance(value, list) and len(value) == 2:
            return [[line.id, -_number(line, name, value[0]), _number(line, name, value[1], 1)]]
        return [[line.id, -_number(line, name, value), 1]]

    return documents
