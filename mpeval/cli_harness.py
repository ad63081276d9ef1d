"""The command that hands everything to lm-eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HarnessOption = Annotated[
    str | None, typer.Option("--harness", help="Tasks or groups of lm-eval, by comma, instead of --task.")
]
ShotsOption = Annotated[
    int | None, typer.Option("--num-fewshot", min=0, help="Of lm-eval's tasks: examples before each question.")
]
IncludeOption = Annotated[
    Path | None, typer.Option("--include-path", help="Folder with task files of your own for lm-eval.")
]
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
"""Settings of a command whose arguments are another program's, up to its own `--help`."""


def harness(context: typer.Context) -> None:
    """Run lm-eval's own command line with the model `mpeval` in it.

    All arguments are lm-eval's, and so are output and exit code; `mpeval harness run --help` lists them.

    mpeval harness run --model mpeval --model_args checkpoint=CKPT,tp=2 --tasks piqa --include_path tasks/harness

    Arguments of the model: checkpoint, tp, dp, dtype, tokenizer, batch_tokens, max_gen_toks, seed.
    """
    from mpeval.harness.command import run

    run(context.args)
