"""Megatron's indexed dataset: token ids in `PREFIX.bin`, where each sequence and document lies in `PREFIX.idx`.

The format is MMIDIDX, version 1, little-endian: a header of 34 bytes (9 of magic, version u64, dtype code u8, number
of sequences u64, number of document boundaries u64), then int32 lengths, int64 byte offsets, int64 document
boundaries and, for multimodal data, int8 modes.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import IO, Any, overload

import numpy as np

from mpeval.errors import DataError, OutputError
from mpeval.folders import unwritable

MAGIC = b"MMIDIDX\x00\x00"
LEGACY = b"TNTIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES: dict[int, str] = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}
CHUNK = 1 << 20
"""Values handled at a time when a file is written, so that one of any size passes through little memory."""
_AGAIN = "the file is damaged or cut short; copy it again, or make it again with `mpeval preprocess`"
Ids = np.ndarray[Any, Any]


def dtype_for(vocab: int) -> np.dtype[Any]:
    """Return the dtype that Megatron stores ids of a vocabulary in: uint16 below 65,500 tokens, else int32."""
    return np.dtype("<u2" if vocab < 65500 else "<i4")


def prefix_of(path: str | Path) -> Path:
    """Return the prefix that a person meant by it, or by either of its two files."""
    path = Path(path)
    return path.with_name(path.name[:-4]) if path.suffix in {".bin", ".idx"} else path


class IndexedDataset:
    """Sequences of token ids on disk, memory-mapped: `dataset[i]` is a view of the file.

    Attributes:
        lengths: int32 [sequences], tokens of each.
        pointers: int64 [sequences], where each begins in the `.bin` file, in bytes.
        documents: int64 [documents + 1], the first sequence of each document, and the number of sequences last.
        modes: int8 [sequences] of multimodal data, else None.
    """

    def __init__(self, prefix: str | Path) -> None:
        """Map both files and check that they fit each other.

        Raises:
            DataError: a file is missing, damaged, or of another format.
        """
        self.prefix = prefix_of(prefix)
        index, data = _existing(self.prefix)
        raw = np.asarray(np.memmap(index, dtype=np.uint8, mode="r") if index.stat().st_size else np.zeros(0, np.uint8))
        sequences, boundaries, self.dtype = _header(raw, index)
        ends = np.cumsum([HEADER.size, 4 * sequences, 8 * sequences, 8 * boundaries]).tolist()
        if len(raw) not in {ends[-1], ends[-1] + sequences}:
            raise DataError(f"`{index}` has {len(raw):,} bytes, its header says {ends[-1]:,}", _AGAIN)
        self.lengths: Ids = raw[ends[0] : ends[1]].view("<i4")
        self.pointers: Ids = raw[ends[1] : ends[2]].view("<i8")
        self.documents: Ids = raw[ends[2] : ends[3]].view("<i8")
        self.modes: Ids | None = raw[ends[3] :].view("i1") if len(raw) > ends[3] else None
        self._check(index, data)
        empty = np.zeros(0, self.dtype)
        # plain arrays: slicing a memmap object itself costs ten times as much
        self._ids: Ids = np.asarray(np.memmap(data, dtype=self.dtype, mode="r")) if data.stat().st_size else empty
        self._raw = raw

    def _check(self, index: Path, data: Path) -> None:
        size = self.dtype.itemsize
        expected = np.cumsum(self.lengths, dtype=np.int64) * size
        starts = np.concatenate([[0], expected[:-1]]) if len(expected) else expected
        if np.any(self.lengths < 0) or not np.array_equal(starts, self.pointers):
            raise DataError(f"`{index}` has offsets that are not the running sum of its lengths", _AGAIN)
        boundaries = self.documents
        ordered = len(boundaries) > 0 and boundaries[0] == 0 and boundaries[-1] == len(self)
        if not ordered or np.any(np.diff(boundaries) < 0):
            raise DataError(f"`{index}` has document boundaries that do not run from 0 to {len(self)}", _AGAIN)
        total = int(expected[-1]) if len(expected) else 0
        if data.stat().st_size != total:
            raise DataError(f"`{data}` has {data.stat().st_size:,} bytes, its index says {total:,}", _AGAIN)

    @property
    def tokens(self) -> int:
        """Number of all token ids."""
        return len(self._ids)

    @cached_property
    def digest(self) -> str:
        """`sha256:...` of the index: what sample indices are made from."""
        return "sha256:" + hashlib.sha256(self._raw.data).hexdigest()

    def __len__(self) -> int:
        """Return the number of sequences."""
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Ids: ...
    @overload
    def __getitem__(self, index: slice) -> list[Ids]: ...
    def __getitem__(self, index: int | slice) -> Ids | list[Ids]:
        """Return one sequence, or a list of them, without copying."""
        if isinstance(index, slice):
            return [self.get(number) for number in range(*index.indices(len(self)))]
        return self.get(index)

    def get(self, index: int, offset: int = 0, length: int | None = None) -> Ids:
        """Return `length` ids (default: all that are left) of sequence `index` from `offset` on, without copying."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"sequence {index} of {len(self)}")
        size = int(self.lengths[index])
        begin = int(self.pointers[index]) // self.dtype.itemsize
        end = size if length is None else offset + length
        if not 0 <= offset <= end <= size:
            raise IndexError(f"tokens {offset} to {end} of {size}")
        return self._ids[begin + offset : begin + end]

    def write(self, prefix: str | Path) -> None:
        """Write the dataset again under another prefix: the same bytes."""
        index, data = files_of(prefix_of(prefix))
        temporary = temporary_of(data)
        try:
            data.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                for piece in _pieces(self._ids, self.dtype):
                    file.write(piece)
                sync(file)
            put_in_place(temporary, data, index, index_bytes(self.dtype, self.lengths, self.documents, self.modes))
        except OSError as error:
            raise unwritable(data, error) from error
        finally:
            discard(temporary)


