"""Convert a checkpoint of any format and layout to any other, one tensor at a time, and prove that it is the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mpeval import __version__
from mpeval.checkpoint.dist_write import fill_dist
from mpeval.checkpoint.examine import digests, refuse_different, refuse_overflow, settings_that_differ
from mpeval.checkpoint.hugging_write import fill_hugging_face, hugging_kind, not_expressed
from mpeval.checkpoint.locate import locate
from mpeval.checkpoint.open import open_checkpoint
from mpeval.checkpoint.sharded import ShardedCheckpoint, combine_digests
from mpeval.checkpoint.weights import StoredWeights
from mpeval.checkpoint.write import fill_megatron, refuse_order, write_tracker
from mpeval.errors import CheckpointError, MpevalError, OutputError, UsageError
from mpeval.folders import new_folder, unwritable, write_atomically
from mpeval.tokenizer import files_beside

Target = Literal["megatron", "megatron-core", "torch_dist", "huggingface"]
TARGETS = get_args(Target)
REPORT = "conversion.json"
"""What was read, written and left out, with every tensor's digest before and after; beside the weights."""
DIVISOR = 128
"""Megatron's default of `make_vocab_size_divisible_by`."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What a conversion did."""

    source: ShardedCheckpoint
    target: Path
    format: Target
    before: dict[str, str]
    """Digest of every tensor of the source, in the dtype it was written in."""
    after: dict[str, str]
    """Digest of every tensor, read back from what was written."""
    copied: tuple[str, ...]
    notes: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        entries = self.source.accounting()
        return {
            "mpeval_version": __version__,
            "source": str(self.source.path),
            "target": str(self.target),
            "source_format": self.source.format,
            "source_version": self.source.version,
            "source_grid": list(self.source.grid),
            "iteration": self.source.iteration,
            "format": self.format,
            "entries_used": sum(entry.used for entry in entries),
            "entries_ignored": self.source.ignored(),
            "tokenizer_files": list(self.copied),
            "notes": list(self.notes),
            "digest_before": combine_digests(self.before),
            "digest_after": combine_digests(self.after),
            "tensors": [
                {"name": name, "shape": list(tensor.shape), "before": self.before[name], "after": self.after[name]}
                for name, tensor in self.source.tensors.items()
            ],
        }


def convert(
    source: Path,
    target: Path,
    *,
    format: Target,
    tp: int = 1,
    pp: int = 1,
    dtype: str | None = None,
    vocab: int | None = None,
    force: bool = False,
    overrides: dict[str, Any] | None = None,
    quiet: bool = True,
) -> Conversion:
    """Write the checkpoint at `source` to `target` in another format or layout.

    Args:
        source: what `open_checkpoint` opens.
        target: the new root, or the new Hugging Face folder.
        format: what to write.
        tp: tensor-parallel size of the files.
        pp: pipeline-parallel size of the files.
        dtype: convert every tensor to it (default: each keeps its own).
        vocab: true vocabulary size, where the source does not say it or says it wrongly.
        force: replace the same iteration, or the same Hugging Face folder, if it is there.
        overrides: configuration values that the source lacks, as for `open_checkpoint`.
        quiet: show no progress.

    Raises:
        MpevalError: the source is unsound, the target cannot hold it, or is already there.
    """
    from mpeval.report import byte_progress

    opened = _with_vocab(open_checkpoint(source, overrides), vocab)
    _refuse_impossible(opened, format, tp, pp)
    place = _place(opened, target, format)
    _refuse_occupied(opened, target, place, format, force=force)
    opened.check()
    refuse_overflow(opened, dtype)
    config = opened.config.changed("conversion", padded_vocab=_padded(opened, format, tp))
    weights = StoredWeights(opened, config, dtype)
    fill = _writer(format, opened, tp, pp)
    with (
        new_folder(place, replace=force) as folder,
        byte_progress("converting", 3 * opened.nbytes, shown=not quiet) as advance,
    ):
        before = digests(opened, dtype, advance)
        fill(folder, weights, advance)
        written = _with_vocab(open_checkpoint(folder), config.vocab)
        after = digests(written, advance=advance)
        refuse_different(before, after, str(target))
        notes = not_expressed(config) if format == "huggingface" else []
        _refuse_other_settings(opened, written, notes)
        done = Conversion(
            source=opened,
            target=target,
            format=format,
            before=before,
            after=after,
            copied=tuple(_tokenizer_files(opened)),
            notes=tuple(notes),
        )
        (folder / REPORT).write_text(json.dumps(done.document(), indent=1) + "\n", encoding="utf-8")
        if format == "huggingface":
            _copy(done.copied, opened, folder)
    if format != "huggingface":
        _copy(done.copied, opened, target)
        write_tracker(target, place)
    return done


def _refuse_other_settings(opened: ShardedCheckpoint, written: ShardedCheckpoint, notes: list[str]) -> None:
    """Refuse a target format that cannot say how the model computes; `notes` tell the one thing that is let pass."""
    other = [row for row in settings_that_differ(opened, written) if not (notes and row[0] == "lm_head_gelu")]
    if other:
        name, ours, theirs = other[0]
        raise CheckpointError(
            f"the format has no way to say `{name}={ours}`: what was written reads back as `{theirs}`",
            "choose another `--format`, or leave out the `--set` that the file does not agree with",
        )


