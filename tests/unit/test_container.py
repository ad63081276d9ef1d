"""Tensors are read from a file's bytes as torch reads them; a damaged or crafted file is a CheckpointError."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpeval.checkpoint import stored as stored_module
from mpeval.checkpoint.container import open_torch_file
from mpeval.checkpoint.stored import ITEM_SIZES, StoredTensor
from mpeval.errors import CheckpointError

SLOW_IS_FINE = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def save(folder: Path, value: Any, **options: Any) -> Path:
    """Save a value as torch does; return the file."""
    path = folder / "model.pt"
    torch.save(value, path, **options)
    return path


def read(stored: StoredTensor, bounds: Sequence[tuple[int, int]] | None = None) -> torch.Tensor:
    """Read a box of a stored tensor (default: all of it) in its own dtype."""
    box = bounds if bounds is not None else [(0, extent) for extent in stored.shape]
    out = torch.empty([high - low for low, high in box], dtype=getattr(torch, stored.dtype))
    stored.copy_into(out, box)
    return out


def values_of(dtype: str) -> torch.Tensor:
    """Return a [6, 10] tensor that no two rows or columns of share."""
    if dtype == "bool":
        return (torch.arange(60) * 7 % 11 > 4).reshape(6, 10)
    return (torch.arange(60) * 7 % 61).reshape(6, 10).to(getattr(torch, dtype))


# ---- reading ----


@pytest.mark.parametrize("dtype", ITEM_SIZES)
def test_a_tensor_of_any_dtype_is_read_as_torch_loads_it(dtype: str, tmp_path: Path) -> None:
    path = save(tmp_path, {"x": values_of(dtype)})
    stored = open_torch_file(path).value["x"]
    assert (stored.dtype, stored.shape) == (dtype, (6, 10))
    assert stored.elements == 60
    assert torch.equal(read(stored), torch.load(path)["x"])


VIEWS = {
    "transposed": lambda x: x.t(),
    "row": lambda x: x[3],
    "column": lambda x: x[:, 4],
    "every second row": lambda x: x[::2],
    "every third column": lambda x: x[1:, ::3],
    "inner box": lambda x: x[2:5, 3:7],
    "expanded": lambda x: x[:1].expand(4, 10),
    "three dimensions": lambda x: x.reshape(2, 3, 10).permute(2, 0, 1),
    "scalar": lambda x: x[1, 2],
    "empty": lambda x: x[:0],
    "last element": lambda x: x[5:, 9:],
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_is_read_as_torch_loads_it(name: str, tmp_path: Path) -> None:
    path = save(tmp_path, {"x": VIEWS[name](values_of("float32"))})
    stored = open_torch_file(path).value["x"]
    expected = torch.load(path)["x"]
    assert stored.shape == tuple(expected.shape)
    assert torch.equal(read(stored), expected)


@pytest.mark.parametrize("chunk", [1, 40, 100, 8 << 20])
@given(data=st.data())
@SLOW_IS_FINE
def test_any_box_of_any_view_is_read_as_torch_slices_it(
    chunk: int, data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored_module, "CHUNK_BYTES", chunk)
    view = VIEWS[data.draw(st.sampled_from(sorted(VIEWS)))](values_of("bfloat16"))
    stored = open_torch_file(save(tmp_path, view)).value
    bounds = []
    for extent in view.shape:
        low = data.draw(st.integers(0, extent))
        bounds.append((low, data.draw(st.integers(low, extent))))
    assert torch.equal(read(stored, bounds), view[tuple(slice(low, high) for low, high in bounds)])


def test_reading_converts_to_the_dtype_of_the_target(tmp_path: Path) -> None:
    stored = open_torch_file(save(tmp_path, values_of("float16") + 0.5)).value
    out = torch.empty(6, 10, dtype=torch.float64)
    stored.copy_into(out, [(0, 6), (0, 10)])
    assert torch.equal(out, values_of("float64") + 0.5)


def test_views_of_one_storage_share_it(tmp_path: Path) -> None:
    whole = values_of("float32")
    path = save(tmp_path, {"a": whole, "b": whole[2:], "c": whole.t()})
    assert path.stat().st_size < 2 * 240 + 2000
    value = open_torch_file(path).value
    assert value["b"].start - value["a"].start == 2 * 10 * 4
    assert torch.equal(read(value["c"]), whole.t())


def test_nested_values_keep_their_shape(tmp_path: Path) -> None:
    x = torch.arange(3.0)
    value = open_torch_file(save(tmp_path, {"a": [x, (x, 2)], "b": OrderedDict(c=None), 5: "text"})).value
    assert list(value) == ["a", "b", 5]
    assert torch.equal(read(value["a"][1][0]), x)
    assert value["b"] == {"c": None}
    assert value[5] == "text"


def test_a_value_that_contains_itself_is_read(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"x": torch.ones(2)}
    loop["self"] = loop
    value = open_torch_file(save(tmp_path, loop)).value
    assert value["self"] is value
    assert torch.equal(read(value["x"]), torch.ones(2))


# ---- crafted files ----


def crafted(
    folder: Path,
    *,
    shape: tuple[Any, ...] = (4,),
    stride: tuple[Any, ...] = (1,),
    offset: Any = 0,
    elements: Any = 4,
    stored_bytes: int = 16,
    key: str = "0",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Write a container by hand with one float32 tensor described as asked."""

    class Reference:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", elements) if isinstance(value, Reference) else None

    class Tensor:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (Reference(), offset, shape, stride, False, OrderedDict())

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"x": Tensor()})
    path = folder / "crafted.pt"
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        archive.writestr("archive/data/0", struct.pack("<4f", 1, 2, 3, 4)[:stored_bytes])
    return path


