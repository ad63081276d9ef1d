"""Corpus files without their short and near-duplicate documents: what `corpus dedup` does."""

from __future__ import annotations

import bisect
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpeval.corpus.dedup import Filter, Verdicts, bands, judge
from mpeval.corpus.documents import Document, documents
from mpeval.corpus.readers import Source, find_source
from mpeval.corpus.streams import check_folder, check_new, new_stream
from mpeval.errors import DataError
from mpeval.folders import unwritable, write_atomically
from mpeval.report import byte_progress
from mpeval.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """What became of the documents of some files."""

    files: tuple[str, ...]
    counts: tuple[int, ...]
    """Documents of each file."""
    output: Path
    settings: Filter
    unit: str
    """What lengths are counted in: tokens or words."""
    verdicts: Verdicts

    def figures(self) -> dict[str, tuple[int, int]]:
        """Return documents and their tokens: read, short, duplicates, kept."""
        tokens, short, kept = self.verdicts.tokens, self.verdicts.short, self.verdicts.kept
        parts = {"read": np.ones(len(kept), dtype=np.bool_), "short": short, "duplicates": ~kept & ~short, "kept": kept}
        return {name: (int(part.sum()), int(tokens[part].sum())) for name, part in parts.items()}

    def document(self, *, dropped: bool = False) -> dict[str, Any]:
        """Return the figures as JSON has them; with `dropped`, also which documents went and why."""
        figures = self.figures()
        content: dict[str, Any] = {
            "files": [{"file": file, "documents": count} for file, count in zip(self.files, self.counts, strict=True)],
            "output": str(self.output),
            "settings": asdict(self.settings) | {"unit": self.unit},
            "documents": {name: found[0] for name, found in figures.items()},
            self.unit: {name: found[1] for name, found in figures.items()},
            "compared": self.verdicts.compared,
        }
        if dropped:
            content["dropped"] = list(self._dropped())
        return content

    def _dropped(self) -> Iterator[dict[str, Any]]:
        """Yield where each document was that went, in order; rows are counted from 1 in each file."""
        duplicates = {item.document: item for item in self.verdicts.duplicates}
        ends = list(itertools.accumulate(self.counts))
        for number in np.flatnonzero(~self.verdicts.kept).tolist():
            why: dict[str, Any] = {self.unit: int(self.verdicts.tokens[number])}
            if number in duplicates:
                item = duplicates[number]
                why = {"of": self._place(item.of, ends), "jaccard": item.jaccard}
            yield self._place(number, ends) | why

    def _place(self, number: int, ends: list[int]) -> dict[str, Any]:
        file = bisect.bisect_right(ends, number)
        return {"file": self.files[file], "row": number + 1 - (ends[file] - self.counts[file])}


def clean(
    files: Sequence[str],
    output: Path,
    settings: Filter,
    *,
    field: str = "text",
    tokenizer: Tokenizer | None = None,
    report: Path | None = None,
    quiet: bool = False,
) -> Cleaned:
    """Write the rows that stay to a new file, in order and unchanged; rows of JSONL keep all their fields.

    The inputs are read twice.  Memory holds about 1 KB a document; a temporary file beside the output holds 8 bytes
    per distinct shingle, up to twice the text.

    Args:
        files: JSONL, text or parquet files, or ids of `datasets`.
        output: the new file.
        settings: what is dropped.
        field: the field of a row that holds the text.
        tokenizer: what lengths are counted with; None counts words.
        report: a JSON file for the figures and all that went.
        quiet: show no progress.

    Raises:
        UsageError: no way to write is known for the output's name, or too few permutations for the threshold.
        DataError: an input cannot be read, or nothing would stay.
        OutputError: the output is there already, or cannot be written.
    """
    check_new(output)
    if report is not None:
        check_folder(report, "--report")
    if settings.threshold is not None:
        bands(settings.threshold, settings.permutations)
    sources = [find_source(file, field) for file in files]
    counts = [0] * len(sources)
    with byte_progress("comparing", sum(source.size for source in sources), shown=not quiet) as advance:
        texts = (document.text for document in _counted(sources, field, advance, counts))
        verdicts = _judge(texts, settings, output, tokenizer)
    if not verdicts.kept.any():
        raise DataError(
            f"none of {len(verdicts.kept):,} documents would be kept: {int(verdicts.short.sum()):,} are too short",
            "give a lower `--min-tokens`",
        )
    with byte_progress("writing", sum(source.size for source in sources), shown=not quiet) as advance:
        _write(sources, field, verdicts.kept, output, advance)
    cleaned = Cleaned(
        files=tuple(files),
        counts=tuple(counts),
        output=output,
        settings=settings,
        unit="tokens" if tokenizer is not None else "words",
        verdicts=verdicts,
    )
    if report is not None:
        write_atomically(report, json.dumps(cleaned.document(dropped=True), indent=1) + "\n")
    return cleaned


def _judge(texts: Iterator[str], settings: Filter, output: Path, tokenizer: Tokenizer | None) -> Verdicts:
    """Judge with the shingles in a nameless file on the output's disk."""

    def count(batch: list[str]) -> list[int]:
        assert tokenizer is not None
        return [len(ids) for ids in tokenizer.encode_batch(batch)]

    try:
        with tempfile.TemporaryFile(dir=output.parent) as spool:
            return judge(texts, settings, spool, count if tokenizer is not None else None)
    except OSError as error:
        raise unwritable(output, error, kind="file") from error


def _counted(
    sources: Sequence[Source], field: str, advance: Callable[[int], None], counts: list[int]
) -> Iterator[Document]:
    """Yield the documents of all sources, and count those of each."""
    for number, source in enumerate(sources):
        for document in documents(source, field, advance):
            counts[number] += 1
            yield document


def _write(
    sources: Sequence[Source], field: str, kept: np.ndarray, output: Path, advance: Callable[[int], None]
) -> None:
    """Write the rows that stay, one a line."""
    every = itertools.chain.from_iterable(documents(source, field, advance) for source in sources)
    with new_stream(output) as stream:
        # a file that has other rows by now is refused by its reader, but only at its end
        for number, document in enumerate(every):
            if number < len(kept) and kept[number]:
                stream.write(document.line.encode("utf-8") + b"\n")
