"""The overlap of whole corpora, in files or indexed datasets, with benchmarks by name: what `corpus overlap` does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpeval.corpus.documents import documents
from mpeval.corpus.indexed import IndexedDataset, files_of, prefix_of
from mpeval.corpus.overlap import Overlap, RowOverlap, mark_texts, overlap_of, table_of
from mpeval.corpus.readers import Source, find_source
from mpeval.corpus.streams import check_folder
from mpeval.corpus.words import BREAK
from mpeval.data import load_data
from mpeval.errors import TokenizerError, UsageError
from mpeval.folders import write_atomically
from mpeval.report import byte_progress
from mpeval.tasks.cards import load_card
from mpeval.tokenizer import END_OF_TEXT, Tokenizer, find_tokenizer

_DECODED = 256


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A corpus, and what it has of each benchmark."""

    corpus: tuple[str, ...]
    documents: int
    words: int
    length: int
    """Words in an n-gram."""
    overlaps: tuple[Overlap, ...]

    def document(self) -> dict[str, Any]:
        """Return all of it, but for the passages, as JSON has it."""
        return {
            "corpus": list(self.corpus),
            "documents": self.documents,
            "words": self.words,
            "overlaps": [_described(item) for item in self.overlaps],
        }


def measure(
    corpus: Sequence[str],
    tasks: Sequence[str],
    *,
    folder: Path | None,
    field: str,
    tokenizer: Path | None,
    length: int,
    samples: Path | None,
    allow_modified: bool,
    quiet: bool,
) -> Measured:
    """Read a corpus once and sum up its overlap with each task.

    Args:
        corpus: files, `datasets` ids, or prefixes of indexed datasets.
        tasks: names of cards.
        folder: where the benchmarks' data is; None asks `datasets`.
        field: the field of a row that holds the text.
        tokenizer: a folder with the tokenizer of the indexed datasets.
        length: words in an n-gram.
        samples: a file for every row with overlap.
        allow_modified: accept other data than published.
        quiet: show no progress.

    Raises:
        UsageError: an unknown task, or a tokenizer with nothing to decode.
        TokenizerError: an indexed dataset without its tokenizer.
        DataError: data that is missing, changed or malformed.
        OutputError: `samples` cannot be written.
    """
    decoder = _decoder(corpus, tokenizer)
    inputs = [IndexedDataset(source) if is_indexed(source) else find_source(source, field) for source in corpus]
    if samples is not None:
        check_folder(samples, "--samples")
    cards = [load_card(task) for task in dict.fromkeys(tasks)]
    tables = [table_of(card, load_data(card, folder, allow_modified=allow_modified), length) for card in cards]
    count = words = 0
    with byte_progress("reading", sum(map(_size, inputs)), shown=not quiet) as advance:
        for opened in inputs:
            read = mark_texts(tables, _texts(opened, field, decoder, advance))
            count, words = count + read[0], words + read[1]
    overlaps = tuple(overlap_of(table) for table in tables)
    if samples is not None:
        write_atomically(samples, "".join(_sample_lines(overlaps)))
    return Measured(corpus=tuple(corpus), documents=count, words=words, length=length, overlaps=overlaps)


def _size(opened: Source | IndexedDataset) -> int:
    return opened.tokens * opened.dtype.itemsize if isinstance(opened, IndexedDataset) else opened.size


def _texts(
    opened: Source | IndexedDataset, field: str, decoder: Tokenizer | None, advance: Callable[[int], None]
) -> Iterator[str]:
    """Yield the texts of a corpus, whatever holds them."""
    if isinstance(opened, Source):
        return (document.text for document in documents(opened, field, advance))
    assert decoder is not None
    return indexed_texts(opened, decoder, advance)


def _decoder(corpus: Sequence[str], folder: Path | None) -> Tokenizer | None:
    """Load the tokenizer that the indexed datasets among a corpus need."""
    indexed = [source for source in corpus if is_indexed(source)]
    if folder is None and indexed:
        raise TokenizerError(
            f"`{indexed[0]}` is an indexed dataset: ids without text", "give its tokenizer by `--tokenizer DIR`"
        )
    if folder is not None and not indexed:
        raise UsageError(
            "`--tokenizer` has no effect: no CORPUS is an indexed dataset", "leave it out, or give a PREFIX"
        )
    return find_tokenizer(folder, []) if folder is not None else None


def is_indexed(source: str) -> bool:
    """Say whether a corpus is an indexed dataset: its prefix, or one of its two files."""
    prefix = prefix_of(source)
    return prefix != Path(source) or (not prefix.is_file() and any(path.is_file() for path in files_of(prefix)))


def indexed_texts(dataset: IndexedDataset, tokenizer: Tokenizer, advance: Callable[[int], None]) -> Iterator[str]:
    """Yield the text of every document; `<|endoftext|>` inside becomes a `BREAK`.

    Raises:
        TokenizerError: an id is past the tokenizer's vocabulary.
    """
    batch: list[list[int]] = []
    for start, end in zip(dataset.documents[:-1], dataset.documents[1:], strict=True):
        ids = np.concatenate([np.empty(0, dataset.dtype), *dataset[int(start) : int(end)]])
        if len(ids) and int(ids.max()) >= tokenizer.size:
            raise TokenizerError(
                f"`{dataset.prefix}` has token {int(ids.max())}, the tokenizer in `{tokenizer.path}` only "
                f"{tokenizer.size}",
                "give the one that the dataset was made with by `--tokenizer DIR`",
            )
        batch.append(ids.tolist())
        advance(ids.nbytes)
        if len(batch) == _DECODED:
            yield from _decoded(batch, tokenizer)
            batch = []
    yield from _decoded(batch, tokenizer)


def _decoded(batch: list[list[int]], tokenizer: Tokenizer) -> Iterator[str]:
    for text in tokenizer.backend.decode_batch(batch, skip_special_tokens=False):
        yield text.replace(END_OF_TEXT, BREAK)


def _described(found: Overlap) -> dict[str, Any]:
    content = {name: value for name, value in asdict(found).items() if name != "rows_found"}
    return {
        **content,
        "flags": list(found.flags),
        "share": found.share,
        "distinct_share": found.distinct_share,
        "rows_found": len(found.rows_found),
        "worst": [_row(row) for row in found.worst(10)],
    }


def _row(row: RowOverlap) -> dict[str, Any]:
    return {"row": row.row, "ngrams": row.ngrams, "found": row.found, "share": row.share}


def _sample_lines(overlaps: Sequence[Overlap]) -> Iterator[str]:
    for found in overlaps:
        for row in found.rows_found:
            line = {"task": found.task, **_row(row), "passages": list(row.passages)}
            yield json.dumps(line, ensure_ascii=False) + "\n"
