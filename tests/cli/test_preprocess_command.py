"""`mpeval preprocess` says what it wrote, refuses what it should, and leaves nothing behind when it is killed."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from making import run_apart, run_here
from texts import TEXTS, json_lines, write_bpe, write_wordpiece

from mpeval.corpus import unfinished
from mpeval.corpus.encoding import Encoder, Packed
from mpeval.corpus.indexed import IndexedDataset
from mpeval.corpus.readers import Batch


@pytest.fixture(autouse=True)
def _scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Go to a folder with documents and tokenizers."""
    monkeypatch.chdir(tmp_path)
    write_bpe(Path("bpe"))
    write_wordpiece(Path("bert"))
    Path("a.jsonl").write_bytes(json_lines([*TEXTS, ""]))
    Path("body.jsonl").write_bytes(json_lines(TEXTS, "body"))


def files(prefix: str) -> tuple[bytes, bytes]:
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


def test_the_summary_says_what_was_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("preprocess a.jsonl --output data/corpus --tokenizer bpe --append-eod --workers 1") == 0
    said = capsys.readouterr()
    dataset = IndexedDataset("data/corpus")
    count = len(TEXTS)
    assert said.out.splitlines()[0] == "wrote `data/corpus.bin` and `data/corpus.idx` (uint16)"
    counts = rf"{count} documents, {count} sequences, {dataset.tokens:,} tokens; 1 empty documents skipped"
    assert re.fullmatch(rf"{counts}; [\d,]+ tokens/s", said.out.splitlines()[1])
    assert len(said.out.splitlines()) == 2
    assert said.err == ""


def test_the_same_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("preprocess a.jsonl --output corpus --tokenizer bert --split-sentences --workers 1 --json") == 0
    said = json.loads(capsys.readouterr().out)
    dataset = IndexedDataset("corpus")
    assert said.pop("seconds") > 0
    assert said.pop("tokens_per_second") > 0
    assert said == {
        "prefix": "corpus",
        "dtype": "uint16",
        "tokens": dataset.tokens,
        "sequences": len(dataset),
        "documents": len(TEXTS),
        "empty": 1,
        "resumed_tokens": 0,
        "digest": dataset.digest,
    }
    assert len(dataset) > len(TEXTS)


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("preprocess body.jsonl --output corpus --tokenizer bpe --field body --workers 1 --quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert len(IndexedDataset("corpus")) == len(TEXTS)


def test_a_corpus_of_one_document_comes_with_a_word_of_warning(capsys: pytest.CaptureFixture[str]) -> None:
    Path("a.txt").write_text("a river\n\nand a street\n")
    assert run_here("preprocess a.txt --output corpus --tokenizer bpe --workers 1") == 0
    assert "one document cannot be divided into train, valid and test" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "code", "error", "hint"),
    [
        ("a.jsonk --output c --tokenizer bpe", 1, "no such file: `a.jsonk`", "did you mean `a.jsonl`?"),
        ("body.jsonl --output c --tokenizer bpe", 1, "`body.jsonl` line 1 has no field `text`", "--field"),
        ("a.jsonl --output c --tokenizer bert --append-eod", 1, "which `--append-eod` appends", "BERT"),
        ("a.jsonl --output a.jsonl/c --tokenizer bpe", 1, "cannot write `a.jsonl/c.parts`", "--output"),
        ("a.jsonl a.jsonl --output c --tokenizer bpe", 2, "`a.jsonl` is given twice", "more steps"),
        ("a.jsonl --output . --tokenizer bpe", 2, "`--output .` names no files", "prefix"),
        ("a.jsonl --output c --tokenizer nowhere", 1, "no such tokenizer: `nowhere` does not exist", "vocab.txt"),
        ("a.jsonl --output bpe --tokenizer .", 1, "no tokenizer in `.`", "--tokenizer"),
    ],
)
def test_mistakes(command: str, code: int, error: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(f"preprocess {command} --workers 1") == code
    said = capsys.readouterr()
    assert said.out == ""
    first, blank, last = said.err.rstrip("\n").split("\n")
    assert first.startswith("error: ")
    assert error in first
    assert blank == ""
    assert last.startswith("hint: ")
    assert hint in last
    assert not list(Path().glob("c.*[nx]"))


@pytest.mark.parametrize(
    "command", ["", "a.jsonl", "a.jsonl --output c", "a.jsonl --output c --tokenizer bpe --workers 0"]
)
def test_usage(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(f"preprocess {command}") == 2
    assert not list(Path().glob("c.*"))


def test_an_existing_corpus_needs_force(capsys: pytest.CaptureFixture[str]) -> None:
    command = "preprocess a.jsonl --output c --tokenizer bpe --workers 1"
    assert run_here(command) == 0
    before = files("c")
    assert run_here(f"{command} --append-eod") == 1
    assert "`c.idx` is already there" in capsys.readouterr().err
    assert files("c") == before
    assert run_here(f"{command} --append-eod --force") == 0
    assert files("c") != before


def test_an_interrupted_run_says_how_it_went_on(capsys: pytest.CaptureFixture[str]) -> None:
    command = "preprocess a.jsonl body.jsonl --output c --tokenizer bpe --workers 1"
    Path("body.jsonl").write_bytes(json_lines(TEXTS))
    encode = Encoder.encode

    def interrupted(self: Encoder, batch: Batch) -> Packed:
        if batch.source == "body.jsonl":
            raise KeyboardInterrupt
        return encode(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "encode", interrupted)
        patch.setattr(unfinished, "EVERY", -1.0)
        assert run_here(command) == 130
    capsys.readouterr()
    assert run_here(command) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith(f"{2 * len(TEXTS)} documents")
    assert said[2] == f"{len(TEXTS)} of the documents were there from a run that was stopped"


def running(process: int) -> bool:
    """Say whether a process is there and not only waiting to be reaped."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(process: int) -> list[int]:
    """Return all processes below one."""
    below = [
        int(child) for task in Path(f"/proc/{process}/task").glob("*/children") for child in task.read_text().split()
    ]
    return below + [other for child in below for other in children(child)]


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_kill_9_leaves_no_process_and_the_same_command_ends_with_the_same_bytes() -> None:
    Path("large.jsonl").write_bytes(json_lines(TEXTS * 3000))
    command = "preprocess large.jsonl --tokenizer bpe --append-eod --workers 2 --output"
    process = subprocess.Popen([sys.executable, "-m", "mpeval", *command.split(), "killed"])
    ids = Path("killed.parts/ids")
    deadline = time.monotonic() + 60
    while not (ids.exists() and ids.stat().st_size > 100_000):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = children(process.pid)
    assert len(workers) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not Path("killed.idx").exists()
    while any(map(running, workers)):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.05)
    assert run_apart(f"{command} killed").returncode == 0
    assert run_apart(f"{command} straight").returncode == 0
    assert files("killed") == files("straight")
    assert not Path("killed.parts").exists()
