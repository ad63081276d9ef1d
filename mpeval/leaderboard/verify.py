"""Prove what a leaderboard says: its samples unchanged and scored again, its data and weights hashed again.

No torch here: weights are hashed by `mpeval inspect`, in a process of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mpeval.errors import CheckpointError, DataError, MpevalError, UsageError
from mpeval.leaderboard.entries import Line
from mpeval.leaderboard.hashing import Checkpoints, damage
from mpeval.leaderboard.lint import lint
from mpeval.leaderboard.published import card_of
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.samples import digest_of, find_samples, own_lines, tasks_of
from mpeval.leaderboard.store import DamagedLine, Number, scan, standing
from mpeval.predictions.lines import Predicted
from mpeval.results import Metric
from mpeval.tasks.cards import Card

if TYPE_CHECKING:
    from mpeval.data import Data

State = Literal["verified", "hash ok", "measured", "reported", "FAILED"]
"""Scored again; what it is from has the digest it had; nothing to check it with; somebody else's; wrong."""
TOLERANCE = 1e-12
"""How far a number scored again may be from the record's, relatively."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one record, or of one damaged line."""

    store: Path
    line: int
    state: State
    record: Number | None = None
    checked: tuple[str, ...] = ()
    """What was found to be as the record says: `samples`, `scores`, `data`, `checkpoint`."""
    notes: tuple[str, ...] = ()
    """What could not be checked, and why."""
    problem: str = ""
    """What is wrong, with the name of the file."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where to look for what records are from; what is None is not looked at, but for samples."""

    runs: Path | None = None
    data: Path | None = None
    checkpoints: Path | None = None


class _Work:
    """Where to look, and what was read for one record and serves others too."""

    def __init__(self, places: Places) -> None:
        for option, folder in (("runs", places.runs), ("data", places.data), ("checkpoints", places.checkpoints)):
            if folder is not None and not folder.is_dir():
                raise UsageError(f"`--{option} {folder}` is no folder", f"give the folder that holds the {option}")
        self.places = places
        self.checkpoints = Checkpoints(places.checkpoints)
        self.odd: dict[tuple[Path, int], str] = {}
        """What `lint` says of lines, where it means that something was measured wrongly."""
        self._data: dict[tuple[str, str], Data | DataError | None] = {}

    def load(self, card: Card, split: str) -> Data | None:
        """Read a set, whatever its contents: they show in its digest; None where there is none.

        Raises:
            DataError: it cannot be read.
        """
        key = (card.name, split)
        if key not in self._data:
            self._data[key] = self._read(card, split)
        found = self._data[key]
        if isinstance(found, DataError):
            raise found
        return found

    def _read(self, card: Card, split: str) -> Data | DataError | None:
        from mpeval.data import load_data
        from mpeval.questions.published import is_there

        folder = self.places.data
        assert folder is not None
        try:
            if not is_there(card, card.split_named(split), folder):
                return None
            return load_data(card, folder, split, allow_modified=True)
        except DataError as error:
            return error


def verify(stores: Sequence[Path], ids: Sequence[str], places: Places) -> list[Verdict]:
    """Check the records of stores that were not taken back.

    Args:
        stores: leaderboards.
        ids: those to check, as `pick` takes them; all, and damaged lines too, where there are none.
        places: where samples, data and checkpoints are.

    Raises:
        DataError: a store that is not there, or an id that is not.
    """
    lines = [(path, list(scan(path))) for path in stores]
    numbers = [(path, number, one) for path, found in lines for number, one in standing(found)]
    if ids:
        wanted = {pick([one for _, _, one in numbers], name).record_id for name in ids}
        numbers = [item for item in numbers if item[2].record_id in wanted]
        damaged = []
    else:
        damaged = [
            Verdict(store=path, line=number, state="FAILED", problem=line.message)
            for path, found in lines
            for number, line in found
            if isinstance(line, DamagedLine)
        ]
    work = _Work(places)
    work.odd = {
        (item.store, item.line): item.message
        for item in lint(stores)
        if item.severity == "error" and item.code in _MEASURED_WRONGLY
    }
    verdicts = [*damaged, *(_verdict(path, number, one, work) for path, number, one in numbers)]
    order = {path: place for place, path in enumerate(stores)}
    return sorted(verdicts, key=lambda item: (order[item.store], item.line))


def pick(lines: Sequence[Line], name: str) -> Line:
    """Return the line whose id begins like `name`, with or without `sha256:`.

    Raises:
        DataError: none does, or several do; the hint names some.
    """
    prefix = "sha256:" + name.removeprefix("sha256:")
    found = {line.record_id: line for line in lines if line.record_id.startswith(prefix)} if name else {}
    if len(found) == 1:
        return next(iter(found.values()))
    if not found:
        last = ", ".join(f"`{line.record_id[:19]}`" for line in lines[-3:])
        raise DataError(
            f"no record has an id that begins `{prefix}`", f"the last ones are {last}" if last else "add some"
        )
    listed = ", ".join(f"`{one[: len(prefix) + 8]}`" for one in list(found)[:6])
    raise DataError(f"{len(found)} records have an id that begins `{prefix}`", f"give more of it: {listed}")


def _verdict(path: Path, number: int, one: Number, work: _Work) -> Verdict:
    if not isinstance(one, Record):
        return Verdict(store=path, line=number, record=one, state="reported")
    checked: list[str] = []
    notes: list[str] = []
    try:
        for outcome in _checks(one, path, work):
            (notes if outcome.startswith(_NOT) else checked).append(outcome.removeprefix(_NOT))
        if (path, number) in work.odd:
            raise DataError(work.odd[path, number], "measure it again")
    except MpevalError as error:
        return Verdict(
            store=path,
            line=number,
            record=one,
            state="FAILED",
            checked=tuple(checked),
            notes=tuple(notes),
            problem=error.message,
        )
    state: State = "verified" if "scores" in checked else "hash ok" if checked else "measured"
    return Verdict(store=path, line=number, record=one, state=state, checked=tuple(checked), notes=tuple(notes))


