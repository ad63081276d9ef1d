"""What a model has answered, on disk as it goes, so that a killed run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mpeval.errors import OutputError
from mpeval.folders import unwritable

FILE = "lm-eval-answers-{}.jsonl"
"""Each data-parallel rank writes one of its own; all are read."""


def key_of(*parts: Any) -> str:
    """Return what a request is known by: a digest of all that its answer depends on besides the model."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def read_answers(folder: Path) -> dict[str, Any]:
    """Return all answers of earlier runs into a folder; a line that a kill cut short counts for nothing.

    Raises:
        OutputError: a line that is damaged otherwise.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.glob(FILE.format("*"))):
        raw = path.read_bytes()
        for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].splitlines(), start=1):
            try:
                key, answer = json.loads(line)
            except (ValueError, TypeError) as error:
                raise OutputError(
                    f"`{path}` line {number} is damaged: {error}", "remove that line, or give another `--output`"
                ) from error
            found[key] = answer
    return found


class Answers:
    """Answers by key: those of earlier runs, and those of this one, which are also written if there are files.

    Attributes:
        known: all.
        earlier: the keys that were known before this run.
    """

    def __init__(self, known: Mapping[str, Any] | None = None, *paths: Path) -> None:
        """Begin with `known`; write new ones to the end of all `paths`, after what a kill cut short is removed."""
        self.known = dict(known or {})
        self.earlier = frozenset(self.known)
        self.paths = paths
        for path in paths:
            if path.is_file():
                raw = path.read_bytes()
                os.truncate(path, raw.rfind(b"\n") + 1)

    def missing(self, keys: Iterable[str]) -> list[int]:
        """Return the places of keys without an answer, one that comes again only once."""
        first: dict[str, int] = {}
        for place, key in enumerate(keys):
            if key not in self.known:
                first.setdefault(key, place)
        return list(first.values())

    def add(self, found: Mapping[str, Any]) -> None:
        """Remember answers, and hand them to the operating system before returning.

        Raises:
            OutputError: the file cannot be written.
        """
        self.known.update(found)
        lines = "".join(json.dumps([key, answer]) + "\n" for key, answer in found.items())
        for path in self.paths if found else ():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("ab") as file:
                    file.write(lines.encode())
            except OSError as error:
                raise unwritable(path, error) from error
