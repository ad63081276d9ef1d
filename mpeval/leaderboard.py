"""The leaderboard: an append-only file of records, and pages that are a pure function of it.  No torch."""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from mpeval.errors import DataError
from mpeval.folders import data_folder, unwritable, write_atomically
from mpeval.results import (
    CheckpointInfo,
    DataInfo,
    Document,
    HarnessInfo,
    Layout,
    Metric,
    Result,
    RunResults,
    SeedSpread,
    TrainingInfo,
)

UNRANKED = (
    "partial",
    "sample-rows",
    "modified-data",
    "unverified-data",
    "window-",
    "truncated",
    "megatron-exact",
    "no-checkpoint",
)
"""A result with a flag that begins like one of these is shown, but never ranked against the published set."""


_NEWER = {"split", "training", "seeds", "members", "harness"}


class Record(Document):
    """One measured number (the primary metric of one result), with what it takes to believe it."""

    schema_: Literal["mpeval.result/1"] = "mpeval.result/1"
    kind: Literal["measured"] = "measured"
    record_id: str = ""
    created_at: str
    task: str
    title: str
    protocol: str
    protocol_version: str
    metric: Metric
    other_metrics: list[Metric]
    n: int
    n_correct: int | None
    flags: list[str]
    model: CheckpointInfo
    data: DataInfo
    tokenizer_digest: str
    layout: Layout
    dtype: str
    device: str
    seconds: float
    tokens_per_second: float | None
    command: str
    mpeval_version: str
    torch_version: str
    split: str = ""
    training: TrainingInfo | None = None
    """How a finetuned model came to be."""
    seeds: SeedSpread | None = None
    """Of the run that stands for several with other seeds."""
    members: list[str] = Field(default_factory=list)
    """Of an ensemble: name and digest of each."""
    harness: HarnessInfo | None = None
    """Of a task of lm-eval."""

    def document(self) -> dict[str, Any]:
        """Return plain JSON values; what stands empty in the newer fields is left out, so that older ids stay."""
        return {key: value for key, value in super().document().items() if value or key not in _NEWER}

    def line(self) -> str:
        """Return the record as one line of JSON, with an id that changes when anything in it does."""
        return _json({**self.document(), "record_id": self.identity()})

    def identity(self) -> str:
        """Return the sha256 of the record's content without id and time."""
        body = {key: value for key, value in self.document().items() if key not in {"record_id", "created_at"}}
        return "sha256:" + hashlib.sha256(_json(body).encode()).hexdigest()

    @property
    def slot(self) -> tuple[Any, ...]:
        """What was measured: equal for a run repeated in any layout."""
        weights = (self.model.digest, self.model.gelu, self.model.vocab, self.tokenizer_digest, self.dtype)
        what = (self.protocol, self.protocol_version, self.part, self.metric.name, self.data.digest, self.n)
        selection = self.training.selection if self.training else ""
        members = sorted(member.rsplit(" ", 1)[-1] for member in self.members)
        return (*what, *weights, selection, *members, *sorted(self.flags))

    @property
    def part(self) -> str:
        """The split; records older than the choice of one are of test sets."""
        return self.split or "test"

    def repeats(self, other: Record) -> bool:
        """Tell whether `other` is the same measurement with the same outcome, up to the order of summation."""
        return self.slot == other.slot and math.isclose(self.metric.value, other.metric.value, rel_tol=1e-6)

    @property
    def ranked(self) -> bool:
        """Whether the number may stand beside others of its protocol."""
        return not any(flag.startswith(UNRANKED) for flag in self.flags)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def records_of(run: RunResults) -> list[Record]:
    """Make one record of each result of a run."""
    return [_record(run, result) for result in run.results]


