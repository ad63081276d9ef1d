"""The commands on training text: corpus dedup, corpus overlap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpeval.cli_options import AllowOption, DataOption, JsonOption

if TYPE_CHECKING:
    from mpeval.corpus.clean import Cleaned
    from mpeval.corpus.dedup import Filter
    from mpeval.corpus.measure import Measured
    from mpeval.corpus.overlap import Overlap

corpus_app = typer.Typer(
    no_args_is_help=True,
    help="Filter training text, and measure how much of a benchmark it has.",
    rich_markup_mode=None,
)
FilesArg = Annotated[
    list[str], typer.Argument(metavar="FILE...", help="JSONL (plain, gz, xz, zst), text, parquet or a datasets id.")
]
FieldOption = Annotated[str, typer.Option("--field", help="Field of a row that holds the text.")]


@corpus_app.command()
def dedup(
    files: FilesArg,
    output: Annotated[
        Path, typer.Option("--output", help="File for the rows that stay: .jsonl, .jsonl.gz, .jsonl.xz or .jsonl.zst.")
    ],
    field: FieldOption = "text",
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="Jaccard similarity above which a document is a duplicate (default 0.7)."),
    ] = None,
    ngrams: Annotated[int | None, typer.Option("--ngrams", min=1, help="Words in a shingle (default 5).")] = None,
    permutations: Annotated[
        int | None, typer.Option("--permutations", min=2, help="Values in a MinHash signature (default 128).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of the signatures (default 1).")
    ] = None,
    keep_duplicates: Annotated[
        bool, typer.Option("--keep-duplicates", help="Compare nothing: drop short documents only.")
    ] = False,
    min_tokens: Annotated[
        int, typer.Option("--min-tokens", min=0, help="Length below which a document is dropped (0: none).")
    ] = 128,
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Folder with the tokenizer to measure by (default: count words).")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="JSON file for the figures and every document dropped, with why.")
    ] = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress and no table.")] = False,
) -> None:
    """Drop short documents and near-duplicates, as the Megatron-LM paper does: the first of each kind stays.

    mpeval corpus dedup part1.jsonl.zst part2.jsonl.zst --output clean.jsonl.zst --tokenizer TOKENIZER

    Only the short ones:  mpeval corpus dedup part1.jsonl --output long.jsonl --keep-duplicates

    Only duplicates:      mpeval corpus dedup part1.jsonl --output unlike.jsonl --min-tokens 0

    A document is a duplicate if the Jaccard similarity of its word n-grams to those of an earlier one that stays is
    above the threshold. MinHash signatures propose pairs, exact sets decide: nothing goes at or below the threshold; a
    pair above it is found with a chance of 95 % at least (0.8 at the default threshold: 99.9 %). A word is a run of
    letters and digits in lower case. Rows of JSONL stay as they are, other fields and order included; rows of other
    files become {"text": ...} (the name of --field).
    """
    from mpeval.corpus.clean import clean
    from mpeval.tokenizer import find_tokenizer

    cleaned = clean(
        files,
        output,
        _filter(threshold, ngrams, permutations, seed, min_tokens, keep_duplicates),
        field=field,
        tokenizer=find_tokenizer(tokenizer, []) if tokenizer is not None else None,
        report=report,
        quiet=quiet or as_json,
    )
    if as_json:
        typer.echo(json.dumps(cleaned.document(), indent=2))
    elif not quiet:
        _print_cleaned(cleaned)


def _filter(
    threshold: float | None,
    ngrams: int | None,
    permutations: int | None,
    seed: int | None,
    min_tokens: int,
    keep_duplicates: bool,
) -> Filter:
    """Return the settings of `dedup`, or refuse those that contradict each other."""
    from mpeval.corpus.dedup import Filter
    from mpeval.errors import UsageError

    given = {"threshold": threshold, "ngrams": ngrams, "permutations": permutations, "seed": seed}
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if keep_duplicates:
        if chosen:
            name = next(iter(chosen))
            raise UsageError(f"`--{name}` has no effect with `--keep-duplicates`", "leave one of the two out")
        if min_tokens == 0:
            raise UsageError("`--keep-duplicates` with `--min-tokens 0` drops nothing", "leave one of the two out")
        return Filter(minimum=min_tokens, threshold=None)
    if threshold is not None and not 0 < threshold < 1:
        raise UsageError(
            f"`--threshold {threshold:g}` is not between 0 and 1",
            "equal documents are duplicates at any threshold; `--keep-duplicates` keeps them all",
        )
    return Filter(minimum=min_tokens, **chosen)


def _print_cleaned(cleaned: Cleaned) -> None:
    from mpeval.report import line, table

    settings, unit = cleaned.settings, cleaned.unit
    named = {"short": f"too short (below {settings.minimum:,} {unit})"}
    rows = [
        [named.get(name, name), f"{documents:,}", f"{tokens:,}"]
        for name, (documents, tokens) in cleaned.figures().items()
    ]
    table("", ("", "documents", unit), rows, right=("documents", unit))
    if settings.threshold is not None:
        line(
            f"duplicates: Jaccard similarity of {settings.ngrams}-word shingles above {settings.threshold:g} to an "
            f"earlier document that stays; {cleaned.verdicts.compared:,} pairs compared"
        )
    line(f"wrote {cleaned.output}")


@corpus_app.command()
def overlap(
    corpus: Annotated[
        list[str],
        typer.Argument(
            metavar="CORPUS...", help="Files or ids as for `dedup`, or the PREFIX of an indexed dataset (.bin, .idx)."
        ),
    ],
    task: Annotated[list[str], typer.Option("--task", help="Benchmark, e.g. wikitext103; may be repeated.")],
    data: DataOption = None,
    field: FieldOption = "text",
    tokenizer: Annotated[
        Path | None, typer.Option("--tokenizer", help="Folder with the tokenizer of an indexed dataset.")
    ] = None,
    ngrams: Annotated[int, typer.Option("--ngrams", min=1, help="Words in an n-gram.")] = 8,
    samples: Annotated[
        Path | None,
        typer.Option("--samples", help="JSONL file for every row with overlap: its figures and the passages found."),
    ] = None,
    as_json: JsonOption = False,
    allow_modified_data: AllowOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no progress and no table.")] = False,
) -> None:
    """Count how many of a benchmark's word 8-grams stand in a corpus too.

    mpeval corpus overlap corpus.jsonl.zst --task wikitext103 --task lambada --data DATA

    mpeval corpus overlap PREFIX --tokenizer TOKENIZER --task lambada --data DATA

    The Megatron-LM paper reports at most 10.8 % for WikiText-103 and 1.4 % for LAMBADA. Words are runs of letters and
    digits in lower case, so punctuation and WikiText's ` @-@ ` do not matter; n-grams with an `<unk>` are left out, and
    none crosses from one row or document to the next.
    """
    from mpeval.corpus.measure import measure

    found = measure(
        corpus,
        task,
        folder=data,
        field=field,
        tokenizer=tokenizer,
        length=ngrams,
        samples=samples,
        allow_modified=allow_modified_data,
        quiet=quiet or as_json,
    )
    if as_json:
        typer.echo(json.dumps(found.document(), indent=2))
    elif not quiet:
        _print_overlaps(found)


def _print_overlaps(measured: Measured) -> None:
    from mpeval.report import line, table

    rows = [
        [
            found.task,
            f"{found.ngrams:,}",
            f"{found.found:,}",
            _percent(found.share),
            f"{found.distinct:,}",
            _percent(found.distinct_share),
            f"{len(found.rows_found):,} of {found.rows:,}",
            ", ".join(found.flags),
        ]
        for found in measured.overlaps
    ]
    columns = ("task", "n-grams", "found", "overlap", "distinct", "overlap of distinct", "rows with any", "flags")
    table(f"n-grams of {measured.length} words", columns, rows, right=columns[1:7])
    for found in measured.overlaps:
        _print_worst(found)
    line(f"corpus of {measured.documents:,} documents, {measured.words:,} words")


def _print_worst(found: Overlap) -> None:
    """Print the rows with most overlap, each with its longest passage."""
    from mpeval.report import table

    rows = [
        [f"{row.row:,}", f"{row.found:,} of {row.ngrams:,}", _percent(row.share), max(row.passages, key=len)[:200]]
        for row in found.worst(5)
    ]
    if rows:
        columns = ("row", "found", "overlap", "longest passage")
        table(f"{found.task}: rows with most", columns, rows, right=columns[:3])


def _percent(share: float) -> str:
    return f"{100 * share:.3f} %"
