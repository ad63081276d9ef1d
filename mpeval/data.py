"""Benchmark data, from a folder in its published layout or through `datasets`; checked before anything is scored."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from mpeval.errors import DataError
from mpeval.tasks.cards import Card


@dataclass(frozen=True, kw_only=True)
class Data:
    """The rows of one benchmark: texts of a `jsonl` task, or one text; with their digest and what is odd."""

    rows: tuple[str, ...]
    source: str
    digest: str
    flags: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The only row of a task that is one text."""
        return self.rows[0]


def load_data(card: Card, folder: Path | None, *, allow_modified: bool = False) -> Data:
    """Read a benchmark and check it against its card.

    Args:
        card: the task.
        folder: a folder with the data in its published layout; None asks `datasets` for the card's hub id.
        allow_modified: accept other contents, and flag the result `modified-data`.

    Raises:
        DataError: absent, unreadable, malformed, empty, or not what the card says.
    """
    content, source = _from_folder(card, folder) if folder is not None else _from_hub(card)
    digest = hashlib.sha256(content).hexdigest()
    rows = _parse(card, content, source)
    count = len(rows) if card.format == "jsonl" else content.count(b"\n")
    flags: tuple[str, ...] = ()
    if digest == card.sample.sha256:
        flags = ("sample-rows",)
    elif digest != card.published.sha256:
        if not allow_modified:
            raise DataError(
                f"`{source}` is not the published {card.title} {card.split} set: {count:,} rows with sha256 "
                f"{digest[:12]}..., expected {card.published.rows:,} with {card.published.sha256[:12]}...",
                "get the published file, or accept this one with --allow-modified-data, which marks the result",
            )
        flags = ("modified-data",)
    return Data(rows=rows, source=source, digest="sha256:" + digest, flags=flags)


def _from_folder(card: Card, folder: Path) -> tuple[bytes, str]:
    for path in (folder / card.file, folder / Path(card.file).name):
        if path.is_file():
            return path.read_bytes(), str(path)
    if not folder.is_dir():
        problem = (
            f"`{folder}` is not a folder" if folder.exists() else f"no such data folder: `{folder}` does not exist"
        )
        raise DataError(problem, f"it should hold `{card.file}`")
    found = sorted(item.name for item in folder.iterdir())
    raise DataError(
        f"no {card.title} data in `{folder}`: expected `{card.file}`",
        f"found: {', '.join(f'`{name}`' for name in found[:8]) or 'nothing'}; get it from {card.homepage}",
    )


def _from_hub(card: Card) -> tuple[bytes, str]:
    """Ask `datasets` for the rows and write them as the published file has them, so that one checksum fits both."""
    import datasets

    hub = card.hub
    source = f"{hub.id}@{hub.revision[:12]} ({hub.config}, {hub.split})"
    try:
        table = datasets.load_dataset(hub.id, hub.config, split=hub.split, revision=hub.revision)
    except Exception as error:  # datasets raises many kinds for an unreachable or changed source; the cause is kept
        raise DataError(
            f"cannot get {card.title} from the hub as `{hub.id}`: {error}".splitlines()[0],
            f"give a folder that holds `{card.file}` by `--data DIR`",
        ) from error
    values = [str(value) for value in table[card.field]]
    if card.format == "jsonl":
        lines = [json.dumps({card.field: value}) for value in values]
        return ("\n".join(lines) + "\n").encode(), source
    return "".join(value or " \n" for value in values).encode(), source


def _parse(card: Card, content: bytes, source: str) -> tuple[str, ...]:
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"`{source}` is not UTF-8 text: {error}", "get the published file again") from error
    if not text.strip():
        raise DataError(f"`{source}` is empty", "get the published file again")
    if card.format == "text":
        return (text,)
    return tuple(
        _field(line, card.field, source, number)
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    )


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