def _record(run: RunResults, result: Result) -> Record:
    return Record(
        created_at=run.created_at,
        task=result.task,
        title=result.title,
        protocol=result.protocol,
        protocol_version=result.protocol_version,
        metric=result.metrics[0],
        other_metrics=result.metrics[1:],
        n=result.n,
        n_correct=result.n_correct,
        flags=[*result.flags, *(["megatron-exact"] if run.megatron_exact else [])],
        model=run.checkpoint,
        data=result.data,
        tokenizer_digest=run.tokenizer_digest,
        layout=run.layout,
        dtype=run.dtype,
        device=run.device,
        seconds=result.seconds,
        tokens_per_second=result.tokens_per_second,
        command=run.command,
        mpeval_version=run.mpeval_version,
        torch_version=run.torch_version,
        split=result.split,
        training=run.training,
        seeds=run.seeds,
        harness=result.harness,
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def check_store(path: Path) -> None:
    """Refuse a file that is no leaderboard, or a place that no file can be in, before anything is computed."""
    if path.exists():
        list(_whole_records(path))
    for folder in path.parents:
        if folder.exists():
            if not folder.is_dir():
                raise unwritable(path, NotADirectoryError(0, f"`{folder}` is not a folder"), "--record")
            break


def append(path: Path, records: Sequence[Record]) -> int:
    """Add records to a store under a lock, each a whole line, flushed to disk; return how many were new.

    A run whose very numbers are already there is not added twice.  A line that a crash cut short is fenced off.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            known = list(_whole_records(path)) if path.exists() else []
            new = [record for record in records if not any(record.repeats(old) for old in known)]
            data = "".join(record.line() + "\n" for record in new).encode()
            with path.open("ab+") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - 1))
                torn = size > 0 and file.read(1) != b"\n"
                file.write(b"\n" * torn + data)
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error, "--record") from error
    return len(new)


def read(path: Path) -> list[Record]:
    """Read every record of a store.

    Raises:
        DataError: no such store, or a line that is no record, with its number.
    """
    if not path.is_file():
        raise DataError(f"no leaderboard at `{path}`", "`mpeval evaluate ... --record FILE` begins one")
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        if line:
            records.append(_parse(line, path, number))
    return records


def _whole_records(path: Path) -> Iterator[Record]:
    """Yield the records that can be read; a damaged line must not keep a finished run from being added."""
    text = path.read_text(encoding="utf-8", errors="replace")
    found = 0
    for line in text.split("\n"):
        with suppress(DataError):
            yield _parse(line, path, 0)
            found += 1
    if text.strip() and not found:
        raise DataError(f"`{path}` is a file of something else: it holds no record", "give another file by `--record`")


def _parse(line: str, path: Path, number: int) -> Record:
    try:
        raw = json.loads(line)
        record = Record(schema_=raw.pop("schema"), **raw)
    except (ValueError, ValidationError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"`{path}` line {number} is no record: {reason}", "restore the line, or remove it") from error
    if record.record_id != record.identity():
        raise DataError(f"`{path}` line {number} was changed after it was written", "restore the line, or remove it")
    return record


COLUMNS = ("rank", "model", "iteration", "parameters", "value", "interval", "n", "dtype", "layout", "flags", "date")
TERMINAL_COLUMNS = ("rank", "model", "value", "interval", "n", "dtype", "flags", "date")
SEED_COLUMNS = ("seed", "seed sd")
HEADINGS = {"interval": "95 % interval"}


def boards(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Sort records into one board per protocol, split and metric, best first, those that may not be ranked at the end.

    A board has the columns `columns` (`terminal_columns` where room is scarce): those of seeds where a row has one, and
    one for each further score between 0 and 1 that a row has, such as the accuracy on a group of the questions.
    """
    groups: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record.protocol, record.part, record.metric.name].append(record)
    return [_board(*key, found) for key, found in sorted(groups.items())]


def _board(protocol: str, split: str, metric: str, found: list[Record]) -> dict[str, Any]:
    sign = -1 if found[0].metric.direction == "max" else 1
    order = sorted(found, key=lambda record: (not record.ranked, sign * record.metric.value, record.created_at))
    ranked = [record for record in order if record.ranked]
    rows = [_row(record, ranked.index(record) + 1 if record.ranked else None) for record in order]
    extra = [column for column in SEED_COLUMNS if any(row.get(column) for row in rows)]
    others = dict.fromkeys(_other(item.name) for record in order for item in _proportions(record))
    return {
        "title": found[0].title,
        "protocol": protocol,
        "split": split,
        "metric": _words(metric),
        "arrow": "higher is better" if sign < 0 else "lower is better",
        "columns": _after_interval(COLUMNS, [*others, *extra]),
        "terminal_columns": _after_interval(TERMINAL_COLUMNS, [*others, *extra]),
        "headings": HEADINGS | {column: _words(column.removeprefix(_OTHER)) for column in others},
        "rows": [dict.fromkeys([*others, *extra], "") | row for row in rows],
    }


