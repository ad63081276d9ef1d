"""`mpeval pretrain` as a person types it: killed, stopped, under torchrun, and evaluated afterwards."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from making import ROWS, make_data, run_apart, run_here
from training import losses, make_bert_corpus, make_gpt_corpus, metrics, options_for, train

from mpeval.checkpoint.open import open_checkpoint

SIZES = "--set layers=2 --set hidden=32 --set heads=4 --set context=32 --set warmup_steps=3 --set lr=1e-3"
SETTINGS = ("batch=32", "steps=20", "save_every=4")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return make_gpt_corpus(tmp_path_factory.mktemp("corpus"))


def line_of(corpus: tuple[str, Path], output: Path, *settings: str, options: str = "") -> list[str]:
    sets = "".join(f" --set {setting}" for setting in settings)
    text = f"pretrain gpt-tiny --data {corpus[0]} --tokenizer {corpus[1]} --output {output} --device cpu {SIZES}{sets}"
    return shlex.split(f"{text} {options}")


def start(line: list[str], *launcher: str) -> subprocess.Popen[str]:
    """Start a run as the leader of a process group, so that all its ranks can be killed at once."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *(launcher or ()), *(["-m"] if launcher else []), "mpeval", *line]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=environment)


def wait_for(happens: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        if process.poll() is not None:
            raise AssertionError(f"the run ended early, exit code {process.returncode}:\n{process.stderr.read()}")
        assert time.monotonic() < deadline, "the run took too long"
        time.sleep(0.001)


def steps_of(output: Path) -> int:
    path = output / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_all(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def straight(corpus: tuple[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """An uninterrupted run at tp 1 and tp 2."""
    made = {}
    for tp in (1, 2):
        made[tp] = tmp_path_factory.mktemp("straight") / "run"
        train(options_for(corpus, made[tp], *SETTINGS), tp=tp)
    return made


def same_files(left: Path, right: Path) -> bool:
    """Tell whether the last checkpoints of two runs hold the same bytes of weights, moments and random streams."""
    files = sorted((left / "iter_0000020").glob("mp_rank_*/model_optim_rng.pt"))
    assert files
    return all(path.read_bytes() == (right / path.relative_to(left)).read_bytes() for path in files)


@pytest.mark.parametrize("tp", [1, 2])
def test_kill_9_at_a_step_and_during_a_save_changes_nothing(
    tp: int, corpus: tuple[str, Path], straight: dict[int, Path], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    line = line_of(corpus, output, *SETTINGS, options=f"--tp {tp} --quiet")
    process = start(line)
    wait_for(lambda: steps_of(output) >= 6, process)
    kill_all(process)
    process = start(line)
    wait_for(lambda: any(output.glob(".iter_*.partial/mp_rank_*/*")), process)
    kill_all(process)
    assert open_checkpoint(output).iteration < 20
    process = start(line)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert losses(metrics(output)) == losses(metrics(straight[tp]))
    assert same_files(straight[tp], output)
    assert not list(output.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(number: int, corpus: tuple[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "run"
    line = line_of(corpus, output, "batch=32", "steps=100000", options="--tp 2")
    process = start(line)
    wait_for(lambda: steps_of(output) >= 3, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    stopped = open_checkpoint(output).iteration
    assert stopped == steps_of(output) >= 3
    assert f"stopped and saved after step {stopped} of 100000; go on with:" in errors
    assert shlex.join(["mpeval", *line]) in errors


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_two_agents_of_torchrun_give_the_losses_of_one(
    corpus: tuple[str, Path], straight: dict[int, Path], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    meeting = f"--rdzv-backend c10d --rdzv-endpoint 127.0.0.1:{free_port()} --rdzv-id {tmp_path.name}"
    launcher = shlex.split(f"torch.distributed.run --nnodes 2 --nproc-per-node 1 {meeting}")
    line = line_of(corpus, output, *SETTINGS, options="--tp 2")
    agents = [start(line, *launcher) for _ in range(2)]
    for agent in agents:
        _, errors = agent.communicate(timeout=150)
        assert agent.returncode == 0, errors
    assert losses(metrics(output)) == losses(metrics(straight[2]))
    assert same_files(straight[2], output)


def test_a_killed_rank_comes_back_by_itself_under_torchrun(
    corpus: tuple[str, Path], straight: dict[int, Path], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    launcher = shlex.split("torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1")
    agent = start(line_of(corpus, output, *SETTINGS, options="--tp 2"), *launcher)
    wait_for(lambda: steps_of(output) >= 6, agent)
    found = subprocess.run(["pgrep", "-P", str(agent.pid)], capture_output=True, text=True, check=True)
    os.kill(int(found.stdout.split()[-1]), signal.SIGKILL)
    _, errors = agent.communicate(timeout=150)
    assert agent.returncode == 0, errors
    assert losses(metrics(output)) == losses(metrics(straight[2]))


def test_what_is_trained_is_evaluated_converted_and_plotted(corpus: tuple[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "run"
    done = run_apart(shlex.join(line_of(corpus, output, "batch=8", "steps=4", "evaluate_every=2", "context=64")))
    assert done.returncode == 0, done.stderr
    assert "step 4: loss " in done.stdout
    assert ", validation loss " in done.stdout
    assert f"checkpoint {output / 'iter_0000004'}; metrics {output / 'metrics.jsonl'}" in done.stdout
    assert (output / "loss.svg").stat().st_size > 1000
    assert (output / "loss.png").stat().st_size > 1000
    data = make_data(tmp_path / "data")
    command = f"evaluate {output} --task lambada --data {data} --allow-modified-data --device cpu --json --quiet"
    done = run_apart(command)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["checkpoint"]["iteration"] == 4
    assert run_here(f"convert {output} {tmp_path / 'hf'} --format huggingface --quiet") == 0
    from transformers import GPT2LMHeadModel

    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "hf").eval()
    ids = torch.arange(20).unsqueeze(0)
    from mpeval.checkpoint.load import load_model

    ours = load_model(open_checkpoint(output))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits[..., : ours.config.vocab], ours(ids), rtol=1e-4, atol=1e-4)


def test_a_trained_bert_has_its_tokenizer_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    train(options_for(make_bert_corpus(tmp_path / "corpus"), output, "steps=2", recipe="bert-tiny"), tp=2)
    (tmp_path / "data/wikitext-103").mkdir(parents=True)
    text = " = Boats = \n\n" + " ".join(ROWS) + "\n"
    (tmp_path / "data/wikitext-103/wiki.test.tokens").write_text(text)
    command = f"evaluate {output} --task wikitext103/masked --data {tmp_path / 'data'} --allow-modified-data"
    assert run_here(f"{command} --device cpu --json --quiet") == 0
    [result] = json.loads(capsys.readouterr().out)["results"]
    assert result["n"] > 10


def test_tensorboard_gets_every_step(corpus: tuple[str, Path], tmp_path: Path) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra `tensorboard`"
    )
    output = tmp_path / "run"
    done = run_apart(shlex.join(line_of(corpus, output, "batch=4", "steps=3", options="--tensorboard --quiet")))
    assert done.returncode == 0, done.stderr
    events = accumulator.EventAccumulator(str(output / "tensorboard"))
    events.Reload()
    found = [(item.step, item.value) for item in events.Scalars("loss")]
    assert found == [(line["step"], pytest.approx(line["loss"])) for line in metrics(output)]


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("pretrain gtp-tiny --output out", 2, "no recipe `gtp-tiny`"),
        ("pretrain gpt-tiny --output out", 2, "no data to train on"),
        ("pretrain gpt-tiny extra", 2, "unexpected `extra` after the recipe"),
        ("pretrain gpt-tiny --data {prefix}", 2, "no folder to write to"),
        ("pretrain gpt-tiny --data {prefix} --output out", 1, "no tokenizer"),
        ("pretrain gpt-tiny --data nowhere --output out --tokenizer {tokenizer}", 1, "no indexed dataset `nowhere`"),
        ("pretrain gpt-tiny --data 0.5 {prefix} {prefix} --output out --tokenizer {tokenizer}", 2, "others none"),
        ("pretrain gpt-tiny --set setps=3 --output out", 1, "did you mean `steps`?"),
        ("pretrain gpt-tiny --set lr=fast --output out", 1, "`fast` is not a value of type float"),
        ("pretrain gpt-tiny --set batch=3 --dp 2 --data {prefix} --output out", 1, "a multiple of the 2 data-parallel"),
        ("pretrain gpt-tiny --tp 3 --data {prefix} --output out --tokenizer {tokenizer}", 1, "does not divide"),
        ("pretrain gpt-tiny --data {prefix} --output {tokenizer} --tokenizer {tokenizer}", 1, "is no training run"),
        ("pretrain gpt-tiny --data {prefix} --output {prefix}.idx --tokenizer {tokenizer}", 1, "is a file"),
        ("pretrain gpt-tiny --data {prefix} --output out --tokenizer {tokenizer} --keep -1", 2, "`--keep -1`"),
        ("pretrain gpt-tiny --json --data {prefix} --output out", 2, "`--json` is for `--dry-run`"),
        ("pretrain bert-tiny --data {prefix} --output out --tokenizer {tokenizer}", 1, "no `[CLS]` token"),
        ("plot nowhere", 1, "nowhere"),
    ],
)
def test_mistakes_have_one_error_and_the_next_step(
    line: str,
    code: int,
    message: str,
    corpus: tuple[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_here(line.format(prefix=corpus[0], tokenizer=corpus[1])) == code
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert "\n\nhint: " in errors
    assert message in errors
    assert not (tmp_path / "out/iter_0000001").exists()


def test_a_dry_run_needs_neither_data_nor_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("pretrain gpt-8.3b --tp 8 --dp 64 --dry-run") == 0
    text = capsys.readouterr().out
    assert "parameters" in text
    assert run_here("pretrain gpt-8.3b --tp 8 --dp 64 --dry-run --json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["parameters"] == pytest.approx(8.3e9, rel=0.02)
