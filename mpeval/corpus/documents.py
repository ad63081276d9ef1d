"""The documents of files one by one, with the rows they come from, for commands without worker processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mpeval.corpus.encoding import texts_of
from mpeval.corpus.readers import Batch, Source, batches


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text, and the line of JSON that it stands in or, where it comes from something else, could stand in."""

    text: str
    line: str


def documents(source: Source, field: str, advance: Callable[[int], None]) -> Iterator[Document]:
    """Yield the documents of an input in order, calling `advance` with the bytes just read.

    Raises:
        DataError: it cannot be read, or a row has no text in `field`.
    """
    done = 0
    for batch in batches(source, field):
        texts = list(texts_of(batch, field))
        for text, line in zip(texts, _lines(batch, texts, field), strict=True):
            yield Document(text=text, line=line)
        advance(batch.done - done)
        done = batch.done


def _lines(batch: Batch, texts: list[str], field: str) -> list[str]:
    """Return the lines of a batch that are not blank, as they are, or make some."""
    if batch.lines is None:
        return [json.dumps({field: text}, ensure_ascii=False) for text in texts]
    every = batch.lines.decode("utf-8").removeprefix("\ufeff").split("\n")
    return [line.strip() for line in every if line and not line.isspace()]
