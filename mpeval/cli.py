"""The command line: parse, call one function, print.  Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mpeval import (
    __version__,
    cli_checkpoint,
    cli_corpus,
    cli_data,
    cli_finetune,
    cli_harness,
    cli_leaderboard,
    cli_reported,  # noqa: F401  # it adds to the commands of the leaderboard
    cli_store,  # noqa: F401  # and so does it
    cli_train,
)
from mpeval.cli_options import (
    AllowOption,
    CheckpointArg,
    DataOption,
    DeviceOption,
    DpOption,
    JsonOption,
    RecordOption,
    SetOption,
    SplitOption,
    TokenizerOption,
    TpOption,
    known,
)
from mpeval.errors import MpevalError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
tasks_app = typer.Typer(no_args_is_help=True, help="List, show and check benchmarks.", rich_markup_mode=None)
app.add_typer(tasks_app, name="tasks")
app.add_typer(cli_leaderboard.leaderboard_app, name="leaderboard")
app.add_typer(cli_corpus.corpus_app, name="corpus")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mpeval {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Train, evaluate, convert and verify sharded Megatron checkpoints, on a CPU or on GPUs."""


@app.command()
def evaluate(
    checkpoint: CheckpointArg,
    task: Annotated[
        list[str] | None,
        typer.Option("--task", help="Task, TASK/PROTOCOL, or 'TASK/*' for every one; may be repeated."),
    ] = None,
    tp: TpOption = None,
    dp: DpOption = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16 (default: the file's).")
    ] = None,
    device: DeviceOption = "auto",
    data: DataOption = None,
    tokenizer: TokenizerOption = None,
    split: SplitOption = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Score only the first N rows or windows.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Folder for results and samples; run again with it to resume.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder of scores that runs share: no item is scored twice.")
    ] = None,
    from_predictions: Annotated[
        Path | None, typer.Option("--from-predictions", help="Score a samples.jsonl again; no model is run.")
    ] = None,
    as_json: JsonOption = False,
    record: RecordOption = None,
    megatron_exact: Annotated[
        bool, typer.Option("--megatron-exact", help="Let padding rows of the vocabulary into the softmax.")
    ] = False,
    allow_modified_data: AllowOption = False,
    batch_tokens: Annotated[
        int | None, typer.Option("--batch-tokens", min=1, help="Input tokens per forward pass (default by device).")
    ] = None,
    settings: SetOption = None,
    harness: cli_harness.HarnessOption = None,
    num_fewshot: cli_harness.ShotsOption = None,
    include_path: cli_harness.IncludeOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress and no table.")] = False,
) -> None:
    """Score a checkpoint on benchmarks.

    Local ranks:  mpeval evaluate CKPT --task lambada --tp 2 --dp 2

    Many nodes:   torchrun --nnodes 2 --nproc-per-node 8 ... -m mpeval evaluate CKPT --task lambada --tp 8

    Slurm:        srun --ntasks 16 mpeval evaluate CKPT --task lambada --tp 8

    lm-eval:      mpeval evaluate CKPT --harness arc_easy,hellaswag --num-fewshot 5
    """
    from mpeval.config import DTYPES, parse_overrides
    from mpeval.evaluate import Options
    from mpeval.harness_evaluate import Asked, run

    run(
        Options(
            checkpoint=checkpoint,
            tasks=tuple(task or ()),
            tp=tp,
            dp=dp,
            dtype=known("--dtype", dtype, DTYPES),
            device=known("--device", device, ("cpu", "cuda", "auto")) or "auto",
            data=data,
            tokenizer=tokenizer,
            split=split,
            limit=limit,
            output=output,
            cache=cache,
            from_predictions=from_predictions,
            json=as_json,
            record=record,
            megatron_exact=megatron_exact,
            allow_modified_data=allow_modified_data,
            batch_tokens=batch_tokens,
            settings=tuple(parse_overrides(settings or []).items()),
            quiet=quiet,
            command=shlex.join(["mpeval", *sys.argv[1:]]),
        ),
        Asked(tasks=harness, shots=num_fewshot, include=include_path),
    )