def files_of(prefix: Path) -> tuple[Path, Path]:
    """Return the paths of the index and of the ids."""
    return prefix.with_name(f"{prefix.name}.idx"), prefix.with_name(f"{prefix.name}.bin")


def _existing(prefix: Path) -> tuple[Path, Path]:
    """Return both files of a prefix."""
    index, data = files_of(prefix)
    for path, other in ((index, data), (data, index)):
        if not path.is_file():
            beside = f"`{other.name}` is there without it" if other.is_file() else _neighbours(prefix)
            raise DataError(f"no indexed dataset `{prefix}`: `{path}` does not exist", beside)
    return index, data


def _neighbours(prefix: Path) -> str:
    folder = prefix if prefix.is_dir() else prefix.parent
    found = sorted(path.stem for path in folder.glob("*.idx")) if folder.is_dir() else []
    if found:
        return f"`{folder}` holds: {', '.join(f'`{folder / name}`' for name in found[:6])}"
    return "make one with `mpeval preprocess FILE --output PREFIX --tokenizer DIR`"


def _header(raw: Ids, path: Path) -> tuple[int, int, np.dtype[Any]]:
    """Return the numbers of sequences and document boundaries, and the dtype of ids."""
    head = raw[: HEADER.size].tobytes()
    if head.startswith(LEGACY):
        raise DataError(
            f"`{path}` is of the format before MMIDIDX (`--dataset-impl lazy` or `cached`)",
            "make it again with `mpeval preprocess`, or by Megatron with `--dataset-impl mmap`",
        )
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise DataError(f"`{path}` is no index of Megatron's: it begins with {head[:9]!r}", _AGAIN)
    _, version, code, sequences, boundaries = HEADER.unpack(head)
    if version != 1:
        raise DataError(f"`{path}` is of version {version} of the format, not 1", _AGAIN)
    if code not in DTYPES:
        raise DataError(f"`{path}` has dtype code {code}, not one of 1 to {max(DTYPES)}", _AGAIN)
    for count, what in ((sequences, "sequences"), (boundaries, "document boundaries")):
        if count > len(raw):
            raise DataError(f"`{path}` says {count:,} {what} but has {len(raw):,} bytes", _AGAIN)
    return sequences, boundaries, np.dtype(DTYPES[code])


