"""A cache of scores: found by the same request under the same identity only, through kills and by many at once."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpeval.errors import OutputError
from mpeval.items import AnyRequest, Headed, Item, Likelihoods, Masked, Request
from mpeval.score_cache import ScoreCache, request_digest

IDENTITY = {"checkpoint": "sha256:aa", "dtype": "float32", "protocol": "t/p", "data": "d1"}


def item(number: int, token: int = 7) -> Item:
    return Item(id=f"{number:05d}", request=Request(context=[1, number], target=[token]))


def sample(number: int) -> dict[str, Any]:
    return {"task": "t/p", "id": f"{number:05d}", "target": "é\u2028", "log_probability": -number / 3}


def filled(folder: Path, *numbers: int) -> ScoreCache:
    cache = ScoreCache(folder, IDENTITY)
    cache.add({one.id: one for one in map(item, numbers)}, [sample(number) for number in numbers])
    return cache


def test_what_was_added_is_found_by_another_process(tmp_path: Path) -> None:
    filled(tmp_path / "new" / "cache", 1, 2)
    again = ScoreCache(tmp_path / "new" / "cache", IDENTITY)
    assert again.find([item(2), item(3), item(1)]) == [sample(2), sample(1)]


def test_another_request_under_the_same_id_is_not_found(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    assert ScoreCache(tmp_path, IDENTITY).find([item(1, token=8)]) == []


@pytest.mark.parametrize("key", list(IDENTITY))
def test_another_identity_never_hits(tmp_path: Path, key: str) -> None:
    filled(tmp_path, 1)
    assert ScoreCache(tmp_path, IDENTITY | {key: "other"}).find([item(1)]) == []
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_a_line_cut_short_costs_its_item_only(tmp_path: Path, cut: int) -> None:
    cache = filled(tmp_path, 1, 2)
    cache.path.write_bytes(cache.path.read_bytes()[:-cut])
    after = ScoreCache(tmp_path, IDENTITY)
    after.add({"00003": item(3)}, [sample(3)])
    found = ScoreCache(tmp_path, IDENTITY).find([item(1), item(2), item(3)])
    assert found == [sample(1), *([sample(2)] if cut == 1 else []), sample(3)]


def test_a_file_that_does_not_say_what_it_depends_on_is_refused(tmp_path: Path) -> None:
    cache = filled(tmp_path, 1)
    cache.path.write_text("\n".join(cache.path.read_text().splitlines()[1:]) + "\n")
    with pytest.raises(OutputError, match="does not begin with what its scores depend on"):
        ScoreCache(tmp_path, IDENTITY)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        ScoreCache(tmp_path / "file", IDENTITY)


def test_nothing_is_lost_when_several_processes_add(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_many, args=(tmp_path, first)) for first in range(0, 80, 20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert ScoreCache(tmp_path, IDENTITY).find([item(number) for number in range(80)]) == [
        sample(number) for number in range(80)
    ]


def add_many(folder: Path, first: int) -> None:
    for number in range(first, first + 20):
        filled(folder, number)


def test_lines_are_json_that_any_tool_reads(tmp_path: Path) -> None:
    header, line = map(json.loads, filled(tmp_path, 1).path.read_text(encoding="utf-8").strip().split("\n"))
    assert header == {"identity": IDENTITY}
    assert line == {"id": "00001", "request": request_digest(item(1).request), "sample": sample(1)}


def request(*rows: list[int]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(row) for row in rows)


def test_every_number_of_a_request_is_in_its_digest() -> None:
    one, other = Request(context=[1, 2], target=[3]), Request(context=[1], target=[2, 3])
    zero = np.array([0])
    different: list[AnyRequest] = [
        one,
        other,
        Likelihoods(options=(one, other), targets=zero),
        Likelihoods(options=(other, one), targets=zero),
        Likelihoods(options=(one, other), targets=np.array([1])),
        Headed(ids=request([1, 2], [3]), firsts=(1, 1), targets=zero),
        Headed(ids=request([1], [2, 3]), firsts=(1, 1), targets=zero),
        Headed(ids=request([1, 2], [3]), firsts=(2, 1), targets=zero),
        Headed(ids=request([1, 2], [3]), firsts=(1, 1), targets=np.array([1])),
        Masked(ids=np.array([1, 2]), at=zero, target=np.array([3])),
        Masked(ids=np.array([1, 2]), at=np.array([1]), target=np.array([3])),
        Masked(ids=np.array([1, 2]), at=zero, target=np.array([4])),
    ]
    assert len({request_digest(each) for each in different}) == len(different)
    same = Request(context=np.array([1, 2], np.int32), target=(3,))
    assert request_digest(same) == request_digest(one)
