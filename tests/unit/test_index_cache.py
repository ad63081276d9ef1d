"""Cached indices: built once, mapped again, never used when damaged, correct when many build at once."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpeval.corpus.index_cache import DESCRIPTION, Arrays, cached
from mpeval.errors import OutputError

IDENTITY = {"corpus": "sha256:aa", "seed": 3, "documents": [0, 7], "share": 0.1, "apart": True}


class Builder:
    """Makes the arrays and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Arrays:
        self.calls += 1
        random = np.random.default_rng(0)
        return {"order": random.integers(0, 9, 5000, np.int32), "table": random.integers(0, 2**40, (70, 2))}


def check(arrays: Arrays) -> None:
    expected = Builder()()
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype


def only_folder(cache: Path) -> Path:
    (folder,) = cache.iterdir()
    return folder


def test_the_second_time_nothing_is_built_or_written(tmp_path: Path) -> None:
    build = Builder()
    check(cached(tmp_path, "some", IDENTITY, build))
    before = {path: path.stat().st_mtime_ns for path in only_folder(tmp_path).iterdir()}
    again = cached(tmp_path, "some", IDENTITY, build)
    check(again)
    assert build.calls == 1
    assert before == {path: path.stat().st_mtime_ns for path in only_folder(tmp_path).iterdir()}
    assert sorted(path.name for path in before) == [DESCRIPTION, "order.npy", "table.npy"]
    assert type(again["order"]) is np.ndarray
    assert not again["order"].flags.writeable


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check(cached(None, "some", IDENTITY, Builder()))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", IDENTITY)
def test_another_identity_is_another_index(tmp_path: Path, key: str) -> None:
    build = Builder()
    cached(tmp_path, "some", IDENTITY, build)
    cached(tmp_path, "some", IDENTITY | {key: 0}, build)
    cached(tmp_path, "other", IDENTITY, build)
    assert build.calls == 3
    assert len(list(tmp_path.iterdir())) == 3


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-40] ^= 4
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


DAMAGES: dict[str, Any] = {
    "a flipped bit": lambda folder: flip_a_bit(folder / "order.npy"),
    "a file cut short": lambda folder: cut_short(folder / "table.npy"),
    "a file missing": lambda folder: (folder / "table.npy").unlink(),
    "no description": lambda folder: (folder / DESCRIPTION).unlink(),
    "a description cut short": lambda folder: cut_short(folder / DESCRIPTION),
    "a description that is no object": lambda folder: (folder / DESCRIPTION).write_text("[]"),
    "an empty description": lambda folder: (folder / DESCRIPTION).write_text("{}"),
    "files that are no object": lambda folder: edit(folder, files=[1]),
    "another seed's description": lambda folder: edit(folder, seed=4),
}


def edit(folder: Path, **changes: object) -> None:
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_built_again(tmp_path: Path, damage: str) -> None:
    build = Builder()
    cached(tmp_path, "some", IDENTITY, build)
    DAMAGES[damage](only_folder(tmp_path))
    check(cached(tmp_path, "some", IDENTITY, build))
    assert build.calls == 2
    check(cached(tmp_path, "some", IDENTITY, build))
    assert build.calls == 2


def open_again_and_again(cache: Path) -> None:
    for _ in range(20):
        check(cached(cache, "some", IDENTITY, Builder()))
        (only_folder(cache) / DESCRIPTION).unlink(missing_ok=True)


def test_processes_that_build_at_once_do_not_disturb_each_other(tmp_path: Path) -> None:
    cached(tmp_path, "some", IDENTITY, Builder())
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=open_again_and_again, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        cached(tmp_path / "file", "some", IDENTITY, Builder())
