"""`mpeval finetune` as a person types it: killed, stopped, finished; every mistake of the data has file and line."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluated import change_line
from finetuning import (
    FAST,
    SAMPLES,
    STILL,
    bert_config,
    finetune_ranks,
    lines_of,
    make_mnli,
    make_pretrained,
    options_for,
    untimed,
    weights_of,
)
from making import run_here
from training import losses

from mpeval.checkpoint.open import open_checkpoint

LONG = ("epochs=3", "batch=8", "save_every=2", "lr=3e-3")
"""9 steps, saved every other one and at the end of each epoch of three."""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pretrained(tmp_path_factory.mktemp("pretrained") / "bert", bert_config(init_std=0.2))


def line_of(checkpoint: Path, output: Path, *settings: str, options: str = "", data: Path = SAMPLES) -> list[str]:
    sets = "".join(f" --set {setting}" for setting in (*FAST, *settings))
    text = f"finetune {checkpoint} --task race --data {data} --output {output} --device cpu{sets} {options}"
    return shlex.split(text)


def start(line: list[str]) -> subprocess.Popen[str]:
    """Start a run as the leader of a process group, so that all its ranks can be killed at once."""
    command, environment = [sys.executable, "-m", "mpeval", *line], os.environ | {"OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=environment)


def wait_for(happens: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 150.0) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        if process.poll() is not None:
            assert process.stderr is not None
            raise AssertionError(f"the run ended early, exit code {process.returncode}:\n{process.stderr.read()}")
        assert time.monotonic() < deadline, "the run took too long"
        time.sleep(0.001)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(line: list[str], capsys: pytest.CaptureFixture[str], *parts: str, code: int = 1) -> str:
    """Check that a command fails with one error that holds all `parts`, and a hint; return what it printed."""
    assert run_here(shlex.join(line)) == code
    text = capsys.readouterr()
    assert text.err.startswith("error: ")
    assert "\n\nhint: " in text.err
    assert "Traceback" not in text.err
    for part in parts:
        assert part in text.err
    return text.err


# ---- runs ----


def test_a_run_killed_in_an_evaluation_ends_as_the_straight_one(bert: Path, tmp_path: Path) -> None:
    straight, output = tmp_path / "straight", tmp_path / "run"
    finetune_ranks(options_for(bert, straight, *LONG))
    line = line_of(bert, output, *LONG, options="--quiet")
    process = start(line)
    wait_for(lambda: (output / "evaluations/dev-epoch-1/samples.jsonl").exists(), process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(untimed(output)) < 9
    assert run_here(shlex.join(line)) == 0
    assert untimed(output) == untimed(straight)
    ours, theirs = weights_of(output), weights_of(straight)
    assert all(value.equal(theirs[name]) for name, value in ours.items())
    names = [path.relative_to(straight) for path in straight.rglob("samples.jsonl")]
    assert len(names) == 4
    assert all((straight / name).read_bytes() == (output / name).read_bytes() for name in names)


def test_ranks_that_the_command_starts_give_the_losses_of_one(bert: Path, tmp_path: Path) -> None:
    settings = ("steps=2", "lr=3e-3", *STILL)
    [*expected] = losses(finetune_ranks(options_for(bert, tmp_path / "one", *settings)))
    assert run_here(shlex.join(line_of(bert, tmp_path / "two", *settings, options="--tp 2 --quiet"))) == 0
    assert losses(untimed(tmp_path / "two")) == pytest.approx(expected, abs=1e-5)
    assert open_checkpoint(tmp_path / "two").grid == (2, 1)


def test_the_command_says_what_it_did_and_is_recorded_once(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, board = tmp_path / "runs" / "seed-1234", tmp_path / "board.jsonl"
    line = line_of(bert, output, "epochs=1", "lr=3e-3", options=f"--record {board}")
    for added in (1, 0):
        assert run_here(shlex.join(line)) == 0
        text = capsys.readouterr()
        assert "race/megatron: 24 questions of the train split" in text.err.replace("\n", " ")
        assert "new, drawn from the seed: multichoice_head.weight" in text.err.replace("\n", " ")
        assert f"{added} record{'s' * (added != 1)} added to" in text.out
        assert "accuracy middle" in text.out.replace("_", " ")
    assert (output / "loss.svg").stat().st_size > 1000
    [record] = lines_of(board)
    assert (record["split"], record["training"]["steps"], record["training"]["recipe"]) == ("dev", 6, "race-small")
    assert "sample-rows" in record["flags"]
    assert record["command"].startswith("mpeval finetune")
    assert record["model"]["name"] == "runs/seed-1234"  # as in the evaluations of the finished run
    assert run_here(shlex.join([*line, "--quiet"])) == 0
    assert capsys.readouterr().out.strip() == f"0 records added to {board}"


def test_help_and_wrong_usage_start_without_torch() -> None:
    for command in ("finetune --help", "ensemble --help", "finetune CKPT --task race"):
        program = (
            "import sys\nfrom mpeval.cli import main\n"
            f"sys.argv[1:] = {command.split()!r}\n"
            "try:\n    main()\nfinally:\n"
            "    print([name for name in ('torch', 'numpy', 'tokenizers', 'scipy') if name in sys.modules])\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.stdout.splitlines()[-1] == "[]", command
        assert done.returncode == (0 if "--help" in command else 2)


# ---- mistakes ----


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The sample rows, to be damaged."""
    shutil.copytree(SAMPLES / "RACE", tmp_path / "data/RACE")
    return tmp_path / "data"


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "three options": (lambda content: content["options"][1].pop(), "question 2 has 3 options, not 4"),
    "an answer outside A to D": (
        lambda content: content["answers"].__setitem__(2, "E"),
        "question 3 has the answer `E`, not a letter from A to D",
    ),
    "no questions": (
        lambda content: content.update(questions=[], options=[], answers=[]),
        "an article without questions",
    ),
    "an answer too few": (lambda content: content["answers"].pop(), "3 questions, 3 options, 2 answers"),
    "an empty question": (lambda content: content["questions"].__setitem__(0, " "), "question 1"),
}


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_wrong_row_is_named_with_file_and_line_and_nothing_is_lost(
    case: str, split: str, bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = BROKEN[case]
    path = edit(data / f"RACE/{split}/high" / ("7.txt" if split == "train" else "9.txt"), change)
    line = line_of(bert, tmp_path / "run", data=data, options="--allow-modified-data")
    refused(line, capsys, f"`{path}`, line 1", message)
    assert not (tmp_path / "run/run.json").exists()


def test_one_broken_file_of_thousands_is_named(
    bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = (data / "RACE/train/high/7.txt").read_bytes()
    for number in range(1000, 4000):
        (data / f"RACE/train/high/{number}.txt").write_bytes(content)
    (data / "RACE/train/high/2741.txt").write_bytes(b"\n" + content[: len(content) // 2])
    line = line_of(bert, tmp_path / "run", data=data, options="--allow-modified-data")
    refused(line, capsys, f"`{data}/RACE/train/high/2741.txt`, line 2: broken JSON")
    (data / "RACE/train/high/2741.txt").write_bytes(b"\xff" + content)
    refused(line, capsys, f"`{data}/RACE/train/high/2741.txt` is not UTF-8 text: line 1")


def test_a_run_under_way_survives_a_mistake(
    bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    line = line_of(bert, output, "steps=3", "save_every=1", data=data, options="--quiet")
    assert run_here(shlex.join(line)) == 0
    before = snapshot(output)
    path = data / "RACE/train/middle/4.txt"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    refused(line, capsys, f"`{path}`, line 1: broken JSON")
    path.write_bytes(whole)
    edit(path, lambda content: content.update(article="Another article."))
    refused(line, capsys, "is not the published RACE train set")
    refused([*line, "--allow-modified-data"], capsys, "belongs to another run: its train data is")
    path.write_bytes(whole)
    assert run_here(shlex.join(line)) == 0
    assert {name: raw for name, raw in snapshot(output).items() if "index-cache" not in name} == {
        name: raw for name, raw in before.items() if "index-cache" not in name
    }


def test_a_dev_set_passed_as_train_is_refused(
    bert: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = line_of(bert, tmp_path / "run", data=data / "RACE/dev", options="--allow-modified-data")
    refused(line, capsys, "is the dev split of RACE, not train")
    shutil.rmtree(data / "RACE/train")
    shutil.copytree(data / "RACE/dev", data / "RACE/train")
    line = line_of(bert, tmp_path / "run", data=data, options="--allow-modified-data")
    refused(line, capsys, f"`{data}/RACE/train/middle, {data}/RACE/train/high` holds the dev set of RACE, not train")
    assert not (tmp_path / "run/run.json").exists()


def test_a_head_of_another_task_is_refused(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_mnli(tmp_path)
    line = f"finetune {bert} --task mnli --data {tmp_path} --output {tmp_path}/mnli --set steps=1 --set batch=4"
    assert run_here(f"{line} --device cpu --quiet --allow-modified-data") == 0
    race = line_of(tmp_path / "mnli", tmp_path / "run", "steps=1", options="--quiet")
    text = refused(race, capsys, f"`{tmp_path}/mnli` has a classification head", "a multichoice head", code=2)
    assert "--init-head" in text
    refused(
        shlex.split(f"evaluate {tmp_path}/mnli --task race --data {SAMPLES} --device cpu"),
        capsys,
        f"`{tmp_path}/mnli` has a classification head of 3 classes, `race/megatron` needs a multichoice head",
    )
    assert run_here(shlex.join([*race, "--init-head"])) == 0
    assert open_checkpoint(tmp_path / "run").config.task_head == "multichoice"


def test_a_member_with_other_uids_is_refused(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        line = line_of(bert, tmp_path / f"run{seed}", "steps=2", f"seed={seed}", "lr=1e-2", options="--quiet")
        assert run_here(shlex.join(line)) == 0
    ensemble = f"ensemble {tmp_path}/run1 {tmp_path}/run2 --task race --split dev --output {tmp_path}/out --quiet"
    assert run_here(ensemble) == 0
    shutil.rmtree(tmp_path / "out")
    member = tmp_path / "run2/evaluations/dev"
    uid = lines_of(member / "samples.jsonl")[4]["id"]
    change_line(member, 5, id="RACE/dev/high/77.txt#1")
    refused(shlex.split(ensemble), capsys, f"{tmp_path}/run2/evaluations/dev/samples.jsonl")
    change_line(member, 5, id=uid)
    change_line(member, 7, target=3, prediction=0)
    refused(shlex.split(ensemble), capsys, f"{tmp_path}/run2/evaluations/dev/samples.jsonl")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ("--task rcae --output out", 2, "did you mean `race`?"),
        ("--task race --output out --set epohcs=1", 1, "did you mean `epochs`?"),
        ("--task race --output out --set lr=fast", 1, "`fast` is not a value of type float"),
        ("--task race --output out --recipe race-33m", 2, "did you mean `race-336m`?"),
        ("--task race --output out --recipe absent.toml", 2, "`absent.toml` does not exist"),
        ("--task race --output out --device gpu", 2, "`--device gpu` is unknown"),
        ("--task race --output out --data nowhere", 1, "no such data folder: `nowhere` does not exist"),
        ("--task race --output out --seeds 0", 2, "`--seeds 0` leaves nothing to do"),
        ("--task race --output out --tp 3", 1, "does not divide"),
        ("--task race --output out --set batch=7 --dp 2", 1, "a multiple of the 2 data-parallel ranks"),
        ("--task race --output out --set batch=30", 1, "24 training questions do not fill a batch of 30"),
        ("--task race --output out --tokenizer nowhere", 1, "no such tokenizer"),
        ("--task race --output {samples}", 1, "is no training run: it holds"),
        ("--task race --output out --record {samples}/piqa/valid.jsonl", 1, "holds no record"),
        ("--task lambada --output out", 2, "scores a GPT"),
    ],
)
def test_mistakes_have_one_error_and_the_next_step(
    options: str,
    code: int,
    message: str,
    bert: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = options.format(samples=SAMPLES)
    data = "" if "--data" in given else f"--data {SAMPLES}"
    assert run_here(f"finetune {bert} {given} {data}") == code
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert "\n\nhint: " in errors
    assert message in errors
    assert not (tmp_path / "out/run.json").exists()
