"""Shares that some files give in percent and others as fractions."""

from __future__ import annotations

from decimal import Decimal

from mpeval.leaderboard.importing.cleaning import clean_value
from mpeval.leaderboard.importing.drafts import Reading
from mpeval.leaderboard.reported import Unit

FRACTIONS = frozenset({"proportion", "fraction", "ratio"})


def is_fraction(raw: object, said_unit: str) -> bool:
    """Tell whether a share is a fraction of 1: if the file does not say, one above 1 is taken as percent."""
    if said_unit:
        return said_unit.casefold() in FRACTIONS
    printed = clean_value(raw).printed
    return printed is not None and Decimal(printed) <= 1 and "%" not in str(raw)


def as_printed(
    raw: object, said_unit: str, unit: Unit, place: str, model: str, metric: str, reading: Reading
) -> str | None:
    """Return a value as it is printed here, accuracies in percent; None, and why, if it is none.

    Args:
        raw: what the file holds.
        said_unit: what the file calls its unit, empty if it does not say.
        unit: of the metric.
        place: where it stands, for findings.
        model: whose it is, likewise.
        metric: what it is of.
        reading: gets the findings.

    A share without a unit that is taken as a fraction is said to be.
    """
    cleaned = reading.value(place, model, raw, metric)
    if cleaned is None or cleaned.printed is None:
        return None
    if unit != "proportion" or not is_fraction(raw, said_unit):
        return cleaned.printed
    if not said_unit:
        reading.say(place, model, [("read-as-fraction", f"{metric}: {cleaned.printed} read as a fraction of 1")])
    text = format(100 * Decimal(cleaned.printed), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