def _with_vocab(checkpoint: ShardedCheckpoint, vocab: int | None) -> ShardedCheckpoint:
    if vocab is None:
        return checkpoint
    if not 1 <= vocab <= checkpoint.config.padded_vocab:
        raise UsageError(
            f"`--vocab-size {vocab}` does not fit a table of {checkpoint.config.padded_vocab} rows",
            "give the tokenizer's size",
        )
    return checkpoint.with_vocab(vocab, "--vocab-size")


def _padded(opened: ShardedCheckpoint, format: Target, tp: int) -> int:
    """Return how many table rows to write: as many as Megatron allocates; without padding for Hugging Face."""
    if format == "huggingface":
        return opened.config.vocab
    step = _divisor(opened) * tp
    return -(-opened.config.vocab // step) * step


def _divisor(opened: ShardedCheckpoint) -> int:
    """Return what the table is padded to a multiple of: what the run said, if that is no more than the table."""
    said = opened.args.get("make_vocab_size_divisible_by")
    return said if isinstance(said, int) and 0 < said <= opened.config.padded_vocab else DIVISOR


def _refuse_impossible(opened: ShardedCheckpoint, format: Target, tp: int, pp: int) -> None:
    """Refuse sizes that cannot be, before anything is read or written."""
    if format == "huggingface" and (tp, pp) != (1, 1):
        raise UsageError("a Hugging Face folder has no ranks", "leave out `--tp` and `--pp`")
    if format == "huggingface":
        hugging_kind(opened.config)
    elif format != "megatron":
        refuse_order(opened.config)
    if tp < 1 or pp < 1:
        raise UsageError(f"{tp} tensor ranks and {pp} stages are no layout", "give 1 or more")
    opened.config.check_ranks(tp)
    if opened.config.layers % pp:
        fits = [str(stages) for stages in range(1, opened.config.layers + 1) if opened.config.layers % stages == 0]
        raise UsageError(
            f"`--pp {pp}` does not divide the model's {opened.config.layers} layers",
            f"sizes that fit: {', '.join(fits)}",
        )


def _refuse_occupied(opened: ShardedCheckpoint, target: Path, place: Path, format: Target, *, force: bool) -> None:
    """Refuse a target that holds something, unless it may be replaced and is what it would be replaced by."""
    try:
        full, place = target.resolve(), place.resolve()
        # what a killed conversion left is hidden, and is nothing that anybody would miss
        occupied = full.is_dir() and any(not item.name.startswith(".") for item in full.iterdir())
        if full.is_file():
            raise OutputError(f"`{target}` is a file", "give a folder")
    except (OSError, ValueError) as error:
        raise unwritable(target, error, "") from error
    sources = {opened.root.resolve(), opened.path.resolve()}
    if full in sources or any(place in source.parents for source in sources):
        raise OutputError(f"`{target}` is the source itself, or holds it", "give another folder")
    if place == Path.cwd():
        raise OutputError(f"`{target}` is the working folder, which cannot be exchanged", "give another folder")
    if not occupied:
        return
    if not force:
        raise OutputError(f"`{target}` is not empty", "give a new folder, or `--force` to replace the checkpoint in it")
    try:
        found = locate(target)
    except MpevalError as error:
        raise OutputError(f"`{target}` holds nothing that `--force` replaces: {error.message}", error.hint) from error
    if (found.format == "huggingface") != (format == "huggingface"):
        raise OutputError(
            f"`{target}` holds a checkpoint of another kind: {found.format}", "remove it, or give a new folder"
        )


def _place(opened: ShardedCheckpoint, target: Path, format: Target) -> Path:
    """Return the folder to write: in Megatron's formats that of the iteration, `release` where there is none."""
    if format != "huggingface":
        return target / ("release" if opened.release else f"iter_{opened.iteration:07d}")
    return target


def _writer(
    format: Target, opened: ShardedCheckpoint, tp: int, pp: int
) -> Callable[[Path, StoredWeights, Callable[[int], None]], None]:
    """Return the function that writes a format's files into a folder."""
    iteration, divisor = opened.iteration, _divisor(opened)

    def fill(folder: Path, weights: StoredWeights, advance: Callable[[int], None]) -> None:
        if format == "huggingface":
            fill_hugging_face(folder, weights, advance=advance)
        elif format == "torch_dist":
            fill_dist(folder, weights, tp=tp, pp=pp, iteration=iteration, divisor=divisor, advance=advance)
        else:
            fill_megatron(
                folder, weights, tp=tp, pp=pp, iteration=iteration, naming=format, divisor=divisor, advance=advance
            )

    return fill


def _tokenizer_files(opened: ShardedCheckpoint) -> dict[str, Path]:
    """Return the files of a tokenizer beside the source, so that what is written can be evaluated as it is."""
    return files_beside((opened.root, opened.path))


def _copy(names: tuple[str, ...], opened: ShardedCheckpoint, to: Path) -> None:
    """Copy the source's tokenizer, over another one that is there: the weights written go with this one."""
    found = _tokenizer_files(opened)
    for name in names:
        write_atomically(to / name, found[name].read_bytes())
