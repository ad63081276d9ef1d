"""Shares that some files give in percent and others as fractions."""

from __future__ import annotations

from decimal import Decimal

from mpeval.leaderboard.importing.drafts import Reading
from mpeval.leaderboard.reported import Unit

FRACTIONS = frozenset({"proportion", "fraction", "ratio"})


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

    A share without a unit is taken as percent above 1, and as a fraction up to it, which is said.
    """
    cleaned = reading.value(place, model, raw, metric)
    if cleaned is None or cleaned.printed is None:
        return None
    value = Decimal(cleaned.printed)
    fraction = said_unit.casefold() in FRACTIONS
    if unit == "proportion" and not said_unit and value <= 1 and "%" not in str(raw):
        fraction = True
        reading.say(place, model, [("read-as-fraction", f"{metric}: {cleaned.printed} read as a fraction of 1")])
    if unit != "proportion" or not fraction:
        return cleaned.printed
    text = format(100 * value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text