def index_bytes(dtype: np.dtype[Any], lengths: Ids, documents: Ids, modes: Ids | None = None) -> Iterator[bytes]:
    """Give the content of an `.idx` file, a piece at a time."""
    code = next(code for code, name in DTYPES.items() if np.dtype(name) == dtype)
    yield HEADER.pack(MAGIC, 1, code, len(lengths), len(documents))
    yield from _pieces(lengths, "<i4")
    begin = 0
    for start in range(0, len(lengths), CHUNK):
        ends = begin + np.cumsum(lengths[start : start + CHUNK], dtype="<i8") * dtype.itemsize
        yield np.concatenate([np.array([begin], "<i8"), ends[:-1]]).tobytes()
        begin = int(ends[-1])
    yield from _pieces(documents, "<i8")
    if modes is not None:
        yield from _pieces(modes, "i1")


def _pieces(values: Ids, dtype: str | np.dtype[Any]) -> Iterator[bytes]:
    for start in range(0, len(values), CHUNK):
        yield values[start : start + CHUNK].astype(dtype).tobytes()


def temporary_of(path: Path) -> Path:
    """Return the name that a file is written under before it is renamed to `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def sync(file: IO[bytes]) -> None:
    """Force what was written to a file to disk."""
    file.flush()
    os.fsync(file.fileno())


def discard(temporary: Path) -> None:
    """Remove a temporary file where there is one; its folder may never have been."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        temporary.unlink()


def put_in_place(ids: Path, data: Path, index: Path, content: Iterable[bytes]) -> None:
    """Rename finished `ids` to `data` and write `content` to `index`, which appears last.

    The index of a dataset that is replaced goes first, so that at no moment an index stands beside other ids.

    Raises:
        OutputError: the folder cannot be written.
    """
    temporary = temporary_of(index)
    try:
        with temporary.open("wb") as file:
            for piece in content:
                file.write(piece)
            sync(file)
        index.unlink(missing_ok=True)
        os.replace(ids, data)
        os.replace(temporary, index)
    except OSError as error:
        raise unwritable(index, error) from error
    finally:
        discard(temporary)


class IndexedWriter:
    """Writes an indexed dataset sequence by sequence; both files appear when the block ends well, the index last."""

    def __init__(self, prefix: str | Path, dtype: str | np.dtype[Any]) -> None:
        """Open a temporary file beside `prefix`.

        Raises:
            OutputError: the folder cannot be written.
        """
        self.prefix = prefix_of(prefix)
        self.dtype = np.dtype(dtype)
        self._lengths = array("i")
        self._documents = array("q", [0])
        self._temporary = temporary_of(files_of(self.prefix)[1])
        try:
            self.prefix.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self._temporary.open("wb")
        except OSError as error:
            raise unwritable(self.prefix, error) from error

    def add(self, ids: Sequence[int] | Ids) -> None:
        """Append one sequence.

        Raises:
            OutputError: an id does not fit the dtype, or the disk is full.
        """
        values = np.asarray(ids)
        cast = values.astype(self.dtype)
        if not np.array_equal(cast, values):
            raise OutputError(
                f"token ids from {values.min()} to {values.max()} do not fit {self.dtype}", "give a larger dtype"
            )
        try:
            self._file.write(cast.tobytes())
        except OSError as error:
            raise unwritable(self.prefix, error) from error
        self._lengths.append(len(cast))

    def end_document(self) -> None:
        """End the document that the sequences since the last call make up."""
        self._documents.append(len(self._lengths))

    def __enter__(self) -> IndexedWriter:
        """Begin."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Put both files in place, or after an error remove what was written."""
        try:
            if kind is None:
                assert self._documents[-1] == len(self._lengths), "the last document was not ended"
                self._finish()
        finally:
            self._file.close()
            discard(self._temporary)

    def _finish(self) -> None:
        index, data = files_of(self.prefix)
        try:
            sync(self._file)
        except OSError as error:
            raise unwritable(self.prefix, error) from error
        lengths, documents = np.array(self._lengths, np.int32), np.array(self._documents, np.int64)
        put_in_place(self._temporary, data, index, index_bytes(self.dtype, lengths, documents))
