"""The output folder of a run: samples written as they finish, and a start that goes on where a killed run stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mpeval.errors import OutputError
from mpeval.folders import unwritable, write_atomically

RUN_FILE, SAMPLES_FILE, RESULTS_FILE = "run.json", "samples.jsonl", "results.json"
Key = tuple[str, str]


class Journal:
    """Samples by (task, id), on disk in `folder` or, without one, in memory only."""

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        """Open or create a run folder.

        Args:
            folder: the output folder, or None to write nothing.
            identity: what a sample depends on (digests, dtype, ...).  A folder of another identity is refused.

        Raises:
            OutputError: the folder cannot be written, holds another run, or its samples are damaged.
        """
        self.folder = folder
        self.samples: dict[Key, dict[str, Any]] = {}
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            claim(folder / RUN_FILE, identity)
            self._load(folder / SAMPLES_FILE)
        except OSError as error:
            raise unwritable(folder, error) from error

    def _load(self, path: Path) -> None:
        """Read finished samples; a line that a kill cut short is removed, any other damage is an error."""
        if not path.exists():
            return
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) != len(raw):
            os.truncate(path, len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                sample = json.loads(line)
                self.samples[sample["task"], sample["id"]] = sample
            except (ValueError, KeyError, TypeError) as error:
                raise OutputError(
                    f"`{path}` line {number} is damaged: {error}", "remove that line, or give another `--output`"
                ) from error

    def append(self, samples: Sequence[dict[str, Any]]) -> None:
        """Add finished samples, and hand them to the operating system before returning."""
        self.samples.update(((sample["task"], sample["id"]), sample) for sample in samples)
        if self.folder is None or not samples:
            return
        path = self.folder / SAMPLES_FILE
        try:
            with path.open("ab") as file:
                file.write(_lines(samples))
        except OSError as error:
            raise unwritable(path, error) from error

    def finish(self, order: Iterable[Key], results: str) -> None:
        """Write `results.json`, and the samples once more in `order`; samples of other runs stay behind them."""
        if self.folder is None:
            return
        keys = list(dict.fromkeys([*order, *sorted(self.samples)]))
        write_atomically(self.folder / SAMPLES_FILE, _lines([self.samples[key] for key in keys]))
        write_atomically(self.folder / RESULTS_FILE, results)


_ELSEWHERE = "give another folder by `--output`"


def claim(path: Path, identity: Mapping[str, Any], hint: str = _ELSEWHERE) -> None:
    """Check that an earlier run into the same folder was the same; remember in `path` what it did not say.

    Raises:
        OutputError: it was another, or `path` is damaged.
    """
    known: dict[str, Any] = {}
    if path.is_file():
        try:
            known = dict(json.loads(path.read_text(encoding="utf-8")).items())
        except (ValueError, AttributeError) as error:
            raise OutputError(f"`{path}` is damaged: {error}", _ELSEWHERE) from error
    for key, value in identity.items():
        if key in known and known[key] != value:
            raise OutputError(
                f"`{path.parent}` belongs to another run: its {key.replace('_', ' ')} is `{known[key]}`, "
                f"this run's `{value}`",
                hint,
            )
    merged = {**known, **identity}
    if merged != known:
        write_atomically(path, json.dumps(merged, indent=2) + "\n")


def _lines(samples: Iterable[Mapping[str, Any]]) -> bytes:
    import io

    import jsonlines

    buffer = io.BytesIO()
    with jsonlines.Writer(buffer, dumps=_dumps) as writer:
        writer.write_all(samples)
    return buffer.getvalue()


def _dumps(sample: Any) -> bytes:
    return json.dumps(sample, ensure_ascii=False, allow_nan=False).encode()
