"""Two models on the same questions: joined by id, their difference with its error, and whether it is one.  No torch.

Equations are those of Miller, "Adding Error Bars to Evals" (2024).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mpeval.errors import DataError
from mpeval.results import Comparison
from mpeval.statistics import LEVEL, clustered_error
from mpeval.tasks.summary import cluster_of

Sample = Mapping[str, Any]
SHOWN = 3
"""Ids of which a message names the first few."""


def join(members: Sequence[Sequence[Sample]], names: Sequence[str]) -> list[tuple[Sample, ...]]:
    """Put together what several models say of each question, in the order of the first's lines.

    Args:
        members: the sample lines of each model, under one protocol.
        names: what each model is called in messages: its file.

    Raises:
        DataError: an id twice, ids that only some have, or another task, target, passage or group of the same id.
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
    for key in ("task", "target", "passage", "group"):
        if first.get(key) != other.get(key):
            raise DataError(
                f"`{uid}` has the {key} `{first.get(key)}` in `{name}`, `{other.get(key)}` in `{other_name}`",
                "both must be evaluated on the same data under the same protocol",
            )


def compare(a: Sequence[Sample], b: Sequence[Sample], names: tuple[str, str] = ("first", "second")) -> Comparison:
    """Compare the accuracies of two models on the same questions, `a` minus `b`.

    The standard error is that of the paired differences (equation 7), questions of one passage being one cluster
    (equation 4 of the differences, with C / (C - 1)); interval and p-value are the normal distribution's.

    Args:
        a: sample lines of the one model, with `id`, `target`, `correct`, and `passage` where questions share one.
        b: sample lines of the other.
        names: what the models are called.

    Raises:
        DataError: they are not about exactly the same questions; see `join`.
    """
    from scipy.stats import binomtest

    pairs = join([a, b], names)
    differences = [float(bool(one["correct"])) - float(bool(other["correct"])) for one, other in pairs]
    clusters = [cluster_of(one) for one, _ in pairs]
    count = len(set(clusters))
    difference = math.fsum(differences) / len(differences)
    stderr = clustered_error(differences, clusters) if count > 1 else None
    reach = None if stderr is None else _quantile() * stderr
    only_first, only_second = differences.count(1.0), differences.count(-1.0)
    discordant = only_first + only_second
    return Comparison(
        first=names[0],
        second=names[1],
        metric="accuracy",
        n=len(pairs),
        clusters=count,
        difference=difference,
        stderr=stderr,
        low=None if reach is None else max(-1.0, difference - reach),
        high=None if reach is None else min(1.0, difference + reach),
        p_value=None if stderr is None else _p_value(difference, stderr, count),
        only_first=only_first,
        only_second=only_second,
        mcnemar=float(binomtest(only_first, discordant, 0.5).pvalue) if discordant else 1.0,
    )


def _quantile() -> float:
    from scipy.stats import norm

    return float(norm.ppf(0.5 + LEVEL / 2))


def _p_value(difference: float, stderr: float, clusters: int) -> float:
    """Return the two-sided p-value of z; of the sign test on clusters where all differ by the same amount."""
    from scipy.stats import norm

    if stderr > 1e-12:
        return float(2 * norm.sf(abs(difference) / stderr))
    return 1.0 if abs(difference) < 1e-12 else 2.0 ** (1 - clusters)


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
    found = [compare(one, other, (name, other_name)) for other, other_name in zip(others, names, strict=True)]
    tested = [number for number, item in enumerate(found) if item.p_value is not None]
    corrected = holm([item.p_value for item in found if item.p_value is not None])
    for number, p_value in zip(tested, corrected, strict=True):
        found[number] = found[number].model_copy(update={"p_value_holm": p_value})
    return found
