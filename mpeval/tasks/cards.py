"""Task cards: one TOML file per benchmark that names its data, its checksums and its protocols."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mpeval.errors import DataError, UsageError, suggest
from mpeval.folders import data_folder

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One way to turn a benchmark into a number.  Its id and version stand on every result."""

    id: str
    version: str
    metric: str
    description: str
    family: str = "gpt"
    """Which models it scores: `gpt` or `bert`."""
    window: int | None = None
    """Tokens a window's inputs span, special ones included (perplexity only)."""
    stride: int | None = None
    """Tokens from one window to the next (perplexity only)."""


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """Where the `datasets` library finds the same rows."""

    id: str
    config: str
    split: str
    revision: str


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the data must be: rows, and the sha256 of the published file."""

    rows: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Card:
    """One benchmark, as its TOML file describes it."""

    name: str
    title: str
    category: str
    kind: str
    description: str
    homepage: str
    license: str
    citation: str
    file: str
    """Path of the data file below `--data`, as published."""
    format: str
    field: str
    split: str
    published: Contents
    sample: Contents
    hub: HubSource
    default: str
    protocols: tuple[Protocol, ...]

    def protocol(self, name: str) -> Protocol:
        """Return a protocol by id (`lambada/megatron-strict`) or short name (`megatron-strict`)."""
        for protocol in self.protocols:
            if name in {protocol.id, protocol.id.split("/", 1)[1]}:
                return protocol
        raise UsageError(
            f"task `{self.name}` has no protocol `{name}`", suggest(name, [protocol.id for protocol in self.protocols])
        )


def card_names() -> list[str]:
    """Return the names of all tasks."""
    return sorted(path.stem for path in data_folder("tasks").glob("*.toml"))


def load_card(name: str) -> Card:
    """Read the card of task `name`."""
    names = card_names()
    if name not in names:
        raise UsageError(f"no task `{name}`", suggest(name, names))
    return read_card(data_folder("tasks") / f"{name}.toml")


def read_card(path: Path) -> Card:
    """Read a card file; unknown or missing keys are errors that name the file."""
    with path.open("rb") as file:
        raw: dict[str, Any] = tomllib.load(file)
    raw["published"] = _build(Contents, raw.get("published", {}), path)
    raw["sample"] = _build(Contents, raw.get("sample", {}), path)
    raw["hub"] = _build(HubSource, raw.get("hub", {}), path)
    raw["protocols"] = tuple(_build(Protocol, item, path) for item in raw.get("protocols", []))
    return _build(Card, raw, path)


def _build(kind: Callable[..., T], values: dict[str, Any], path: Path) -> T:
    try:
        return kind(**values)
    except TypeError as error:
        raise DataError(f"the task card `{path}` is wrong: {error}", "compare it with the other cards") from error


def select(names: list[str]) -> list[tuple[Card, Protocol]]:
    """Turn `lambada`, `lambada/megatron-strict` or `lambada/all` into cards with protocols, each once, in order."""
    chosen: dict[str, tuple[Card, Protocol]] = {}
    for name in names:
        task, slash, protocol = name.partition("/")
        card = load_card(task)
        wanted = card.protocols if protocol == "all" else (card.protocol(protocol if slash else card.default),)
        chosen.update((item.id, (card, item)) for item in wanted)
    return list(chosen.values())


def select_fitting(names: list[str], family: str, holder: str) -> list[tuple[Card, Protocol]]:
    """Select as `select` does, of `TASK/all` only the protocols for `family`.

    Args:
        names: as given to `--task`.
        family: `gpt` or `bert`.
        holder: what is of that family, such as "`run` holds", for the message.

    Raises:
        UsageError: a name that selects no protocol for the family, with those that there are.
    """
    chosen: dict[str, tuple[Card, Protocol]] = {}
    for name in names:
        found = select([name])
        fitting = [(card, protocol) for card, protocol in found if protocol.family == family]
        if not fitting:
            card, other = found[0]
            asked = name if name.endswith("/all") else other.id
            raise UsageError(
                f"`{asked}` scores a {other.family.upper()}, {holder} a {family.upper()}",
                f"for a {family.upper()} there is {_tasks_of(family, card)}",
            )
        chosen.update((protocol.id, (card, protocol)) for card, protocol in fitting)
    return list(chosen.values())


def _tasks_of(family: str, card: Card) -> str:
    """Name the protocols for `family`: those of `card`, or of all tasks where it has none."""
    cards = [card] if any(item.family == family for item in card.protocols) else map(load_card, card_names())
    names = [f"`--task {item.id}`" for one in cards for item in one.protocols if item.family == family]
    return ", ".join(names)
