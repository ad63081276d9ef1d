"""Valid files, damaged at random: an error or the right tensors, never a crash, a hang or silence."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpeval.checkpoint.container import open_torch_file
from mpeval.checkpoint.safetensors import open_safetensors
from mpeval.checkpoint.stored import StoredTensor
from mpeval.errors import CheckpointError

TENSORS = {f"layer.{n}.weight": torch.arange(12.0).view(3, 4) + 100 * n for n in range(3)}
SEEN = settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def _torch(new: bool) -> bytes:
    file = io.BytesIO()
    torch.save(TENSORS, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


def _safe() -> bytes:
    from safetensors.torch import save

    return bytes(save(TENSORS))


def _open_torch(path: Path) -> dict[str, StoredTensor]:
    value = open_torch_file(path).value
    return value if isinstance(value, dict) else {}


FORMATS: dict[str, tuple[bytes, Callable[[Path], dict[str, StoredTensor]]]] = {
    "zip": (_torch(True), _open_torch),
    "old": (_torch(False), _open_torch),
    "safetensors": (_safe(), open_safetensors),
}


@st.composite
def damage(draw: st.DrawFn, size: int) -> Callable[[bytes], bytes]:
    """Draw a way to damage `size` bytes: flips, a cut, an insertion, a part repeated or taken out."""
    kind = draw(st.sampled_from(["flip", "flip", "flip", "cut", "insert", "repeat", "remove"]))
    low = draw(st.integers(0, size - 1))
    if kind == "flip":
        places = draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(1, 255)), min_size=1, max_size=4))

        def flip(data: bytes) -> bytes:
            changed = bytearray(data)
            for place, bits in places:
                changed[place] ^= bits
            return bytes(changed)

        return flip
    high = draw(st.integers(low, min(size, low + 200)))
    extra = draw(st.binary(min_size=1, max_size=40))
    made: dict[str, Callable[[bytes], bytes]] = {
        "cut": lambda data: data[:low],
        "insert": lambda data: data[:low] + extra + data[low:],
        "repeat": lambda data: data[:high] + data[low:high] + data[high:],
        "remove": lambda data: data[:low] + data[high:],
    }
    return made[kind]


def _bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@SEEN
def test_a_damaged_file_is_an_error_or_still_right(name: str, data: st.DataObject, tmp_path: Path) -> None:
    original, open_file = FORMATS[name]
    damaged = data.draw(damage(len(original)))(original)
    path = tmp_path / "file"
    path.write_bytes(damaged)
    try:
        found = open_file(path)
        for key, tensor in found.items():
            if not isinstance(tensor, StoredTensor):
                continue
            out = torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype))
            tensor.copy_into(out, [(0, extent) for extent in tensor.shape])
            # what is read is what lies there: if the values are wrong, so are the bytes of the file
            if key in TENSORS and tensor.shape == (3, 4) and tensor.dtype == "float32" and tensor.stride == (4, 1):
                assert torch.equal(out, TENSORS[key]) or _bytes_of(TENSORS[key]) != damaged[tensor.start :][:48]
                assert _bytes_of(out) == damaged[tensor.start :][:48]
    except CheckpointError as error:
        said = [error.message, error.hint]
    else:
        said = []
    assert all(said)
