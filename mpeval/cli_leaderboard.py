"""The commands of `mpeval leaderboard`.  Nothing heavy is imported until a command needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpeval.cli_options import StoresOption

leaderboard_app = typer.Typer(no_args_is_help=True, help="Show and publish recorded results.", rich_markup_mode=None)


@leaderboard_app.command("show")
def leaderboard_show(store: StoresOption = None) -> None:
    """Print every board, best first."""
    from mpeval.leaderboard.boards import boards
    from mpeval.leaderboard.store import default_stores, read
    from mpeval.report import table

    for board in boards(read(*(store or default_stores()))):
        columns = board.terminal_columns
        rows = [[row.cells[column] for column in columns] for row in board.rows]
        title = f"{board.title}, {board.split}: {board.metric} under {board.protocol}, {board.arrow}"
        table(title, [board.headings.get(column, column) for column in columns], rows)


@leaderboard_app.command("publish")
def leaderboard_publish(
    output: Annotated[Path, typer.Option("--output", help="Folder for README.md and index.html.")],
    store: StoresOption = None,
) -> None:
    """Write the leaderboard as a Markdown page and one self-contained HTML page."""
    from mpeval.leaderboard.pages import publish
    from mpeval.leaderboard.store import default_stores

    for path in publish(store or default_stores(), output):
        typer.echo(f"wrote {path}")


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
