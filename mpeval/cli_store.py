"""The commands of `mpeval leaderboard` that fill a leaderboard and check it; none imports torch."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpeval.cli_leaderboard import leaderboard_app
from mpeval.cli_options import JsonOption, StoresOption

if TYPE_CHECKING:
    from mpeval.leaderboard.lint import Finding
    from mpeval.leaderboard.verify import Verdict

StoreOption = Annotated[Path, typer.Option("--store", help="Records file.")]


@leaderboard_app.command("add")
def leaderboard_add(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Folders of evaluations, ensembles or finetuned runs.")
    ],
    store: StoreOption,
) -> None:
    """Append what was measured in folders of runs, with the digests of its samples.

    Of a finetuned run that is its evaluations, but for those after each epoch.
    """
    from mpeval.leaderboard.add import records_in
    from mpeval.leaderboard.store import append, check_store
    from mpeval.report import recorded

    check_store(store, "--store")
    found = [record for run in runs for record in records_in(run, store)]
    added = append(store, found, "--store")
    recorded(added, store)
    if added < len(found):
        typer.echo(f"{len(found) - added} of {len(found)} were there already")


@leaderboard_app.command("retract")
def leaderboard_retract(
    record: Annotated[
        str, typer.Argument(metavar="ID", help="Record's id, or as much of its beginning as is its own.")
    ],
    reason: Annotated[str, typer.Option("--reason", help="Why it no longer counts.")],
    store: StoreOption,
) -> None:
    """Take a record back by a line that says so; nothing is deleted."""
    from mpeval.leaderboard.retract import retract

    taken = retract(store, record, reason)
    typer.echo(f"took back {taken.record_id[:19]}: {taken.title}, {taken.protocol}, {taken.model.name}")


@leaderboard_app.command("lint")
def leaderboard_lint(store: StoresOption = None, as_json: JsonOption = False) -> None:
    """Look for damaged lines, impossible numbers and contradictions; exit code 1 if there is an error."""
    from mpeval.errors import DataError
    from mpeval.leaderboard.lint import lint
    from mpeval.leaderboard.store import default_stores

    found = lint(store or default_stores())
    if as_json:
        typer.echo(json.dumps([_finding(item) for item in found], indent=2, ensure_ascii=False))
    else:
        for item in found:
            typer.echo(f"{item.store}:{item.line}: {item.severity}: {_flat(item.message)} [{item.code}]")
    counts = Counter(item.severity for item in found)
    said = f"{_many(counts['error'], 'error')}, {_many(counts['warning'], 'warning')}"
    if counts["error"]:
        first = next(item for item in found if item.severity == "error")
        raise DataError(f"{said}, the first error on line {first.line} of `{first.store}`", "mend or retract the lines")
    if not as_json:
        typer.echo(said)


@leaderboard_app.command("verify")
def leaderboard_verify(
    records: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Records' ids or beginnings of them (default: all).")
    ] = None,
    store: StoresOption = None,
    runs: Annotated[
        Path | None, typer.Option("--runs", help="Folder with the runs, where samples are not where records say.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with the data in their published layout, to be hashed again.")
    ] = None,
    checkpoints: Annotated[
        Path | None,
        typer.Option("--checkpoints", help="Folder that checkpoints' paths go on from, to be hashed again."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check records against their samples, and data and weights if asked to; exit code 1 if one fails.

    verified: scored again from unchanged samples.  hash ok: samples, data or weights have their digest.  measured:
    there is nothing to check with.  reported: somebody else's number.
    """
    from mpeval.errors import DataError
    from mpeval.leaderboard.store import default_stores
    from mpeval.leaderboard.verify import Places, verify

    places = Places(runs=runs, data=data, checkpoints=checkpoints)
    found = verify(store or default_stores(), records or (), places)
    if as_json:
        typer.echo(json.dumps([_verdict(item) for item in found], indent=2, ensure_ascii=False))
    else:
        _show_verdicts(found)
    failed = [item for item in found if item.state == "FAILED"]
    if failed:
        first = failed[0]
        raise DataError(
            f"{len(failed)} of {len(found)} failed, first line {first.line} of `{first.store}`: {first.problem}",
            "restore what was changed, or `mpeval leaderboard retract` the record",
        )


@leaderboard_app.command("schema")
def leaderboard_schema() -> None:
    """Print the JSON Schema of a leaderboard's lines."""
    from mpeval.leaderboard.schema import schema_text

    typer.echo(schema_text(), nl=False)


def _finding(item: Finding) -> dict[str, Any]:
    return {
        "store": str(item.store),
        "line": item.line,
        "severity": item.severity,
        "code": item.code,
        "message": item.message,
        "record_id": item.record_id,
    }


def _verdict(item: Verdict) -> dict[str, Any]:
    return {
        "store": str(item.store),
        "line": item.line,
        "record_id": item.record.record_id if item.record else "",
        "state": item.state,
        "checked": list(item.checked),
        "notes": list(item.notes),
        "problem": item.problem,
    }


def _show_verdicts(found: Sequence[Verdict]) -> None:
    from mpeval.report import line, table

    rows = [
        [
            str(item.line),
            item.record.record_id[:19] if item.record else "",
            f"{item.record.protocol} {item.record.part}" if item.record else "",
            item.record.model.name if item.record else "",
            item.state,
            ", ".join(item.checked),
        ]
        for item in found
    ]
    table("", ("line", "record", "protocol", "model", "state", "checked"), rows, right=("line",))
    notes: dict[str, list[str]] = defaultdict(list)
    for item in found:
        for said in ([f"FAILED: {item.problem}"] if item.problem else []) + list(item.notes):
            notes[f"{item.store}: {_flat(said)}"].append(str(item.line))
    for note, lines in notes.items():
        line(f"{'line' if len(lines) == 1 else 'lines'} {', '.join(lines)} of {note}")
    counts = Counter(item.state for item in found)
    line(", ".join(f"{count} {state}" for state, count in counts.items()) or "no records")


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _flat(text: str) -> str:
    """Keep a message on its line, whatever a store holds."""
    return " ".join(text.split())
