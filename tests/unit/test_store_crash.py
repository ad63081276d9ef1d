"""Many processes append to one store at once, and one is killed while it writes: nothing is lost but its line."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from recorded import published, record

from mpeval.leaderboard import store as stores
from mpeval.leaderboard.entries import Entry, Line, Retraction
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.reported import ReportedModel
from mpeval.leaderboard.store import DamagedLine, append, read, scan

PROCESSES, APPENDS = 16, 40
FORK = multiprocessing.get_context("fork")


def large(worker: int, number: int) -> Record:
    """Return a record of 1 to 60 KB, of a checkpoint of its own."""
    size = 1000 * 60 ** ((worker * APPENDS + number) * 7919 % 640 / 639)
    text = f'{worker} {number} né \u2028 " \\ ' * 3
    return record(digest=f"sha256:{worker}-{number}", command=text + "x" * max(0, int(size) - 1300))


def work(path: Path, worker: int) -> None:
    """Append records one at a time; the last worker begins by dying in the middle of a line, the lock in its hand."""
    for number in range(APPENDS):
        if worker == PROCESSES - 1 and number == APPENDS // 2:
            die_writing(path, large(worker, number))
        append(path, [large(worker, number)])


def die_writing(path: Path, line: Record) -> None:
    """Let a process write half a line as `append` would, and be killed."""
    child = FORK.Process(target=_half, args=(path, line))
    child.start()
    child.join(30)
    assert child.exitcode == -signal.SIGKILL


def _half(path: Path, line: Record) -> None:
    data = line.line().encode()
    with stores._locked(path), path.open("ab") as file:
        content = path.read_bytes()
        file.write(b"\n" * (content[-1:] not in {b"", b"\n"}) + data[: len(data) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def test_16_processes_append_640_records_and_a_kill_costs_one_line(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    workers = [FORK.Process(target=work, args=(path, worker)) for worker in range(PROCESSES)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0] * PROCESSES
    found = list(scan(path))
    (damaged,) = [(number, line) for number, line in found if isinstance(line, DamagedLine)]
    assert damaged[1].code == "torn"
    assert f"line {damaged[0]} is no record" in damaged[1].message
    good = {line.model.digest: line for _, line in found if isinstance(line, Record)}
    assert len(found) == 641
    assert good.keys() == {f"sha256:{worker}-{number}" for worker in range(PROCESSES) for number in range(APPENDS)}
    sizes = [len(line.line().encode()) for line in good.values()]
    assert min(sizes) < 1500
    assert 55_000 < max(sizes) < 65_000
    assert all(line.command == large(*map(int, key[7:].split("-"))).command for key, line in good.items())


def test_a_killed_append_leaves_the_lock_to_others_and_the_next_line_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append(path, [large(0, 0)])
    die_writing(path, large(0, 1))
    assert append(path, [large(0, 1)]) == 1
    kinds = [type(line) for _, line in scan(path)]
    assert kinds == [Record, DamagedLine, Record]


# ---- only lines that could matter are read ----


def stored(*lines: Line) -> bytes:
    return "".join(line.line() + "\n" for line in lines).encode()


def named(name: str, printed: str = "66.5") -> Line:
    return published({"accuracy": printed}, model=ReportedModel(name=name))


def test_an_append_reads_no_line_of_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    append(path, [record(digest=f"sha256:{number:064d}") for number in range(200)])
    parsed: list[bytes] = []
    parse = stores._parse
    monkeypatch.setattr(stores, "_parse", lambda text, *more: parsed.append(text) or parse(text, *more))
    assert append(path, [record(digest=f"sha256:{150:064d}"), record(digest="sha256:new")]) == 1
    assert len(parsed) < 5


@pytest.mark.parametrize("name", ["gpt-345m", 'né "x" \\ \u2028\x01/y', "模型", "a/b/c", " ", "\t"])
@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_repeat_is_found_however_its_line_was_written(name: str, ascii_only: bool, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    lines = [named("other"), named(name), named("third")]
    texts = [
        json.dumps(json.loads(line), ensure_ascii=ascii_only) for line in stored(*lines).decode().split("\n") if line
    ]
    path.write_text("".join(text.replace("/", "\\/") + "\n" for text in texts), encoding="utf-8")
    assert len(read(path)) == 3
    assert append(path, [named(name)]) == 0
    assert append(path, [named(name, "70.1")]) == 1


@pytest.mark.parametrize("more", [0, 100])
def test_a_number_taken_back_may_come_again_and_be_taken_back_again(more: int, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    others = [record(digest=f"sha256:{number}") for number in range(more)]
    taken = Retraction(created_at="2026-01-03T00:00:00Z", retracts=record().identity(), reason="a mistake")
    assert append(path, [record(), *others]) == 1 + more
    assert append(path, [taken, *others]) == 1
    assert append(path, [taken]) == 0
    assert len(read(path)) == more
    assert append(path, [record(), *others]) == 1
    assert append(path, [taken]) == 1
    assert len(read(path)) == more


def test_a_line_may_be_taken_back_and_written_anew_at_once(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    append(path, [record()])
    taken = Retraction(created_at="2026-01-03T00:00:00Z", retracts=record().identity(), reason="written anew")
    assert append(path, [taken, record(command="anew")]) == 2
    (found,) = read(path)
    assert isinstance(found, Record)
    assert found.command == "anew"


@pytest.mark.parametrize("seed", range(4))
def test_an_append_decides_as_if_it_had_read_everything(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    random = np.random.default_rng(seed)
    pool: list[Entry] = [record(value, digest=f"sha256:{number}") for number in range(5) for value in (0.4, 0.5)]
    pool += [
        entry
        for number in range(3)
        for entry in (named(f"model {number}"), named(f"model {number}", "70.1"))
        if isinstance(entry, Entry)
    ]
    for _ in range(60):
        chosen = pool[random.integers(len(pool))]
        standing = read(path) if path.exists() else []
        if random.random() < 0.3:
            taken = Retraction(created_at="2026-01-03T00:00:00Z", retracts=chosen.identity(), reason="x")
            stands = any(one.record_id == chosen.identity() for one in standing)
            gone = any(isinstance(line, Retraction) and line.retracts == taken.retracts for line in lines_of(path))
            assert append(path, [taken]) == (stands or not gone)
        else:
            assert append(path, [chosen]) == (not any(chosen.repeats(one) for one in standing))


def lines_of(path: Path) -> list[Line]:
    return [line for _, line in scan(path) if isinstance(line, Line)] if path.exists() else []
