"""Convert a checkpoint of any format and layout to any other, one tensor at a time, and prove that it is the same."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from mpeval import __version__
from mpeval.checkpoint.dist_write import fill_dist
from mpeval.checkpoint.examine import digests, refuse_different
from mpeval.checkpoint.hugging_write import fill_hugging_face, not_expressed
from mpeval.checkpoint.locate import locate
from mpeval.checkpoint.open import open_checkpoint
from mpeval.checkpoint.sharded import ShardedCheckpoint, combine_digests
from mpeval.checkpoint.weights import StoredWeights
from mpeval.checkpoint.write import fill_megatron, write_tracker
from mpeval.errors import MpevalError, OutputError, UsageError
from mpeval.folders import new_folder

Target = Literal["megatron", "megatron-core", "torch_dist", "huggingface"]
TARGETS = get_args(Target)
REPORT = "conversion.json"
"""What was read, written and left out, with every tensor's digest before and after; beside the weights."""
DIVISOR = 128
"""Megatron's default of `make_vocab_size_divisible_by`."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)
"""Copied along, so that what is written can be evaluated as it is."""


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
        ignored = Counter(entry.reason for entry in entries if not entry.used)
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
            "entries_ignored": dict(sorted(ignored.items())),
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
    opened = _with_vocab(open_checkpoint(source, overrides), vocab)
    _refuse_impossible(opened, format, tp, pp)
    _refuse_occupied(opened, target, format, force=force)
    opened.check()
    config = opened.config.changed("conversion", padded_vocab=_padded(opened, format, tp))
    weights = StoredWeights(opened, config, dtype)
    total = sum(tensor.nbytes for tensor in opened.tensors.values())
    fill = _writer(format, opened, tp, pp)
    place = _place(opened, target, format)
    with new_folder(place, replace=force) as folder, _bar(total, quiet) as advance:
        before = digests(opened, dtype)
        fill(folder, weights, advance)
        written = _with_vocab(open_checkpoint(folder), config.vocab)
        after = digests(written)
        refuse_different(before, after, str(target))
        done = Conversion(
            source=opened,
            target=target,
            format=format,
            before=before,
            after=after,
            copied=_copy_tokenizer(opened, folder if format == "huggingface" else target),
            notes=tuple(not_expressed(config)) if format == "huggingface" else (),
        )
        (folder / REPORT).write_text(json.dumps(done.document(), indent=1) + "\n", encoding="utf-8")
    if format != "huggingface":
        write_tracker(target, place)
    return done


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
    said = opened.args.get("make_vocab_size_divisible_by")
    return said if isinstance(said, int) and said > 0 else DIVISOR


def _refuse_impossible(opened: ShardedCheckpoint, format: Target, tp: int, pp: int) -> None:
    """Refuse sizes that cannot be, before anything is read or written."""
    if format == "huggingface" and (tp, pp) != (1, 1):
        raise UsageError("a Hugging Face folder has no ranks", "leave out `--tp` and `--pp`")
    if tp < 1 or pp < 1:
        raise UsageError(f"{tp} tensor ranks and {pp} stages are no layout", "give 1 or more")
    opened.config.check_ranks(tp)
    if opened.config.layers % pp:
        fits = [str(stages) for stages in range(1, opened.config.layers + 1) if opened.config.layers % stages == 0]
        raise UsageError(
            f"`--pp {pp}` does not divide the model's {opened.config.layers} layers",
            f"sizes that fit: {', '.join(fits)}",
        )


def _refuse_occupied(opened: ShardedCheckpoint, target: Path, format: Target, *, force: bool) -> None:
    """Refuse a target that holds something, unless it may be replaced and is what it would be replaced by."""
    if target.resolve() in {opened.root.resolve(), opened.path.resolve()}:
        raise OutputError(f"`{target}` is the source itself", "give another folder")
    if target.is_file():
        raise OutputError(f"`{target}` is a file", "give a folder")
    if not target.is_dir() or not any(target.iterdir()):
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
    if target.is_dir() and not any(target.iterdir()):
        target.rmdir()
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


@contextmanager
def _bar(total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    from mpeval.report import progress

    with progress("writing", total, shown=not quiet, unit="bytes") as advance:
        yield lambda count: advance(count, count)


def _copy_tokenizer(opened: ShardedCheckpoint, to: Path) -> tuple[str, ...]:
    """Copy the tokenizer that lies beside the source; what `to` already has is left alone."""
    copied = []
    for folder in dict.fromkeys((opened.root, opened.path)):
        for name in TOKENIZER_FILES:
            if (folder / name).is_file() and not (to / name).exists():
                shutil.copyfile(folder / name, to / name)
                copied.append(name)
    return tuple(copied)
