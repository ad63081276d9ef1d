"""The commands on checkpoints: inspect, convert, verify, diff."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpeval.cli_options import CheckpointArg, JsonOption, SetOption, known
from mpeval.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from mpeval.checkpoint.scan import Scan
    from mpeval.checkpoint.sharded import ShardedCheckpoint


def inspect(
    checkpoint: CheckpointArg,
    as_json: JsonOption = False,
    settings: SetOption = None,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List every tensor: name, shape, dtype, norm, NaN and infinities.")
    ] = False,
    scan: Annotated[
        bool,
        typer.Option("--scan", help="List every global that its pickles name, hostile ones marked; opens nothing."),
    ] = False,
) -> None:
    """Show a checkpoint's configuration with the origin of each value, its shards, accounting and digest."""
    if scan and tensors:
        raise UsageError("`--scan` opens no tensor, so it cannot go with `--tensors`", "run the command twice")
    if scan:
        _scan(checkpoint, as_json)
        return
    opened = _open(checkpoint, settings)
    if tensors:
        _tensors(opened, as_json)
        return
    opened.check()
    content = _inspection(opened)
    if as_json:
        typer.echo(json.dumps(content, indent=2))
        return
    from mpeval.report import line, table

    rows = [[name, str(value["value"]), value["origin"]] for name, value in content["config"].items()]
    table(f"{content['path']}", ("value", "is", "from"), rows)
    line(f"format {content['format']}, version {content['version']:g}, iteration {content['iteration']}")
    line(f"stored as tp {content['grid'][0]} x pp {content['grid'][1]}, {content['dtype']}")
    line(f"{content['parameters']:,} parameters in {len(opened.tensors)} tensors")
    _accounting(opened)
    line(f"digest {content['digest']}")


def _open(path: Path, settings: list[str] | None) -> ShardedCheckpoint:
    from mpeval.checkpoint.open import open_checkpoint
    from mpeval.config import parse_overrides

    return open_checkpoint(path, parse_overrides(settings or []))


def _accounting(opened: ShardedCheckpoint) -> None:
    """Print what became of every stored entry."""
    from mpeval.report import line

    ignored = opened.ignored()
    used = sum(entry.used for entry in opened.accounting())
    line(f"{used} stored tensors used, {sum(ignored.values())} entries ignored{':' if ignored else ''}")
    for reason, count in ignored.items():
        line(f"  {count} x {reason}")


def _inspection(opened: ShardedCheckpoint) -> dict[str, Any]:
    config = opened.config
    ignored = [entry for entry in opened.accounting() if not entry.used]
    return {
        "path": str(opened.path),
        "format": opened.format,
        "version": opened.version,
        "iteration": opened.iteration,
        "release": opened.release,
        "grid": list(opened.grid),
        "dtype": opened.dtype,
        "parameters": config.parameters(),
        "config": {
            name: {"value": getattr(config, name), "origin": origin} for name, origin in sorted(config.origins.items())
        },
        "tensors": {name: list(tensor.shape) for name, tensor in opened.tensors.items()},
        "used": sum(entry.used for entry in opened.accounting()),
        "ignored": [{"file": entry.file, "entry": entry.stored, "reason": entry.reason} for entry in ignored],
        "digest": _digest(opened),
    }


def _digest(opened: ShardedCheckpoint) -> str:
    """Digest a checkpoint with progress."""
    from mpeval.checkpoint.examine import digests
    from mpeval.checkpoint.sharded import combine_digests
    from mpeval.report import byte_progress

    with byte_progress("hashing", opened.nbytes) as advance:
        return combine_digests(digests(opened, advance=advance))


def _tensors(opened: ShardedCheckpoint, as_json: bool) -> None:
    """Print the statistics of every tensor."""
    from dataclasses import asdict

    from mpeval.checkpoint.examine import statistics
    from mpeval.report import byte_progress

    with byte_progress("reading", opened.nbytes) as advance:
        found = list(statistics(opened, advance))
    if as_json:
        typer.echo(json.dumps([asdict(item) for item in found], indent=2))
        return
    from mpeval.report import line, table

    rows = [
        [item.name, " x ".join(map(str, item.shape)), item.dtype, f"{item.norm:.6g}", str(item.not_finite)]
        for item in found
    ]
    table(str(opened.path), ("tensor", "shape", "dtype", "norm", "NaN or inf"), rows, right=("norm", "NaN or inf"))
    line(f"{sum(item.not_finite > 0 for item in found)} of {len(found)} tensors hold NaN or infinity")