for command in (
    cli_checkpoint.inspect,
    cli_checkpoint.convert,
    cli_checkpoint.verify,
    cli_checkpoint.diff,
    cli_data.preprocess,
    cli_train.pretrain,
    cli_train.plot,
    cli_finetune.finetune,
    cli_finetune.ensemble,
):
    app.command()(command)
app.command(context_settings=cli_harness.PASSED_ON)(cli_harness.harness)


@tasks_app.command("list")
def tasks_list(as_json: JsonOption = False) -> None:
    """List every task and protocol."""
    from mpeval.tasks.cards import card_names, load_card

    cards = [load_card(name) for name in card_names()]
    if as_json:
        typer.echo(json.dumps({card.name: [protocol.id for protocol in card.protocols] for card in cards}, indent=2))
        return
    from mpeval.report import table

    rows = [
        [protocol.id, protocol.metric.replace("_", " "), "default" * card.is_default(protocol)]
        for card in cards
        for protocol in card.protocols
    ]
    table("", ("protocol", "metric", ""), rows)


@tasks_app.command("show")
def tasks_show(name: Annotated[str, typer.Argument(help="Task name.")], as_json: JsonOption = False) -> None:
    """Show a task's data, checksums and protocols."""
    from dataclasses import asdict

    from mpeval.tasks.cards import load_card

    card = load_card(name)
    if as_json:
        typer.echo(json.dumps(asdict(card), indent=2))
        return
    from mpeval.report import line, table

    line(f"{card.title} ({card.category}): {card.description}")
    for split in card.splits:
        published = f"{split.published.rows:,} rows, sha256 {split.published.sha256 or 'not known'}"
        line(f"data      {' + '.join(split.files)}, {split.name} split, {published}")
        if split.hub:
            line(f"hub       {split.hub.id} ({split.hub.config}) at {split.hub.revision}")
    line(f"license   {card.license}")
    line(f"source    {card.homepage}")
    line(f"citation  {card.citation}")
    rows = [
        [item.id, item.version, item.family.upper(), item.metric.replace("_", " "), item.description]
        for item in card.protocols
    ]
    table("", ("protocol", "version", "scores a", "metric", "what it does"), rows)


@tasks_app.command("check")
def tasks_check(
    name: Annotated[str, typer.Argument(help="Task, TASK/PROTOCOL, or 'TASK/*' for every protocol.")],
    data: DataOption = None,
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="Folder with the tokenizer.")] = Path(),
    as_json: JsonOption = False,
    allow_modified_data: AllowOption = False,
    context: Annotated[int, typer.Option("--context", min=2, help="Longest input of the model, in tokens.")] = 1024,
    split: SplitOption = None,
) -> None:
    """Check a benchmark's files and print the constants of its protocols; needs no model.

    Of a whole task, those for a BERT are checked if the tokenizer is a BERT's, else those for a GPT.
    """
    from mpeval.data import load_data
    from mpeval.tasks.build import build_task, family_of
    from mpeval.tasks.cards import load_card, select, select_fitting
    from mpeval.tokenizer import find_tokenizer

    loaded = find_tokenizer(tokenizer, [])
    content: dict[str, dict[str, Any]] = {}
    task, slash, short = name.partition("/")
    if not slash or load_card(task).means_every(short):
        holder = f"the tokenizer in `{loaded.path}` is for"
        chosen = select_fitting([f"{task}/*"], family_of(loaded), holder)
    else:
        chosen = select([name])
    for card, protocol in chosen:
        rows = load_data(card, data, split or card.split_for(protocol), allow_modified=allow_modified_data)
        constants = build_task(card, protocol, rows, loaded, context).constants()
        content[protocol.id] = {"data": rows.digest, "flags": list(rows.flags), **constants}
    if as_json:
        typer.echo(json.dumps(content, indent=2))
        return
    from mpeval.report import table

    for protocol_id, constants in content.items():
        table(protocol_id, ("constant", "value"), [[key, _plain(value)] for key, value in constants.items()])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item:,}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    """Run the command line; a user's mistake ends with one clear error and its exit code, not a traceback."""
    try:
        app()
    except MpevalError as error:
        from mpeval.launch import format_error

        sys.stderr.write(format_error(error))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; with `--output` the same command goes on where it stopped\n")
        sys.exit(130)
