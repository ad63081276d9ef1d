"""Two models on the same questions: joined by id, their difference with its error, and whether it is one.  No torch.

Equations are those of Miller, "Adding Error Bars to Evals" (2024).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from mpeval.errors import DataError
from mpeval.results import Comparison, PerplexityComparison
from mpeval.statistics import bounded_exp, cluster_sums, clustered_error, normal_quantile, ratio_of_sums, student_reach
from mpeval.tasks.summary import cluster_of

Sample = Mapping[str, Any]
AnyComparison = TypeVar("AnyComparison", bound=Comparison | PerplexityComparison)
SHOWN = 3
"""Ids of which a message names the first few."""


def join(members: Sequence[Sequence[Sample]], names: Sequence[str]) -> list[tuple[Sample, ...]]:
    """Put together what several models say of each question, in the order of the first's lines.

    Args:
        members: the sample lines of each model, under one protocol.
        names: what each model is called in messages: its file.

    Raises:
        DataError: an id twice, ids that only some have, or another task, target, passage, group or prompt of the same
            id.
    """
    by_id = [_by_id(lines, name) for lines, name in zip(members, names, strict=True)]
    for other, name in zip(by_id[1:], names[1:], strict=True):
        _check_ids(by_id[0], other, names[0], name)
        for uid, sample in by_id[0].items():
            _check_same(uid, sample, other[uid], names[0], name)
    return [tuple(found[uid] for found in by_id) for uid in by_id[0]]


def _by_id(lines: Sequence[Sample], name: str) -> dict[str, Sample]:
    twice = [uid for uid, count in Counter(line["id"] for line in lines).items() if count > 1]
    if twice:
        raise DataError(f"`{name}` has {_first(twice)} more than once", "remove the second, or evaluate again")
    if not lines:
        raise DataError(f"`{name}` holds no predictions", "evaluate the model first")
    return {line["id"]: line for line in lines}


def _check_ids(first: Mapping[str, Sample], other: Mapping[str, Sample], name: str, other_name: str) -> None:
    absent = [uid for uid in first if uid not in other]
    extra = [uid for uid in other if uid not in first]
    if absent or extra:
        sides = [
            f"`{holder}` lacks {_first(uids)} of `{source}`"
            for holder, uids, source in ((other_name, absent, name), (name, extra, other_name))
            if uids
        ]
        raise DataError("; ".join(sides), "both must be evaluated on the same questions, all of them")


def _first(uids: Sequence[str]) -> str:
    named = ", ".join(f"`{uid}`" for uid in uids[:SHOWN])
    return f"{len(uids):,} question{'s' * (len(uids) != 1)} ({named}{', ...' * (len(uids) > SHOWN)})"


def _check_same(uid: str, first: Sample, other: Sample, name: str, other_name: str) -> None:
    for key in ("task", "target", "passage", "group", "doc_hash", "prompt_hash"):
        if first.get(key) != other.get(key):
            raise DataError(
                f"`{uid}` has the {key} `{first.get(key)}` in `{name}`, `{other.get(key)}` in `{other_name}`",
                "both must be evaluated on the same data under the same protocol",
            )


def compare(
    a: Sequence[Sample],
    b: Sequence[Sample],
    names: tuple[str, str] = ("first", "second"),
    *,
    metric: str = "accuracy",
    key: str = "correct",
) -> Comparison:
    """Compare the accuracies of two models on the same questions, or their mean scores, `a` minus `b`.

    The standard error is that of the paired differences (equation 7), questions of one passage being one cluster
    (equation 4 of the differences, with C / (C - 1)); interval and p-value are the normal distribution's.

    Args:
        a: sample lines of the one model, with `id`, `target`, `correct`, and `passage` where questions share one.
        b: sample lines of the other.
        names: what the models are called.
        metric: what the mean is called.
        key: where a line holds whether the question is right, or a score between 0 and 1.

    Raises:
        DataError: they are not about exactly the same questions; see `join`.
    """
    from scipy.stats import binomtest

    pairs = join([a, b], names)
    first, second = ([float(pair[side][key]) for pair in pairs] for side in (0, 1))
    differences = [one - other for one, other in zip(first, second, strict=True)]
    clusters = [cluster_of(one) for one, _ in pairs]
    count = len(set(clusters))
    difference = math.fsum(differences) / len(differences)
    stderr = clustered_error(differences, clusters) if count > 1 else None
    reach = None if stderr is None else normal_quantile() * stderr
    only_first, only_second = (sum(sign * item > 0 for item in differences) for sign in (1, -1))
    discordant = only_first + only_second
    return Comparison(
        first=names[0],
        second=names[1],
        metric=metric,
        n=len(pairs),
        clusters=count,
        difference=difference,
        stderr=stderr,
        low=None if reach is None else max(-1.0, difference - reach),
        high=None if reach is None else min(1.0, difference + reach),
        p_value=None if stderr is None else _p_value(difference, stderr, count, _normal_tail),
        only_first=only_first,
        only_second=only_second,
        mcnemar=float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0,
        correlation=_correlation(cluster_sums(first, clusters), cluster_sums(second, clusters)),
    )


def compare_losses(
    a: Sequence[Sample], b: Sequence[Sample], names: tuple[str, str] = ("first", "second"), *, metric: str, scale: float
) -> PerplexityComparison:
    """Compare the perplexities of two models on the same texts: that of `a` divided by that of `b`.

    The logarithm of it is the ratio estimator of the documents' differences, scale x sum of (loss of a - loss of b) /
    sum of weights, with the standard error of `ratio_of_sums` and Student's t at D - 1 degrees of freedom.  As both
    models find the same documents hard, that is far smaller than two errors of single perplexities.

    Args:
        a: sample lines of the one model, with `id` and `documents`: [document, loss in nats, weight] of each that the
            line has a share of.
        b: sample lines of the other.
        names: what the models are called.
        metric: what the perplexity is called.
        scale: what sum of losses / sum of weights is multiplied by to be its logarithm.

    Raises:
        DataError: they are not about exactly the same lines, or not of the same documents with the same weights.
    """
    documents = _documents(join([a, b], names), names)
    first, second, weights = (list(column) for column in zip(*documents.values(), strict=True))
    differences = [one - other for one, other in zip(first, second, strict=True)]
    ratio, spread = ratio_of_sums(differences, weights)
    difference, stderr = ratio * scale, None if spread is None else spread * scale
    count = len(documents)
    reach = None if stderr is None else student_reach(stderr, count)
    return PerplexityComparison(
        first=names[0],
        second=names[1],
        metric=metric,
        n=round(math.fsum(weights)),
        clusters=count,
        ratio=bounded_exp(difference),
        difference=difference,
        stderr=stderr,
        low=None if reach is None else bounded_exp(difference - reach),
        high=None if reach is None else bounded_exp(difference + reach),
        p_value=None if stderr is None else _p_value(difference, stderr, count, _student_tail),
        correlation=_correlation(_residuals(first, weights), _residuals(second, weights)),
    )


def _documents(pairs: Sequence[tuple[Sample, ...]], names: tuple[str, str]) -> dict[Any, list[float]]:
    """Return [loss of the first, loss of the second, weight] of each document, in the order of the lines."""
    found: dict[Any, list[float]] = {}
    for one, other in pairs:
        shares = [[(document, weight) for document, _, weight in line["documents"]] for line in (one, other)]
        if shares[0] != shares[1]:
            raise DataError(
                f"`{one['id']}` is of other tokens in `{names[0]}` than in `{names[1]}`: {_shares(shares[0])}, and "
                f"{_shares(shares[1])}",
                "perplexities are compared between models with one tokenizer, evaluated on the same text",
            )
        for (document, loss, weight), (_, other_loss, _) in zip(one["documents"], other["documents"], strict=True):
            sums = found.setdefault(document, [0.0, 0.0, 0.0])
            for place, value in enumerate((loss, other_loss, weight)):
                sums[place] += value
    return found


def _shares(shares: Sequence[tuple[Any, float]]) -> str:
    total = math.fsum(weight for _, weight in shares)
    return f"{total:,.0f} of {len(shares)} document{'s' * (len(shares) != 1)}"


def _residuals(losses: Sequence[float], weights: Sequence[float]) -> list[float]:
    ratio, _ = ratio_of_sums(losses, weights)
    return [loss - ratio * weight for loss, weight in zip(losses, weights, strict=True)]


def _correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the correlation of what sums to 0 on either side, None where a side does not vary."""
    squares = [math.fsum(item * item for item in side) for side in (first, second)]
    if min(squares) <= _NOTHING:
        return None
    shared = math.fsum(one * other for one, other in zip(first, second, strict=True))
    return max(-1.0, min(1.0, shared / math.sqrt(squares[0] * squares[1])))


