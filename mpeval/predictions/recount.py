"""Compute the metrics of stored samples again, as far as they and the data can tell.  No torch, no tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mpeval.errors import DataError
from mpeval.predictions.lines import Predicted, choice_of, probabilities_of
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
    the data, its target is checked against them too.

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
    for line in lines:
        if card.kind != "perplexity" and "target" not in line.sample:
            raise DataError(f"{line.where} (`{line.id}`) has no `target`", _DAMAGED)
    try:
        if card.kind in KINDS:
            return _questions(card, protocol, lines, data, partial=partial)
        if card.kind == "cloze":
            return _cloze(lines, data, partial=partial)
        return _text(protocol, lines, data, partial=partial)
    except (KeyError, TypeError) as error:
        raise DataError(f"the samples under `{protocol.id}` lack something: {error!r}", _DAMAGED) from error


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
            target = line.sample["target"]
            check_span(line, target if isinstance(target, list) else [], protocol)
        else:
            choice_of(line)
            found = len(probabilities_of(line))
            if protocol.options and found != protocol.options:
                raise DataError(f"{line.where}: {found} probabilities, not {protocol.options}", _DAMAGED)
    return summarise(card, [line.sample for line in lines])


def _cloze(lines: Sequence[Predicted], data: Data | None, *, partial: bool) -> Counts:
    from mpeval.tasks.cloze import summarise_cloze

    for line in lines:
        value = line.sample.get("log_probability")
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(f"{line.where} (`{line.id}`) has no log-probability", _DAMAGED)
        if line.sample.get("correct") and line.sample.get("prediction") != line.sample["target"]:
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
        _check_shares(line)
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


def _check_shares(line: Predicted) -> None:
    """Check that a line has the losses of articles: [article, negative log-likelihood, tokens]."""
    shares = line.sample.get("documents")
    numbers = isinstance(shares, list) and all(
        isinstance(share, list) and len(share) == 3 and all(isinstance(value, int | float) for value in share)
        for share in shares
    )
    if not numbers:
        raise DataError(f"{line.where} (`{line.id}`) has no losses of articles", _DAMAGED)
