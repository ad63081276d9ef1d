"""The commands that train: `pretrain`, and `plot` for what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mpeval.cli_options import DeviceOption, DpOption, JsonOption, TokenizerOption, known


def pretrain(
    recipe: Annotated[str, typer.Argument(help="Name of a recipe, or the path of a TOML file.")],
    more: Annotated[
        list[str] | None, typer.Argument(help="Further corpora of `--data`.", metavar="[PREFIX]...")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="Corpora as `mpeval preprocess` wrote them: PREFIX..., or WEIGHT PREFIX..."),
    ] = None,
    tokenizer: TokenizerOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder for checkpoints and metrics; run again with it to resume.")
    ] = None,
    tp: Annotated[int | None, typer.Option("--tp", help="Tensor-parallel ranks.")] = None,
    dp: DpOption = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value of the recipe, e.g. steps=20 or lr=1e-4.")
    ] = None,
    keep: Annotated[int, typer.Option("--keep", help="Checkpoints to keep, the newest (0: all).")] = 0,
    device: DeviceOption = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print parameters, memory, FLOPs and communication; train nothing.")
    ] = False,
    as_json: JsonOption = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write OUTPUT/tensorboard too (pip install 'mpeval[tensorboard]').")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress and no summary.")] = False,
) -> None:
    """Train a GPT or BERT from text to a sharded checkpoint.

    Here:        mpeval pretrain gpt-tiny --data corpus --tokenizer tokenizer --output runs/tiny --tp 2

    Its cost:    mpeval pretrain gpt-8.3b --tp 8 --dp 64 --dry-run

    Many nodes:  torchrun --nnodes 2 --nproc-per-node 8 ... -m mpeval pretrain gpt-2.5b --tp 2 ...

    Killed or stopped (SIGTERM, Ctrl-C)? The same command goes on from the last checkpoint, bit for bit.
    """
    from mpeval import pretrain as trainer
    from mpeval.errors import UsageError

    options = trainer.Options(
        recipe=recipe,
        data=(*(data or ()), *(more or ())),
        tokenizer=tokenizer,
        output=output,
        settings=tuple(settings or ()),
        tp=tp,
        dp=dp,
        device=known("--device", device, ("cpu", "cuda", "auto")) or "auto",
        keep=keep,
        tensorboard=tensorboard,
        quiet=quiet,
        command=("mpeval", *sys.argv[1:]),
    )
    if dry_run:
        trainer.dry_run(options, as_json=as_json)
        return
    if as_json:
        raise UsageError(
            "`--json` is for `--dry-run`", "the metrics of a run are in OUTPUT/metrics.jsonl, one JSON a step"
        )
    if more and not data:
        raise UsageError(f"unexpected `{more[0]}` after the recipe", "corpora follow `--data`")
    trainer.run(options)


def plot(
    runs: Annotated[list[Path], typer.Argument(help="Output folders of `mpeval pretrain`.")],
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder for the pictures (default: the run's).")
    ] = None,
) -> None:
    """Draw the loss curve of a run, or of several over one another, as SVG and PNG."""
    from mpeval.plot import plot as draw

    for path in draw(runs, output):
        typer.echo(f"wrote {path}")
