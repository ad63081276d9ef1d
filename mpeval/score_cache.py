"""Scores by what they depend on, in a folder that runs share: the same weights score the same item once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpeval.errors import OutputError
from mpeval.folders import unwritable
from mpeval.items import AnyRequest, Headed, Item, Likelihoods, Request
from mpeval.tasks.base import Sample


def request_digest(request: AnyRequest) -> str:
    """Return a digest of every number that a request is made of, and of what kind it is."""
    digest = hashlib.blake2b(type(request).__name__.encode(), digest_size=16)
    for row in _numbers(request):
        values = np.asarray(row, dtype="<i8")
        digest.update(np.array(values.shape, dtype="<i8").tobytes() + b":" + values.tobytes())
    return digest.hexdigest()


def _numbers(request: AnyRequest) -> list[Sequence[int] | np.ndarray]:
    if isinstance(request, Request):
        return [request.context, request.target]
    if isinstance(request, Likelihoods):
        return [row for option in request.options for row in _numbers(option)] + [request.targets]
    if isinstance(request, Headed):
        return [*request.ids, request.firsts, request.targets]
    return [request.ids, request.at, request.target]


def identity_digest(identity: Mapping[str, Any]) -> str:
    """Return what files of an identity are named by: 24 letters of its sha256."""
    return hashlib.sha256(json.dumps(dict(identity), sort_keys=True).encode()).hexdigest()[:24]


class ScoreCache:
    """The samples of one task under one identity, in a JSON-lines file that is only ever added to.

    The file is named by a digest of the identity, which its first line spells out.  Several processes may add to it at
    once.  A line that a kill cut short is left where it is, and its item scored again.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        """Open or create the file of what scores depend on: digests of weights, tokenizer and data, dtype, protocol.

        Raises:
            OutputError: the folder cannot be written, or the file holds another identity.
        """
        header = json.dumps({"identity": dict(identity)}, sort_keys=True)
        self.path = folder / f"scores-{identity_digest(identity)}.jsonl"
        self._samples: dict[tuple[str, str], Sample] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self._load(header)
            else:
                self._write([header])
        except OSError as error:
            raise unwritable(self.path, error) from error

    def _load(self, header: str) -> None:
        first, *lines = self.path.read_text(encoding="utf-8").split("\n")
        if first != header:
            raise OutputError(
                f"`{self.path}` does not begin with what its scores depend on", "remove it, or give another `--cache`"
            )
        for line in lines:
            try:
                entry = json.loads(line)
                self._samples[entry["id"], entry["request"]] = entry["sample"]
            except (ValueError, KeyError, TypeError):  # cut short, or empty: the item is scored again
                continue

    def _write(self, lines: Sequence[str]) -> None:
        """Add lines in one write, after the end of the one that a killed process may have left unfinished."""
        with self.path.open("ab+") as file:
            unfinished = False
            if file.tell():
                file.seek(-1, 2)
                unfinished = file.read(1) != b"\n"
            file.write(("\n" * unfinished + "".join(line + "\n" for line in lines)).encode())

    def find(self, items: Sequence[Item]) -> list[Sample]:
        """Return the samples of those items that were scored before, by the same request."""
        found = (self._samples.get((item.id, request_digest(item.request))) for item in items)
        return [sample for sample in found if sample is not None]

    def add(self, items: Mapping[str, Item], samples: Sequence[Sample]) -> None:
        """Keep samples of items, each under its id.

        Raises:
            OutputError: the file cannot be written.
        """
        lines = []
        for sample in samples:
            entry = {"id": sample["id"], "request": request_digest(items[sample["id"]].request), "sample": sample}
            lines.append(json.dumps(entry, ensure_ascii=False, allow_nan=False))
        try:
            self._write(lines)
        except OSError as error:
            raise unwritable(self.path, error) from error
