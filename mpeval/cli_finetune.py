"""The commands for task heads: `finetune`, and `ensemble` of what came of it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from mpeval.cli_options import (
    AllowOption,
    CheckpointArg,
    DataOption,
    DeviceOption,
    DpOption,
    JsonOption,
    RecordOption,
    SplitOption,
    TokenizerOption,
    TpOption,
    known,
)


def finetune(
    checkpoint: CheckpointArg,
    task: Annotated[str, typer.Option("--task", help="race, piqa, mnli, qqp or squad, or TASK/PROTOCOL.")],
    output: Annotated[
        Path, typer.Option("--output", help="Folder for checkpoints, metrics, predictions; run again to resume.")
    ],
    data: DataOption = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Recipe name or TOML file (default: by task and model size).")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a value of the recipe, e.g. epochs=1 or lr=2e-5.")
    ] = None,
    tp: TpOption = None,
    dp: DpOption = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Runs from so many seeds; the dev median is reported.")] = 1,
    init_head: Annotated[
        bool, typer.Option("--init-head", help="Draw a new task head, in the place of one that is there.")
    ] = False,
    tokenizer: TokenizerOption = None,
    device: DeviceOption = "auto",
    record: RecordOption = None,
    allow_modified_data: AllowOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress and no summary.")] = False,
) -> None:
    """Finetune a checkpoint on a task, evaluate every epoch on the dev set, keep the best.

    Here:        mpeval finetune CKPT --task race --data DATA --output runs/race --tp 2

    As papers:   mpeval finetune CKPT --task race --data DATA --output runs/race --seeds 5

    Its test:    mpeval evaluate runs/race --task race --split test --data DATA

    Killed or stopped (SIGTERM, Ctrl-C)? The same command goes on where it was, bit for bit.
    """
    from mpeval import finetune as finetuner

    finetuner.run(
        finetuner.Options(
            checkpoint=checkpoint,
            task=task,
            output=output,
            data=data,
            recipe=recipe,
            settings=tuple(settings or ()),
            tokenizer=tokenizer,
            tp=tp,
            dp=dp,
            seeds=seeds,
            init_head=init_head,
            device=known("--device", device, ("cpu", "cuda", "auto")) or "auto",
            record=record,
            allow_modified_data=allow_modified_data,
            quiet=quiet,
            command=("mpeval", *sys.argv[1:]),
        )
    )


def ensemble(
    runs: Annotated[list[Path], typer.Argument(help="Finetuned runs, or output folders of `mpeval evaluate`.")],
    task: Annotated[str, typer.Option("--task", help="Task, or TASK/PROTOCOL.")],
    split: SplitOption = None,
    data: DataOption = None,
    output: Annotated[Path | None, typer.Option("--output", help="Folder for results and samples.")] = None,
    as_json: JsonOption = False,
    record: RecordOption = None,
    allow_modified_data: AllowOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no table.")] = False,
) -> None:
    """Average the predictions of several models, and test the average against each of them.

    Members:   mpeval evaluate RUN --task race --split test --data DATA --output RUN/evaluations/test

    Average:   mpeval ensemble RUN1 RUN2 RUN3 --task race --split test
    """
    from mpeval.predictions import ensemble as averaging

    averaging.run(
        averaging.Options(
            runs=tuple(runs),
            task=task,
            split=split,
            data=data,
            output=output,
            json=as_json,
            record=record,
            allow_modified_data=allow_modified_data,
            quiet=quiet,
            command=shlex.join(["mpeval", *sys.argv[1:]]),
        )
    )