_NOTHING = 1e-12
"""What rounding leaves of numbers that are 0."""


def _p_value(difference: float, stderr: float, clusters: int, tail: Callable[[float, int], float]) -> float:
    """Return the two-sided p-value of z or t; of the sign test on clusters where all differ by the same amount."""
    if stderr > _NOTHING:
        return 2 * tail(abs(difference) / stderr, clusters)
    return 1.0 if abs(difference) < _NOTHING else 2.0 ** (1 - clusters)


def _normal_tail(z: float, clusters: int) -> float:
    from scipy.stats import norm

    del clusters
    return float(norm.sf(z))


def _student_tail(value: float, clusters: int) -> float:
    from scipy.stats import t

    return float(t.sf(value, clusters - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for having made all these tests (Holm 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    highest = 0.0
    for place, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = highest
    return corrected


def compare_all(
    one: Sequence[Sample], others: Sequence[Sequence[Sample]], name: str, names: Sequence[str]
) -> list[Comparison]:
    """Compare one model with each of several, with Holm's correction for all of it."""
    return with_holm([compare(one, other, (name, other_name)) for other, other_name in zip(others, names, strict=True)])


def with_holm(found: Sequence[AnyComparison]) -> list[AnyComparison]:
    """Return comparisons with p-values corrected for all that were tested; one without a p-value was not."""
    corrected = iter(holm([item.p_value for item in found if item.p_value is not None]))
    made = [
        item.model_copy(update={"p_value_holm": None if item.p_value is None else next(corrected)}) for item in found
    ]
    return cast(list[AnyComparison], made)
