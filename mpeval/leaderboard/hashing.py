"""Hash the weights behind records again, without torch in this process."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from mpeval.errors import CheckpointError
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.samples import places_below


@dataclass(frozen=True, kw_only=True)
class Hashed:
    """The weights of a record, or of all members of an ensemble."""

    folders: tuple[Path, ...]
    digest: str


class Checkpoints:
    """Checkpoints below a folder, each hashed once."""

    def __init__(self, root: Path | None) -> None:
        """Remember where to look; with None nothing is found."""
        self.root = root
        self._known: dict[tuple[str, ...], tuple[Path, str]] = {}

    def hashed(self, record: Record) -> Hashed | None:
        """Find the weights of a record by the ends of their paths and hash them; None where one is not there.

        Raises:
            CheckpointError: what is there cannot be read as a checkpoint.
        """
        recorded = [record.model.path] if not record.members else record.model.path.split(" ")
        if self.root is None or len(recorded) != (len(record.members) or 1):
            return None
        places = [self._place(path) for path in recorded]
        found = [self._hash(place, _settings(record)) for place in places if place is not None]
        if len(found) != len(places):
            return None
        folders, digests = zip(*found, strict=True)
        return Hashed(folders=folders, digest=digests[0] if not record.members else _together(digests))

    def _place(self, recorded: str) -> Path | None:
        assert self.root is not None
        return next((place for place in places_below(self.root, recorded) if os.path.exists(place)), None)

    def _hash(self, place: Path, settings: Sequence[str]) -> tuple[Path, str]:
        """Return the iteration's folder and its digest, as `mpeval inspect` has them; that needs torch."""
        line = [sys.executable, "-m", "mpeval", "inspect", str(place), "--json", *settings]
        key = tuple(line)
        if key not in self._known:
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            if done.returncode:
                said = next((text for text in done.stderr.splitlines() if text.strip()), "nothing is said why")
                problem = f"`{place}` cannot be hashed: {said.removeprefix('error: ')}{damage([place])}"
                raise CheckpointError(problem, f"try `mpeval verify {place}`")
            content = json.loads(done.stdout)
            self._known[key] = Path(content["path"]), str(content["digest"])
        return self._known[key]


def _settings(record: Record) -> list[str]:
    """Return what the checkpoint was opened with: settings of the command, and the vocabulary, which counts rows."""
    try:
        words = shlex.split(record.command)
    except ValueError:  # a line for people to read, which says nothing to us
        words = []
    given: list[str] = []
    if words[1:2] == ["evaluate"]:  # those of other commands are about training
        given += [value for option, value in pairwise(words) if option == "--set"]
        given += [word.removeprefix("--set=") for word in words if word.startswith("--set=")]
    given += [f"vocab={record.model.vocab}"] * bool(record.model.vocab)
    return [f"--set={value}" for value in given]


def _together(digests: Sequence[str]) -> str:
    from mpeval.predictions.ensemble import digest_of_members

    return digest_of_members(digests)


def damage(folders: Sequence[Path]) -> str:
    """Say which shards are damaged by the checksums inside them, of those that have any (zip files)."""
    found: list[Path] = []
    for path in sorted(file for folder in folders for file in folder.rglob("*.pt")):
        try:
            with path.open("rb") as file:
                if file.read(2) != b"PK":  # of an older form, which has no checksums
                    continue
            with zipfile.ZipFile(path) as content:
                if content.testzip() is not None:
                    found.append(path)
        except (zipfile.BadZipFile, OSError, NotImplementedError):
            found.append(path)
    return f"; damaged by their own checksums: {', '.join(f'`{path}`' for path in found)}" if found else ""
