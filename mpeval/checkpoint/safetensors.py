"""safetensors files, read without loading and written one tensor at a time.

The library of that name saves only what is in memory as a whole, so a model larger than memory needs this; its
tests are read and written with the library.  The format: a u64 header length, a JSON header, the tensors' bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path

from mpeval.checkpoint.stored import AGAIN, ITEM_SIZES, StoredTensor
from mpeval.checkpoint.torchzip import Planned, bytes_of
from mpeval.checkpoint.unpickle import DIMENSIONS
from mpeval.errors import CheckpointError, shown

HEADER_BYTES = 100 << 20
"""The library accepts no longer header either."""
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def open_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Return every tensor of a file by name; only the header is read.

    Raises:
        CheckpointError: truncated, no such file, or a header that does not describe the file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_BYTES):
            raise CheckpointError(f"`{path}` is truncated, or no safetensors file", AGAIN)
        raw = file.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
        items = {name: item for name, item in header.items() if name != "__metadata__"}
        found = {name: _tensor(path, item, 8 + length) for name, item in items.items()}
        _check_places(list(found.values()), 8 + length, size)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"`{path}` has a header of another file: {str(error)[:200]}", AGAIN) from error
    return found


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Make an object of pairs; a key that comes twice has no meaning."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a name stands in it twice")
    return made


def _tensor(path: Path, item: Mapping[str, object], start: int) -> StoredTensor:
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if dtype not in DTYPES:
        raise ValueError(f"dtype {shown(dtype)} is not one of {', '.join(DTYPES)}")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2 or len(shape) > DIMENSIONS:
        raise ValueError("a tensor has no shape or no offsets")
    if not all(type(number) is int and number >= 0 for number in (*shape, *offsets)):
        raise ValueError("a size is not a whole number")
    low, high = offsets
    if high - low != prod(shape) * ITEM_SIZES[DTYPES[str(dtype)]]:
        raise ValueError(f"a tensor of shape {shape} is not of the size that the header says")
    stride = tuple(prod(shape[dim + 1 :]) for dim in range(len(shape)))
    return StoredTensor(path=path, start=start + low, shape=tuple(shape), stride=stride, dtype=DTYPES[str(dtype)])


def _check_places(tensors: list[StoredTensor], start: int, size: int) -> None:
    """Refuse tensors that overlap, leave holes, or end elsewhere than the file."""
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.elements)):
        if tensor.start != start:
            raise ValueError("its tensors overlap or leave holes")
        start += tensor.elements * ITEM_SIZES[tensor.dtype]
    if start != size:
        raise ValueError(f"its tensors end at byte {start} of {size}")


def write_safetensors(path: Path, tensors: Mapping[str, Planned]) -> None:
    """Write tensors in order; one is in memory at a time."""
    import torch

    names = {getattr(torch, ours): theirs for theirs, ours in DTYPES.items()}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, planned in tensors.items():
        begin, end = end, end + planned.nbytes
        header[name] = {"dtype": names[planned.dtype], "shape": list(planned.shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for planned in tensors.values():
            for part in bytes_of(planned):
                file.write(part)
