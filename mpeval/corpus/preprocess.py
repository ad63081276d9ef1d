"""From text to Megatron's indexed dataset: one process reads and writes, as many as there are cores tokenize."""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpeval.corpus.encoding import Encoder, Packed, Settings, begin_worker, encode, end_of_document
from mpeval.corpus.indexed import dtype_for, files_of, prefix_of
from mpeval.corpus.readers import Batch, Source, batches, find_source
from mpeval.corpus.unfinished import Counts, Unfinished
from mpeval.errors import DataError, LaunchError, OutputError, UsageError
from mpeval.tokenizer import Tokenizer, find_tokenizer

AHEAD = 3
"""Batches under way for each worker: what bounds memory, and keeps workers busy while one batch takes longer."""

WORTH = 2 << 20
"""Bytes of input that take about as long as one more process takes to start."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What `mpeval preprocess` was asked for."""

    inputs: tuple[str, ...]
    output: Path
    settings: Settings
    workers: int | None = None
    force: bool = False
    quiet: bool = False


@dataclass(frozen=True, kw_only=True)
class Written:
    """What became of it; `seconds` and `rate` (tokens per second) are of this run, `resumed` of earlier ones."""

    prefix: Path
    dtype: np.dtype[Any]
    counts: Counts
    resumed: Counts
    seconds: float

    @property
    def rate(self) -> float:
        """Tokens per second of this run."""
        return (self.counts.tokens - self.resumed.tokens) / max(self.seconds, 1e-9)


def preprocess(options: Options) -> Written:
    """Tokenize the documents of every input, in order, into `OUTPUT.bin` and `OUTPUT.idx`.

    The result is the same whatever the number of workers and however often the run was killed and repeated.

    Raises:
        DataError: an input cannot be found or read, or holds no document.
        TokenizerError: the tokenizer cannot be read, or has no end of text to append.
        OutputError: the output is there already, or cannot be written.
        LaunchError: a worker died.
    """
    began = time.monotonic()
    settings = options.settings
    tokenizer = find_tokenizer(settings.tokenizer, [])
    if settings.append_eod:
        end_of_document(tokenizer)
    sources = _sources(options)
    prefix = prefix_of(options.output)
    dtype = dtype_for(tokenizer.size)
    _check_free(prefix, options.force)
    identities = [source.identity for source in sources]
    unfinished = Unfinished(prefix, dtype, _identity(tokenizer, settings), identities, force=options.force)
    with closing(unfinished):
        resumed = unfinished.counts
        _fill(unfinished, sources, options)
        if not unfinished.counts.documents:
            unfinished.remove()
            raise DataError(
                f"there is no text in the {len(sources)} inputs: {unfinished.counts.empty} empty documents",
                f"look at `{sources[0].name}`, and at `--field {settings.field}`",
            )
        unfinished.finish()
    seconds = time.monotonic() - began
    return Written(prefix=prefix, dtype=dtype, counts=unfinished.counts, resumed=resumed, seconds=seconds)


def _sources(options: Options) -> list[Source]:
    """Look at every input before any is read."""
    if not options.inputs:
        raise UsageError("no input is given", "name JSONL, text or parquet files, or an id of `datasets`")
    sources = [find_source(given, options.settings.field) for given in options.inputs]
    seen: dict[str, str] = {}
    for source in sources:
        if source.identity in seen:
            raise UsageError(f"`{source.name}` is given twice", "a corpus is repeated by training for more steps")
        seen[source.identity] = source.name
    return sources


def _identity(tokenizer: Tokenizer, settings: Settings) -> dict[str, str]:
    """Return what ids depend on, beside the inputs, by the name of the option."""
    return {
        "--tokenizer": tokenizer.digest,
        "--field": settings.field,
        "--split-sentences": str(settings.split_sentences),
        "--append-eod": str(settings.append_eod),
    }


def _check_free(prefix: Path, force: bool) -> None:
    """Refuse to replace a corpus; ids without an index may be what a killed run of this command has left."""
    if not prefix.name:
        raise UsageError(f"`--output {prefix}` names no files", "give a prefix, such as `data/corpus`")
    index, data = files_of(prefix)
    left = (prefix.with_name(f"{prefix.name}.parts") / "state.json").is_file()
    there = index if index.exists() else data if data.exists() and not left else None
    if there is not None and not force:
        raise OutputError(
            f"`{there}` is already there", "give another prefix by `--output`, or replace it by `--force`"
        )


def _fill(unfinished: Unfinished, sources: list[Source], options: Options) -> None:
    """Write what is not written yet."""
    from mpeval.report import progress

    began, before = time.monotonic(), unfinished.counts.tokens
    read = [0] * len(sources)
    for number in range(unfinished.inputs):
        read[number] = sources[number].size
    total = sum(source.size for source in sources)
    workers = options.workers or min(os.cpu_count() or 1, 1 + total // WORTH)
    shown = not options.quiet
    todo = _todo(unfinished, sources, options.settings.field)
    with (
        progress("tokenizing", total, done=sum(read), shown=shown, unit="bytes") as advance,
        closing(encoded(todo, options.settings, workers)) as results,
    ):
        for (number, batch), packed in results:
            unfinished.add(packed, number)
            rate = (unfinished.counts.tokens - before) / (time.monotonic() - began)
            advance(batch.done - read[number], batch.done - read[number], f"{rate:,.0f} tokens/s")
            read[number] = batch.done


def _todo(unfinished: Unfinished, sources: list[Source], field: str) -> Iterator[tuple[int, Batch]]:
    """Give the batches that are not written yet, each with the number of its input."""
    first, skipped = unfinished.inputs, unfinished.batches
    for number, source in enumerate(sources[first:], start=first):
        rest = itertools.islice(batches(source, field), skipped if number == first else 0, None)
        yield from ((number, batch) for batch in rest)


Numbered = tuple[int, Batch]


def encoded(todo: Iterable[Numbered], settings: Settings, workers: int) -> Generator[tuple[Numbered, Packed]]:
    """Tokenize batches in `workers` processes (1: in this one) and give them back in order.

    Raises:
        LaunchError: a worker died.
        DataError: a batch holds something else than texts.
    """
    if workers == 1:
        encoder = Encoder(settings)
        with _one_thread():
            yield from ((each, encoder.encode(each[1])) for each in todo)
        return
    from concurrent.futures import Future
    from concurrent.futures.process import BrokenProcessPool

    waiting: deque[tuple[Numbered, Future[Packed]]] = deque()
    with _pool(workers) as pool:
        try:
            for each in todo:
                waiting.append((each, pool.submit(encode, settings, each[1])))
                if len(waiting) > AHEAD * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        except BrokenProcessPool as error:
            raise LaunchError(
                "a tokenizing process died, as happens when memory runs out",
                "repeat the command with fewer `--workers`: it goes on where it stopped",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _pool(workers: int) -> Any:
    """Return a pool of processes that start from a server with the imports done, where there can be one."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload(["__main__", "mpeval.corpus.encoding"])
    return ProcessPoolExecutor(workers, mp_context=context, initializer=begin_worker)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep `tokenizers` to the thread that calls it."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
