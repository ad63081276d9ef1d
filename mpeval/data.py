"""Benchmark data, from a folder in its published layout or through `datasets`; checked before anything is scored."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpeval.errors import DataError
from mpeval.questions.choice import parse_piqa, parse_race
from mpeval.questions.hub import from_rows
from mpeval.questions.pair import parse_tsv
from mpeval.questions.published import Published, digest_of, find
from mpeval.questions.question import Parsed, Question, check_unique
from mpeval.questions.question import digest_of as digest_of_questions
from mpeval.questions.span import parse_squad
from mpeval.tasks.cards import Card, HubSource, Split

Parser = Callable[[Card, Split, Sequence[Published]], Parsed]


@dataclass(frozen=True, kw_only=True)
class Data:
    """One split of a benchmark: texts, or one text, or questions; with its digest and what is odd."""

    rows: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    source: str
    digest: str
    split: str = ""
    flags: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The only row of a task that is one text."""
        return self.rows[0]


def load_data(card: Card, folder: Path | None, split: str | None = None, *, allow_modified: bool = False) -> Data:
    """Read a split of a benchmark and check it against its card.

    Args:
        card: the task.
        folder: a folder with the data in its published layout; None asks `datasets` for the card's hub id.
        split: its name; None is the one that the card evaluates.
        allow_modified: accept other contents, and flag the result `modified-data`.

    Raises:
        DataError: absent, unreadable, malformed, empty, another split, or not what the card says.
        UsageError: there is no such split.
    """
    chosen = card.split_named(split)
    if folder is None:
        hub = _hub_of(card, chosen)
        source = f"{hub.id}@{hub.revision[:12]} ({hub.config}, {hub.split})"
        table = _ask_hub(card, chosen, hub)
        if card.format not in TEXTS:
            return _of_rows(card, chosen, table, source, allow_modified)
        content = _as_published(card, [str(value) for value in table[card.field]])
        files = [Published(path=chosen.files[0], where=source, content=content)]
    else:
        files, source = find(card, chosen, folder)
    _refuse_other_split(card, chosen, files, source)
    parsed = PARSERS[card.format](card, chosen, files)
    found = _Found(source=source, digest=digest_of(files, chosen), expected=chosen.published.sha256, parsed=parsed)
    return _checked(card, chosen, found, allow_modified)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What was read, its digest, and the digest that it should have (empty: not known)."""

    source: str
    digest: str
    expected: str
    parsed: Parsed


def _checked(card: Card, split: Split, found: _Found, allow_modified: bool) -> Data:
    check_unique(found.parsed.questions)
    flags = _flags(card, split, found, allow_modified)
    if found.parsed.left_out:
        flags = (*flags, "rows-left-out")
    return Data(
        rows=found.parsed.texts,
        questions=found.parsed.questions,
        source=found.source,
        digest=f"sha256:{found.digest}",
        split=split.name,
        flags=flags,
    )


def _flags(card: Card, split: Split, found: _Found, allow_modified: bool) -> tuple[str, ...]:
    """Compare with the card; a set whose checksum is not known is accepted by its number of rows, and flagged.

    Raises:
        DataError: a set that is neither and has a row that only a published set may have, or that is not allowed.
    """
    count, published = found.parsed.count, split.published
    if split.sample is not None and found.digest == split.sample.sha256:
        return ("sample-rows",)
    if found.digest == found.expected:
        return ()
    if not found.expected and count == published.rows:
        return ("unverified-data",)
    if found.parsed.complaints:
        raise found.parsed.complaints[0]
    if not allow_modified:
        of = f" with {found.expected[:12]}..." if found.expected else ""
        raise DataError(
            f"`{found.source}` is not the published {card.title} {split.name} set: {count:,} rows with sha256 "
            f"{found.digest[:12]}..., expected {published.rows:,}{of}",
            "get the published file, or accept this one with --allow-modified-data, which marks the result",
        )
    return ("modified-data",)


def _refuse_other_split(card: Card, split: Split, files: Sequence[Published], source: str) -> None:
    """Refuse the contents of another split under this one's names: its scores would mean nothing.

    Raises:
        DataError: whose they are.
    """
    for other in card.splits:
        known = {contents.sha256 for contents in (other.published, other.sample) if contents is not None}
        if other.name != split.name and digest_of(files, split, other) in known:
            raise DataError(
                f"`{source}` holds the {other.name} set of {card.title}, not {split.name}",
                f"put the {split.name} set there, or ask for the split {other.name}",
            )


def _hub_of(card: Card, split: Split) -> HubSource:
    if split.hub is None:
        raise DataError(
            f"the {split.name} set of {card.title} is on no hub that is known",
            f"give a folder that holds `{split.files[0]}` by `--data DIR`",
        )
    return split.hub


def _ask_hub(card: Card, split: Split, hub: HubSource) -> Any:
    import datasets

    try:
        return datasets.load_dataset(hub.id, hub.config, split=hub.split, revision=hub.revision)
    except Exception as error:  # datasets raises many kinds for an unreachable or changed source; the cause is kept
        raise DataError(
            f"cannot get {card.title} from the hub as `{hub.id}`: {error}".splitlines()[0],
            f"give a folder that holds `{split.files[0]}` by `--data DIR`",
        ) from error


def _of_rows(card: Card, split: Split, table: Any, source: str, allow_modified: bool) -> Data:
    """Make questions of a hub's rows; they are known by the questions' own digest.

    The hub may keep white space and characters otherwise than the files, so another digest with as many questions is
    accepted and flagged.
    """
    parsed = from_rows(card, split, table, source)
    digest, known = digest_of_questions(parsed.questions), split.published.questions
    found = _Found(source=source, digest=digest, expected=known if digest == known else "", parsed=parsed)
    return _checked(card, split, found, allow_modified)


def _as_published(card: Card, values: Sequence[str]) -> bytes:
    """Write a hub's texts as the published file has them, so that one checksum fits both."""
    if card.format == "jsonl":
        return ("\n".join(json.dumps({card.field: value}) for value in values) + "\n").encode()
    return "".join(value or " \n" for value in values).encode()


def _parse_text(card: Card, split: Split, files: Sequence[Published]) -> Parsed:
    del card, split
    return Parsed(texts=(_filled(files[0]),), lines=files[0].content.count(b"\n"))


def _parse_jsonl(card: Card, split: Split, files: Sequence[Published]) -> Parsed:
    del split
    [file] = files
    lines = enumerate(_filled(file).split("\n"), start=1)
    return Parsed(texts=tuple(_field(line, card.field, file.where, number) for number, line in lines if line.strip()))


def _filled(file: Published) -> str:
    text = file.text()
    if not text.strip():
        raise DataError(f"`{file.where}` is empty", "get the published file again")
    return text


def _field(line: str, field: str, source: str, number: int) -> str:
    try:
        value = json.loads(line)[field]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(
            f"`{source}` line {number} is not an object with `{field}`: {type(error).__name__}: {error}",
            f'each line is one JSON object such as {{"{field}": "..."}}',
        ) from error
    if not isinstance(value, str) or not value.strip():
        raise DataError(
            f"`{source}` line {number}: `{field}` is empty or no text", "each row is a passage; remove or mend the line"
        )
    return value


TEXTS: dict[str, Parser] = {"text": _parse_text, "jsonl": _parse_jsonl}
PARSERS: dict[str, Parser] = {
    **TEXTS,
    "race": parse_race,
    "piqa": parse_piqa,
    "tsv": parse_tsv,
    "squad": parse_squad,
}
"""How files are read, by the card's `format`."""
