"""What each command prints and writes, in every layout of ranks, after a kill, and under other launchers."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from making import (
    PASSAGES,
    ROWS,
    VOCAB,
    WORDS,
    make_checkpoint,
    make_data,
    run_apart,
    run_here,
    small_config,
    tokenizer_json,
)
from tokenizers import Tokenizer

from mpeval import launch, load_model, open_checkpoint
from mpeval.cli import app
from mpeval.errors import LaunchError, UsageError
from mpeval.folders import data_folder
from mpeval.launch import World, first_host, sizes, world_of
from mpeval.parallel.group import gather_objects

OPTIONS: dict[str, set[str]] = {
    "": {"--version", "--help"},
    "evaluate": {
        *("--task", "--tp", "--dp", "--dtype", "--device", "--data", "--tokenizer", "--limit", "--output", "--json"),
        *("--record", "--megatron-exact", "--allow-modified-data", "--batch-tokens", "--set", "--quiet", "--help"),
        *("--split", "--from-predictions", "--cache", "--harness", "--num-fewshot", "--include-path"),
    },
    "harness": {"--help"},
    "inspect": {"--json", "--set", "--tensors", "--scan", "--help"},
    "convert": {
        *("--format", "--tp", "--pp", "--dtype", "--vocab-size", "--force", "--json", "--set", "--quiet", "--help"),
    },
    "verify": {"--json", "--set", "--help"},
    "diff": {"--json", "--set", "--help"},
    "preprocess": {
        *("--output", "--tokenizer", "--field", "--split-sentences", "--append-eod", "--workers", "--force", "--json"),
        *("--quiet", "--help"),
    },
    "pretrain": {
        *("--data", "--tokenizer", "--output", "--tp", "--dp", "--set", "--keep", "--device", "--dry-run", "--json"),
        *("--tensorboard", "--quiet", "--help"),
    },
    "finetune": {
        *("--task", "--data", "--output", "--recipe", "--set", "--tp", "--dp", "--seeds", "--init-head", "--tokenizer"),
        *("--device", "--record", "--allow-modified-data", "--quiet", "--help"),
    },
    "ensemble": {
        *(
            "--task",
            "--split",
            "--data",
            "--output",
            "--json",
            "--record",
            "--allow-modified-data",
            "--quiet",
            "--help",
        ),
    },
    "plot": {"--output", "--help"},
    "corpus": {"--help"},
    "corpus dedup": {
        *("--output", "--field", "--threshold", "--ngrams", "--permutations", "--seed", "--keep-duplicates"),
        *("--min-tokens", "--tokenizer", "--report", "--json", "--quiet", "--help"),
    },
    "corpus overlap": {
        *("--task", "--data", "--field", "--tokenizer", "--ngrams", "--samples", "--json", "--allow-modified-data"),
        *("--quiet", "--help"),
    },
    "tasks": {"--help"},
    "tasks list": {"--json", "--help"},
    "tasks show": {"--json", "--help"},
    "tasks check": {"--data", "--split", "--tokenizer", "--json", "--allow-modified-data", "--context", "--help"},
    "leaderboard": {"--help"},
    "leaderboard show": {"--protocol", "--store", "--json", "--help"},
    "leaderboard publish": {
        *("--store", "--output", "--format", "--siunitx", "--model", "--readme", "--push-to-hub", "--check", "--help"),
    },
    "leaderboard serve": {"--store", "--port", "--help"},
    "leaderboard compare": {"--protocol", "--store", "--json", "--help"},
    "leaderboard power": {"--protocol", "--n", "--accuracy", "--effect", "--correlation", "--power", "--help"},
    "leaderboard add": {"--store", "--help"},
    "leaderboard retract": {"--reason", "--store", "--help"},
    "leaderboard lint": {"--store", "--json", "--help"},
    "leaderboard verify": {"--store", "--runs", "--data", "--checkpoints", "--json", "--help"},
    "leaderboard schema": {"--help"},
    "leaderboard report": {
        *("--task", "--title", "--protocol", "--split", "--metric", "--value", "--n", "--model", "--parameters"),
        *("--family", "--shots", "--source-title", "--source-url", "--locator", "--date", "--quote", "--note"),
        *("--flag", "--store", "--help"),
    },
    "leaderboard import": {
        *("--format", "--store", "--dry-run", "--model", "--source-url", "--source-title", "--date", "--json"),
        "--help",
    },
}
"""Every command and its options.  A new option changes this table on purpose, or not at all."""
HEAVY = (
    "torch",
    "datasets",
    "lm_eval",
    "scipy",
    "sklearn",
    "tokenizers",
    "transformers",
    "pandas",
    "numba",
    "matplotlib",
    "pyarrow",
)
TASKS = "--task lambada/all --task wikitext103/disjoint --task wikitext103/megatron"
COMMON = "--data data --allow-modified-data"
LAYOUTS = {"tp 1": "", "tp 2": "--tp 2", "dp 2": "--dp 2", "tp 2 x dp 2": "--tp 2 --dp 2"}
TIMED = {"seconds", "tokens_per_second"}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def close(left: float | None, right: float | None, tolerance: float = 1e-4) -> bool:
    """Compare two numbers, either of which may be absent."""
    if left is None or right is None:
        return left is right
    return math.isclose(left, right, rel_tol=tolerance, abs_tol=tolerance)


def assert_same_samples(left: Path, right: Path) -> None:
    """Compare two samples files: items, answers, and log-probabilities within 1e-4."""
    ours, theirs = read_lines(left), read_lines(right)
    assert [(line["task"], line["id"]) for line in ours] == [(line["task"], line["id"]) for line in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert close(one["log_probability"], other["log_probability"]), one["id"]
        assert one["greedy"] == other["greedy"]
        assert one.get("prediction") == other.get("prediction")
        assert one["tokens"] == other["tokens"]


def assert_same_results(left: Path, right: Path) -> None:
    """Compare two results files in everything but time and layout; perplexities within 1e-4."""
    ours, theirs = (json.loads(path.read_text()) for path in (left, right))
    assert ours["checkpoint"]["digest"] == theirs["checkpoint"]["digest"]
    assert [result["protocol"] for result in ours["results"]] == [result["protocol"] for result in theirs["results"]]
    for one, other in zip(ours["results"], theirs["results"], strict=True):
        for mine, yours in zip(one.pop("metrics"), other.pop("metrics"), strict=True):
            assert mine["name"] == yours["name"]
            assert all(close(mine[key], yours[key]) for key in ("value", "loss", "stderr", "low", "high")), mine
        assert {key: value for key, value in one.items() if key not in TIMED} == {
            key: value for key, value in other.items() if key not in TIMED
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint stored whole, as 2 tensor shards and as 2 stages, and both benchmarks."""
    root = tmp_path_factory.mktemp("commands")
    make_checkpoint(root / "tp1")
    make_checkpoint(root / "tp2", tp=2)
    make_checkpoint(root / "pp2", pp=2, naming="megatron")
    make_data(root / "data")
    shutil.copytree(data_folder("tasks") / "samples" / "wikitext-103", root / "data" / "wikitext-103")
    return root


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, Path]:
    """One run of all benchmarks in each layout; the one of tp 1 is stored whole, the others read 2 shards."""
    made = {}
    for name, option in LAYOUTS.items():
        output = folder / f"run {name}"
        checkpoint = "tp2" if option else "tp1"
        done = run_apart(f"evaluate {checkpoint} {TASKS} {COMMON} {option} --json --output '{output}'", folder)
        assert done.returncode == 0, done.stderr
        (output / "stdout").write_text(done.stdout)
        (output / "stderr").write_text(done.stderr)
        made[name] = output
    return made


