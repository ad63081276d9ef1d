"""The lines of `samples.jsonl` that a record was computed from: their digest, and where they are found again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path, PurePath

from mpeval.errors import DataError
from mpeval.predictions.lines import Predicted, content_of
from mpeval.results import HarnessInfo, SamplesInfo


def samples_info(
    path: Path | None, store: Path | None, protocol: str, harness: HarnessInfo | None = None
) -> SamplesInfo | None:
    """Describe the samples of one result; None where they were not kept.

    Args:
        path: `samples.jsonl`, of other results too.
        store: the leaderboard that the description goes into; None stands for one beside the file.
        protocol: of the result.
        harness: what of lm-eval it was computed with.

    Raises:
        DataError: a damaged file.
    """
    if path is None or not path.is_file():
        return None
    lines = own_lines(path, tasks_of(protocol, harness))
    if not lines:
        return None
    file = os.path.relpath(path.resolve(), (store or path).resolve().parent)
    return SamplesInfo(file=PurePath(file).as_posix(), sha256=digest_of(lines), rows=len(lines))


def tasks_of(protocol: str, harness: HarnessInfo | None) -> set[str]:
    """Return what stands as `task` on the lines of a result: its protocol, or those of a group's members."""
    if harness is None or not harness.tasks:
        return {protocol}
    from mpeval.harness_results import protocol_of

    return {protocol_of(task, harness.shots) for task in harness.tasks}


def own_lines(path: Path, tasks: Collection[str]) -> dict[bytes, Predicted]:
    """Return the lines of some tasks, in the order of their bytes, without their line breaks.

    Raises:
        DataError: no such file, a damaged one, or two lines of one id.
    """
    found: dict[bytes, Predicted] = {}
    seen: dict[tuple[str, str], str] = {}
    for number, line in enumerate(content_of(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"`{path}` line {number}"
        try:
            sample = json.loads(line)
            key = str(sample["task"]), str(sample["id"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"{where} is no sample: {error}", "restore the file") from error
        if key[0] in tasks:
            if key in seen:
                raise DataError(f"{seen[key]} and line {number} are both of `{key[1]}`", "restore the file")
            seen[key] = where
            found[line] = Predicted(sample=sample, where=where)
    return dict(sorted(found.items()))


def digest_of(lines: Iterable[bytes]) -> str:
    """Return `sha256:...` of lines, each with a line break."""
    return "sha256:" + hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


def find_samples(info: SamplesInfo, store: Path, runs: Path | None) -> Path | None:
    """Find a file of samples, compressed or not: where the record says, else below `runs`."""
    places = [store.parent / info.file]
    if runs is not None:
        places += places_below(runs, info.file)
    for place in places:
        for path in (place, Path(f"{place}.gz")):
            if os.path.isfile(path):  # which is False for what no file can be called
                return path
    return None


def places_below(root: Path, recorded: str) -> list[Path]:
    """Return where what lay at `recorded` may lie below `root`, by the end of its path.

    A bare name says too little (`samples.jsonl`), so the folder it was in must have the same name still.
    """
    parts = [part for part in PurePath(recorded).parts if part not in {"..", ".", "/"}]
    places: list[Path] = []
    for first in range(len(parts)):
        tail = parts[first:]
        if len(tail) > 1 or len(parts) == 1:
            places.append(root.joinpath(*tail))
        if tail[0] == root.resolve().name:
            places.append(root.joinpath(*tail[1:]))
    return places
