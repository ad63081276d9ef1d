"""What is known of the sets that numbers are of: their cards, their sizes, and how the groups of RACE make up all."""

from __future__ import annotations

from functools import cache

from mpeval.tasks.cards import Card, Protocol, card_names, load_card

RACE_TEST = {"accuracy_middle": 1436, "accuracy_high": 3498}
"""Questions of the groups of RACE's test set, by the metric that is of them."""
ROUNDING = 1e-9


@cache
def card_of(task: str) -> Card | None:
    """Return the card of a task, if it has one."""
    return load_card(task) if task in card_names() else None


def split_rows(task: str, split: str) -> int | None:
    """Return how many items a set of a task was published with; None where that is not known."""
    card = card_of(task)
    rows = {one.name: one.published.rows for one in card.splits} if card and card.kind != "perplexity" else {}
    return rows.get(split)


def published_items(task: str, split: str, metric: str, protocol: str = "") -> int | None:
    """Return how many items an accuracy on a published set is of, None where that is not known.

    Args:
        task: of a card.
        split: set of it.
        metric: an accuracy, on all items or on a group of RACE's.
        protocol: by which it was measured: one may ask only some of the items.
    """
    if not metric.startswith("accuracy"):
        return None
    if metric in RACE_TEST:
        return RACE_TEST[metric] if (task, split) == ("race", "test") else None
    return _asked(task, split, protocol) or split_rows(task, split)


def _asked(task: str, split: str, name: str) -> int:
    """Return how many items a protocol asks of the set that it is evaluated on, 0 for all of them."""
    card = card_of(task)
    known: dict[str, Protocol] = {one.id: one for one in card.protocols} if card else {}
    if card is None or name not in known:
        return 0
    return known[name].asked if split == card.split_for(known[name]) else 0


def pooled(middle: float, high: float) -> float:
    """Return the accuracy on all of RACE's test set from those on its groups."""
    weights = list(RACE_TEST.values())
    return (weights[0] * middle + weights[1] * high) / sum(weights)


def unlike_pooled(whole: str, middle: str, high: str) -> str:
    """Say by how much accuracies on RACE, in percent as printed, differ beyond rounding; nothing where they do not."""
    try:
        together, said = pooled(float(middle), float(high)), float(whole)
    except ValueError:
        return ""  # which is another finding
    if abs(said - together) <= _half(whole) + pooled(_half(middle), _half(high)) + ROUNDING:
        return ""
    return f"{middle} on middle and {high} on high school questions make {together:.2f} on all, not {whole}"


def _half(printed: str) -> float:
    """Return half a unit of the last digit that is printed."""
    return 0.5 * 10.0 ** -len(printed.partition(".")[2])