# ---- help ----


@pytest.mark.parametrize("command", OPTIONS)
def test_help_lists_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(f"{command} --help") == 0
    text = capsys.readouterr().out
    listed = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", text, flags=re.MULTILINE))
    assert listed == OPTIONS[command]


def test_no_command_has_an_option_beyond_the_frozen_ones() -> None:
    found: dict[str, set[str]] = {}

    def walk(command: Any, name: str) -> None:
        options = [option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)]
        found[name] = {option for option in options if option.startswith("-")} | {"--help"}
        for child, inner in getattr(command, "commands", {}).items():
            walk(inner, f"{name} {child}".strip())

    walk(typer.main.get_command(app), "")
    assert found == OPTIONS


@pytest.mark.parametrize("command", [*(f"{verb} --help" for verb in OPTIONS), "--version", "tasks list"])
def test_help_loads_nothing_heavy(command: str) -> None:
    program = (
        "import sys\nfrom mpeval.cli import main\nsys.argv[1:] = sys.argv[1].split()\n"
        f"try:\n    main()\nfinally:\n    print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, command], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_the_boards_need_no_torch() -> None:
    program = (
        "import sys\nfrom mpeval.cli import main\nsys.argv[1:] = ['leaderboard', 'show']\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert run_here("--version") == 0
    assert capsys.readouterr().out == f"mpeval {version('mpeval')}\n"


# ---- inspect ----


def inspection(name: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run_here(f"inspect {name} --json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return dict(json.loads(captured.out))


def test_inspect_gives_every_value_with_its_origin(capsys: pytest.CaptureFixture[str]) -> None:
    content = inspection("tp2", capsys)
    config = small_config()
    for name, value in content["config"].items():
        assert value["value"] == getattr(config, name), name
    assert content["config"]["heads"] == {"value": 4, "origin": "args.num_attention_heads"}
    assert content["config"]["context"] == {"value": 64, "origin": "shapes"}
    assert content["config"]["gelu"] == {"value": "tanh", "origin": "args.bias_gelu_fusion"}
    assert content["parameters"] == config.parameters()
    assert content["tensors"] == {name: list(shape) for name, shape in config.shapes().items()}


def test_inspect_says_that_a_setting_came_from_the_user(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("inspect tp1 --json --set gelu=erf --set eps=1e-6") == 0
    config = json.loads(capsys.readouterr().out)["config"]
    assert config["gelu"] == {"value": "erf", "origin": "--set"}
    assert config["eps"] == {"value": 1e-6, "origin": "--set"}


@pytest.mark.parametrize(
    ("name", "grid", "naming", "copies"),
    [("tp1", [1, 1], "megatron-core", 0), ("tp2", [2, 1], "megatron-core", 0), ("pp2", [1, 2], "megatron", 1)],
)
def test_inspect_accounts_for_every_stored_entry(
    name: str, grid: list[int], naming: str, copies: int, capsys: pytest.CaptureFixture[str]
) -> None:
    content = inspection(name, capsys)
    files = grid[0] * grid[1]
    stored = 0
    for path in Path(name).rglob("model_optim_rng.pt"):
        shard = torch.load(path, weights_only=False)
        stored += len(shard) - 1 + sum(1 for _ in leaves(shard["model"]))
    assert content["grid"] == grid
    assert content["format"] == naming
    assert content["used"] == len(small_config().shapes()) * grid[0]
    assert content["used"] + len(content["ignored"]) == stored
    reasons = [entry["reason"] for entry in content["ignored"]]
    assert sorted(set(reasons) - {"copy of the tied token table"}) == [
        *("read for the configuration", "read for the layout", "read for the result")
    ]
    assert reasons.count("copy of the tied token table") == copies
    assert len(reasons) == 3 * files + copies


def leaves(tree: Any) -> Sequence[Any]:
    """Return the tensors of a nested state dictionary."""
    return [leaf for value in tree.values() for leaf in leaves(value)] if isinstance(tree, dict) else [tree]


def test_the_digest_is_that_of_the_weights_in_any_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = inspection("tp1", capsys)["digest"]
    assert inspection("tp2", capsys)["digest"] == whole
    assert inspection("pp2", capsys)["digest"] == whole
    make_checkpoint(tmp_path / "padded", config=small_config(padded_vocab=640))
    assert inspection(str(tmp_path / "padded"), capsys)["digest"] == whole
    make_checkpoint(tmp_path / "other", seed=13)
    assert inspection(str(tmp_path / "other"), capsys)["digest"] != whole


@pytest.mark.parametrize("path", ["tp2", "tp2/iter_0000001", "tp2/iter_0000001/mp_rank_01/model_optim_rng.pt"])
def test_inspect_takes_a_root_a_folder_or_a_file(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspection(path, capsys)["path"] == "tp2/iter_0000001"


def test_inspect_prints_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("inspect pp2") == 0
    text = capsys.readouterr().out
    assert re.search(r"heads\s+│ 4\s+│ args\.num_attention_heads", text)
    assert "stored as tp 1 x pp 2, float32" in text
    assert f"{small_config().parameters():,} parameters in 28 tensors" in text
    assert "1 x copy of the tied token table" in text
    assert inspection("pp2", capsys)["digest"] in text


# ---- tasks ----


def test_tasks_list_names_every_protocol_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("tasks list --json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed == {
        "lambada": ["lambada/megatron-strict", "lambada/megatron-last-token", "lambada/lm-eval-openai"],
        "mnli": ["mnli/megatron"],
        "piqa": ["piqa/pair", "piqa/last-token", "piqa/lm-eval", "piqa/byte-norm"],
        "qqp": ["qqp/megatron"],
        "race": [
            "race/megatron",
            "race/longest-context",
            "race/last-token",
            "race/all",
            "race/lm-eval",
            "race/gpt3",
        ],
        "squad": ["squad/v1", "squad/v2"],
        "wikitext103": [
            "wikitext103/megatron",
            "wikitext103/disjoint",
            "wikitext103/lm-eval",
            "wikitext103/masked",
        ],
    }
    assert run_here("tasks list") == 0
    text = capsys.readouterr().out
    for protocols in listed.values():
        assert all(text.count(f" {protocol} ") == 1 for protocol in protocols)


def test_tasks_show_prints_the_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("tasks show lambada --json") == 0
    card = json.loads(capsys.readouterr().out)
    [split] = card["splits"]
    assert split["published"]["rows"] == 5153
    assert run_here("tasks show lambada") == 0
    text = capsys.readouterr().out
    assert split["published"]["sha256"] in text
    assert split["hub"]["id"] in text
    assert card["license"] in text
    assert "lambada/lm-eval-openai" in text


def test_tasks_check_counts_rows_and_tokens_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(f"tasks check lambada --tokenizer tp1 {COMMON} --json") == 0
    content = json.loads(capsys.readouterr().out)
    assert len(content) == 3
    strict = content["lambada/megatron-strict"]
    tokenizer = Tokenizer.from_str(tokenizer_json())
    targets = [len(tokenizer.encode(f" {word}").ids) for word in WORDS]
    totals = [len(tokenizer.encode(text).ids) + n for text, n in zip(PASSAGES, targets, strict=True)]
    assert strict["rows"] == len(ROWS)
    assert strict["target_tokens"] == {str(n): targets.count(n) for n in sorted(set(targets))}
    assert strict["multi_token_targets"] == sum(n > 1 for n in targets)
    assert strict["max_tokens"] == max(totals)
    assert strict["mean_tokens"] == round(sum(totals) / len(totals), 2)
    assert strict["flags"] == ["modified-data"]


def test_tasks_check_knows_the_sample_rows(capsys: pytest.CaptureFixture[str]) -> None:
    samples = data_folder("tasks") / "samples"
    assert run_here(f"tasks check wikitext103 --tokenizer tp1 --data {samples} --context 64 --json") == 0
    content = json.loads(capsys.readouterr().out)
    raw = (samples / "wikitext-103" / "wiki.test.tokens").read_text()
    for protocol in ("wikitext103/megatron", "wikitext103/disjoint"):
        constants = content[protocol]
        assert constants["flags"] == ["sample-rows"]
        assert constants["original_tokens"] == len(raw.strip().split(" "))
        assert constants["words"] == len(raw.split())
        assert constants["token_ratio"] == constants["scored_tokens"] / (constants["original_tokens"] - 1)
    scored = content["wikitext103/disjoint"]["scored_tokens"]
    assert content["wikitext103/disjoint"]["useful_windows"] == math.ceil(scored / 64)
    assert content["wikitext103/megatron"]["useful_windows"] == 1 + math.ceil((scored - 64) / 32)
    assert run_here(f"tasks check wikitext103 --tokenizer tp1 --data {samples} --context 64") == 0
    assert f"{scored:,}" in capsys.readouterr().out


# ---- evaluate ----


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "tp 1"])
def test_every_layout_of_ranks_gives_the_same_items_and_metrics(layout: str, runs: dict[str, Path]) -> None:
    assert_same_samples(runs["tp 1"] / "samples.jsonl", runs[layout] / "samples.jsonl")
    assert_same_results(runs["tp 1"] / "results.json", runs[layout] / "results.json")
    stated = json.loads((runs[layout] / "results.json").read_text())["layout"]
    assert f"tp {stated['tp']} x dp {stated['dp']}" in {layout, f"{layout} x dp 1", f"tp 1 x {layout}"}


def test_samples_hold_what_the_model_says(runs: dict[str, Path]) -> None:
    model = load_model(open_checkpoint("tp1"))
    tokenizer = Tokenizer.from_str(tokenizer_json())
    samples = [line for line in read_lines(runs["tp 1"] / "samples.jsonl") if line["task"] == "lambada/megatron-strict"]
    correct = []
    for sample, passage, word in zip(samples, PASSAGES, WORDS, strict=True):
        context, target = tokenizer.encode(passage).ids, tokenizer.encode(f" {word}").ids
        logs = model(torch.tensor([context + target[:-1]]))[0, len(context) - 1 :].double().log_softmax(-1)
        expected = logs.gather(-1, torch.tensor(target).unsqueeze(-1)).sum().item()
        assert sample["log_probability"] == pytest.approx(expected, abs=1e-4)
        correct.append(logs.argmax(-1).tolist() == target)
        assert sample["target"] == f" {word}"
    assert [sample["correct"] for sample in samples] == correct
    assert 0 < sum(correct) < len(correct)
    result = json.loads((runs["tp 1"] / "results.json").read_text())["results"][0]
    assert result["n_correct"] == sum(correct)
    assert result["metrics"][0]["value"] == sum(correct) / len(correct)


def test_the_whole_of_a_task_is_three_protocols(runs: dict[str, Path]) -> None:
    results = json.loads((runs["tp 1"] / "results.json").read_text())["results"]
    assert [result["protocol"] for result in results if result["task"] == "lambada"] == [
        *("lambada/megatron-strict", "lambada/megatron-last-token", "lambada/lm-eval-openai")
    ]
    assert {result["n"] for result in results if result["task"] == "lambada"} == {len(ROWS)}


@pytest.mark.parametrize("protocol", ["wikitext103/disjoint", "wikitext103/megatron"])
def test_perplexity_counts_every_token_of_the_text_once(protocol: str, runs: dict[str, Path]) -> None:
    samples = [line for line in read_lines(runs["tp 1"] / "samples.jsonl") if line["task"] == protocol]
    document = json.loads((runs["tp 1"] / "results.json").read_text())
    result = next(item for item in document["results"] if item["protocol"] == protocol)
    raw = (data_folder("tasks") / "samples" / "wikitext-103" / "wiki.test.tokens").read_text()
    loss = -sum(sample["log_probability"] for sample in samples)
    tokens = sum(sample["tokens"] for sample in samples)
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert result["n"] == tokens
    assert values["token_perplexity"] == pytest.approx(math.exp(loss / tokens), rel=1e-6)
    assert values["adjusted_perplexity"] == pytest.approx(math.exp(loss / (len(raw.strip().split(" ")) - 1)), rel=1e-6)
    assert values["word_perplexity"] == pytest.approx(math.exp(loss / len(raw.split())), rel=1e-6)
    assert result["items"] == result["items_total"] == len(samples)
    assert result["flags"] == ["sample-rows", "window-64"]


def test_json_is_one_document_and_the_table_goes_elsewhere(runs: dict[str, Path]) -> None:
    for output in runs.values():
        document = (output / "stdout").read_text()
        assert json.loads(document) == json.loads((output / "results.json").read_text())
        assert json.loads(document)["schema"] == "mpeval.results/1"
        assert (output / "stderr").read_text().count("lambada/megatron-strict") == 1


def test_quiet_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_here(f"evaluate tp1 --task lambada {COMMON} --quiet") == 0
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_limit_scores_the_first_rows_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(f"evaluate tp1 --task lambada {COMMON} --limit 5 --json --output {tmp_path / 'out'}") == 0
    result = json.loads(capsys.readouterr().out)["results"][0]
    assert (result["items"], result["items_total"], result["n"]) == (5, len(ROWS), 5)
    assert result["flags"] == ["modified-data", "partial"]
    assert [sample["id"] for sample in read_lines(tmp_path / "out" / "samples.jsonl")] == [
        f"{number:05d}" for number in range(5)
    ]


def test_a_longer_run_goes_on_from_a_shorter_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"evaluate tp1 --task lambada {COMMON} --json --output {tmp_path / 'out'}"
    assert run_here(f"{command} --limit 5") == 0
    capsys.readouterr()
    assert run_here(command) == 0
    result = json.loads(capsys.readouterr().out)["results"][0]
    assert (result["items"], result["items_resumed"]) == (len(ROWS), 5)
    assert "partial" not in result["flags"]


def test_a_run_repeated_adds_no_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "records.jsonl"
    command = f"evaluate tp1 --task lambada --task wikitext103/disjoint {COMMON} --record {store}"
    assert run_here(command) == 0
    assert "2 records added" in capsys.readouterr().out
    before = store.read_bytes()
    assert run_here(command) == 0
    assert "0 records added" in capsys.readouterr().out
    assert store.read_bytes() == before
    assert run_here(f"leaderboard show --store {store}") == 0
    text = capsys.readouterr().out
    assert "LAMBADA" in text
    assert "WikiText-103" in text


def test_a_run_repeated_in_another_layout_adds_no_record(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "records.jsonl"
    command = f"evaluate tp1 --task lambada --task wikitext103/disjoint {COMMON} --record {store}"
    assert run_here(command) == 0
    assert run_here(f"{command} --tp 2") == 0
    assert len(store.read_text().splitlines()) == 2
    assert "0 records added" in capfd.readouterr().out


def test_padding_rows_enter_the_softmax_only_when_asked(tmp_path: Path) -> None:
    for name, option in (("masked", ""), ("exact", "--megatron-exact")):
        assert run_here(f"evaluate tp1 --task lambada {COMMON} --quiet {option} --output {tmp_path / name}") == 0
    masked, exact = (read_lines(tmp_path / name / "samples.jsonl") for name in ("masked", "exact"))
    assert all(one["log_probability"] > other["log_probability"] for one, other in zip(masked, exact, strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_narrower_dtype_is_stated_and_stays_near(dtype: str, tmp_path: Path, runs: dict[str, Path]) -> None:
    output = tmp_path / "out"
    assert run_here(f"evaluate tp2 --task lambada {COMMON} --quiet --dtype {dtype} --output {output}") == 0
    assert json.loads((output / "results.json").read_text())["dtype"] == dtype
    wide = read_lines(runs["tp 1"] / "samples.jsonl")[: len(ROWS)]
    narrow = read_lines(output / "samples.jsonl")
    gaps = [abs(one["log_probability"] - other["log_probability"]) for one, other in zip(wide, narrow, strict=True)]
    assert 0 < max(gaps) < 1.0


# ---- resume ----


def test_a_run_cut_short_is_finished_as_if_never_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"evaluate tp1 --task lambada/all {COMMON} --batch-tokens 1 --json --output"
    assert run_here(f"{command} {tmp_path / 'whole'}") == 0
    whole = (tmp_path / "whole" / "samples.jsonl").read_bytes()
    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    (cut / "results.json").unlink()
    lines = whole.splitlines(keepends=True)
    (cut / "samples.jsonl").write_bytes(b"".join(lines[:17]) + lines[17][:30])
    capsys.readouterr()
    assert run_here(f"{command} {cut}") == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert [result["items_resumed"] for result in results] == [12, 5, 0]
    assert [result["tokens_per_second"] is None for result in results] == [True, False, False]
    assert (cut / "samples.jsonl").read_bytes() == whole
    assert_same_results_but_resumed(tmp_path / "whole" / "results.json", cut / "results.json")


def assert_same_results_but_resumed(left: Path, right: Path) -> None:
    ours, theirs = (json.loads(path.read_text())["results"] for path in (left, right))
    for result in (*ours, *theirs):
        for key in (*TIMED, "items_resumed"):
            result.pop(key)
    assert ours == theirs


def test_runs_that_share_a_cache_score_each_item_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def resumed(checkpoint: str, options: str) -> list[int]:
        command = f"evaluate {checkpoint} --task lambada --task wikitext103/disjoint {COMMON} --cache {tmp_path / 'c'}"
        assert run_here(f"{command} --json {options}") == 0
        return [result["items_resumed"] for result in json.loads(capsys.readouterr().out)["results"]]

    assert resumed("tp1", f"--limit 5 --output {tmp_path / 'first'}") == [0, 0]
    first, *_ = resumed("tp1", f"--output {tmp_path / 'second'}")
    assert first == 5
    rows, windows = resumed("tp2", f"--output {tmp_path / 'third'}")  # the same weights, cut otherwise
    assert rows == len(ROWS)
    assert windows > 0
    assert resumed("tp1", "--dtype bfloat16") == [0, 0]
    second, third = (read_lines(tmp_path / name / "samples.jsonl") for name in ("second", "third"))
    assert second == third


def test_a_finished_run_is_read_again_not_scored_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"evaluate tp1 --task lambada {COMMON} --json --output {tmp_path / 'out'}"
    assert run_here(command) == 0
    first = json.loads(capsys.readouterr().out)["results"][0]
    assert run_here(command) == 0
    again = json.loads(capsys.readouterr().out)["results"][0]
    assert (first["items_resumed"], again["items_resumed"]) == (0, len(ROWS))
    assert first["metrics"] == again["metrics"]
    assert again["tokens_per_second"] is None


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    config = small_config(layers=4, hidden=256, ffn=512)
    make_checkpoint(tmp_path / "slow", config=config)
    make_data(tmp_path / "data", ROWS * 25)
    command = (
        f"evaluate {tmp_path / 'slow'} --task lambada --data {tmp_path / 'data'} --allow-modified-data "
        "--batch-tokens 1 --quiet --output"
    )
    killed = tmp_path / "killed"
    scored = kill_when_some_are_scored(command, killed)
    assert 0 < scored < 300
    assert not (killed / "results.json").exists()
    assert run_here(f"{command} {killed}") == 0
    assert run_here(f"{command} {tmp_path / 'whole'}") == 0
    samples = read_lines(killed / "samples.jsonl")
    assert len({sample["id"] for sample in samples}) == len(samples) == 300
    assert_same_samples(killed / "samples.jsonl", tmp_path / "whole" / "samples.jsonl")
    result = json.loads((killed / "results.json").read_text())["results"][0]
    assert scored - 1 <= result["items_resumed"] < 300


def kill_when_some_are_scored(command: str, output: Path) -> int:
    """Start an evaluation, kill it (signal 9) after its first samples, and return how many lines it left."""
    samples = output / "samples.jsonl"
    line = [sys.executable, "-m", "mpeval", *command.split(), str(output)]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if samples.exists() and samples.stat().st_size:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        assert process.wait() == -signal.SIGKILL
    return len(samples.read_bytes().splitlines())


# ---- ranks that fail ----


def raise_in_rank_one(world: World, argument: str) -> None:
    with launch.joined(world, tp=2, dp=1, device="cpu") as group:
        if world.rank == 1:
            raise ValueError(f"the cause: {argument}")
        gather_objects(1, group.world)


def kill_rank_one(world: World, argument: str) -> None:
    with launch.joined(world, tp=2, dp=1, device="cpu") as group:
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        gather_objects(argument, group.world)


def refuse_in_rank_one(world: World, argument: str) -> None:
    with launch.joined(world, tp=2, dp=1, device="cpu") as group:
        if world.rank == 1:
            raise UsageError(argument, "the next thing to do")
        gather_objects(1, group.world)


def test_an_error_in_one_rank_ends_all_with_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    begin = time.monotonic()
    with pytest.raises(SystemExit) as ended:
        launch.run_local(2, raise_in_rank_one, "argument")
    assert time.monotonic() - begin < 20
    assert ended.value.code == 1
    text = capfd.readouterr().err
    assert text.count("ValueError: the cause: argument") == 1
    assert re.search(r"^rank 1 of 2 on \S+ failed:$", text, flags=re.MULTILINE)
    assert "raise_in_rank_one" in text
    assert "rank 0 of 2" not in text


def test_a_users_mistake_in_one_rank_is_said_once_without_a_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        launch.run_local(2, refuse_in_rank_one, "no such thing")
    assert ended.value.code == 2
    assert capfd.readouterr().err == "error: no such thing\n\nhint: the next thing to do\n"


def test_a_killed_rank_ends_the_run_and_is_named(capfd: pytest.CaptureFixture[str]) -> None:
    begin = time.monotonic()
    with pytest.raises(LaunchError, match="rank 1 was ended by signal 9") as ended:
        launch.run_local(2, kill_rank_one, "argument")
    assert time.monotonic() - begin < 20
    assert "out of memory" in ended.value.hint
    assert "rank 1 of 2" not in capfd.readouterr().err


# ---- other launchers ----


def free_port() -> int:
    """Return a port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without anything a launcher says, and with `more`."""
    launchers = ("SLURM_", "MASTER_", "TORCHELASTIC", "RANK", "WORLD_SIZE", "LOCAL_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(launchers)}
    return kept | {"OMP_NUM_THREADS": "1"} | more


def run_two(lines: Sequence[Sequence[str]], environments: Sequence[dict[str, str]]) -> list[tuple[int, str, str]]:
    """Run two commands at once; return exit code, stdout and stderr of each."""
    processes = [
        subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line, environment in zip(lines, environments, strict=True)
    ]
    try:
        ended = [process.communicate(timeout=90) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [(process.returncode, out, err) for process, (out, err) in zip(processes, ended, strict=True)]


def arguments(output: Path, *more: str) -> list[str]:
    return ["-m", "mpeval", "evaluate", "tp2", *f"{TASKS} {COMMON} --json".split(), "--output", str(output), *more]


def test_two_torchrun_agents_give_the_same_as_one_process(tmp_path: Path, runs: dict[str, Path]) -> None:
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}", "--rdzv-id", "test"]
    line = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    line += ["--local-addr", "127.0.0.1", *meeting, *arguments(tmp_path / "out", "--tp", "2")]
    ended = run_two([line, line], [clean_environment()] * 2)
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert_same_samples(runs["tp 1"] / "samples.jsonl", tmp_path / "out" / "samples.jsonl")
    assert_same_results(runs["tp 1"] / "results.json", tmp_path / "out" / "results.json")
    printed = "".join(out for _, out, _ in ended)
    assert json.loads(printed)["layout"] == {"tp": 2, "dp": 1}


def slurm_environments(**more: str) -> list[dict[str, str]]:
    step = {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "127.0.0.1"}
    step |= {"SLURM_STEP_TASKS_PER_NODE": "2", "MASTER_PORT": str(free_port())} | more
    return [clean_environment(**step, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank)) for rank in range(2)]


def test_two_slurm_tasks_give_the_same_as_one_process(tmp_path: Path, runs: dict[str, Path]) -> None:
    line = [sys.executable, *arguments(tmp_path / "out")]
    ended = run_two([line, line], slurm_environments())
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert_same_samples(runs["tp 1"] / "samples.jsonl", tmp_path / "out" / "samples.jsonl")
    assert_same_results(runs["tp 1"] / "results.json", tmp_path / "out" / "results.json")
    assert ended[1][1] == ""
    assert json.loads(ended[0][1])["layout"] == {"tp": 1, "dp": 2}


def test_a_mistake_under_slurm_ends_every_task_and_is_said_once(tmp_path: Path) -> None:
    line = [sys.executable, *arguments(tmp_path / "out", "--tokenizer", "nowhere")]
    ended = run_two([line, line], slurm_environments())
    assert [code for code, _, _ in ended] == [1, 1]
    assert "".join(out for _, out, _ in ended) == ""
    errors = "".join(err for _, _, err in ended)
    assert errors.count("error: ") == 1
    assert "error: no such tokenizer: `nowhere` does not exist\n" in errors
    assert "Traceback" not in errors


# ---- who this process is ----

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
MEETING = {"MASTER_ADDR": "node7", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}


def test_a_process_started_by_hand_has_no_world() -> None:
    assert world_of({}) is None
    assert world_of({"PATH": "/bin", "WORLD_SIZE": "4"}) is None


def test_the_world_of_torchrun_is_read() -> None:
    world = World(rank=5, ranks=8, local_rank=1, local_ranks=4, address="node7:29500")
    assert world_of(TORCHRUN | MEETING) == world
    assert world_of(TORCHRUN | MEETING | {"TORCHELASTIC_RESTART_COUNT": "2"}) == replace(world, attempt=2)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (TORCHRUN, "`MASTER_ADDR` or `MASTER_PORT`"),
        (TORCHRUN | {"MASTER_ADDR": "node7"}, "`MASTER_ADDR` or `MASTER_PORT`"),
        (TORCHRUN | MEETING | {"RANK": "five"}, "`RANK` is `five`"),
        (TORCHRUN | MEETING | {"WORLD_SIZE": ""}, "`WORLD_SIZE` is ``"),
        (SLURM | {"SLURM_NTASKS": "-4"}, "`SLURM_NTASKS` is `-4`"),
        (SLURM, "node list is empty"),
    ],
)
def test_a_launcher_that_says_too_little_is_an_error(environment: dict[str, str], message: str) -> None:
    with pytest.raises(LaunchError, match=message) as raised:
        world_of(environment)
    assert raised.value.hint


def test_the_world_of_a_slurm_step_is_read() -> None:
    nodes = {"SLURM_STEP_NODELIST": "gpu[03-04]", "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_JOB_ID": "1234567"}
    world = world_of(SLURM | nodes)
    assert world is not None
    assert (world.rank, world.ranks, world.local_rank, world.local_ranks) == (3, 4, 1, 2)
    assert world.address.startswith("gpu03:")
    given = world_of(SLURM | nodes | MEETING)
    assert given is not None
    assert given.address == "node7:29500"


def test_the_ranks_of_a_slurm_step_meet_and_those_of_others_do_not() -> None:
    def address(job: int, step: int, rank: int) -> str:
        more = {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step), "SLURM_PROCID": str(rank)}
        world = world_of(SLURM | {"SLURM_STEP_NODELIST": "gpu01"} | more)
        assert world is not None
        return world.address

    meetings = {address(job, step, 0) for job in range(1234567, 1234571) for step in range(4)}
    assert len(meetings) == 16
    assert len({address(1234567, 2, rank) for rank in range(4)}) == 1
    assert all(1024 < int(meeting.rpartition(":")[2]) < 65536 for meeting in meetings)


def test_a_batch_script_or_a_lone_task_of_slurm_has_no_world() -> None:
    nodes = {"SLURM_STEP_NODELIST": "gpu01"}
    batch = {key: value for key, value in SLURM.items() if key != "SLURM_STEP_ID"}
    assert world_of(batch | nodes) is None
    assert world_of(SLURM | nodes | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("127.0.0.1", "127.0.0.1"),
        ("gpu[003-007,9],login", "gpu003"),
        ("gpu[9,11]", "gpu9"),
        ("gpu-a.cluster[1-2]", "gpu-a.cluster1"),
        ("rack[2-3]_blade[10-41]", "rack2_blade10"),
        ("node[01-04]-ib", "node01-ib"),
    ],
)
def test_the_first_host_of_a_node_list_is_found(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def world_with(ranks: int) -> World:
    return World(rank=0, ranks=ranks, local_rank=0, local_ranks=1, address="node:1")


@pytest.mark.parametrize(
    ("tp", "dp", "ranks", "settled"),
    [
        (None, None, None, (1, 1)),
        (2, None, None, (2, 1)),
        (2, 3, None, (2, 3)),
        (None, None, 8, (1, 8)),
        (2, None, 8, (2, 4)),
        (None, 2, 8, (4, 2)),
        (8, 1, 8, (8, 1)),
    ],
)
def test_sizes_are_settled_against_the_ranks(
    tp: int | None, dp: int | None, ranks: int | None, settled: tuple[int, int]
) -> None:
    assert sizes(tp, dp, world_with(ranks) if ranks else None) == settled


@pytest.mark.parametrize(
    ("tp", "dp", "ranks"), [(0, None, None), (None, -1, None), (3, None, 8), (2, 2, 8), (16, None, 8), (None, 3, 8)]
)
def test_sizes_that_do_not_make_up_the_ranks_are_refused(tp: int | None, dp: int | None, ranks: int | None) -> None:
    with pytest.raises(UsageError) as raised:
        sizes(tp, dp, world_with(ranks) if ranks else None)
    assert raised.value.exit_code == 2
    assert raised.value.hint


def test_the_true_vocabulary_is_smaller_than_its_table() -> None:
    assert small_config().vocab == VOCAB < small_config().padded_vocab
