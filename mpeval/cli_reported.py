"""The commands of `mpeval leaderboard` for numbers of others: one by flags, or a file of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mpeval.cli_leaderboard import leaderboard_app
from mpeval.cli_options import JsonOption, known

FORMATS = ("csv", "pwc", "lm-eval", "model-index", "eval-results", "eee")


@leaderboard_app.command("report")
def leaderboard_report(
    task: Annotated[str, typer.Option("--task", help="Benchmark: a task, or a name in lower case with --title.")],
    protocol: Annotated[str, typer.Option("--protocol", help="How it was done, TASK/PROTOCOL: what ranks together.")],
    split: Annotated[str, typer.Option("--split", help="Set of the benchmark.")],
    metric: Annotated[str, typer.Option("--metric", help="Primary metric, such as accuracy or word_perplexity.")],
    value: Annotated[
        list[str],
        typer.Option("--value", help="Its value as printed, accuracies in percent; METRIC=VALUE/N for more."),
    ],
    model: Annotated[str, typer.Option("--model", help="The model's name.")],
    source_title: Annotated[str, typer.Option("--source-title", help="What the source is called.")],
    source_url: Annotated[str, typer.Option("--source-url", help="Where it is.")],
    locator: Annotated[str, typer.Option("--locator", help="Where in it, such as 'Table 5'.")],
    store: Annotated[Path, typer.Option("--store", help="Leaderboard file to append to.")],
    n: Annotated[int | None, typer.Option("--n", help="Items that an accuracy is of.")] = None,
    title: Annotated[str, typer.Option("--title", help="The benchmark's name, where it is no task of mpeval.")] = "",
    parameters: Annotated[str, typer.Option("--parameters", help="The model's size, such as 8.3B.")] = "",
    family: Annotated[str, typer.Option("--family", help="The model's family.")] = "",
    shots: Annotated[str, typer.Option("--shots", help="Solved examples: 0, 15, few, or finetuned, trained.")] = "",
    date: Annotated[str, typer.Option("--date", help="When the source was published, YYYY-MM-DD.")] = "",
    quote: Annotated[str, typer.Option("--quote", help="A line of the source.")] = "",
    note: Annotated[str, typer.Option("--note", help="What a reader must know.")] = "",
    flag: Annotated[list[str] | None, typer.Option("--flag", help="A limit, such as ensemble; repeatable.")] = None,
) -> None:
    """Add one number that a source prints.

    Here:  mpeval leaderboard report --task lambada --protocol lambada/megatron-strict --split test --metric accuracy
    --value 61.73 --n 5153 --model "Megatron GPT-2 2.5B" --parameters 2.5B --shots 0 --source-title Megatron-LM
    --source-url https://arxiv.org/abs/1909.08053v4 --locator "Table 3" --store numbers.jsonl
    """
    from mpeval.leaderboard.importing.single import Options, run
    from mpeval.report import line, recorded

    number, added = run(
        Options(
            task=task,
            title=title,
            protocol=protocol,
            split=split,
            metric=metric,
            values=tuple(value),
            n=n,
            model=model,
            family=family,
            parameters=parameters,
            shots=shots,
            source_title=source_title,
            source_url=source_url,
            locator=locator,
            date=date,
            quote=quote,
            note=note,
            flags=tuple(flag or ()),
            store=store,
        )
    )
    recorded(added, store)
    if not added:
        line("it stands there already")
    if number.flags:
        line(f"flags: {', '.join(number.flags)}")


@leaderboard_app.command("import")
def leaderboard_import(
    file: Annotated[Path, typer.Argument(help="File of numbers that others published.")],
    form: Annotated[str, typer.Option("--format", help=f"What the file is: {', '.join(FORMATS)}.")],
    store: Annotated[
        Path | None, typer.Option("--store", help="Leaderboard file to append to; a dry run needs none.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be added, and add nothing.")] = False,
    model: Annotated[str, typer.Option("--model", help="The model, where the file does not name it.")] = "",
    source_url: Annotated[str, typer.Option("--source-url", help="The source, where the file names none.")] = "",
    source_title: Annotated[str, typer.Option("--source-title", help="What that source is called.")] = "",
    date: Annotated[str, typer.Option("--date", help="When that source was published, YYYY-MM-DD.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Add the numbers of a file, and say of each that is odd or left out why.

    What is odd is kept and flagged; left out is only what is no number, or has no model or no source. Importing a file
    again adds nothing.

    A csv has the columns task, protocol, split, metric, value and model, and may have title, n, others (more metrics,
    NAME=VALUE/N between semicolons), family, parameters, shots, flags, source, url, locator, date, evidence, quote and
    note, as the project's own leaderboard/published.csv has.
    """
    from mpeval.errors import UsageError
    from mpeval.leaderboard.importing.pipeline import Options, run
    from mpeval.leaderboard.importing.single import given_of
    from mpeval.report import import_tables

    known("--format", form, FORMATS)
    if store is None and not dry_run:
        raise UsageError("`--store` is missing", "name the leaderboard file to append to, or give `--dry-run`")
    given = given_of(model=model, url=source_url, title=source_title, date=date)
    imported = run(Options(file=file, form=form, store=store, dry_run=dry_run, given=given))
    if as_json:
        typer.echo(json.dumps(imported.document(), indent=2, ensure_ascii=False, allow_nan=False))
    else:
        import_tables(imported, None if dry_run else store)
    if not imported.added + imported.known:
        raise typer.Exit(1)
