"""`mpeval leaderboard publish`: pages in a folder, in the middle of a Markdown file, or on a hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mpeval.errors import UsageError
from mpeval.leaderboard.boards import Board, boards
from mpeval.leaderboard.markdown import replace_between_markers
from mpeval.leaderboard.pages import DEFAULT, check, of_models, publish
from mpeval.leaderboard.store import read


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is published where.

    Attributes:
        stores: files of records.
        output: folder for files.
        formats: names of formats, by commas; None for the default ones.
        siunitx: numbers of LaTeX tables stand in `S` columns.
        models: names of the models whose rows are published; every one's by default.
        readme: Markdown file to replace the boards in.
        repository: on the hub, to put rows into the model card of.
        check: write nothing, but look whether `output` is up to date.
    """

    stores: Sequence[Path]
    output: Path | None
    formats: str | None
    siunitx: bool
    models: Sequence[str]
    readme: Path | None
    repository: str | None
    check: bool


def run(options: Options, say: Callable[[str], None]) -> None:
    """Publish, or check what was; `say` is told what was done, a line each.

    Raises:
        UsageError: options that do not go together, or nothing to do.
        DataError: a store, a file or a model that is not what it should be, or a stale file.
        OutputError: a file that cannot be written.
    """
    _check_options(options)
    if options.readme:
        replace_between_markers(options.readme, _content(options))
        say(f"wrote {options.readme}")
    if options.repository:
        from mpeval.leaderboard.exports.push import push

        commit = push(_content(options), options.repository)
        say(f"pushed {commit}" if commit else f"the model card of {options.repository} has these results already")
    if options.output:
        _files(options, options.output, say)


def _check_options(options: Options) -> None:
    if not (options.output or options.readme or options.repository):
        raise UsageError("nowhere to publish to", "give a folder by `--output`, or a Markdown file by `--readme`")
    if options.repository and not options.models:
        raise UsageError("`--push-to-hub` is about the models of one card", "name them by `--model`")
    if not options.output and (options.formats is not None or options.siunitx):
        raise UsageError("`--format` and `--siunitx` are about files in a folder", "give the folder by `--output`")
    if options.check and (options.readme or options.repository):
        raise UsageError("`--check` is about files in a folder", "leave out `--readme` and `--push-to-hub`")


def _content(options: Options) -> list[Board]:
    return of_models(boards(read(*options.stores)), options.models)


def _files(options: Options, output: Path, say: Callable[[str], None]) -> None:
    named = options.formats
    chosen = DEFAULT if named is None else [name.strip() for name in named.split(",") if name.strip()]
    models, siunitx = options.models, options.siunitx
    if options.check:
        found = check(options.stores, output, chosen, models=models, siunitx=siunitx)
        say(f"{len(found)} file{'s' * (len(found) != 1)} in {output}: made of the records as they are now")
        return
    written = publish(options.stores, output, chosen, models=models, siunitx=siunitx, say=say)
    folders = Counter(path.relative_to(output).parts[0] for path in written if path.parent != output)
    for path in written:
        if path.parent == output:
            say(f"wrote {path}")
    for folder, count in folders.items():
        say(f"wrote {count} file{'s' * (count != 1)} below {output / folder}")
