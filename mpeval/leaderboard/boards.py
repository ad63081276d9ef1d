"""Records sorted into boards, one per protocol, split and metric, and the text of each cell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from mpeval.leaderboard.records import Record
from mpeval.results import Metric, SeedSpread

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
