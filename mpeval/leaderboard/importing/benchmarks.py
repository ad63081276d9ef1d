"""What benchmarks, columns and metrics are called elsewhere, and what they are here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mpeval.leaderboard.metrics import KNOWN
from mpeval.leaderboard.published import card_of
from mpeval.leaderboard.reported import Unit
from mpeval.tasks.cards import card_names, load_card

PROTOCOL_UNKNOWN = "protocol-unknown"
"""Flag of a number of which nobody says how it was measured."""


def unit_of(metric: str) -> Unit | None:
    """Return the unit of a metric, None where its name does not say it: a direction is never taken for granted."""
    unit = KNOWN.get(metric, ("",))[0]
    if unit == "proportion" or metric.startswith("accuracy_") or metric == "em":
        return "proportion"
    return "perplexity" if unit == "perplexity" or metric.endswith("_perplexity") else None


def title_of(task: str) -> str:
    """Return what a benchmark is called."""
    card = card_of(task)
    return card.title if card else OTHER_TITLES.get(task, task)


OTHER_TITLES = {"wikitext2": "WikiText-2"}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of scores: of which benchmark, and what stands in which column."""

    task: str
    columns: dict[str, tuple[str, str]]
    """Split and metric by the column's name in lower case; the primary metric of a split is the first."""
    mixed: bool = False
    """Whether its numbers are of several sets, and nothing says which is of which."""


_WIKITEXT = {"test perplexity": ("test", "word_perplexity"), "validation perplexity": ("valid", "word_perplexity")}
_RACE = {
    **dict.fromkeys(("accuracy", "race", "accuracy (all)"), ("test", "accuracy")),
    **dict.fromkeys(("accuracy (middle)", "race-m"), ("test", "accuracy_middle")),
    **dict.fromkeys(("accuracy (high)", "race-h"), ("test", "accuracy_high")),
}
_LAMBADA = {
    **dict.fromkeys(("accuracy", "percentage correct"), ("test", "accuracy")),
    "perplexity": ("test", "perplexity"),
}
_EITHER = "valid-or-test"
TABLES = {
    "lambada": Table(task="lambada", columns=_LAMBADA),
    "wikitext103": Table(task="wikitext103", columns=_WIKITEXT),
    "wikitext2": Table(task="wikitext2", columns=_WIKITEXT),
    "race": Table(task="race", columns=_RACE),
    "piqa": Table(task="piqa", columns={"accuracy": (_EITHER, "accuracy")}, mixed=True),
    "multinli": Table(
        task="mnli", columns={"matched": ("test-matched", "accuracy"), "mismatched": ("test-mismatched", "accuracy")}
    ),
    "quoraquestionpairs": Table(
        task="qqp", columns={"accuracy": (_EITHER, "accuracy"), "f1": (_EITHER, "f1")}, mixed=True
    ),
    **{
        f"squad{version}": Table(
            task="squad", columns={"f1": (f"test-v{version}", "f1"), "em": (f"test-v{version}", "exact")}
        )
        for version in ("1.1", "2.0")
    },
}
"""Those of Papers with Code, by the data set's name in lower case without spaces and hyphens."""
PARAMETERS = ("number of params", "params", "parameters")
"""Columns with a model's size."""
_OTHER_NAMES = {"lambadapredictionofwordsindiscourse": "lambada"}


def table_of(dataset: str) -> Table | None:
    """Return what a table of Papers with Code holds, None if its benchmark is not known here."""
    key = _key(dataset)
    return TABLES.get(_OTHER_NAMES.get(key, key))


def task_named(name: str) -> str:
    """Return the task that a data set is called by on the hub, by title or by name; empty if none is."""
    hub = {"lambadaopenai": "lambada", "lambada": "lambada", "wikitext2": "wikitext2", "wikitext2v1": "wikitext2"}
    for task in card_names():
        card = load_card(task)
        hub |= {_key(text): task for text in (card.name, card.title)}
        if len({split.hub.id for split in card.splits if split.hub}) == 1:
            hub |= {_key(split.hub.id.split("/")[-1]): task for split in card.splits if split.hub}
    hub = {key: task for key, task in hub.items() if key not in {"glue", "wikitext"}}  # several benchmarks each
    return hub.get(_key(name.split("/")[-1]), "")


def _key(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name.casefold())
