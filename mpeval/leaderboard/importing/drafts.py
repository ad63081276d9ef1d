"""What a reader of a format makes of a file: drafts of numbers, and findings about what it met."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from mpeval.leaderboard.importing.cleaning import Cleaned, Name, clean_name, clean_value
from mpeval.leaderboard.reported import ReportedModel, Source, Unit


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was odd, and what was done."""

    place: str
    model: str
    code: str
    done: str
    kept: bool = True
    """Whether the number is there all the same."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What the user says of a file that does not say it itself; empty where nothing was said."""

    model: str = ""
    url: str = ""
    title: str = ""
    date: str = ""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What is to become one number, as `mpeval.leaderboard.reported.reported` takes it."""

    place: str
    task: str
    title: str
    protocol: str
    split: str
    unit: Unit
    values: dict[str, str]
    """Printed value of each metric, the primary one first."""
    model: ReportedModel
    source: Source
    items: dict[str, int] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    """Standard errors by metric, where the source gives them: of proportions or perplexities, never in percent."""
    flags: tuple[str, ...] = ()
    note: str = ""
    record: str = ""
    """What drafts share that were metrics of one record, where a file says so."""

    def flagged(self, flag: str) -> Draft:
        """Return the draft with one more flag."""
        return self if flag in self.flags else replace(self, flags=(*self.flags, flag))

    def noted(self, *texts: str) -> Draft:
        """Return the draft with more words in its note."""
        return replace(self, note="; ".join(text for text in (self.note, *texts) if text))


def joined(drafts: Iterable[Draft]) -> list[Draft]:
    """Return drafts, those of one record put together again where their units are the same."""
    made: dict[tuple[object, ...], Draft] = {}
    for number, draft in enumerate(drafts):
        key = (draft.record, draft.unit, draft.protocol, draft.split, draft.model, draft.source) if draft.record else ()
        first = made.get(key) if key else None
        if first is None or first.values.keys() & draft.values.keys():
            made[key if key and first is None else (number,)] = draft
        else:
            made[key] = replace(
                first,
                values=first.values | draft.values,
                items=first.items | draft.items,
                errors=first.errors | draft.errors,
            )
    return list(made.values())


@dataclass(kw_only=True)
class Reading:
    """What was read of a file so far."""

    rows: int = 0
    drafts: list[Draft] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def say(self, place: str, model: str, found: Iterable[tuple[str, str]], *, kept: bool = True) -> None:
        """Add findings about one place."""
        self.findings += [Finding(place=place, model=model, code=code, done=done, kept=kept) for code, done in found]

    def name(self, place: str, raw: object) -> Name | None:
        """Return a model's name, None if there is none, and say what was found."""
        name = clean_name(raw)
        self.say(place, name.text or str(raw or ""), name.found, kept=bool(name.text))
        return name if name.text else None

    def value(self, place: str, model: str, raw: object, column: str) -> Cleaned | None:
        """Return a value, None if there is none, and say what was found in which column."""
        cleaned = clean_value(raw, name=model)
        found = ((code, f"{column}: {said}") for code, said in cleaned.found)
        self.say(place, model, found, kept=cleaned.printed is not None)
        return cleaned if cleaned.printed is not None else None


def is_address(text: object) -> bool:
    """Say whether a text is an address of the web that a source may have."""
    if not isinstance(text, str) or not re.fullmatch(r"https?://[^\s]+", text):
        return False
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return bool(parts.hostname)


PROTOCOL = r"[^/\s]+(?:/[^/\s]+)+"
"""What TASK/PROTOCOL looks like."""


def is_protocol(text: str) -> bool:
    """Say whether a text is TASK/PROTOCOL."""
    return bool(re.fullmatch(PROTOCOL, text))


def shots_suffix(shots: str) -> str:
    """Return the end of the name of a protocol that shows so many examples, or finetunes."""
    if shots.isdigit() or shots == "few":
        return f"-{shots}-shot"
    return f"-{shots}" * bool(re.fullmatch(r"\w+", shots))


def given_source(given: Given, locator: str) -> Source | None:
    """Return the source that the user named, None if none was."""
    if not given.url:
        return None
    return Source(title=given.title or given.url, url=given.url, locator=locator, date=given.date)
