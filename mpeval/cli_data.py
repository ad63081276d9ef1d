"""The command that makes training data: `preprocess`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpeval.cli_options import JsonOption

if TYPE_CHECKING:
    from mpeval.corpus.preprocess import Written


def preprocess(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...", help="JSONL, text or parquet files, or ids of `datasets` (org/name:config@split)."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", help="Prefix of the two files: PREFIX.bin and PREFIX.idx.")],
    tokenizer: Annotated[Path, typer.Option("--tokenizer", help="Folder with a GPT-2 BPE or a BERT WordPiece.")],
    field: Annotated[str, typer.Option("--field", help="Field or column that holds a document's text.")] = "text",
    split_sentences: Annotated[
        bool, typer.Option("--split-sentences", help="Make each sentence a sequence (BERT); English.")
    ] = False,
    append_eod: Annotated[
        bool, typer.Option("--append-eod", help="End each document with <|endoftext|> (GPT).")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", min=1, help="Processes that tokenize (default: one a core, fewer for small inputs)."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace a corpus, and drop what another unfinished run has left.")
    ] = False,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress and no summary.")] = False,
) -> None:
    """Tokenize text into the indexed dataset that Megatron and `mpeval pretrain` read.

    GPT:   mpeval preprocess corpus.jsonl.zst --output data/corpus --tokenizer DIR --append-eod

    BERT:  mpeval preprocess corpus.jsonl.zst --output data/corpus --tokenizer DIR --split-sentences

    JSONL (.jsonl, .json, .ndjson) and parquet have one document a row. A text file (.txt, .text, .md, .raw, .tokens)
    is one document, blank lines and all; a line <|endoftext|> separates several. JSONL and text may be packed by gzip,
    xz or zstd. Documents without text are left out and counted.

    A run that was killed leaves PREFIX.parts; the same command goes on from there and ends with the same bytes, any
    number of workers. Inputs that changed meanwhile, and all after them, are read again; other options are refused.
    """
    from mpeval.corpus.encoding import Settings
    from mpeval.corpus.preprocess import Options
    from mpeval.corpus.preprocess import preprocess as run

    settings = Settings(tokenizer=tokenizer, field=field, split_sentences=split_sentences, append_eod=append_eod)
    written = run(
        Options(
            inputs=tuple(inputs),
            output=output,
            settings=settings,
            workers=workers,
            force=force,
            quiet=quiet,
        )
    )
    if as_json:
        typer.echo(json.dumps(_content(written), indent=2))
    elif not quiet:
        _summary(written)


def _content(written: Written) -> dict[str, Any]:
    """Return everything that the summary says."""
    from dataclasses import asdict

    from mpeval.corpus.indexed import IndexedDataset

    return {
        "prefix": str(written.prefix),
        "dtype": str(written.dtype),
        **asdict(written.counts),
        "resumed_tokens": written.resumed.tokens,
        "seconds": written.seconds,
        "tokens_per_second": written.rate,
        "digest": IndexedDataset(written.prefix).digest,
    }


def _summary(written: Written) -> None:
    """Print what was written, and what a person should know of it."""
    from mpeval.report import line

    counts = written.counts
    line(f"wrote `{written.prefix}.bin` and `{written.prefix}.idx` ({written.dtype})")
    said = f"{counts.documents:,} documents, {counts.sequences:,} sequences, {counts.tokens:,} tokens"
    line(f"{said}; {counts.empty:,} empty documents skipped; {written.rate:,.0f} tokens/s")
    if written.resumed.documents:
        line(f"{written.resumed.documents:,} of the documents were there from a run that was stopped")
    if counts.documents == 1:
        line("one document cannot be divided into train, valid and test; a line <|endoftext|> separates documents")
