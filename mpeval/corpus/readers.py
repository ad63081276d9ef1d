"""Documents out of JSONL, text and parquet files and `datasets`, in batches that worker processes decode.

Every kind is read as a stream; the same input gives the same batches each time, so that a run can go on after so many.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mpeval.corpus.compressed import blocks, first_bytes
from mpeval.errors import DataError, suggest

Kind = Literal["jsonl", "text", "parquet", "hub"]
ENDINGS: dict[str, Kind] = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".raw": "text",
    ".tokens": "text",
    ".parquet": "parquet",
}
COMPRESSED = {".gz", ".xz", ".zst"}
ROWS = 1024
"""Rows of a table that are read at a time, fewer where they are long."""
BATCH = 1 << 19
"""Bytes of text after which a batch ends."""
AT_ONCE = 16 << 20
"""Bytes of these rows."""
LONGEST = 64 << 20
"""Bytes that one document may have: its tokens take some thirty times as much memory while they are made."""
SEPARATOR = re.compile(rb"^[ \t]*<\|endoftext\|>[ \t]*\r?\n", re.MULTILINE)
"""The line between the documents of a text file."""
HUB = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?(@(?P<split>[\w.+:%\[\]-]+))?")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Documents of one input: whole lines of JSON (`lines`), or texts, where None is a row without one.

    Attributes:
        source: the input's name, for messages.
        first: number of the first line or row, from 1.
        done: how many of the input's `Source.size` are read with this batch.
    """

    source: str
    first: int
    done: int
    lines: bytes | None = None
    texts: tuple[str | bytes | None, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input.

    Attributes:
        name: as it was given.
        size: bytes to read, for progress.
        identity: what differs if its content does: name, size and time of a file, fingerprint of a data set.
        table: the rows of a `hub` source.
    """

    name: str
    kind: Kind
    size: int
    identity: str
    table: Any = field(default=None, repr=False, compare=False)


def find_source(given: str, field: str) -> Source:
    """Find out what an input is: a file, or else an id of `datasets` such as `org/name:config@split`.

    Raises:
        DataError: it is neither, or of a kind that is not read.
    """
    path = Path(given)
    if path.is_file():
        kind = _kind(path)
        return Source(name=given, kind=kind, size=path.stat().st_size, identity=identity_of(path))
    if path.exists():
        inside = ", ".join(f"`{item}`" for item in sorted(path.iterdir())[:6]) if path.is_dir() else ""
        what = "a folder" if path.is_dir() else "no regular file"
        raise DataError(f"`{given}` is {what}", f"name its files: {inside}" if inside else "give a file")
    match = HUB.fullmatch(given)
    if match and not path.parent.exists() and path.suffix not in {*ENDINGS, *COMPRESSED}:
        return _hub(given, match["id"], match["config"], match["split"] or "train", field)
    raise _absent(path)


def identity_of(path: Path) -> str:
    """Return the name, size and time of change of a file."""
    known = path.stat()
    return f"{path.resolve()}, {known.st_size} bytes of {known.st_mtime_ns}"


def _absent(path: Path) -> DataError:
    beside = [item.name for item in path.parent.iterdir() if item.is_file()] if path.parent.is_dir() else []
    if not path.parent.is_dir():
        hint = f"there is no folder `{path.parent}` either; give files, or an id of `datasets` such as `org/name@train`"
    elif not beside:
        hint = f"`{path.parent}` holds no files"
    else:
        hint = suggest(path.name, sorted(beside)[:200])
    return DataError(f"no such file: `{path}`", hint)


def _kind(path: Path) -> Kind:
    start = first_bytes(path)
    if start.startswith(b"PAR1"):
        return "parquet"
    if not start:
        raise DataError(f"`{path}` is empty", "leave it out, or get the file again")
    name = path.with_suffix("") if path.suffix.lower() in COMPRESSED else path
    kind = ENDINGS.get(name.suffix.lower())
    if kind is None:
        known = ", ".join(f"`{ending}`" for ending in ENDINGS)
        raise DataError(
            f"`{path}` is of no known kind: its name ends with `{name.suffix or name.name}`",
            f"rename it if it is one of {known} (each also with .gz, .xz or .zst)",
        )
    if kind == "parquet":
        raise DataError(f"`{path}` is no parquet file: it begins with {start[:4]!r}", "get the file again")
    if kind == "jsonl" and start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
        raise DataError(f"`{path}` is one JSON array, not JSON lines", "write one row a line: `jq -c '.[]'`")
    return kind


def _hub(given: str, name: str, config: str | None, split: str, field: str) -> Source:
    """Fetch a data set (or take it from the cache of `datasets`)."""
    import sys

    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # datasets raises many kinds for an unreachable or unknown source; the cause is kept
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"no file `{given}`, and `datasets` cannot get it: {first}",
            "check the spelling (`org/name:config@split`) and the connection, or give files",
        ) from error
    if field not in table.column_names:
        raise _no_column(given, field, table.column_names)
    table = table.select_columns([field])
    identity = f"{given}, {len(table)} rows, fingerprint {table._fingerprint}"
    return Source(name=given, kind="hub", size=max(1, table.data.nbytes), identity=identity, table=table)


def _no_column(name: str, field: str, found: list[str]) -> DataError:
    columns = ", ".join(f"`{column}`" for column in found)
    return DataError(f"`{name}` has no column `{field}`: it has {columns}", "name the column by `--field`")


def batches(source: Source, field: str) -> Iterator[Batch]:
    """Give the documents of an input in order.

    Raises:
        DataError: it cannot be read, or a document is longer than `LONGEST`.
    """
    reader = {"jsonl": _jsonl, "text": _text, "parquet": _parquet, "hub": _rows_of_hub}[source.kind]
    yield from reader(source, field)
    if source.kind != "hub" and identity_of(Path(source.name)) != source.identity:
        raise DataError(f"`{source.name}` changed while it was read", "begin again when nothing writes to it")


def _too_long(source: Source, line: int) -> DataError:
    return DataError(
        f"`{source.name}` line {line}: a document of more than {LONGEST >> 20} MiB",
        "divide it: a line `<|endoftext|>` separates documents of a text file"
        if source.kind == "text"
        else "divide it into several rows",
    )


def _jsonl(source: Source, _: str) -> Iterator[Batch]:
    """Cut at line ends only; nothing is parsed here."""
    first, done, pending = 1, 0, bytearray()
    for block, done in blocks(Path(source.name)):
        end = block.rfind(b"\n") + 1
        pending += block[:end]
        if len(pending) >= BATCH and end:
            yield Batch(source=source.name, first=first, done=done, lines=bytes(pending))
            first += pending.count(b"\n")
            pending.clear()
        pending += block[end:]
        if len(pending) > LONGEST + BATCH:
            raise _too_long(source, first + pending.count(b"\n"))
    if pending:
        yield Batch(source=source.name, first=first, done=done, lines=bytes(pending))


def _text(source: Source, _: str) -> Iterator[Batch]:
    """Give a whole file as one document, or each stretch between separating lines."""
    first, begun, done, pending, texts = 1, 1, 0, bytearray(), list[bytes]()
    for block, done in blocks(Path(source.name)):
        # a separator may lie across the border of two blocks, so the last line that was seen is looked at again
        begin = pending.rfind(b"\n") + 1
        pending += block
        start = 0
        for match in SEPARATOR.finditer(pending, begin):
            texts.append(bytes(pending[start : match.start()]))
            start = match.end()
        begun += pending.count(b"\n", 0, start)
        del pending[:start]
        if len(pending) > LONGEST:
            raise _too_long(source, begun)
        if sum(map(len, texts)) >= BATCH:
            yield Batch(source=source.name, first=first, done=done, texts=tuple(texts))
            first = begun
            texts = []
    # the last line may be a separator without a line end, and nothing after the last separator is no document
    last = SEPARATOR.search(pending + b"\n", pending.rfind(b"\n") + 1)
    rest = bytes(pending[: last.start()] if last else pending)
    if last or rest.strip() or begun == 1:
        texts.append(rest)
    if texts:
        yield Batch(source=source.name, first=first, done=done, texts=tuple(texts))


def _parquet(source: Source, field: str) -> Iterator[Batch]:
    """Read one column, some rows at a time."""
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(source.name) as file:
            names = file.schema_arrow.names
            if field not in names:
                raise _no_column(source.name, field, names)
            known, seen = file.metadata, 0
            size = sum(known.row_group(number).total_byte_size for number in range(known.num_row_groups))
            for table in file.iter_batches(batch_size=_rows_at_once(known.num_rows, size), columns=[field]):
                yield from _texts(source, table.column(0).to_pylist(), seen, known.num_rows)
                seen += len(table)
    except (pyarrow.ArrowException, OSError) as error:
        said = str(error).splitlines()[0]
        raise DataError(f"`{source.name}` cannot be read as parquet: {said}", "get the file again") from error


def _rows_of_hub(source: Source, field: str) -> Iterator[Batch]:
    rows = len(source.table)
    step = _rows_at_once(rows, source.size)
    for start in range(0, rows, step):
        yield from _texts(source, source.table[start : start + step][field], start, rows)


def _rows_at_once(rows: int, size: int) -> int:
    """Return how many of `rows` to read at a time, `size` bytes being all of them."""
    return max(1, min(ROWS, rows * AT_ONCE // max(1, size)))


def _texts(source: Source, texts: list[Any], seen: int, rows: int) -> Iterator[Batch]:
    """Divide some of all `rows` into batches, `seen` having been before them."""
    start = size = 0
    for end, text in enumerate(texts, start=1):
        size += len(text) if isinstance(text, str) else 0
        if size >= BATCH or end == len(texts):
            done = source.size * (seen + end) // rows
            yield Batch(source=source.name, first=seen + start + 1, done=done, texts=tuple(texts[start:end]))
            start, size = end, 0