def test_the_crafted_file_is_read_when_nothing_is_wrong(tmp_path: Path) -> None:
    assert read(open_torch_file(crafted(tmp_path)).value["x"]).tolist() == [1, 2, 3, 4]
    view = open_torch_file(crafted(tmp_path, shape=(2, 2), stride=(1, 2))).value["x"]
    assert read(view).tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (5,)},
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**62},
        {"offset": "0"},
        {"stride": (2,)},
        {"stride": (-1,)},
        {"stride": (2**62,)},
        {"shape": (-4,)},
        {"shape": (2**40,)},
        {"shape": (2, 2), "stride": (3, 1)},
        {"shape": (2, 2)},
        {"shape": ("4",)},
        {"shape": (4.0,)},
        {"elements": 2**40},
        {"elements": -4},
        {"elements": "4"},
        {"elements": 8, "shape": (8,)},
        {"stored_bytes": 12},
        {"stored_bytes": 0},
        {"key": "1"},
        {"key": "../data.pkl"},
        {"compression": zipfile.ZIP_DEFLATED},
    ],
    ids=str,
)
def test_a_tensor_described_as_reaching_outside_the_file_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"crafted\.pt"):
        open_torch_file(crafted(tmp_path, **wrong))


def zip_with(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def test_a_crafted_state_cannot_give_a_storage_another_dtype(tmp_path: Path) -> None:
    """A BUILD calls the stand-in's own __setstate__, if it has one, with whatever the file says."""
    kind = b"ctorch\nFloatStorage\n(X\x07\x00\x00\x00unknownlb"
    storage = b"(X\x07\x00\x00\x00storage" + kind + b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    stream = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x04\x85K\x01\x85tR."
    path = zip_with(tmp_path / "crafted.pt", {"archive/data.pkl": stream, "archive/data/0": bytes(16)})
    with pytest.raises(CheckpointError, match=r"crafted\.pt"):
        open_torch_file(path)


def test_a_crafted_state_cannot_give_a_tensor_another_shape(tmp_path: Path) -> None:
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x04\x85K\x01\x85tR"
    stream = b"\x80\x02" + tensor + b"(K\x01K\x02K\x03K\x04lb."
    path = zip_with(tmp_path / "crafted.pt", {"archive/data.pkl": stream, "archive/data/0": bytes(16)})
    with pytest.raises(CheckpointError, match=r"crafted\.pt"):
        open_torch_file(path)


@pytest.mark.parametrize(
    "entries",
    [
        {},
        {"archive/readme": b""},
        {"data.pkl": b"N."},
        {"a/data.pkl": b"N.", "b/data.pkl": b"N."},
        {"archive/data.pkl": b""},
        {"archive/data.pkl": b"N"},
        {"archive/data.pkl": b"N.", "archive/byteorder": b"big"},
    ],
    ids=str,
)
def test_a_zip_file_of_another_kind_is_refused(entries: dict[str, bytes], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"other\.pt"):
        open_torch_file(zip_with(tmp_path / "other.pt", entries))


@pytest.mark.parametrize("dtype", sorted(ITEM_SIZES))
def test_the_container_before_torch_1_6_is_read(tmp_path: Path, dtype: str) -> None:
    whole = values_of(dtype)
    content = {"a": whole, "views": [whole[2:], whole.t()], "parameter": torch.nn.Parameter(torch.ones(3)), "n": 5}
    path = save(tmp_path, content, _use_new_zipfile_serialization=False)
    value = open_torch_file(path).value
    assert torch.equal(read(value["a"]), whole)
    assert torch.equal(read(value["views"][0]), whole[2:])
    assert torch.equal(read(value["views"][1]), whole.t())
    assert torch.equal(read(value["parameter"]), torch.ones(3))
    assert value["n"] == 5


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9, 0.999])
def test_a_truncated_file_of_the_old_container_is_an_error(tmp_path: Path, kept: float) -> None:
    path = save(tmp_path, {"x": torch.ones(300)}, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(CheckpointError, match=r"truncated|cannot be decoded|no torch checkpoint"):
        open_torch_file(path)


def test_a_file_that_is_part_of_a_larger_one_is_read_in_place(tmp_path: Path) -> None:
    blobs = [save(tmp_path, values_of("float32") + n).read_bytes() for n in range(3)]
    whole = tmp_path / "payload.distcp"
    whole.write_bytes(b"".join(blobs))
    for number, blob in enumerate(blobs):
        found = open_torch_file(whole, sum(map(len, blobs[:number])), len(blob)).value
        assert torch.equal(read(found), values_of("float32") + number)
    with pytest.raises(CheckpointError, match="truncated"):
        open_torch_file(whole, len(blobs[0]), 10**9)


# ---- damage ----


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small valid file."""
    content = {"model": {"w": values_of("float32"), "b": values_of("int64")[0]}, "iteration": 3}
    return save(tmp_path_factory.mktemp("whole"), content).read_bytes()


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999])
def test_a_truncated_file_is_a_checkpoint_error(kept: float, whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(CheckpointError, match=r"cut\.pt") as raised:
        open_torch_file(path)
    assert raised.value.hint


@pytest.mark.parametrize("missing", [1, 2, 21, 22, 23, 60])
def test_a_file_that_lacks_its_last_bytes_is_a_checkpoint_error(missing: int, whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.pt"
    path.write_bytes(whole[:-missing])
    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        open_torch_file(path)


def read_everything(value: Any) -> None:
    """Read every tensor of nested values."""
    if isinstance(value, StoredTensor) and value.elements < 10_000:
        read(value)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ():
        if item is not value:
            read_everything(item)


def open_or_refuse(path: Path, content: bytes) -> bool:
    """Open a file and read its tensors; return whether it opened.  Any error but CheckpointError passes through."""
    path.write_bytes(content)
    try:
        value = open_torch_file(path).value
    except CheckpointError as error:
        if str(path) in error.message:
            return False
        raise
    read_everything(value)
    return True


def central_header(content: bytes, name: str) -> int:
    """Return where the zip directory describes the entry that ends with `name`."""
    place = content.find(b"PK\x01\x02")
    while not content[place + 46 :].startswith(b"model/" + name.encode()):
        place = content.index(b"PK\x01\x02", place + 4)
    return place


def local_header(content: bytes, name: str) -> int:
    """Return where the header before the data of the entry that ends with `name` lies."""
    return int.from_bytes(content[(place := central_header(content, name) + 42) : place + 4], "little")


SINGLE_BYTES: dict[str, Callable[[bytes], int]] = {
    "compression of the pickle": lambda content: central_header(content, "data.pkl") + 10,
    "compression of a tensor": lambda content: central_header(content, "data/0") + 10,
    "zip version of the pickle": lambda content: central_header(content, "data.pkl") + 6,
    "name of the pickle": lambda content: central_header(content, "data.pkl") + 46,
    "name of a tensor": lambda content: central_header(content, "data/1") + 46,
    "place of the pickle": lambda content: central_header(content, "data.pkl") + 42,
    "place of a tensor": lambda content: central_header(content, "data/0") + 43,
    "header of the pickle": lambda content: local_header(content, "data.pkl"),
    "header of a tensor": lambda content: local_header(content, "data/0"),
    "header of the byte order": lambda content: local_header(content, "byteorder"),
    "checksum of the byte order": lambda content: central_header(content, "byteorder") + 16,
    "checksum of the pickle": lambda content: central_header(content, "data.pkl") + 16,
    "number of disks": lambda content: content.rindex(b"PK\x06\x07") + 16,
    "end of the directory": lambda content: content.rindex(b"PK\x05\x06"),
}


@pytest.mark.parametrize("name", SINGLE_BYTES)
def test_one_wrong_byte_of_the_container_is_a_checkpoint_error(name: str, whole: bytes, tmp_path: Path) -> None:
    damaged = bytearray(whole)
    damaged[SINGLE_BYTES[name](whole)] ^= 0xF0
    assert not open_or_refuse(tmp_path / "damaged.pt", bytes(damaged))


@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=8),
    cut=st.one_of(st.none(), st.floats(0, 1)),
)
@SLOW_IS_FINE
def test_a_damaged_file_opens_or_is_a_checkpoint_error(
    flips: list[tuple[float, int]], cut: float | None, whole: bytes, tmp_path: Path
) -> None:
    damaged = bytearray(whole)
    for place, mask in flips:
        damaged[int(place * len(damaged))] ^= mask
    open_or_refuse(tmp_path / "damaged.pt", bytes(damaged if cut is None else damaged[: int(cut * len(damaged))]))


@given(flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
@SLOW_IS_FINE
def test_a_damaged_pickle_opens_or_is_a_checkpoint_error(
    flips: list[tuple[int, int]], whole: bytes, tmp_path: Path
) -> None:
    """The checksums of the zip container would find these; here they are made to agree."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = next(name for name in entries if name.endswith("/data.pkl"))
    stream = bytearray(entries[name])
    for place, byte in flips:
        stream[place % len(stream)] = byte
    path = zip_with(tmp_path / "damaged.pt", entries | {name: bytes(stream)})
    open_or_refuse(path, path.read_bytes())


def test_the_undamaged_file_opens(whole: bytes, tmp_path: Path) -> None:
    assert open_or_refuse(tmp_path / "good.pt", whole)
