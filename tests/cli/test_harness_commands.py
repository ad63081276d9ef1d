"""`mpeval evaluate --harness` and `mpeval harness` as a person types them, on the demo checkpoint."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from harnessing import DEMO, TASKS
from making import make_checkpoint, run_here, small_config

from mpeval import launch
from mpeval.folders import data_folder

pytestmark = pytest.mark.filterwarnings("ignore")  # lm-eval and datasets warn about their own dependencies
OWN = f"--include-path {TASKS} --device cpu"
PIQA = f"evaluate {DEMO} --harness piqa {OWN}"


@pytest.fixture
def own_tasks_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep lm-eval from looking through its 14,000 task files, which takes 10 seconds."""
    import lm_eval.tasks

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", partial(lm_eval.tasks.TaskManager, include_defaults=False))


def document(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "results.json").read_text()))


def test_results_samples_and_records_are_those_of_any_evaluation(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    store, output = tmp_path / "store.jsonl", tmp_path / "out"
    command = f"evaluate {DEMO} --harness piqa,lambada_gen* {OWN} --num-fewshot 2 --limit 6 --dtype float32 "
    command += f"--output {output} --record {store}"
    assert run_here(f"{command} --json") == 0
    printed = capfd.readouterr()
    run = json.loads(printed.out)
    assert run == document(output)
    assert "lm-eval/piqa/2-shot" in printed.err
    assert "it/s" not in printed.err  # no bar where no person watches
    piqa, generated = run["results"]
    assert (piqa["protocol"], piqa["n"], piqa["items_total"]) == ("lm-eval/piqa/2-shot", 6, 16)
    assert piqa["harness"]["shots"] == 2
    assert {"sample-rows", "partial"} <= set(piqa["flags"])
    assert generated["metrics"][0]["name"] == "exact_match/first_word"
    samples = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert [sample["task"] for sample in samples] == ["lm-eval/piqa/2-shot"] * 6 + [
        "lm-eval/lambada_generate/2-shot"
    ] * 6
    assert sum(sample["correct"] for sample in samples[:6]) == piqa["n_correct"]
    assert run["command"].startswith("mpeval evaluate")
    assert [item["items_resumed"] for item in run["results"]] == [0, 0]
    assert run_here(f"leaderboard verify --store {store} --json") == 0
    assert [(item["state"], item["checked"]) for item in json.loads(capfd.readouterr().out)] == [
        ("hash ok", ["samples"])
    ] * 2
    # killed in the middle of a line, the same command goes on, asks only what is missing, and adds no record twice
    answers = output / "lm-eval-answers-000.jsonl"
    whole = answers.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 6 * 2 + 6
    answers.write_bytes(b"".join(lines[:7]) + lines[7][:20])
    assert run_here(f"{command} --quiet") == 0
    again = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [key for key, _ in again] == [json.loads(line)[0] for line in lines]
    assert [answer[0] for _, answer in again[:12]] == pytest.approx(
        [json.loads(line)[1][0] for line in lines[:12]], abs=1e-4
    )
    assert [item["items_resumed"] for item in document(output)["results"]] == [3, 0]
    assert run_here(f"{command} --quiet") == 0
    assert [item["items_resumed"] for item in document(output)["results"]] == [6, 6]
    assert {item["tokens_per_second"] for item in document(output)["results"]} == {None}
    assert len((output / "samples.jsonl").read_text().splitlines()) == 12
    assert len(store.read_text().splitlines()) == 2
    assert [item["metrics"] for item in document(output)["results"]] == [item["metrics"] for item in run["results"]]
    capfd.readouterr()
    assert run_here(f"leaderboard show --store {store}") == 0
    assert "lm-eval/piqa/2-shot" in capfd.readouterr().out


def test_runs_that_share_a_cache_ask_each_question_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def resumed(options: str) -> int:
        assert run_here(f"{PIQA} --json --cache {tmp_path / 'cache'} {options}") == 0
        return int(json.loads(capsys.readouterr().out)["results"][0]["items_resumed"])

    assert resumed(f"--limit 3 --output {tmp_path / 'one'}") == 0
    assert resumed(f"--limit 5 --output {tmp_path / 'two'}") == 3
    assert resumed("--limit 4") == 4
    assert resumed("--limit 4 --dtype float32") == 0
    assert resumed("--limit 4 --num-fewshot 1") == 0


def test_an_output_folder_of_other_settings_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(f"{PIQA} --limit 2 --quiet --output {tmp_path}") == 0
    assert run_here(f"{PIQA} --limit 2 --quiet --output {tmp_path} --dtype float32") == 1
    assert "belongs to another run: its dtype is `bfloat16`" in capsys.readouterr().err


MISTAKES: dict[str, tuple[str, int, str, str]] = {
    "both kinds of tasks": (f"{PIQA} --task lambada", 2, "`--task` says nothing about tasks of lm-eval", "--harness"),
    "no task": (f"evaluate {DEMO}", 2, "there is nothing to evaluate on", "--task TASK"),
    "an empty list": (f"evaluate {DEMO} --harness , {OWN}", 2, "`--harness ','` names no task", "arc_easy"),
    "examples without lm-eval": (f"evaluate {DEMO} --task lambada --num-fewshot 2", 2, "`--num-fewshot`", "--harness"),
    "a folder without lm-eval": (f"evaluate {DEMO} --task lambada {OWN}", 2, "`--include-path`", "--harness"),
    "an option of the other kind": (f"{PIQA} --megatron-exact", 2, "`--megatron-exact` says nothing", "leave out"),
    "a folder that is not there": (
        f"evaluate {DEMO} --harness piqa --include-path none",
        2,
        "`--include-path none` does not exist",
        "*.yaml",
    ),
    "a file for a folder": (
        f"evaluate {DEMO} --harness piqa --include-path {TASKS / 'piqa.yaml'}",
        2,
        "piqa.yaml` is a file",
        "*.yaml",
    ),
    "nothing to score": (f"{PIQA} --limit 0", 2, "`--limit 0` leaves nothing to score", "1 or more"),
    "a group and its task": (f"evaluate {DEMO} --harness piqa,zero_shot {OWN}", 2, "Duplicate task 'piqa'", "not both"),
    "data that are not there": (f"{PIQA} --data none", 1, "lm-eval cannot load `piqa`: DataError", "--include-path"),
    "more ranks than documents": (f"{PIQA} --limit 1 --dp 2", 2, "`piqa` has 1 documents for 2", "--dp 1"),
    "an unknown task": (f"evaluate {DEMO} --harness piqqa {OWN}", 2, "lm-eval has no task `piqqa`", "`piqa`?"),
    "a name like no other": (f"evaluate {DEMO} --harness 0 {OWN}", 2, "lm-eval has no task `0`", "harness ls tasks"),
    "examples where there are none": (
        f"evaluate {DEMO} --harness bare --include-path bare --num-fewshot 2",
        2,
        "`--num-fewshot 2`: `bare` is asked without examples",
        "leave the option out",
    ),
    "data that nobody reads": (
        f"evaluate {DEMO} --harness bare --include-path bare --data .",
        2,
        "`--data` is for tasks that read a folder, and none of these does",
        "tasks/harness",
    ),
    "no checkpoint": (f"evaluate none --harness piqa {OWN}", 1, "no such checkpoint", ""),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_in_one_line_and_a_hint(
    name: str,
    own_tasks_only: None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "run_local", forked)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/row.jsonl").write_text('{"text": "one two"}\n')
    (tmp_path / "bare/bare.yaml").write_text(
        "task: bare\ndataset_path: json\noutput_type: loglikelihood_rolling\ntest_split: test\nnum_fewshot: 0\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'bare/row.jsonl'}}}}}\n"
        "doc_to_text: ''\ndoc_to_target: '{{text}}'\nmetric_list: [{metric: bits_per_byte}]\n"
    )
    command, code, error, hint = MISTAKES[name]
    assert run_here(command) == code
    said = capsys.readouterr()
    assert said.out == ""
    if name == "more ranks than documents":
        return  # said by ranks of their own
    first, _, last = said.err.partition("\n\nhint: ")
    assert first.startswith("error: ")
    assert error in first
    assert hint in last
    assert "Traceback" not in said.err


def test_a_bert_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(family="bert", tokentypes=2, lm_head=True)
    make_checkpoint(tmp_path / "bert", config=config)
    assert run_here(f"evaluate {tmp_path / 'bert'} --harness piqa {OWN}") == 1
    assert "holds a BERT, and lm-eval's tasks ask a language model what comes next" in capsys.readouterr().err
    run = f"harness run --model mpeval --model_args checkpoint={tmp_path / 'bert'} --tasks x"
    assert run_here(f"{run} --device tpu") == 2
    assert "`device=tpu` is unknown" in capsys.readouterr().err


# ---- lm-eval's own command ----


def forked(ranks: int, entry: Callable[[launch.World, Any], None], argument: Any, **_: Any) -> None:
    """Run ranks as `launch.run_local` does, forked, so that they have what this process has imported and replaced."""
    context = multiprocessing.get_context("fork")
    folder = os.path.join(os.getcwd(), "meet")
    os.makedirs(folder)
    worlds = [
        launch.World(rank=rank, ranks=ranks, local_rank=rank, local_ranks=ranks, address=folder)
        for rank in range(ranks)
    ]
    processes = [context.Process(target=entry, args=(world, argument)) for world in worlds]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    if any(process.exitcode for process in processes):
        raise SystemExit(processes[0].exitcode)


@pytest.mark.parametrize("ranks", ["", ",tp=2", ",dp=2"])
def test_the_command_is_lm_evals_with_the_model_in_it(
    ranks: str,
    own_tasks_only: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(launch, "run_local", forked)
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda _: None)  # it asks pip, for seconds
    model = f"checkpoint={DEMO},dtype=float32{ranks}"
    samples = data_folder("tasks") / "samples"
    command = f"harness --model mpeval --model_args {model} --tasks piqa,lambada_generate --limit 4 "
    command += f"--include_path {TASKS} --metadata data={samples} --output_path out --log_samples --batch_size auto"
    before = sys.argv
    assert run_here(command) == 0
    assert sys.argv is before
    printed = capfd.readouterr().out
    assert printed.count("|piqa") == 1
    assert "mpeval ({'checkpoint'" in printed
    [results] = Path("out").rglob("results_*.json")
    found = json.loads(results.read_text())
    assert found["results"]["piqa"]["sample_len"] == 4
    assert len(list(Path("out").rglob("samples_*.jsonl"))) == 2
    assert run_here(f"{PIQA} --limit 4 --dtype float32 --quiet --output own") == 0
    [mine] = document(Path("own"))["results"]
    assert [metric["value"] for metric in mine["metrics"]] == [
        found["results"]["piqa"]["acc,none"],
        found["results"]["piqa"]["acc_norm,none"],
    ]


def test_its_help_and_its_complaints_are_lm_evals(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_here("harness run --help") == 0
    assert "usage: lm-eval run --model <model>" in capfd.readouterr().out
    assert run_here("harness") == 0
    assert "usage: lm-eval [-h] COMMAND" in capfd.readouterr().out
    assert run_here("harness run --tasks piqa --nonsense 1") == 2
    assert "lm-eval: error: unrecognized arguments: --nonsense 1" in capfd.readouterr().err
    assert run_here("harness run --model mpeval --model_args checkpoint=x,tp=two --tasks piqa") == 2
    assert "`tp=two` is not a number of ranks" in capfd.readouterr().err
    assert run_here("harness run --model mpeval --model_args checkpoint=x,device=cpu --tasks piqa") == 2
    assert "`device=cpu` in `--model_args` stands beside lm-eval's own `--device`" in capfd.readouterr().err


def test_sizes_may_stand_in_a_file_of_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[int, Any]] = []
    monkeypatch.setattr(launch, "run_local", lambda ranks, _, argument: asked.append((ranks, argument)))
    settings = tmp_path / "run.yaml"
    for given in ("{checkpoint: x, tp: 2, dp: 3}", "checkpoint=x,tp=2,dp=3"):
        settings.write_text(
            f"model: mpeval\nmodel_args: {json.dumps(given) if '=' in given else given}\ntasks: [piqa]\n"
        )
        assert run_here(f"harness run --config {settings} --device cpu") == 0
    assert asked == [(6, (("run", "--config", str(settings), "--device", "cpu"), 2, 3, "cpu"))] * 2
