"""Task cards: one TOML file per benchmark that names its data, its checksums and its protocols."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeVar

from mpeval.errors import DataError, UsageError, suggest
from mpeval.folders import data_folder
from mpeval.items import Head

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
    head: Head = "lm"
    """What of the model it reads."""
    options: int = 0
    """Options of each question, or classes of each pair of texts."""
    per: Literal["", "token", "byte"] = ""
    """What an option's log-probability is divided by the number of before options are compared; nothing by default."""
    window: int | None = None
    """Tokens a window's inputs span, special ones included (perplexity and spans)."""
    stride: int | None = None
    """Tokens from one window to the next (perplexity and spans)."""
    asked: int = 0
    """How many of its split's published questions it asks, where these are not all."""
    split: str = ""
    """What it is evaluated on by default, if not the card's; likewise the two that follow."""
    train_split: str = ""
    dev_split: str = ""


@dataclass(frozen=True, kw_only=True)
class HubSource:
    """Where the `datasets` library finds the same rows, and its classes by number (none: as in the card)."""

    id: str
    config: str
    split: str
    revision: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the data must be.

    Attributes:
        rows: rows, lines of a text, or questions.
        sha256: of the one unpacked file, or of several as `mpeval.data` digests them; empty if it is not known.
        questions: digest of the questions themselves, by which those of `datasets` are known; empty if not known.
    """

    rows: int
    sha256: str = ""
    questions: str = ""


@dataclass(frozen=True, kw_only=True)
class Split:
    """One set of a benchmark: where its files lie, what is in them, and where else it is to be had.

    Attributes:
        files: paths below `--data` as published, files or folders of files; any may be compressed.
        archives: patterns of names; archives of the first that is there hold what of `files` lies in no folder.
        bare: files that are published with an article but no questions.
        labelled: whether the set says what is right.
        sample: the self-written rows in `tasks/samples`.
    """

    name: str
    files: tuple[str, ...]
    published: Contents
    archives: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    labelled: bool = True
    sample: Contents | None = None
    hub: HubSource | None = None


@dataclass(frozen=True, kw_only=True)
class Card:
    """One benchmark, as its TOML file describes it.

    Attributes:
        kind: `cloze`, `perplexity`, `choice`, `pair` or `span`.
        format: how its files are read: `jsonl`, `text`, `race`, `piqa`, `tsv` or `squad`.
        field: the column with the text (`jsonl` and `text`).
        labels: classes by number (`pair`).
        split: the one that is evaluated by default.
        train_split, dev_split: what is finetuned on and by what the best epoch is chosen; empty where nothing is.
        default: for each family that has one, the protocol that is meant by the task's name alone.
    """

    name: str
    title: str
    category: str
    kind: str
    description: str
    homepage: str
    license: str
    citation: str
    format: str
    split: str
    splits: tuple[Split, ...]
    default: dict[str, str]
    protocols: tuple[Protocol, ...]
    field: str = ""
    labels: tuple[str, ...] = ()
    train_split: str = ""
    dev_split: str = ""

    def protocol(self, name: str) -> Protocol:
        """Return a protocol by id (`lambada/megatron-strict`) or short name (`megatron-strict`)."""
        for protocol in self.protocols:
            if name in {protocol.id, protocol.id.split("/", 1)[1]}:
                return protocol
        raise UsageError(
            f"task `{self.name}` has no protocol `{name}`", suggest(name, [protocol.id for protocol in self.protocols])
        )

    def means_every(self, name: str) -> bool:
        """Say whether a short name stands for every protocol: `*`, and `all` where none is called so."""
        return name == "*" or (name == "all" and f"{self.name}/all" not in {item.id for item in self.protocols})

    def default_for(self, family: str = "") -> str:
        """Return the id of the default protocol for models of `family`; where it has none, the first of the others."""
        short = self.default.get(family) or next(iter(self.default.values()))
        return self.protocol(short).id

    def is_default(self, protocol: Protocol) -> bool:
        """Say whether the task's name alone means `protocol` for models of its family."""
        return protocol.family in self.default and self.default_for(protocol.family) == protocol.id

    def split_for(self, protocol: Protocol, role: Literal["split", "train_split", "dev_split"] = "split") -> str:
        """Return the name of the split that has a role under a protocol; empty if none has."""
        own, common = getattr(protocol, role), getattr(self, role)
        return str(own or common)

    def items_of(self, protocol: Protocol) -> int:
        """Return how many published items a protocol scores on the split that it is evaluated on by default."""
        return protocol.asked or self.split_named(self.split_for(protocol)).published.rows

    def split_named(self, name: str | None = None) -> Split:
        """Return a split by name, the default one for none.

        Raises:
            UsageError: there is no such split, with the nearest that there is.
        """
        for split in self.splits:
            if split.name == (name or self.split):
                return split
        known = [split.name for split in self.splits]
        raise UsageError(f"task `{self.name}` has no split `{name}`", suggest(str(name), known))


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
    raw["splits"] = tuple(_split(name, values, path) for name, values in raw.get("splits", {}).items())
    raw["protocols"] = tuple(_build(Protocol, item, path) for item in raw.get("protocols", []))
    raw["labels"] = tuple(raw.get("labels", ()))
    card = _build(Card, raw, path)
    for name in card.default.values():
        card.protocol(name)
    named = [(item.split, item.train_split, item.dev_split) for item in card.protocols]
    for split in filter(None, chain((card.split, card.train_split, card.dev_split), *named)):
        card.split_named(split)
    return card


def _split(name: str, values: dict[str, Any], path: Path) -> Split:
    made = values | {key: tuple(values.get(key, ())) for key in ("files", "archives", "bare")}
    parts: dict[str, Callable[..., Any]] = {"published": Contents, "sample": Contents, "hub": HubSource}
    if "hub" in values:
        made["hub"] = values["hub"] | {"labels": tuple(values["hub"].get("labels", ()))}
    made |= {key: _build(kind, made[key], path) for key, kind in parts.items() if key in made}
    return _build(Split, {"name": name} | made, path)


def _build(kind: Callable[..., T], values: dict[str, Any], path: Path) -> T:
    try:
        return kind(**values)
    except TypeError as error:
        raise DataError(f"the task card `{path}` is wrong: {error}", "compare it with the other cards") from error


def select(names: list[str]) -> list[tuple[Card, Protocol]]:
    """Turn `lambada`, `lambada/megatron-strict` or `lambada/*` into cards with protocols, each once, in order."""
    chosen: dict[str, tuple[Card, Protocol]] = {}
    for name in names:
        task, slash, protocol = name.partition("/")
        card = load_card(task)
        every = card.means_every(protocol)
        wanted = card.protocols if every else (card.protocol(protocol if slash else card.default_for()),)
        chosen.update((item.id, (card, item)) for item in wanted)
    return list(chosen.values())


def select_fitting(names: list[str], family: str, holder: str) -> list[tuple[Card, Protocol]]:
    """Select as `select` does, but of a whole task or `TASK/*` only the protocols for `family`.

    Args:
        names: as given to `--task`.
        family: `gpt` or `bert`.
        holder: what is of that family, such as "`run` holds", for the message.

    Raises:
        UsageError: a name that selects no protocol for the family, with those that there are.
    """
    chosen: dict[str, tuple[Card, Protocol]] = {}
    for name in names:
        found = select([name if "/" in name else load_card(name).default_for(family)])
        fitting = [(card, protocol) for card, protocol in found if protocol.family == family]
        if not fitting:
            card, other = found[0]
            asked = name if card.means_every(name.partition("/")[2]) else other.id
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
