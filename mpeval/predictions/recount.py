"""Compute the metrics of stored samples again, as far as they and the data can tell.  No torch, no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpeval.errors import DataError
from mpeval.predictions.lines import Predicted, choice_of, probabilities_of
from mpeval.predictions.measures import document_shares, log_probability_of, right_or_wrong
from mpeval.predictions.rescore import KINDS, check_span, rescore, summarise
from mpeval.results import Metric

if TYPE_CHECKING:
    from mpeval.data import Data
    from mpeval.tasks.cards import Card, Protocol

Counts = tuple[list[Metric], int, int | None]
"""Metrics, the primary one first; items, and how many of them are right."""


class UntoldError(Exception):
    """Samples, and data if any, do not tell their metrics."""


_DAMAGED = "the line was changed after it was written"


def recount(card: Card, protocol: Protocol, lines: Sequence[Predicted], data: Data | None, *, partial: bool) -> Counts:
    """Compute the metrics of samples again, by the code that computed them first.

    Every line is checked against itself: its prediction against its probabilities, its scores against its text.  With
    the data, their ids are checked against them too, and the targets of questions.

    Args:
        card: the task.
        protocol: of all lines.
        lines: the samples of one result.
        data: the set they are about; without it some perplexities cannot be computed.
        partial: whether the result does not have all of them.

    Raises:
        DataError: a line that contradicts itself or the data.
        UntoldError: what is needed is not there; says what.
    """
    if not lines:
        raise DataError(f"there are no samples under `{protocol.id}`", "restore the samples")
    for line in lines:
        if card.kind != "perplexity" and not _is_target(line.sample.get("target"), card.kind):
            raise DataError(f"{line.where} (`{line.id}`) has no `target`", _DAMAGED)
        for key in ("passage", "group"):
            if not isinstance(line.sample.get(key, ""), str):
                raise DataError(f"{line.where} (`{line.id}`) has no text as its `{key}`", _DAMAGED)
    try:
        if card.kind in KINDS:
            return _questions(card, protocol, lines, data, partial=partial)
        if card.kind == "cloze":
            return _cloze(lines, data, partial=partial)
        return _text(protocol, lines, data, partial=partial)
    except (KeyError, TypeError) as error:
        raise DataError(f"the samples under `{protocol.id}` lack something: {error!r}", _DAMAGED) from error


def _is_target(value: object, kind: str) -> bool:
    """Tell whether a value can be a target: right answers, the text of a passage's end, or the number of a choice."""
    if kind == "span":
        return isinstance(value, list) and all(isinstance(answer, str) for answer in value)
    return isinstance(value, str) if kind == "cloze" else type(value) is int


def _questions(
    card: Card, protocol: Protocol, lines: Sequence[Predicted], data: Data | None, *, partial: bool
) -> Counts:
    if data is not None:
        result = rescore(card, protocol, data, lines, lines[0].where)
        if "partial" in result.flags and not partial:
            raise DataError(
                f"{result.items:,} samples are not all {result.items_total:,} questions of `{data.source}`",
                "restore the samples",
            )
        return result.metrics, result.n, result.n_correct
    for line in lines:
        if card.kind == "span":
            check_span(line, line.sample["target"], protocol)
        else:
            choice_of(line)
            found = len(probabilities_of(line))
            if protocol.options and found != protocol.options:
                raise DataError(f"{line.where}: {found} probabilities, not {protocol.options}", _DAMAGED)
    return summarise(card, [line.sample for line in lines])


def _cloze(lines: Sequence[Predicted], data: Data | None, *, partial: bool) -> Counts:
    from mpeval.tasks.cloze import summarise_cloze

    for line in lines:
        log_probability_of(line)
        if right_or_wrong(line) and line.sample.get("prediction") != line.sample["target"]:
            raise DataError(
                f"{line.where} (`{line.id}`) is `correct` with another prediction than its target", _DAMAGED
            )
    if data is not None:
        expected = {f"{number:05d}" for number in range(len(data.rows))}
        ids = {line.id for line in lines}
        if not ids <= expected or (ids != expected and not partial):
            raise DataError(f"{len(ids):,} samples are not of the {len(expected):,} rows of `{data.source}`", _DAMAGED)
    return summarise_cloze([line.sample for line in lines])


def _text(protocol: Protocol, lines: Sequence[Predicted], data: Data | None, *, partial: bool) -> Counts:
    from mpeval.tasks.masked import summarise_masked
    from mpeval.tasks.perplexity import article_sums, page_metrics, pages_of, size_of, sizes_of, summarise_windows

    samples = [line.sample for line in lines]
    for line in lines:
        document_shares(line)
    if protocol.family == "bert":
        return summarise_masked(samples)
    if data is None:
        raise UntoldError("how long the text is: give `--data`")
    if partial:
        raise UntoldError("how many tokens the whole text has: the result is of a part of it")
    losses, counts = article_sums(samples)
    if protocol.id != "wikitext103/lm-eval":
        return summarise_windows(samples, scored=sum(counts), text=size_of(data.text))
    words, sizes = sizes_of(pages_of(data.text))
    if len(losses) != len(words):
        raise DataError(f"samples of {len(losses):,} pages, `{data.source}` has {len(words):,}", _DAMAGED)
    return page_metrics(losses, words, sizes), sum(counts), None