def _scan(path: Path, as_json: bool) -> None:
    """Print every global that the pickles of a checkpoint name; fail if one is hostile or unreadable."""
    from mpeval.checkpoint.scan import scan_checkpoint

    scans = scan_checkpoint(path)
    if as_json:
        content = [
            {"file": str(item.path), "globals": item.globals, "hostile": item.hostile, "failure": item.failure}
            for item in scans
        ]
        typer.echo(json.dumps(content, indent=2))
    else:
        _print_scans(scans)
    hostile = [item for item in scans if item.hostile]
    if hostile:
        names = ", ".join(f"`{name}`" for name in dict.fromkeys(name for item in hostile for name in item.hostile))
        raise CheckpointError(
            f"{len(hostile)} of {len(scans)} pickles name what no checkpoint needs: {names}",
            "do not load these files with anything else; get them again from a source you trust",
        )
    broken = [item for item in scans if item.failure]
    if broken:
        raise CheckpointError(
            f"{len(broken)} of {len(scans)} files could not be read to the end, first `{broken[0].path}`: "
            f"{broken[0].failure}",
            "copy them again and compare sizes",
        )


def _print_scans(scans: list[Scan]) -> None:
    from mpeval.report import line, table

    places: dict[str, list[str]] = {}
    for item in scans:
        for name in item.globals:
            places.setdefault(name, []).append(item.path.parent.name + "/" + item.path.name)
    hostile = {name for item in scans for name in item.hostile}
    rows = [
        [
            name,
            "HOSTILE" if name in hostile else "harmless here",
            f"{files[0]}{f' and {len(files) - 1} more' * (len(files) > 1)}",
        ]
        for name, files in sorted(places.items(), key=lambda pair: (pair[0] not in hostile, pair[0]))
    ]
    table("", ("global", "verdict", "named by"), rows)
    line(f"{len(places)} globals named in {len(scans)} pickles; none was imported, nothing was executed")


def convert(
    source: Annotated[Path, typer.Argument(help="Checkpoint of any format: root, iteration or Hugging Face folder.")],
    target: Annotated[Path, typer.Argument(help="New root, or new Hugging Face folder.")],
    format: Annotated[
        str, typer.Option("--format", help="megatron (names of v2), megatron-core, torch_dist or huggingface.")
    ],
    tp: Annotated[int, typer.Option("--tp", min=1, help="Tensor-parallel size of the files.")] = 1,
    pp: Annotated[int, typer.Option("--pp", min=1, help="Pipeline-parallel size of the files.")] = 1,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="float32, bfloat16 or float16 (default: the source's).")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option("--vocab-size", min=1, help="True vocabulary, where the source does not say it.")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the same iteration or folder if it is there.")
    ] = False,
    as_json: JsonOption = False,
    settings: SetOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress and no table.")] = False,
) -> None:
    """Write a checkpoint in another format or layout, and prove that every tensor is the same.

    mpeval convert CKPT OUT --format megatron-core --tp 4 --pp 2

    mpeval convert CKPT OUT --format huggingface
    """
    from mpeval.config import DTYPES, parse_overrides
    from mpeval.convert import TARGETS, Target
    from mpeval.convert import convert as run

    chosen: Any = known("--format", format, TARGETS)
    wanted: Target = chosen
    done = run(
        source,
        target,
        format=wanted,
        tp=tp,
        pp=pp,
        dtype=known("--dtype", dtype, DTYPES),
        vocab=vocab_size,
        force=force,
        overrides=parse_overrides(settings or []),
        quiet=quiet or as_json,
    )
    content = done.document()
    if as_json:
        typer.echo(json.dumps(content, indent=2))
    elif not quiet:
        _print_conversion(done.source, content)


