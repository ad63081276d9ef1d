"""The zip files that are written: torch and zipfile read them, also with the wide fields of files above 4 GB."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch

from mpeval.checkpoint import torchzip
from mpeval.checkpoint.container import open_torch_file
from mpeval.checkpoint.torchzip import Planned, write_torch_file

VALUES = [torch.arange(300.0).view(20, 15), torch.ones(7, dtype=torch.bfloat16), torch.zeros(0, 3), torch.tensor(5.0)]


def _planned(tensor: torch.Tensor) -> Planned:
    parts = tensor.split(6) if tensor.dim() and len(tensor) else [tensor]
    return Planned(shape=tuple(tensor.shape), dtype=tensor.dtype, make=lambda: parts)


def _write(path: Path, before: bytes = b"") -> int:
    with path.open("wb") as file:
        file.write(before)
        write_torch_file(file, {"tensors": [_planned(tensor) for tensor in VALUES], "text": "x"})
        return file.tell() - len(before)


@pytest.mark.parametrize("limit", [0xFFFFFFFF, 1000, 1], ids=["plain", "wide offsets", "all wide"])
def test_torch_and_zipfile_read_what_is_written(tmp_path: Path, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchzip, "LIMIT", limit)
    path = tmp_path / "file.pt"
    _write(path)
    for mmap in (False, True):
        content = torch.load(path, weights_only=True, mmap=mmap)
        assert content["text"] == "x"
        for found, tensor in zip(content["tensors"], VALUES, strict=True):
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == 3 + len(VALUES)


def test_a_file_may_begin_anywhere_and_its_data_is_aligned_in_it(tmp_path: Path) -> None:
    path = tmp_path / "payload"
    length = _write(path, before=b"x" * 77)
    tensors = open_torch_file(path, 77, length).value["tensors"]
    for found, tensor in zip(tensors, VALUES, strict=True):
        assert found.shape == tuple(tensor.shape)
        assert (found.start - 77) % torchzip.ALIGNMENT == 0


def test_equal_content_makes_equal_bytes(tmp_path: Path) -> None:
    _write(tmp_path / "a")
    _write(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_tensor_that_is_not_as_planned_is_an_error(tmp_path: Path) -> None:
    for wrong in (torch.ones(3), torch.ones(4, dtype=torch.float64)):
        planned = Planned(shape=(4,), dtype=torch.float32, make=lambda wrong=wrong: [wrong])
        with (tmp_path / "file").open("wb") as file, pytest.raises(ValueError, match="planned"):
            write_torch_file(file, planned)
