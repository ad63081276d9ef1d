"""A run folder keeps what was scored through kills, refuses another run, and ends in the order of the task."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpeval.errors import OutputError
from mpeval.journal import RESULTS_FILE, RUN_FILE, SAMPLES_FILE, Journal

IDENTITY = {"checkpoint": "sha256:aa", "dtype": "float32", "megatron_exact": False, "eps": 1e-5, "data of t/p": "d1"}


def sample(number: int, task: str = "t/p") -> dict[str, Any]:
    """Return one line, with text that JSON must escape and a number that it must not shorten."""
    return {"task": task, "id": f"{number:05d}", "target": f' "é\n\u2028 {number}', "log_probability": -number / 3}


def keys(journal: Journal) -> list[tuple[str, str]]:
    return list(journal.samples)


def test_without_a_folder_samples_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal(None, IDENTITY)
    journal.append([sample(1)])
    journal.finish([("t/p", "00001")], "{}")
    assert journal.samples == {("t/p", "00001"): sample(1)}
    assert list(tmp_path.iterdir()) == []


def test_samples_are_there_as_soon_as_they_are_appended(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "new" / "run", IDENTITY)
    journal.append([sample(1), sample(2)])
    other = Journal(tmp_path / "new" / "run", IDENTITY)
    assert other.samples == {("t/p", "00001"): sample(1), ("t/p", "00002"): sample(2)}


def test_a_folder_holds_what_its_samples_depend_on(tmp_path: Path) -> None:
    Journal(tmp_path, IDENTITY)
    assert json.loads((tmp_path / RUN_FILE).read_text()) == IDENTITY


@pytest.mark.parametrize("key", IDENTITY)
def test_a_folder_of_another_run_is_refused_and_left_alone(key: str, tmp_path: Path) -> None:
    Journal(tmp_path, IDENTITY).append([sample(1)])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OutputError, match="belongs to another run") as raised:
        Journal(tmp_path, IDENTITY | {key: "other"})
    assert key.replace("_", " ") in raised.value.message
    assert "--output" in raised.value.hint
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_takes_further_tasks_of_the_same_run(tmp_path: Path) -> None:
    Journal(tmp_path, IDENTITY)
    Journal(tmp_path, IDENTITY | {"data of u/q": "d2"})
    assert json.loads((tmp_path / RUN_FILE).read_text()) == IDENTITY | {"data of u/q": "d2"}
    with pytest.raises(OutputError, match="data of u/q"):
        Journal(tmp_path, {**IDENTITY, "data of u/q": "d3"})
    Journal(tmp_path, IDENTITY)


@given(kept=st.floats(0, 1))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_run_cut_anywhere_keeps_every_whole_line(kept: float, tmp_path: Path) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    Journal(tmp_path, IDENTITY).append([sample(number) for number in range(6)])
    path = tmp_path / SAMPLES_FILE
    whole = path.read_bytes()
    cut = whole[: round(kept * len(whole))]
    path.write_bytes(cut)
    journal = Journal(tmp_path, IDENTITY)
    count = cut.count(b"\n")
    assert keys(journal) == [("t/p", f"{number:05d}") for number in range(count)]
    journal.append([sample(number) for number in range(count, 6)])
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "line", [b"{half", b"[1, 2]", b'"text"', b"7", b"null", b'{"task": "t/p"}', b'{"id": "1"}', b"\xff\xfe", b""]
)
def test_damage_inside_the_samples_is_an_error_with_its_line(line: bytes, tmp_path: Path) -> None:
    Journal(tmp_path, IDENTITY).append([sample(number) for number in range(3)])
    path = tmp_path / SAMPLES_FILE
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], line, *lines[1:]]))
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"samples\.jsonl` line 2 is damaged") as raised:
        Journal(tmp_path, IDENTITY)
    assert raised.value.hint
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", '["dtype"]', "7", "null"])
def test_a_damaged_run_file_is_an_error(content: str, tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_text(content)
    with pytest.raises(OutputError, match=r"run\.json` is damaged"):
        Journal(tmp_path, IDENTITY)


def test_a_sample_scored_again_replaces_the_earlier_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path, IDENTITY)
    journal.append([sample(1)])
    journal.append([sample(1) | {"log_probability": -9.0}])
    again = Journal(tmp_path, IDENTITY)
    assert again.samples["t/p", "00001"]["log_probability"] == -9.0
    again.finish([("t/p", "00001")], "{}")
    assert len((tmp_path / SAMPLES_FILE).read_bytes().splitlines()) == 1


def test_a_finished_run_is_in_order_with_other_runs_samples_behind(tmp_path: Path) -> None:
    journal = Journal(tmp_path, IDENTITY)
    journal.append([sample(3), sample(1), sample(9, "a/b"), sample(2)])
    journal.finish([("t/p", "00001"), ("t/p", "00002"), ("t/p", "00003")], '{"done": true}\n')
    lines = [json.loads(line) for line in (tmp_path / SAMPLES_FILE).read_text().split("\n") if line]
    assert [(line["task"], line["id"]) for line in lines] == [
        *(("t/p", "00001"), ("t/p", "00002"), ("t/p", "00003"), ("a/b", "00009"))
    ]
    assert (tmp_path / RESULTS_FILE).read_text() == '{"done": true}\n'
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([RESULTS_FILE, RUN_FILE, SAMPLES_FILE])


def test_numbers_and_text_come_back_as_they_were(tmp_path: Path) -> None:
    line = sample(1) | {"log_probability": -0.1 - 1e-16, "documents": [[0, 1.25, 3]], "target": "\x00\u2028\U0001f600"}
    Journal(tmp_path, IDENTITY).append([line])
    assert Journal(tmp_path, IDENTITY).samples["t/p", "00001"] == line


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_json_lacks_is_never_written(number: float, tmp_path: Path) -> None:
    journal = Journal(tmp_path, IDENTITY)
    with pytest.raises(ValueError, match="not JSON compliant"):
        journal.append([sample(1) | {"log_probability": number}])
    assert Journal(tmp_path, IDENTITY).samples == {}


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_is_an_output_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write") as raised:
        Journal(tmp_path / place, IDENTITY)
    assert "--output" in raised.value.hint


def test_samples_that_cannot_be_written_are_an_output_error(tmp_path: Path) -> None:
    journal = Journal(tmp_path, IDENTITY)
    (tmp_path / SAMPLES_FILE).mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        journal.append([sample(1)])


def test_files_are_readable_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        journal = Journal(tmp_path, IDENTITY)
        journal.append([sample(1)])
        journal.finish([("t/p", "00001")], "{}")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}
