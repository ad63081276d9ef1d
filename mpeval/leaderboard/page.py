"""Boards as one self-contained HTML page: a table that reads without JavaScript, details of each number, charts."""

from __future__ import annotations

import base64
import gc
import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files

from mpeval.leaderboard.boards import Board, Row
from mpeval.leaderboard.charts import MOST_CHARTS, charts
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.reported import Reported
from mpeval.results import Metric
from mpeval.tasks.cards import Card, Protocol, card_names, load_card

COLUMNS = (
    *("Task", "Benchmark", "Split", "Metric", "Value", "95 % interval", "Model", "Parameters", "Rank", "Kind"),
    *("Protocol", "Paper or source", "Date"),
)
NUMERIC = ("Value", "95 % interval", "Parameters", "Rank", "Date")
"""Columns that are sorted largest first, as numbers; a date is one of eight digits."""
ID_DIGITS = 12
"""Of a record's digest, in the link to it."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A number as the page has it."""

    id: str
    cells: dict[str, str]
    ranked: bool
    family: str
    source: str
    url: str
    """Empty for what mpeval measured."""
    locator: str
    date: str
    details: tuple[tuple[str, str], ...]
    """Terms and what is said of them."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A board as the page has it."""

    board: Board
    task: str
    words: str
    """The protocol in words; empty if no card has it."""
    rows: tuple[Shown, ...]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the task cards say."""

    cards: dict[str, Card]
    protocols: dict[str, Protocol]


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python from looking for garbage while very many objects are made that all stay: it takes as long as they."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@uncollected()
def html(content: Sequence[Board]) -> str:
    """Return the page of `content`, the same for the same boards.

    Its policy lets no script or style run but its own two, known by their digests, and no request leave it.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("mpeval"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style, script = _asset("leaderboard.css"), _asset("leaderboard.js")
    places = {id(board): place for place, board in enumerate(content)}
    kinds = Counter(row.entry.kind for board in content for row in board.rows)
    return environment.get_template("leaderboard.html").render(
        policy=policy(style, script),
        style=style,
        script=script,
        columns=COLUMNS,
        numeric=NUMERIC,
        sections=_sections(content),
        drawn=[(places[id(board)], board, figures) for board, figures in charts(content)],
        most_charts=MOST_CHARTS,
        measured=kinds["measured"],
        reported=kinds["reported"],
    )


def policy(style: str, script: str) -> str:
    """Return the content security policy of a page with this style and this script alone."""
    return (
        f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    return (files("mpeval") / "templates" / name).read_text(encoding="utf-8")


def _sections(content: Sequence[Board]) -> list[Section]:
    cards = {name: load_card(name) for name in card_names()}
    known = Known(cards=cards, protocols={item.id: item for card in cards.values() for item in card.protocols})
    taken: Counter[str] = Counter()
    return [_section(board, known, taken) for board in content]


def _section(board: Board, known: Known, taken: Counter[str]) -> Section:
    card = known.cards.get(board.rows[0].entry.task)
    protocol = known.protocols.get(board.protocol)
    words = protocol.description if protocol else ""
    return Section(
        board=board,
        task=card.category if card else "",
        words=words,
        rows=tuple(_shown(row, protocol, _id(row, taken)) for row in board.rows),
    )


def _id(row: Row, taken: Counter[str]) -> str:
    """Return the name of a row in links: of its record, with a number where a record stands in two stores."""
    digest = (row.entry.record_id or row.entry.identity()).removeprefix("sha256:")[:ID_DIGITS]
    taken[digest] += 1
    return f"n-{digest}" if taken[digest] == 1 else f"n-{digest}-{taken[digest]}"


def _shown(row: Row, protocol: Protocol | None, name: str) -> Shown:
    entry = row.entry
    if isinstance(entry, Record):
        # a protocol scores models of one family, which a record does not name
        family = protocol.family.upper() if protocol else ""
        source, url, locator = f"mpeval {entry.mpeval_version}", "", ""
        own = _of_measured(entry, row)
    else:
        family = entry.model.family
        source, url, locator = entry.source.title, entry.source.url, entry.source.locator
        own = _of_reported(entry)
    shared = _of_both(row, protocol)
    return Shown(
        id=name,
        cells=row.cells,
        ranked=row.rank is not None,
        family=family,
        source=source,
        url=url,
        locator=locator,
        date=entry.date,
        details=tuple((term, text) for term, text in (*shared, *own, ("record", entry.record_id)) if text),
    )


def _of_both(row: Row, protocol: Protocol | None) -> Iterator[tuple[str, str]]:
    """Yield what may be said of a number of either kind; texts may be empty."""
    entry = row.entry
    right = f", {entry.n_correct:,} right" if isinstance(entry, Record) and entry.n_correct is not None else ""
    yield "n", f"{entry.n:,}{right}" if entry.n else ""
    yield "interval", _interval(row.cells["interval"], entry.metric)
    for metric in entry.other_metrics:
        yield metric.name.replace("_", " "), _other(metric, entry)
    yield "protocol", f"{entry.protocol}: {protocol.description}" if protocol else entry.protocol
    yield "flags", ", ".join(entry.flags)


def _interval(shown: str, metric: Metric) -> str:
    """Say what the error bars are and where they come from."""
    if not shown:
        return ""
    deviation = ""
    if metric.stderr is not None:
        points = metric.unit == "proportion"
        deviation = (
            f"; standard error {100 * metric.stderr:.2f} %" if points else f"; standard error {metric.stderr:.4g}"
        )
    return f"{shown}, 95 %, {metric.interval or 'as recorded'}{deviation}"


def _other(metric: Metric, entry: Record | Reported) -> str:
    from mpeval.report import show_interval, show_metric

    value = show_metric(metric)
    if isinstance(entry, Reported):
        value = entry.printed_others[metric.name] + (" %" if metric.unit == "proportion" else "")
    bars = show_interval(metric)
    return f"{value} ({bars})" if bars else value


def _of_measured(record: Record, row: Row) -> Iterator[tuple[str, str]]:
    """Yield what it takes to believe a measured number, and to measure it again."""
    model, harness, speed = record.model, record.harness, record.tokens_per_second
    yield "seed", row.cells.get("seed", "")
    yield "seed sd", row.cells.get("seed sd", "")
    yield "shots", row.cells["shots"]
    yield "checkpoint", ("" if record.members else f"iteration {model.iteration}, {model.format}, ") + model.digest
    yield "training and choice", row.cells["notes"]
    yield "data", f"{record.data.source}, {record.data.digest}"
    yield "tokenizer", record.tokenizer_digest
    yield "layout", row.cells["layout"]
    yield "computed in", f"{record.dtype} on {record.device}"
    yield "speed", f"{speed:,.0f} tokens/s, {record.seconds:,.1f} s" if speed else f"{record.seconds:,.1f} s"
    yield "command", record.command
    lm_eval = f", lm-eval {harness.version}, task version {harness.task_version}" if harness else ""
    yield "versions", f"protocol {record.protocol_version}, torch {record.torch_version}{lm_eval}"


def _of_reported(number: Reported) -> Iterator[tuple[str, str]]:
    """Yield what the source says beside the number."""
    yield "shots", number.model.shots
    yield "note", number.note
    yield "source", f"{number.source.title}, {number.source.locator}"
    yield "printed there", number.printed
    yield "quote", number.source.quote
    yield (
        "evidence",
        {"S2": "two sources print it", "S1": "one source prints it"}.get(
            number.source.evidence, number.source.evidence
        ),
    )
    yield "family", number.model.family
