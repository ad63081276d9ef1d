"""What a worker process of `preprocess` does: a batch of documents in, their token ids out, packed."""

from __future__ import annotations

import functools
import json
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mpeval.corpus.indexed import dtype_for
from mpeval.corpus.memo import Memo, cut_for
from mpeval.corpus.readers import LONGEST, Batch
from mpeval.corpus.sentences import sentences
from mpeval.errors import DataError, TokenizerError, shown
from mpeval.tokenizer import END_OF_TEXT, Tokenizer, find_tokenizer


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the ids of a document depend on, beside the document."""

    tokenizer: Path
    field: str = "text"
    split_sentences: bool = False
    append_eod: bool = False


@dataclass(frozen=True, kw_only=True)
class Packed:
    """The ids of some documents.

    Attributes:
        ids: all of them, one after another, as bytes of the corpus's dtype.
        lengths: int32 [sequences], tokens of each.
        ends: int64 [documents], the number of sequences up to the end of each.
        empty: documents without any token, which are left out.
    """

    ids: bytes
    lengths: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int64]
    empty: int


def end_of_document(tokenizer: Tokenizer) -> int:
    """Return the id that `--append-eod` appends.

    Raises:
        TokenizerError: the vocabulary has no end of text.
    """
    if tokenizer.backend.token_to_id(END_OF_TEXT) is None:
        raise TokenizerError(
            f"the tokenizer in `{tokenizer.path}` has no `{END_OF_TEXT}` token, which `--append-eod` appends",
            "leave `--append-eod` out: a BERT is trained without it; or give a GPT's tokenizer",
        )
    return tokenizer.end_of_text


class Encoder:
    """A tokenizer ready to encode batches."""

    def __init__(self, settings: Settings) -> None:
        """Load the tokenizer.

        Raises:
            TokenizerError: it cannot be read, or has no end of text to append.
        """
        tokenizer = find_tokenizer(settings.tokenizer, [])
        self.settings = settings
        self._backend = tokenizer.backend
        self._code = "H" if dtype_for(tokenizer.size).itemsize == 2 else "i"
        self._size = array(self._code).itemsize
        self._end = array(self._code, [end_of_document(tokenizer)]).tobytes() if settings.append_eod else b""
        self._cut = cut_for(tokenizer.backend)
        self._memo = Memo(tokenizer.backend, self._code)

    def encode(self, batch: Batch) -> Packed:
        """Tokenize a batch, adding no special tokens but the end of documents where it is asked for.

        Raises:
            DataError: a line is no JSON, or a row has no text.
        """
        sequences: list[bytes] = []
        ends: list[int] = []
        empty = 0
        for pieces in self._pieces(list(texts_of(batch, self.settings.field))):
            kept = [piece for piece in pieces if piece]
            if not kept:
                empty += 1
                continue
            kept[-1] += self._end
            sequences += kept
            ends.append(len(sequences))
        lengths = np.array([len(sequence) // self._size for sequence in sequences], np.int32)
        return Packed(ids=b"".join(sequences), lengths=lengths, ends=np.array(ends, np.int64), empty=empty)

    def _pieces(self, texts: list[str]) -> Iterator[list[bytes]]:
        """Give the ids of each sequence of each text; a text of white space alone has none."""
        split = sentences if self.settings.split_sentences else lambda text: [text] if text.strip() else []
        parts = [split(text) for text in texts]
        ids = self._ids([sequence for part in parts for sequence in part])
        for part in parts:
            yield [next(ids) for _ in part]

    def _ids(self, sequences: list[str]) -> Iterator[bytes]:
        if self._cut is None:
            for encoding in self._backend.encode_batch_fast(sequences, add_special_tokens=False):
                yield array(self._code, encoding.ids).tobytes()
            return
        for sequence in sequences:
            pieces = self._cut.of(sequence)
            yield b"".join(map(self._memo.__getitem__, [sequence] if pieces is None else pieces))


@functools.cache
def _encoder(settings: Settings) -> Encoder:
    return Encoder(settings)


def encode(settings: Settings, batch: Batch) -> Packed:
    """Tokenize a batch in a worker process, which loads the tokenizer for its first and keeps it.

    Raises:
        DataError: see `Encoder.encode`.
    """
    return _encoder(settings).encode(batch)


def begin_worker() -> None:
    """Make this process a worker: one thread, no answer to Ctrl-C, and an end when its parent ends."""
    import multiprocessing
    import signal
    import threading

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # a killed parent closes no queue, and this process would wait for work forever

    threading.Thread(target=follow, daemon=True).start()


def texts_of(batch: Batch, field: str) -> Iterator[str]:
    """Give the texts of a batch.

    Raises:
        DataError: a line is no JSON or no UTF-8, or a row has no text in `field`.
    """
    if batch.lines is not None:
        yield from _from_json(batch, batch.lines, field)
        return
    number = batch.first
    for text in batch.texts:
        if isinstance(text, bytes):
            yield _plain(_decoded(text, batch.source, number), first=number == 1)
            number += text.count(b"\n") + 1
        else:
            yield _checked(text, f"`{batch.source}` row {number}", field)
            number += 1


def _plain(text: str, *, first: bool) -> str:
    """Return the text of a text file without what belongs to the file: byte-order mark, carriage returns, last end."""
    return (text.removeprefix("\ufeff") if first else text).replace("\r\n", "\n").removesuffix("\n")


def _decoded(data: bytes, source: str, first: int) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = first + data.count(b"\n", 0, error.start)
        raise DataError(
            f"`{source}` line {number} is not UTF-8: {error.reason} (byte {data[error.start]:#x})",
            "convert the file: `iconv -f latin1 -t utf-8`",
        ) from error


def _from_json(batch: Batch, lines: bytes, field: str) -> Iterator[str]:
    text = _decoded(lines, batch.source, batch.first)
    if batch.first == 1:
        text = text.removeprefix("\ufeff")
    every = text.split("\n")
    for number, line in enumerate(every, start=batch.first):
        if not line or line.isspace():
            continue
        place = f"`{batch.source}` line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            cut = number == batch.first + len(every) - 1
            said = "is cut short" if cut else "is not JSON"
            raise DataError(f"{place} {said}: {error}", "each line is one JSON object; mend the line") from error
        if not isinstance(row, dict):
            raise DataError(
                f"{place} is {_kind(row)}, not a JSON object", f'a line is such as {{"{field}": "a document"}}'
            )
        if field not in row:
            found = ", ".join(f"`{shown(name)}`" for name in list(row)[:8]) or "none"
            raise DataError(f"{place} has no field `{field}`; its fields: {found}", "name the field by `--field`")
        yield _checked(row[field], place, field)


def _checked(text: Any, place: str, field: str) -> str:
    """Refuse what is no text, or none that a tokenizer takes."""
    if not isinstance(text, str):
        raise DataError(f"{place}: `{field}` is {_kind(text)}, not text", "name another field by `--field`, or mend it")
    if len(text) > LONGEST:
        raise DataError(f"{place}: a document of more than {LONGEST >> 20} MiB", "divide it into several rows")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            found = f"\\u{ord(text[error.start]):04x}"
            raise DataError(f"{place}: `{field}` holds half a character, `{found}`", "mend the text") from error
    return text


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else f"a {type(value).__name__}")
