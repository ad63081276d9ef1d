"""Stored predictions: lines of `samples.jsonl`, read back and checked one by one.  No torch."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpeval.errors import DataError, shown

Sample = dict[str, Any]
SUM_TOLERANCE = 1e-5
"""How far probabilities may be from a sum of 1: more than float32 rounding of a softmax, less than a wrong digit."""
_FIELDS = "each line is an object with `task`, `id`, `target`, ..."
_AGAIN = "evaluate the model again; these lines were changed after they were written, or are of something else"


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """One line of predictions, and where it stands."""

    sample: Sample
    where: str
    """`FILE` line N, for messages."""

    @property
    def id(self) -> str:
        """The question's uid."""
        return str(self.sample["id"])


def read_predictions(path: Path, protocol: str, needed: Sequence[str] = ("target",)) -> list[Predicted]:
    """Read the lines of a protocol; lines of others, which an evaluation of several leaves there, are passed over.

    Raises:
        DataError: no such file, a line that is no prediction or lacks a key that is `needed`, an id twice, or no line
            of the protocol.
    """
    found: dict[str, Predicted] = {}
    others: set[str] = set()
    for line in _lines(path):
        if line.sample["task"] != protocol:
            others.add(line.sample["task"])
        elif absent := [key for key in needed if key not in line.sample]:
            raise DataError(f"{line.where} has no `{absent[0]}`", _FIELDS)
        elif line.id in found:
            raise DataError(
                f"{line.where} is a second prediction for `{line.id}`", f"the first is {found[line.id].where}"
            )
        else:
            found[line.id] = line
    if not found:
        said = f"it holds {', '.join(f'`{name}`' for name in sorted(others))}" if others else "it is empty"
        raise DataError(f"`{path}` holds no prediction under `{protocol}`", said)
    return list(found.values())


def protocols_in(path: Path) -> list[str]:
    """Return under which protocols a file holds predictions, in the order they first appear.

    Raises:
        DataError: no such file, or a line that is no prediction.
    """
    return list(dict.fromkeys(line.sample["task"] for line in _lines(path)))


def content_of(path: Path) -> bytes:
    """Read a file of samples, which may be compressed by gzip.

    Raises:
        DataError: there is none, or it cannot be read.
    """
    if not path.is_file():
        raise DataError(f"no predictions at `{path}`", "give the `samples.jsonl` of an evaluation")
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read `{path}`: {error}", "give the `samples.jsonl` of an evaluation") from error


def _lines(path: Path) -> Iterator[Predicted]:
    try:
        text = content_of(path).decode("utf-8")
    except ValueError as error:
        raise DataError(f"cannot read `{path}`: {error}", "give the `samples.jsonl` of an evaluation") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"`{path}` line {number}"
            yield Predicted(sample=_parse(line, where), where=where)


def _parse(line: str, where: str) -> Sample:
    try:
        sample = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is no JSON: {error}", "restore the line, or evaluate again") from error
    if not isinstance(sample, dict):
        raise DataError(f"{where} is no prediction but {shown(sample)}", "restore the line, or evaluate again")
    for key in ("task", "id"):
        if not isinstance(sample.get(key), str):
            raise DataError(f"{where} has no `{key}`", _FIELDS)
    return sample


def probabilities_of(line: Predicted) -> list[float]:
    """Return the probabilities of a line's options or classes.

    Raises:
        DataError: there are none, one is no probability, or they do not sum to 1.
    """
    values = line.sample.get("probabilities")
    if not isinstance(values, list) or len(values) < 2:
        raise DataError(
            f"{line.where} (`{line.id}`) has no probabilities of options or classes",
            "probabilities are stored for multiple choice and for pairs of texts; spans of text have none",
        )
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise DataError(f"{line.where} (`{line.id}`) has a probability of {shown(value)}", _AGAIN)
    total = math.fsum(values)
    if abs(total - 1) > SUM_TOLERANCE:
        raise DataError(f"{line.where} (`{line.id}`) has probabilities that sum to {total:.6g}, not to 1", _AGAIN)
    return [float(value) for value in values]


def choice_of(line: Predicted) -> int:
    """Return the most probable option or class of a line, the first of several; check what the line says of it.

    Raises:
        DataError: as `probabilities_of`, or the line says another `prediction`, or is wrong about being `correct`.
    """
    values = probabilities_of(line)
    best = values.index(max(values))
    for key, value in (("prediction", best), ("correct", best == line.sample["target"])):
        said = line.sample.get(key)
        if type(said) is not type(value) or said != value:
            raise DataError(
                f"{line.where} (`{line.id}`): by its probabilities and target `{key}` is {_plain(value)}, "
                f"the line says {_plain(said)}",
                _AGAIN,
            )
    return best


def _plain(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool | int | None) else shown(value)


def predictions_digest(lines: Sequence[Predicted]) -> str:
    """Return the sha256 of ids and probabilities, in order of ids."""
    content = sorted((line.id, line.sample.get("probabilities")) for line in lines)
    return "sha256:" + hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
