"""`metrics.jsonl`: one line per optimizer step, each step once, whatever was killed and resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpeval.errors import OutputError
from mpeval.folders import unwritable, write_atomically

METRICS_FILE = "metrics.jsonl"


class Metrics:
    """The metrics of a run, appended step by step."""

    def __init__(self, folder: Path, step: int) -> None:
        """Open the file to go on after `step`: lines of later steps, which a killed run left, are removed.

        Raises:
            OutputError: the folder cannot be written, or a line is damaged.
        """
        self.path = folder / METRICS_FILE
        kept = [line for line in self._lines() if self._step(line) <= step]
        write_atomically(self.path, "".join(f"{json.dumps(line)}\n" for line in kept))

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        if lines[-1]:
            lines.pop()  # a kill cut it short
        made = []
        for number, line in enumerate(filter(None, lines), start=1):
            try:
                made.append(dict(json.loads(line)))
            except ValueError as error:
                raise OutputError(
                    f"`{self.path}` line {number} is damaged: {error}", "remove that line, or give another `--output`"
                ) from error
        return made

    def _step(self, line: dict[str, Any]) -> int:
        step = line.get("step")
        if not isinstance(step, int):
            raise OutputError(f"`{self.path}` has a line without `step`", "remove it, or give another `--output`")
        return step

    def append(self, record: dict[str, Any]) -> None:
        """Add the line of one step and hand it to the operating system."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise unwritable(self.path, error) from error