_OTHER = "other: "


def _other(metric: str) -> str:
    """Return the column of a metric that a board is not about; no column of another kind is called so."""
    return _OTHER + metric


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _after_interval(columns: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    place = columns.index("interval") + 1
    return (*columns[:place], *more, *columns[place:])


def _proportions(record: Record) -> list[Metric]:
    return [metric for metric in record.other_metrics if metric.unit == "proportion"]


def _row(record: Record, rank: int | None) -> dict[str, str]:
    from mpeval.report import show_interval, show_metric

    model = record.model
    return {
        "rank": str(rank) if rank else "-",
        "model": model.name,
        "iteration": "" if record.members else str(model.iteration),
        "parameters": f"{model.parameters / 1e6:,.1f}M",
        "value": show_metric(record.metric),
        "interval": show_interval(record.metric),
        "n": f"{record.n:,}",
        "layout": f"tp {record.layout.tp} x dp {record.layout.dp}",
        "dtype": record.dtype,
        "flags": ", ".join(record.flags),
        "date": record.created_at[:10],
        "checkpoint": model.digest,
        "data": record.data.digest,
        "command": record.command,
        "notes": "; ".join(_notes(record)),
        "seed": str(record.training.seed) if record.training else "",
        "seed sd": _spread(record.seeds) if record.seeds else "",
        **{_other(metric.name): show_metric(metric) for metric in _proportions(record)},
    }


def _spread(seeds: SeedSpread) -> str:
    """Return the standard deviation over seeds, of how many and where, and the ends."""
    if seeds.deviation is None:
        return ""
    ends = f"{100 * seeds.lowest:.2f} - {100 * seeds.highest:.2f} %"
    return f"{100 * seeds.deviation:.2f} ({len(seeds.seeds)} seeds, {seeds.split}: {ends})"


def _notes(record: Record) -> Iterator[str]:
    """Yield how a finetuned model was trained and chosen, and what an ensemble is made of."""
    if record.training:
        made = record.training
        yield (
            f"finetuned by {made.recipe}: {made.questions:,} questions, {made.epochs:g} epochs, {made.steps:,} steps "
            f"of {made.batch}, learning rate {made.learning_rate:g}, seed {made.seed}"
        )
        if made.selection:
            yield made.selection
    if record.seeds:
        seeds = record.seeds
        listed = ", ".join(map(str, seeds.seeds))
        yield f"{seeds.split} {_words(seeds.metric)} of seeds {listed}: median {100 * seeds.median:.2f} %"
    if record.members:
        yield f"members: {', '.join(record.members)}"


def publish(store: Path, output: Path) -> list[Path]:
    """Write `README.md` and `index.html` from the records of `store`; return their paths."""
    content = boards(read(store))
    pages = {output / "README.md": _markdown(content), output / "index.html": _html(content)}
    for path, text in pages.items():
        write_atomically(path, text)
    return list(pages)


def _html(content: list[dict[str, Any]]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mpeval"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("leaderboard.html").render(boards=content)


def _markdown(content: list[dict[str, Any]]) -> str:
    lines = ["# Leaderboard", "", "Measured by mpeval; made from `results.jsonl` by `mpeval leaderboard publish`.", ""]
    for board in content:
        columns, headings = board["columns"], board["headings"]
        lines += [f"## {_cell(board['title'])} {_cell(board['split'])}: {_cell(board['protocol'])}", ""]
        lines += [f"{_cell(board['metric'])}, {board['arrow']}", ""]
        lines += ["| " + " | ".join(_cell(headings.get(column, column)) for column in columns) + " |"]
        lines += ["|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in board["rows"]]
        notes = [f"- {_cell(row['model'])}: {_cell(row['notes'])}" for row in board["rows"] if row["notes"]]
        lines += ["", *notes] if notes else []
        lines += [""]
    lines += ["Rows without a rank are flagged: they did not measure the whole published benchmark.", ""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Make a value harmless inside a Markdown table."""
    flat = " ".join(text.split())
    for character in "\\`*_{}[]<>|&":
        flat = flat.replace(character, f"&#{ord(character)};" if character in "<>&|" else "\\" + character)
    return flat


def default_store() -> Path:
    """Return the project's own store."""
    return data_folder("leaderboard") / "results.jsonl"
