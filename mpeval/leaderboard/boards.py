"""Records sorted into boards, one per protocol, split and metric, and the text of each cell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mpeval.errors import DataError, suggest
from mpeval.leaderboard.published import card_of
from mpeval.leaderboard.ranking import rank_ranges
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.reported import Reported
from mpeval.leaderboard.store import Number
from mpeval.results import Metric, SeedSpread

COLUMNS = (
    *("rank", "kind", "model", "iteration", "parameters", "value", "interval"),
    *("n", "shots", "dtype", "layout", "flags", "date", "source"),
)
TERMINAL_COLUMNS = ("rank", "model", "value", "interval", "n", "shots", "kind", "flags")
WHERE_KNOWN = ("iteration", "shots", "dtype", "layout", "source")
"""Columns that a board of one kind has nothing in."""
SEED_COLUMNS = ("seed", "seed sd")
HEADINGS = {"interval": "95 % interval"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of a board."""

    entry: Number
    rank: int | None
    """Its place among those that are ranked; None where it may not be."""
    ranks: tuple[int, int] | None
    """The best and the worst rank that its interval leaves it."""
    cells: dict[str, str]
    """What is shown of it, by column."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """Numbers that may be compared: of one benchmark, set, protocol and metric; best first, unranked ones last."""

    title: str
    protocol: str
    split: str
    metric: str
    """Its name in words."""
    direction: str
    columns: tuple[str, ...]
    terminal_columns: tuple[str, ...]
    """Fewer, where room is scarce."""
    headings: dict[str, str]
    """Of columns that are not called by their heading."""
    rows: tuple[Row, ...]

    @property
    def arrow(self) -> str:
        """Which values are better, in words."""
        return "higher is better" if self.direction == "max" else "lower is better"


def boards(numbers: Sequence[Number]) -> list[Board]:
    """Sort numbers into one board per protocol, split and metric.

    A board has columns of seeds where a row has one, and one for each further score between 0 and 1 that a row has,
    such as the accuracy on a group of the questions.
    """
    groups: dict[tuple[str, str, str], list[Number]] = defaultdict(list)
    for number in numbers:
        groups[number.protocol, number.part, number.metric.name].append(number)
    return [_board(*key, groups[key]) for key in sorted(groups, key=lambda key: (_place(key[0]), key))]


def _place(protocol: str) -> tuple[str, bool]:
    """Sort by task, and within one those protocols first that mpeval itself has."""
    task = protocol.partition("/")[0]
    card = card_of(task)
    return task, card is None or all(known.id != protocol for known in card.protocols)


def under(content: Sequence[Board], names: Sequence[str]) -> list[Board]:
    """Return the boards of protocols, each named as `TASK/PROTOCOL` or by its task; all for no name.

    Raises:
        DataError: a name that is on no board, with the nearest that is.
    """
    known = {name for board in content for name in (board.protocol, board.protocol.partition("/")[0])}
    for name in names:
        if name not in known:
            raise DataError(f"no record under `{name}`", suggest(name, sorted(known)))
    return [
        board for board in content if not names or board.protocol in names or board.protocol.partition("/")[0] in names
    ]


def _board(protocol: str, split: str, metric: str, found: list[Number]) -> Board:
    direction = found[0].metric.direction
    sign = -1 if direction == "max" else 1
    order = sorted(
        found,
        key=lambda one: (
            not one.ranked,
            sign * one.metric.value,
            one.created_at,
            one.model.name,
            one.record_id or one.identity(),
        ),
    )
    ranges = iter(_ranges([one for one in order if one.ranked]))
    rows = [_row(one, place, next(ranges, None)) for place, one in enumerate(order, start=1)]
    others = dict.fromkeys(_other(item.name) for one in order for item in _proportions(one))
    cells = [dict.fromkeys([*others, *SEED_COLUMNS], "") | row.cells for row in rows]
    extra = [*others, *(column for column in SEED_COLUMNS if any(row[column] for row in cells))]
    empty = {column for column in cells[0] if not any(row.get(column) for row in cells)}
    columns = _after_interval([column for column in COLUMNS if column not in empty & {*WHERE_KNOWN}], extra)
    terminal = _after_interval([column for column in TERMINAL_COLUMNS if column not in empty], [*others])
    return Board(
        title=found[0].title,
        protocol=protocol,
        split=split,
        metric=_words(metric),
        direction=direction,
        columns=columns,
        terminal_columns=terminal,
        headings=HEADINGS | {column: _words(column.removeprefix(OTHER)) for column in others},
        rows=tuple(replace(row, cells=shown) for row, shown in zip(rows, cells, strict=True)),
    )


def _ranges(ranked: Sequence[Number]) -> list[tuple[int, int]]:
    metrics = [one.metric for one in ranked]
    intervals = [None if metric.low is None or metric.high is None else (metric.low, metric.high) for metric in metrics]
    direction = metrics[0].direction if metrics else "max"
    return rank_ranges([metric.value for metric in metrics], intervals, direction)


OTHER = "other: "
"""Beginning of the columns of metrics that a board is not about."""


def _other(metric: str) -> str:
    """Return the column of a metric that a board is not about; no column of another kind is called so."""
    return OTHER + metric


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _after_interval(columns: Sequence[str], more: Sequence[str]) -> tuple[str, ...]:
    place = 1 + max(columns.index(column) for column in ("value", "interval") if column in columns)
    return (*columns[:place], *more, *columns[place:])


def _proportions(number: Number) -> list[Metric]:
    return [metric for metric in number.other_metrics if metric.unit == "proportion"]


def _row(number: Number, place: int, ranks: tuple[int, int] | None) -> Row:
    from mpeval.report import show_interval

    model = number.model
    shared = {
        "rank": "-" if ranks is None else "-".join(map(str, dict.fromkeys(ranks))),
        "kind": number.kind,
        "model": model.name,
        "parameters": _size(model.parameters) if model.parameters else "",
        "interval": show_interval(number.metric),
        "n": f"{number.n:,}" if number.n else "",
        "flags": ", ".join([*number.flags, *_version(number)]),
        "date": number.date,
    }
    own = _measured(number) if isinstance(number, Record) else _reported(number)
    return Row(entry=number, rank=place if ranks else None, ranks=ranks, cells=shared | own)


def _size(parameters: float) -> str:
    if parameters < 1e5:
        return f"{parameters / 1e3:,.3g}K"
    return f"{parameters / 1e6:,.1f}M" if parameters < 1e9 else f"{parameters / 1e9:,.4g}B"


def _version(number: Number) -> Iterator[str]:
    """Yield what stands with the flags of a number by an older version of its protocol."""
    if isinstance(number, Record) and number.outdated:
        yield f"protocol-version-{number.protocol_version}"


def _measured(record: Record) -> dict[str, str]:
    from mpeval.report import show_metric

    return {
        "iteration": "" if record.members else str(record.model.iteration),
        "value": show_metric(record.metric),
        "shots": str(record.harness.shots) if record.harness else "",
        "layout": f"tp {record.layout.tp} x dp {record.layout.dp}",
        "dtype": record.dtype,
        "source": "",
        "checkpoint": record.model.digest,
        "data": record.data.digest,
        "command": record.command,
        "notes": "; ".join(_notes(record)),
        "seed": str(record.training.seed) if record.training else "",
        "seed sd": _spread(record.seeds) if record.seeds else "",
        **{_other(metric.name): show_metric(metric) for metric in _proportions(record)},
    }


def _reported(number: Reported) -> dict[str, str]:
    unit = " %" if number.metric.unit == "proportion" else ""
    return {
        "iteration": "",
        "value": number.printed + unit,
        "shots": number.model.shots,
        "layout": "",
        "dtype": "",
        "source": f"{number.source.title}, {number.source.locator}",
        "url": number.source.url,
        "notes": "; ".join(text for text in (number.note, number.source.quote) if text),
        **{_other(metric.name): number.printed_others[metric.name] + unit for metric in _proportions(number)},
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
