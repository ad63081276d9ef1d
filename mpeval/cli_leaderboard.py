"""The commands of `mpeval leaderboard`.  Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mpeval.cli_options import JsonOption, StoresOption

leaderboard_app = typer.Typer(no_args_is_help=True, help="Show and publish recorded results.", rich_markup_mode=None)


@leaderboard_app.command("show")
def leaderboard_show(
    protocol: Annotated[
        list[str] | None, typer.Option("--protocol", help="Only boards under TASK/PROTOCOL, or those of TASK.")
    ] = None,
    store: StoresOption = None,
    json_: JsonOption = False,
) -> None:
    """Print every board, best first."""
    from mpeval.leaderboard.boards import boards, under
    from mpeval.leaderboard.exports.export import pretty
    from mpeval.leaderboard.exports.table_json import document
    from mpeval.leaderboard.store import default_stores, read
    from mpeval.report import table

    content = under(boards(read(*(store or default_stores()))), protocol or ())
    if json_:
        typer.echo(pretty(document(content)), nl=False)
        return
    for board in content:
        columns = board.terminal_columns
        rows = [[row.cells[column] for column in columns] for row in board.rows]
        title = f"{board.title}, {board.split}: {board.metric} under {board.protocol}, {board.arrow}"
        table(title, [board.headings.get(column, column) for column in columns], rows)


@leaderboard_app.command("publish")
def leaderboard_publish(
    output: Annotated[Path | None, typer.Option("--output", help="Folder for the files.")] = None,
    store: StoresOption = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Some of md, html, csv, tex, json, pwc, model-index, eval-results, eee, lm-eval, by commas "
            "(default: md,html).",
        ),
    ] = None,
    siunitx: Annotated[
        bool, typer.Option("--siunitx", help="LaTeX: numbers with errors in siunitx's columns.")
    ] = False,
    model: Annotated[
        list[str] | None, typer.Option("--model", help="Only rows of this model, again for each more (default: all).")
    ] = None,
    readme: Annotated[
        Path | None, typer.Option("--readme", help="Markdown file to replace the boards in, between its two markers.")
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option("--push-to-hub", help="Hugging Face repository to put rows of --model into the card of."),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail if files in --output are missing or stale.")
    ] = False,
) -> None:
    """Write the leaderboard as pages, and in the formats of others."""
    from mpeval.leaderboard import publishing
    from mpeval.leaderboard.store import default_stores

    options = publishing.Options(
        stores=store or default_stores(),
        output=output,
        formats=formats,
        siunitx=siunitx,
        models=model or (),
        readme=readme,
        repository=push_to_hub,
        check=check,
    )
    publishing.run(options, typer.echo)


@leaderboard_app.command("compare")
def leaderboard_compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...", help="Output folders of `mpeval evaluate`, files of samples, or ids of records."
        ),
    ],
    protocol: Annotated[
        list[str] | None, typer.Option("--protocol", help="Compare runs only under TASK/PROTOCOL, or those of TASK.")
    ] = None,
    store: StoresOption = None,
    as_json: JsonOption = False,
) -> None:
    """Test whether runs differ, item by item, under every protocol that both of a pair have.

    Items are joined by id, and runs on other items, data or versions of a protocol are refused. Differences of accuracy
    have errors clustered by passage, ratios of perplexity those of documents; Holm's correction is for all rows.

    Records are compared by their samples too, or by their error bars where one has none, as what others published.
    """
    from mpeval.errors import UsageError
    from mpeval.leaderboard import apart, versus
    from mpeval.leaderboard.store import default_stores

    command = shlex.join(["mpeval", *sys.argv[1:]])
    if apart.are_records(runs):
        if protocol:
            raise UsageError("a record is of one protocol", "leave out `--protocol`")
        apart.run(runs, store or default_stores(), json=as_json, command=command)
        return
    if store:
        raise UsageError("`--store` is about ids of records", "leave it out, or give ids in the place of paths")
    paths = tuple(Path(run) for run in runs)
    versus.run(versus.Options(runs=paths, protocols=tuple(protocol or ()), json=as_json, command=command))


@leaderboard_app.command("power")
def leaderboard_power(
    protocol: Annotated[
        str | None, typer.Option("--protocol", help="TASK/PROTOCOL, for its published number of items.")
    ] = None,
    items: Annotated[
        int | None, typer.Option("--n", help="Number of items, in the place of the published one.")
    ] = None,
    accuracy: Annotated[
        float, typer.Option("--accuracy", help="About the accuracy of both models, a proportion.")
    ] = 0.7,
    effect: Annotated[
        float | None, typer.Option("--effect", help="Difference in points for which to say the items needed.")
    ] = None,
    correlation: Annotated[
        float, typer.Option("--correlation", help="Of the two models' right answers on the same items.")
    ] = 0.5,
    power: Annotated[float, typer.Option("--power", help="Probability of finding such a difference.")] = 0.8,
) -> None:
    """Say how small a difference a benchmark can show, at a level of 5 %.

    Here:     mpeval leaderboard power --protocol race/lm-eval --accuracy 0.54

    Or size:  mpeval leaderboard power --n 1000 --effect 1
    """
    from mpeval.errors import UsageError
    from mpeval.leaderboard.power import items_needed, items_of, resolution
    from mpeval.report import power_table

    if protocol is None and items is None:
        raise UsageError("there is no number of items", "give `--protocol TASK/PROTOCOL`, or `--n ITEMS`")
    published = items_of(protocol) if protocol else 0
    found = resolution(published if items is None else items, accuracy=accuracy, correlation=correlation, power=power)
    needed = {}
    if effect is not None:
        for what, shared in (("measured apart", 0.0), ("on the same items", correlation)):
            count = items_needed(effect / 100, accuracy=accuracy, correlation=shared, power=power)
            needed[f"items needed for {effect:g} points, {what}"] = count
    power_table(protocol or "a set", found, needed)


@leaderboard_app.command("serve")
def leaderboard_serve(
    store: StoresOption = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port on 127.0.0.1 (0: any that is free).")] = 0,
) -> None:
    """Show the HTML page in a browser of this machine until Ctrl-C."""
    from mpeval.leaderboard.boards import boards
    from mpeval.leaderboard.page import html
    from mpeval.leaderboard.serve import serve
    from mpeval.leaderboard.store import default_stores, read

    serve(html(boards(read(*(store or default_stores())))), port, lambda url: typer.echo(f"{url} (Ctrl-C ends)"))
