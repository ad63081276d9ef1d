"""What a killed run of `preprocess` leaves, so that the same command goes on after the last batch that is on disk.

`PREFIX.parts` holds the ids, lengths and document ends written so far, and `state.json`, which says how many of each
count: all that lies behind is cut off by the next run.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mpeval.corpus.encoding import Packed
from mpeval.corpus.indexed import files_of, index_bytes, put_in_place, sync
from mpeval.errors import OutputError
from mpeval.folders import unwritable, write_atomically

EVERY = 10.0
"""Seconds of work that a kill may cost."""
_OTHER = "repeat the command that began it, give another prefix by `--output`, or begin anew with `--force`"


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How much is written."""

    tokens: int = 0
    sequences: int = 0
    documents: int = 0
    empty: int = 0

    def plus(self, packed: Packed) -> Counts:
        """Count a batch."""
        return Counts(
            tokens=self.tokens + int(packed.lengths.sum()),
            sequences=self.sequences + len(packed.lengths),
            documents=self.documents + len(packed.ends),
            empty=self.empty + packed.empty,
        )


@dataclass(frozen=True, kw_only=True)
class State:
    """What counts of the files of a folder.

    Attributes:
        settings: what the ids depend on, beside the inputs.
        inputs: the identity of each input that has been begun.
        starts: the counts at the beginning of each of them.
        batches: how many batches of the last one are written.
        counts: the counts with these.
    """

    settings: dict[str, str] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    starts: tuple[Counts, ...] = (Counts(),)
    batches: int = 0
    counts: Counts = Counts()

    @classmethod
    def parsed(cls, text: str) -> State:
        """Return the state that a file holds.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it holds something else.
        """
        content = json.loads(text)
        starts = tuple(Counts(**counts) for counts in content["starts"])
        if len(starts) != max(1, len(content["inputs"])):
            raise ValueError(f"{len(starts)} beginnings of {len(content['inputs'])} inputs")
        return cls(
            settings=dict(content["settings"].items()),
            inputs=tuple(content["inputs"]),
            starts=starts,
            batches=int(content["batches"]),
            counts=Counts(**content["counts"]),
        )


class Unfinished:
    """The corpus that grows in `PREFIX.parts` until `finish` puts it in place.

    Attributes:
        counts: what is written.
        inputs: number of the input being read.
        batches: how many of its batches are written.
        close: closes the files and leaves them to another run.
    """

    def __init__(
        self, prefix: Path, dtype: np.dtype[Any], settings: dict[str, str], inputs: Sequence[str], *, force: bool
    ) -> None:
        """Open or create the folder, and go back to the last state that it holds whole.

        Inputs that are another's than those of the run that left it are read again, from the first such on.

        Args:
            prefix: where the corpus will be.
            dtype: that of the ids.
            settings: what ids depend on; a folder of other settings is refused, or with `force` emptied.
            inputs: the identity of each input, in order.
            force: begin anew where it would be refused.

        Raises:
            OutputError: the folder is another run's, in use, damaged, or cannot be written.
        """
        self.prefix, self.dtype, self.settings = prefix, dtype, settings
        self.identities = list(inputs)
        self.folder = prefix.with_name(f"{prefix.name}.parts")
        self._files = [self.folder / name for name in ("ids", "lengths", "documents")]
        self._sizes = [dtype.itemsize, 4, 8]
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.callback(os.close, self._lock())
                self._go_back(self._state(force))
                self._opened = [stack.enter_context(path.open("ab")) for path in self._files]
            except OSError as error:
                raise unwritable(self.folder, error) from error
            self.close = stack.pop_all().close
        self._written = time.monotonic()

    def _lock(self) -> int:
        """Refuse a folder that another process writes to; the lock ends when the descriptor is closed."""
        held = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(held)
            raise OutputError(
                f"another run is writing `{self.prefix}`", "wait for it, or give another prefix by `--output`"
            ) from error
        return held

    def _state(self, force: bool) -> State:
        """Return the state that an earlier run of the same settings left, or that of a beginning."""
        path = self.folder / "state.json"
        if not path.is_file():
            return State()
        try:
            state = State.parsed(path.read_text(encoding="utf-8"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OutputError(f"`{path}` is damaged: {error}", f"remove `{self.folder}`") from error
        other = next((name for name, value in self.settings.items() if state.settings.get(name) != value), None)
        if other is None:
            return state
        if force:
            return State()
        raise OutputError(
            f"`{self.folder}` is of another run: its {other} is `{state.settings.get(other)}`, this one's "
            f"`{self.settings[other]}`",
            _OTHER,
        )

    def _go_back(self, state: State) -> None:
        """Take over what is still good of a state, and cut the files to it."""
        pairs = zip(state.inputs, self.identities, strict=False)
        same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
        self.inputs = min(same, len(state.starts) - 1)
        self.counts, self.batches = state.starts[self.inputs], 0
        if same == len(state.starts):  # the input that was being read is the same too
            self.counts, self.batches = state.counts, state.batches
        self._starts = list(state.starts[: self.inputs + 1])
        # before anything is written over what the old state counts
        self._write_state()
        for path, size in zip(self._files, self._lengths(), strict=True):
            self._take_back(path, size)
            path.touch()
            if path.stat().st_size < size:
                raise OutputError(f"`{path}` is shorter than its state says", f"remove `{self.folder}`")
            os.truncate(path, size)

    def _take_back(self, path: Path, size: int) -> None:
        """Take the ids back that a run killed at its very end had put in place without an index."""
        data = files_of(self.prefix)[1]
        if path == self._files[0] and not path.exists() and data.is_file() and data.stat().st_size == size > 0:
            os.replace(data, path)

    def _lengths(self) -> list[int]:
        """Return how many bytes of each file count."""
        counted = [self.counts.tokens, self.counts.sequences, self.counts.documents]
        return [count * size for count, size in zip(counted, self._sizes, strict=True)]

    def add(self, packed: Packed, source: int) -> None:
        """Write a batch of input number `source`; about every ten seconds, see to it that it survives a kill.

        Raises:
            OutputError: the disk is full.
        """
        while self.inputs < source:
            self._starts.append(self.counts)
            self.inputs, self.batches = self.inputs + 1, 0
        ends = packed.ends + self.counts.sequences
        try:
            for file, content in zip(self._opened, (packed.ids, packed.lengths.tobytes(), ends.tobytes()), strict=True):
                file.write(content)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self.counts = self.counts.plus(packed)
        self.batches += 1
        if time.monotonic() - self._written > EVERY:
            self.save()

    def save(self) -> None:
        """Put everything on disk, then the state that counts it.

        Raises:
            OutputError: the disk is full.
        """
        try:
            for file in self._opened:
                sync(file)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self._write_state()
        self._written = time.monotonic()

    def _write_state(self) -> None:
        state = State(
            settings=self.settings,
            inputs=tuple(self.identities[: self.inputs + 1]),
            starts=tuple(self._starts),
            batches=self.batches,
            counts=self.counts,
        )
        write_atomically(self.folder / "state.json", json.dumps(asdict(state)) + "\n")

    def finish(self) -> None:
        """Put the corpus in place, its index last, and remove the folder.

        Raises:
            OutputError: it cannot be written.
        """
        self.save()
        lengths = np.memmap(self._files[1], "<i4", mode="r")
        documents = np.concatenate([np.zeros(1, np.int64), np.fromfile(self._files[2], "<i8")])
        index, data = files_of(self.prefix)
        put_in_place(self._files[0], data, index, index_bytes(self.dtype, lengths, documents))
        self.remove()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
