"""Numbers of a store against each other, by their error bars alone, as one must where no items are known."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mpeval.errors import DataError, UsageError
from mpeval.leaderboard import versus
from mpeval.leaderboard.ranking import unpaired
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.samples import find_samples
from mpeval.leaderboard.store import Number, read
from mpeval.leaderboard.verify import pick
from mpeval.predictions.paired import holm
from mpeval.results import Document, Metric, Strict
from mpeval.statistics import SIGNIFICANCE, normal_quantile

_ID = re.compile(r"(sha256:)?[0-9a-f]{6,64}")


class Apart(Strict):
    """Two numbers that were measured apart: `first` minus `second`, or their ratio where they are perplexities."""

    first: str
    """Model and beginning of the record's id."""
    second: str
    difference: float
    """In points of accuracy as a proportion; of perplexities the ratio."""
    low: float
    high: float
    z: float
    p_value: float
    p_value_holm: float
    verdict: Literal["first better", "second better", "no difference shown"]


class ApartResults(Document):
    """One `mpeval leaderboard compare` of records without items in common."""

    schema_: Literal["mpeval.apart/1"] = "mpeval.apart/1"
    protocol: str
    split: str
    metric: str
    level: float
    records: list[str]
    comparisons: list[Apart]
    command: str


@dataclass(frozen=True, kw_only=True)
class _Named:
    record: Number
    store: Path
    name: str


def are_records(names: Sequence[str]) -> bool:
    """Tell whether arguments are ids of records and not paths."""
    return all(_ID.fullmatch(name) and not Path(name).exists() for name in names)


def run(names: Sequence[str], stores: Sequence[Path], *, json: bool, command: str) -> None:
    """Compare records and print: item by item where all of them have samples, else by their error bars.

    Args:
        names: ids of records, or their beginnings.
        stores: where they stand.
        json: print one JSON document.
        command: what was typed.

    Raises:
        MpevalError: fewer than two, no such record, records of different boards, or numbers without an error bar.
    """
    chosen = _chosen(names, stores)
    first = chosen[0].record
    for other in chosen[1:]:
        if _board(other.record) != _board(first):
            raise DataError(
                f"`{chosen[0].name}` is of {_words(first)}, `{other.name}` of {_words(other.record)}",
                "compare numbers of one protocol, split and metric",
            )
    files = [_samples(one) for one in chosen]
    if all(files):
        paths = tuple(file for file in files if file)
        versus.run(versus.Options(runs=paths, protocols=(first.protocol,), json=json, command=command))
        return
    results = ApartResults(
        protocol=first.protocol,
        split=first.part,
        metric=first.metric.name,
        level=SIGNIFICANCE,
        records=[one.record.record_id for one in chosen],
        comparisons=compared([(one.name, one.record.metric) for one in chosen]),
        command=command,
    )
    if json:
        sys.stdout.write(results.to_json())
        return
    _print(f"Of {_words(first)}", results, first.metric.unit == "perplexity")


def compared(numbers: Sequence[tuple[str, Metric]]) -> list[Apart]:
    """Compare every two of some numbers, perplexities by their logarithms, with Holm's correction for all of it.

    Raises:
        DataError: a number without a standard error.
    """
    pairs = list(itertools.combinations(numbers, 2))
    found = [unpaired(*_centre(*first), *_centre(*second)) for first, second in pairs]
    corrected = holm([one.p_value for one in found])
    reach = normal_quantile()
    results = []
    for ((first, metric), (second, _)), one, p_value in zip(pairs, found, corrected, strict=True):
        low, high = one.difference - reach * one.stderr, one.difference + reach * one.stderr
        shown = [math.exp(value) if metric.unit == "perplexity" else value for value in (one.difference, low, high)]
        better = (one.difference > 0) == (metric.direction == "max")
        said: Literal["first better", "second better"] = "first better" if better else "second better"
        results.append(
            Apart(
                first=first,
                second=second,
                difference=shown[0],
                low=shown[1],
                high=shown[2],
                z=max(-1e300, min(1e300, one.z)),
                p_value=one.p_value,
                p_value_holm=p_value,
                verdict=said if p_value < SIGNIFICANCE else "no difference shown",
            )
        )
    return results


def _print(title: str, results: ApartResults, are_ratios: bool) -> None:
    from mpeval.report import line, show_p_value, table

    def shown(value: float, places: int) -> str:
        return f"{value:.4g}" if are_ratios else f"{100 * value:+.{places}f}"

    what = "ratio" if are_ratios else "difference, points"
    rows = [
        [
            *(item.first, item.second, shown(item.difference, 2)),
            f"{shown(item.low, 2)} to {shown(item.high, 2)}",
            *(show_p_value(item.p_value), show_p_value(item.p_value_holm), item.verdict),
        ]
        for item in results.comparisons
    ]
    table(title, ["first", "second", what, "95 % interval", "p", "p, Holm", "verdict"], rows)
    line(
        "by their error bars alone, as if measured on different items: a paired test of both models' samples finds "
        "smaller differences (`mpeval leaderboard compare RUN RUN`)"
    )


def _centre(name: str, metric: Metric) -> tuple[float, float]:
    """Return what is compared of a metric, and its standard error."""
    if metric.stderr is None:
        raise DataError(
            f"the {metric.name.replace('_', ' ')} of `{name}` has no error bar",
            "its source says nothing from which one could be known: no test can be made",
        )
    if metric.unit == "perplexity":
        return math.log(metric.value), metric.stderr / metric.value
    return metric.value, metric.stderr


def _chosen(names: Sequence[str], stores: Sequence[Path]) -> list[_Named]:
    if len(names) < 2:
        raise UsageError(f"{len(names)} record has nothing to be compared with", "give two records or more")
    places: dict[str, tuple[Number, Path]] = {}
    for store in stores:
        for one in read(store):
            places.setdefault(one.record_id, (one, store))
    every = [one for one, _ in places.values()]
    found: dict[str, _Named] = {}
    for name in names:
        record, store = places[pick(every, name).record_id]
        if record.record_id in found:
            raise UsageError(f"`{name}` is given twice", "give each record once")
        short = f"{record.model.name} ({record.record_id.removeprefix('sha256:')[:8]})"
        found[record.record_id] = _Named(record=record, store=store, name=short)
    return list(found.values())


def _board(one: Number) -> tuple[str, str, str]:
    return one.protocol, one.part, one.metric.name


def _words(one: Number) -> str:
    return f"{one.metric.name.replace('_', ' ')} under {one.protocol} {one.part}"


def _samples(one: _Named) -> Path | None:
    if not isinstance(one.record, Record) or one.record.samples is None:
        return None
    return find_samples(one.record.samples, one.store, None)