_NOT = "not: "
_MEASURED_WRONGLY = ("items", "layout")
"""Findings of `lint`: items dropped or counted twice, and other values in other layouts."""


def _checks(record: Record, store: Path, work: _Work) -> Iterator[str]:
    """Check what can be checked; yield what was, and behind `not: ` what was not.

    Raises:
        MpevalError: something is not as the record says.
    """
    data = _data_of(record, work)
    if data is not None:
        yield "data" if not isinstance(data, str) else data
    lines = _samples_of(record, store, work.places.runs)
    if isinstance(lines, str):
        yield lines
    else:
        yield "samples"
        yield _scores(record, lines, None if isinstance(data, str) else data)
    if work.places.checkpoints is not None:
        yield _weights(record, work.checkpoints)


# ---- samples and scores ----


def _samples_of(record: Record, store: Path, runs: Path | None) -> list[Predicted] | str:
    if record.samples is None:
        return f"{_NOT}it names no samples"
    path = find_samples(record.samples, store, runs)
    if path is None:
        return f"{_NOT}its samples are not at `{record.samples.file}`" + (f", nor below `{runs}`" if runs else "")
    lines = own_lines(path, tasks_of(record.protocol, record.harness))
    if len(lines) != record.samples.rows:
        raise DataError(
            f"`{path}` has {len(lines):,} samples under `{record.protocol}`, the record says {record.samples.rows:,}",
            "restore the file",
        )
    digest = digest_of(lines)
    if digest != record.samples.sha256:
        raise DataError(
            f"the samples in `{path}` have the digest {digest[:19]}, the record says {record.samples.sha256[:19]}",
            "restore the file",
        )
    return list(lines.values())


def _scores(record: Record, lines: Sequence[Predicted], data: Data | None) -> str:
    """Score samples again, and compare."""
    from mpeval.predictions.recount import UntoldError, recount
    from mpeval.tasks.likelihood import asked

    card = _card_of(record)
    if card is None:
        return f"{_NOT}scores of lm-eval's `{record.task}` are lm-eval's to compute"
    protocol = next((item for item in card.protocols if item.id == record.protocol), None)
    if protocol is None or protocol.version != record.protocol_version:
        return f"{_NOT}this mpeval does not know version {record.protocol_version} of `{record.protocol}`"
    try:
        asked_of = asked(protocol, data) if data is not None and data.questions else data
        metrics, n, correct = recount(card, protocol, lines, asked_of, partial="partial" in record.flags)
    except UntoldError as error:
        return f"{_NOT}the samples alone do not tell {error}"
    _compare(record, metrics, n, correct)
    return "scores"


def _card_of(record: Record) -> Card | None:
    return card_of(record.task) if record.harness is None else None


def _compare(record: Record, metrics: Sequence[Metric], n: int, correct: int | None) -> None:
    """Compare a record with its metrics computed again."""
    for what, old, new in (("items", record.n, n), ("right answers", record.n_correct, correct)):
        if old != new:
            raise DataError(f"its samples make {new} {what}, the record says {old}", "measure it again")
    found = {metric.name: metric for metric in metrics}
    recorded = {metric.name: metric for metric in (record.metric, *record.other_metrics)}
    if found.keys() != recorded.keys():
        names = " and ".join(f"`{name}`" for name in sorted(found.keys() ^ recorded.keys()))
        raise DataError(f"its samples and the record do not both have {names}", "measure it again")
    for name, metric in recorded.items():
        for key in ("value", "loss", "stderr", "low", "high"):
            old, new = getattr(metric, key), getattr(found[name], key)
            if not _equal(old, new):
                raise DataError(
                    f"its samples make {key} of `{name}` {new!r}, the record says {old!r}", "measure it again"
                )


def _equal(old: float | None, new: float | None) -> bool:
    if old is None or new is None:
        return old is new
    return math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


# ---- data and weights ----


def _data_of(record: Record, work: _Work) -> Data | str | None:
    """Return the data of a record, once their digest is its, or why not; None where nobody asked for it."""
    if work.places.data is None:
        return None
    card = _card_of(record)
    if card is None:
        return f"{_NOT}its data are lm-eval's"
    data = work.load(card, record.part)
    if data is None:
        return f"{_NOT}no {card.title} {record.part} set in `{work.places.data}`"
    if record.data.digest != data.digest and record.data.digest != _digest_of_questions(data):
        raise DataError(
            f"`{data.source}` has the digest {data.digest[:19]}, the record says {record.data.digest[:19]}",
            "give the data that were measured on",
        )
    return data


def _digest_of_questions(data: Data) -> str:
    """Return the digest by which the same set is known when it comes from a hub."""
    from mpeval.questions.question import digest_of

    return f"sha256:{digest_of(data.questions)}"


def _weights(record: Record, checkpoints: Checkpoints) -> str:
    """Hash the weights again, of an ensemble all of its members'."""
    found = checkpoints.hashed(record)
    if found is None:
        return f"{_NOT}no checkpoint `{record.model.path}` below `{checkpoints.root}`"
    if found.digest == record.model.digest:
        return "checkpoint"
    where = " and ".join(f"`{folder}`" for folder in found.folders)
    raise CheckpointError(
        f"{where} has the digest {found.digest[:19]}, the record says {record.model.digest[:19]}"
        + damage(found.folders),
        "give the weights that were measured",
    )
