"""Arguments and options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

CheckpointArg = Annotated[Path, typer.Argument(help="Checkpoint root, iteration folder, or a file inside one.")]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder with the data in its published layout (default: ask the hub).")
]
TokenizerOption = Annotated[
    Path | None, typer.Option("--tokenizer", help="Folder with the tokenizer (default: beside the checkpoint).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Configuration value the file lacks, e.g. heads=16 or gelu=tanh.")
]
StoresOption = Annotated[
    list[Path] | None, typer.Option("--store", help="Records file, again for each more (default: the project's own).")
]
TpOption = Annotated[int | None, typer.Option("--tp", help="Tensor-parallel ranks (any size, whatever the file's).")]
DpOption = Annotated[int | None, typer.Option("--dp", help="Data-parallel ranks.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda or auto.")]
RecordOption = Annotated[Path | None, typer.Option("--record", help="Leaderboard file to append the results to.")]
SplitOption = Annotated[
    str | None, typer.Option("--split", help="Set of the benchmark, such as dev (default: the usual one).")
]
AllowOption = Annotated[bool, typer.Option("--allow-modified-data", help="Accept other data than published; flags it.")]


def known(option: str, value: str | None, choices: tuple[str, ...]) -> str | None:
    """Return `value` if it is one of `choices` (or None).

    Raises:
        UsageError: it is not, with the nearest that is.
    """
    from mpeval.errors import UsageError, suggest

    if value is not None and value not in choices:
        hint = f"{suggest(value, list(choices))} (there are {', '.join(f'`{item}`' for item in choices)})"
        raise UsageError(f"`{option} {value}` is unknown", hint)
    return value
