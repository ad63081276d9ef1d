"""One published number, said by flags."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date as calendar_date
from pathlib import Path

from mpeval.errors import DataError, UsageError, suggest
from mpeval.leaderboard.importing.benchmarks import title_of, unit_of
from mpeval.leaderboard.importing.cleaning import clean_size
from mpeval.leaderboard.importing.drafts import Given, is_address
from mpeval.leaderboard.published import card_of
from mpeval.leaderboard.reported import Reported, ReportedModel, Source, reported
from mpeval.leaderboard.store import append, check_store, read
from mpeval.results import now
from mpeval.tasks.cards import card_names


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `mpeval leaderboard report` was told."""

    task: str
    title: str
    protocol: str
    split: str
    metric: str
    values: tuple[str, ...]
    """The primary one as printed, further ones `METRIC=VALUE` or `METRIC=VALUE/N`."""
    n: int | None
    model: str
    family: str
    parameters: str
    shots: str
    source_title: str
    source_url: str
    locator: str
    date: str
    quote: str
    note: str
    flags: tuple[str, ...]
    store: Path


def given_of(*, model: str, url: str, title: str, date: str) -> Given:
    """Return what the user says of a file's source.

    Raises:
        UsageError: no address, no date, or a title or a date of no source.
    """
    if url:
        _check_address(url)
    elif title or date:
        raise UsageError("there is no `--source-url`", "say where the source is, or leave its title and date out")
    _check_date(date)
    return Given(model=model, url=url, title=title, date=date)


def run(options: Options) -> tuple[Reported, int]:
    """Append the number; return it, and 1 if it was new, 0 if it was there.

    Raises:
        UsageError: options that do not say what a record must.
        DataError: a value that is no number, or another number for the same in the store.
    """
    number = _number(options)
    check_store(options.store, "--store")
    if options.store.exists():
        for old in read(options.store):
            if isinstance(old, Reported) and old.slot == number.slot and not number.repeats(old):
                raise DataError(
                    f"the store has {old.printed} for the same: `{old.record_id}`",
                    f"if that is wrong, `mpeval leaderboard retract {old.record_id} --reason ... "
                    f"--store {options.store}` first",
                )
    return number, append(options.store, [number], "--store")


def _number(options: Options) -> Reported:
    _check_names(options)
    unit = unit_of(options.metric)
    if unit is None:
        raise UsageError(
            f"which way `{options.metric}` goes is not known",
            "metrics are `accuracy`, `accuracy_...`, `f1`, `exact`, `perplexity` and `..._perplexity`",
        )
    values, items = _values(options)
    size, found = clean_size(options.parameters)
    if size is None and options.parameters:
        raise UsageError(f"`--parameters`: {found[0][1] if found else 'no size'}", "give for example `8.3B`")
    return reported(
        created_at=now(),
        task=options.task,
        title=options.title or title_of(options.task),
        protocol=options.protocol,
        split=options.split,
        values=values,
        items=items,
        unit=unit,
        model=ReportedModel(name=options.model, family=options.family, parameters=size, shots=options.shots),
        source=Source(
            title=options.source_title,
            url=options.source_url,
            locator=options.locator,
            date=options.date,
            quote=options.quote,
        ),
        flags=options.flags,
        note=options.note,
    )


def _check_names(options: Options) -> None:
    for option in ("model", "split", "source_title", "locator"):
        if not getattr(options, option).strip():
            raise UsageError(f"`--{option.replace('_', '-')}` is empty", "say what the source says")
    _check_address(options.source_url)
    _check_date(options.date)
    card = card_of(options.task)
    if card is None and not options.title:
        hint = f"{suggest(options.task, card_names())}; another benchmark needs `--title`"
        raise UsageError(f"there is no task `{options.task}`", hint)
    if not re.fullmatch(r"[^/\s]+(/[^/\s]+)+", options.protocol):
        raise UsageError(f"`--protocol {options.protocol}` is no TASK/PROTOCOL", f"say `{options.task}/...`")
    splits = [split.name for split in card.splits] if card else []
    if card and options.split not in splits and not options.split.startswith("test"):
        raise UsageError(f"{card.title} has no split `{options.split}`", suggest(options.split, splits))


def _values(options: Options) -> tuple[dict[str, str], dict[str, int]]:
    """Return the printed value and the items of each metric, the primary one first."""
    plain = [value for value in options.values if "=" not in value]
    if len(plain) != 1:
        raise UsageError(
            f"there are {len(plain)} values of `{options.metric}`",
            "give one `--value VALUE`, and `--value METRIC=VALUE` for each further metric",
        )
    values, items = {options.metric: plain[0]}, dict[str, int]()
    if options.n is not None:
        items[options.metric] = options.n
    for value in options.values:
        name, equals, rest = value.partition("=")
        if not equals:
            continue
        printed, slash, count = rest.partition("/")
        if name in values or unit_of(name) is None or unit_of(name) != unit_of(options.metric):
            raise UsageError(f"`{name}` is no further metric like `{options.metric}`", "leave it out")
        if slash and not re.fullmatch(r"[1-9]\d{0,8}", count):
            raise UsageError(f"`{count}` is no number of items", f"give `--value {name}={printed}/N`")
        values[name] = printed
        items |= {name: int(count)} if slash else {}
    if unit_of(options.metric) == "proportion" and (options.n is None or options.n < 1):
        raise UsageError("an accuracy is of some number of items", "give `--n`, the number of the set's questions")
    return values, items


def _check_address(url: str) -> None:
    if not is_address(url):
        raise UsageError(f"`{url}` is no address", "give `--source-url https://...`")


def _check_date(date: str) -> None:
    try:
        valid = not date or calendar_date.fromisoformat(date).isoformat() == date
    except ValueError:
        valid = False
    if not valid:
        raise UsageError(f"`--date {date}` is no date", "give it as YYYY-MM-DD")