def _print_conversion(source: ShardedCheckpoint, content: dict[str, Any]) -> None:
    from mpeval.report import line, table

    rows = [
        [item["name"], " x ".join(map(str, item["shape"])), item["before"][:12], item["after"][:12], "equal"]
        for item in content["tensors"]
    ]
    table(content["target"], ("tensor", "shape", "sha256 before", "sha256 after", ""), rows)
    _accounting(source)
    if content["tokenizer_files"]:
        line(f"copied {', '.join(content['tokenizer_files'])}")
    for note in content["notes"]:
        line(f"note: {note}")
    line(f"digest before {content['digest_before']}")
    line(f"digest after  {content['digest_after']}")
    line(f"wrote {content['target']} ({content['format']})")


def verify(checkpoint: CheckpointArg, as_json: JsonOption = False, settings: SetOption = None) -> None:
    """Read every value of a checkpoint and check what can be checked; exit code 1 if anything is wrong.

    Tracker, shard grid, file lengths, one run, shapes and accounting; then replicas on tensor ranks, tied copies, NaN
    and infinities.
    """
    from mpeval.checkpoint.examine import problems
    from mpeval.report import byte_progress

    opened = _open(checkpoint, settings)
    with byte_progress("checking", opened.nbytes) as advance:
        found = list(problems(opened, advance))
    content = {
        "path": str(opened.path),
        "tensors": len(opened.tensors),
        "replicas": sum(len(tensor.copies) for tensor in opened.tensors.values()),
        "tied_copies": len(opened.tied_copies),
        "problems": found,
        "digest": _digest(opened),
    }
    if as_json:
        typer.echo(json.dumps(content, indent=2))
    else:
        from mpeval.report import line, table

        tracked = opened.root != opened.path
        checks = [
            ["tracker", f"names `{opened.path.name}`" if tracked else "none above the folder given"],
            ["files", f"{opened.format}, tp {opened.grid[0]} x pp {opened.grid[1]}, iteration {opened.iteration}"],
            ["tensors", f"{content['tensors']} of the shapes that the configuration says, none left over"],
            ["replicas", f"{content['replicas']} copies on other tensor ranks compared"],
            ["tied copies", f"{content['tied_copies']} compared with the token table"],
            ["values", f"{opened.config.parameters():,} read"],
        ]
        table(str(opened.path), ("checked", "what"), checks)
        for problem in found:
            line(f"wrong: {problem}")
        line(f"digest {content['digest']}")
    if found:
        raise CheckpointError(
            f"`{opened.path}` has {len(found)} problem{'s' * (len(found) > 1)}, first: {found[0]}",
            "use another iteration, or copy the files again",
        )


def diff(
    left: Annotated[Path, typer.Argument(metavar="A", help="A checkpoint of any format.")],
    right: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    as_json: JsonOption = False,
    settings: SetOption = None,
) -> None:
    """Compare two checkpoints tensor by tensor, whatever their layouts; exit code 1 if they differ.

    `--set` applies to both.
    """
    from dataclasses import asdict

    from mpeval.checkpoint.examine import differences, settings_that_differ
    from mpeval.report import byte_progress

    ours, theirs = _open(left, settings), _open(right, settings)
    other = settings_that_differ(ours, theirs)
    with byte_progress("comparing", ours.nbytes) as advance:
        found = list(differences(ours, theirs, advance))
    different = sum(item.verdict != "equal" for item in found)
    if as_json:
        content = {
            "settings": [dict(zip(("name", "a", "b"), row, strict=True)) for row in other],
            "tensors": [asdict(item) for item in found],
        }
        typer.echo(json.dumps(content, indent=2))
    else:
        from mpeval.report import line, table

        if other:
            table("settings that differ", ("setting", "A", "B"), other)
        rows = [[item.name, item.verdict, "" if item.gap is None else f"{item.gap:.6g}"] for item in found]
        table("", ("tensor", "verdict", "max abs difference"), rows, right=("max abs difference",))
        line(f"{len(found) - different} of {len(found)} tensors are equal, {len(other)} settings differ")
    if different or other:
        raise typer.Exit(1)
