"""Numbers that others published: one line each, with where they stand and what can be said of them from there."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mpeval.errors import DataError, shown
from mpeval.leaderboard.entries import Entry, is_date
from mpeval.results import Metric, Strict

Unit = Literal["proportion", "perplexity"]
PLAIN = re.compile(r"[0-9]+(\.[0-9]+)?")
"""How a source's number is written down."""
LONGEST = 310
"""Digits of the longest number that is taken for one, as many as the largest float has."""
UNATTAINABLE = "unattainable"
"""Flag of an accuracy that no whole number of right answers gives: rounding, truncation, or other items than said."""


class Source(Strict):
    """Where a number is printed."""

    title: str = Field(min_length=1)
    url: str = Field(pattern=r"^https?://[^\s]+$")
    locator: str = Field(min_length=1)
    """Where in it, such as `Table 5`."""
    date: str = Field(default="", pattern=r"^(\d{4}-\d{2}-\d{2})?$")
    """When it was published; empty if that is not known."""
    quote: str = ""
    """A line of it."""
    evidence: str = ""
    """`S2` where two sources print the number, `S1` where one does."""

    @field_validator("date")
    @classmethod
    def _is_a_day(cls, date: str) -> str:
        if date and not is_date(date):
            raise ValueError(f"`{date}` is no day of the calendar")
        return date


class ReportedModel(Strict):
    """What a source says of the model."""

    name: str = Field(min_length=1)
    family: str = ""
    parameters: float | None = None
    shots: str = ""
    """Solved examples before each question (`0`, `15`, `few`), or `finetuned`, `trained`."""


class Reported(Entry):
    """One published number, as printed, with the number it stands for."""

    newer: ClassVar[frozenset[str]] = frozenset({"split", "note", "printed_others"})
    kind: Literal["reported"] = "reported"
    model: ReportedModel
    printed: str
    """The value as the source prints it, accuracies in percent."""
    printed_others: dict[str, str] = Field(default_factory=dict)
    """The same of `other_metrics`, by name."""
    source: Source
    note: str = ""

    @model_validator(mode="after")
    def _all_printed(self) -> Reported:
        """Refuse a line whose metrics are not printed as plain numbers, which every page and format relies on."""
        for name, text in (("", self.printed), *self.printed_others.items()):
            if not PLAIN.fullmatch(text):
                raise ValueError(f"{name or 'the value'} is printed as `{shown(text)}`, which is no plain number")
        missing = {metric.name for metric in self.other_metrics} - self.printed_others.keys()
        if missing:
            raise ValueError(f"it is not said how {min(missing)} is printed")
        return self

    @property
    def mark(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def slot(self) -> tuple[Any, ...]:
        """What the number is of, and who says it."""
        return (self.protocol, self.part, self.metric.name, self.model.name, self.model.shots, self.source.url)

    @property
    def date(self) -> str:
        """When the source was published."""
        return self.source.date


def reported_metric(name: str, printed: str, unit: Unit, n: int | None) -> Metric:
    """Return the metric that a printed value stands for, with the binomial error bars that `n` items give.

    Args:
        name: such as `accuracy`.
        printed: an accuracy in percent or a perplexity, a plain number.
        unit: of the metric; a perplexity has no error bar that could be known from its value.
        n: items it is the accuracy of, None if that is not known.

    Raises:
        DataError: no number, or one that the unit does not allow.
    """
    if not PLAIN.fullmatch(printed) or len(printed) > LONGEST:
        raise DataError(f"`{shown(printed)}` is no plain number", "give what the source prints, without `%` or remarks")
    value = float(printed)
    if unit == "perplexity":
        if value < 1:
            raise DataError(f"a perplexity of {printed} is below 1", "look at the source again")
        return Metric(name=name, value=value, unit=unit, direction="min", loss=math.log(value))
    if value > 100:
        raise DataError(f"an accuracy of {printed} % is above 100", "look at the source again")
    share = round(value / 100, 12)
    metric = Metric(name=name, value=share, unit=unit, direction="max")
    if not n:
        return metric
    from mpeval.statistics import proportion_error, proportion_interval

    low, high = proportion_interval(share, n)
    bars = {"stderr": proportion_error(share, n), "low": low, "high": high, "interval": "wilson of printed n"}
    return metric.model_copy(update=bars)


def attainable(printed: str, n: int) -> bool:
    """Tell whether some number of `n` right answers, in percent and rounded, is printed so."""
    decimals = len(printed.partition(".")[2])
    near = round(float(printed) / 100 * n)  # if any number is printed so, then the nearest, or its neighbour on a tie
    wanted = round(float(printed), decimals)
    return any(
        math.isclose(round(100 * correct / n, decimals), wanted, abs_tol=1e-9)
        for correct in range(max(0, near - 1), min(n, near + 1) + 1)
    )


def reported(
    *,
    created_at: str,
    task: str,
    title: str,
    protocol: str,
    split: str,
    values: Mapping[str, str],
    items: Mapping[str, int],
    unit: Unit,
    model: ReportedModel,
    source: Source,
    flags: Sequence[str] = (),
    note: str = "",
) -> Reported:
    """Make one line of what a source says of a model.

    Args:
        created_at: UTC time of this line.
        task: card or, for a benchmark without one, its name in lower case.
        title: the benchmark's name.
        protocol: how it was done; two numbers are ranked together where it is equal.
        split: set of the benchmark.
        values: printed value of each metric, the primary one first.
        items: how many each accuracy is of, where known.
        unit: of all of them.
        model: who.
        source: where.
        flags: what limits the number; `unattainable` is added where it holds.
        note: anything else that a reader must know.

    Raises:
        DataError: a value that is no number, or that the unit does not allow.
    """
    metrics = [reported_metric(name, printed, unit, items.get(name)) for name, printed in values.items()]
    odd = unit == "proportion" and any(
        not attainable(printed, items[name]) for name, printed in values.items() if items.get(name)
    )
    first, *others = values
    return Reported(
        created_at=created_at,
        task=task,
        title=title,
        protocol=protocol,
        split=split,
        metric=metrics[0],
        other_metrics=metrics[1:],
        n=items.get(first, 0),
        flags=[*flags, *([UNATTAINABLE] if odd and UNATTAINABLE not in flags else [])],
        model=model,
        printed=values[first],
        printed_others={name: values[name] for name in others},
        source=source,
        note=note,
    )
