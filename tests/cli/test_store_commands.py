"""What the commands that fill and check a leaderboard print, write and refuse, on runs that really were made."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from evaluated import answers_to, race, write_evaluation, write_race
from making import make_checkpoint, make_data, run_here, shard_file
from recorded import record

from mpeval.finetuned import Epoch, Finetuned, Seeds, write_finetuned
from mpeval.folders import data_folder
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.schema import schema_text
from mpeval.leaderboard.store import append, default_stores, read
from mpeval.results import Metric, SeedSpread, TrainingInfo

LANGUAGE = "--task 'lambada/*' --task wikitext103/disjoint --task wikitext103/megatron --task wikitext103/lm-eval"
PASSAGES = [("middle", 1, 3), ("high", 1, 3), ("high", 2, 2)]
TRAINING = TrainingInfo(seed=7, questions=100, steps=50, epochs=2, recipe="race-small", learning_rate=1e-5, batch=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small GPT evaluated on every protocol of a language model, recorded in `board/results.jsonl`."""
    root = tmp_path_factory.mktemp("store")
    make_checkpoint(root / "models" / "tiny", tp=2)
    make_data(root / "data")
    shutil.copytree(data_folder("tasks") / "samples" / "wikitext-103", root / "data" / "wikitext-103")
    before = Path.cwd()
    os.chdir(root)
    try:
        more = "--data data --allow-modified-data --output runs/tiny --record board/results.jsonl --quiet"
        assert run_here(f"evaluate models/tiny {LANGUAGE} {more}") == 0
    finally:
        os.chdir(before)
    return root


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def verdicts(command: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run_here(f"leaderboard verify {command} --json") == code
    return list(json.loads(capsys.readouterr().out))


def changed_results(change: Callable[[dict[str, Any]], None]) -> None:
    """Change the results of `run1`."""
    raw = json.loads(Path("run1/results.json").read_text())
    change(raw)
    Path("run1/results.json").write_text(json.dumps(raw))


def evaluations(folder: Path, count: int, **more: Any) -> list[Path]:
    """Write a RACE set and the evaluations of several models on it; return their folders."""
    data = race(write_race(folder / "data", PASSAGES))
    return [
        write_evaluation(
            folder / f"run{number}",
            answers_to(data, number),
            data.digest,
            checkpoint={"name": f"model-{number}", "digest": f"sha256:{number}"},
            flags=["modified-data"],
            **more,
        )
        for number in range(1, count + 1)
    ]


# ---- evaluate --record, add ----


def test_a_recorded_evaluation_is_scored_and_hashed_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = f"--store {folder}/board/results.jsonl --data {folder}/data --checkpoints {folder}"
    found = verdicts(root, capsys)
    assert len(found) == 6
    assert {item["state"] for item in found} == {"verified"}
    assert all(item["checked"] == ["data", "samples", "scores", "checkpoint"] for item in found)
    assert all(item["notes"] == [] and item["problem"] == "" for item in found)


def test_layouts_of_files_and_ranks_make_the_same_record(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TP 2 stored and 1 run, as recorded; TP 2 x PP 2 stored and 2 run."""
    make_checkpoint(Path("models/tiny"), tp=2, pp=2)
    more = f"--data {folder}/data --allow-modified-data --output runs/other --record other.jsonl --quiet"
    assert run_here(f"evaluate models/tiny {LANGUAGE} --tp 2 {more}") == 0
    ours, theirs = read(folder / "board" / "results.jsonl"), read(Path("other.jsonl"))
    assert [one.slot for one in ours] == [one.slot for one in theirs]
    assert {one.layout.tp for one in theirs if isinstance(one, Record)} == {2}
    assert all(
        one.metric.value == pytest.approx(other.metric.value, rel=1e-5) for one, other in zip(ours, theirs, strict=True)
    )
    capsys.readouterr()
    assert run_here(f"leaderboard lint --store {folder}/board/results.jsonl --store other.jsonl") == 0
    assert "0 errors" in capsys.readouterr().out


def test_without_the_data_only_what_samples_tell_is_scored_again(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = verdicts(f"--store {folder}/board/results.jsonl", capsys)
    assert sorted(item["state"] for item in found) == ["hash ok"] * 3 + ["verified"] * 3
    assert all("--data" in item["notes"][0] for item in found if item["state"] == "hash ok")


def test_adding_a_run_that_was_recorded_adds_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "board", "board")
    assert run_here(f"leaderboard add {folder}/runs/tiny --store board/results.jsonl") == 0
    assert capsys.readouterr().out == "0 records added to board/results.jsonl\n6 of 6 were there already\n"
    assert run_here(f"leaderboard add {folder}/runs/tiny --store new/results.jsonl") == 0
    assert capsys.readouterr().out == "6 records added to new/results.jsonl\n"
    ours, theirs = read(Path("new/results.jsonl")), read(folder / "board" / "results.jsonl")
    for one, other in zip(ours, theirs, strict=True):
        assert isinstance(one, Record)
        assert isinstance(other, Record)
        assert one.samples is not None
        assert other.samples is not None
        assert one.samples.sha256 == other.samples.sha256
        assert other.samples.file == "../runs/tiny/samples.jsonl"
        assert (Path("new") / one.samples.file).resolve() == (folder / "runs/tiny/samples.jsonl").resolve()


def test_several_runs_are_added_at_once_and_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluations(tmp_path, 3)
    assert run_here("leaderboard add run1 run2 run3 --store board.jsonl") == 0
    assert capsys.readouterr().out == "3 records added to board.jsonl\n"
    assert [item["state"] for item in verdicts("--store board.jsonl --data data", capsys)] == ["verified"] * 3


def test_an_ensemble_is_added_as_it_would_have_been_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluations(tmp_path, 3)
    more = "--task race --output both --record made.jsonl --quiet"
    assert run_here(f"ensemble run1 run2 run3 {more}") == 0
    assert run_here("leaderboard add both --store added.jsonl") == 0
    (made,), (added,) = read(Path("made.jsonl")), read(Path("added.jsonl"))
    assert made == added
    assert [item["state"] for item in verdicts("--store added.jsonl --data data", capsys)] == ["verified"]
    shutil.rmtree("run2")
    assert run_here("leaderboard add both --store other.jsonl") == 1
    assert "no run at `run2`" in capsys.readouterr().err


def test_an_ensemble_whose_members_changed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluations(tmp_path, 2)
    assert run_here("ensemble run1 run2 --task race --output both --quiet") == 0
    data = race(tmp_path / "data")
    shutil.rmtree("run2")
    write_evaluation(tmp_path / "run2", answers_to(data, 9), data.digest, checkpoint={"digest": "sha256:2"})
    assert run_here("leaderboard add both --store other.jsonl") == 1
    assert "`run2` is not what the ensemble in `both` was made of" in capsys.readouterr().err


def finetuned(folder: Path, seed: int, value: float) -> None:
    """Write what a finetuned run leaves: evaluations of both epochs, and of the one that was kept."""
    data = race(write_race(folder.parent / "data", PASSAGES))
    training = TRAINING.model_copy(update={"seed": seed})
    metric = Metric(name="accuracy", value=value, unit="proportion", direction="max")
    write_finetuned(
        folder,
        Finetuned(
            task="race",
            protocol="race/megatron",
            protocol_version="1",
            train_split="train",
            dev_split="dev",
            pretrained="sha256:p",
            drawn=[],
            training=training,
            epochs=[Epoch(epoch=1, step=25, metric=metric)],
            best=25,
        ),
    )
    for name in ("dev-epoch-1", "dev-epoch-2", "dev", "test"):
        write_evaluation(
            folder / "evaluations" / name,
            answers_to(data, seed),
            data.digest,
            checkpoint={"digest": f"sha256:{seed}"},
            run={"training": training},
            split=name.partition("-")[0],
            flags=["modified-data"],
        )


def test_a_finetuned_run_is_added_by_its_evaluations_but_not_of_epochs(tmp_path: Path) -> None:
    finetuned(tmp_path / "run", 7, 0.5)
    assert run_here("leaderboard add run --store board.jsonl") == 0
    found = read(Path("board.jsonl"))
    assert [one.split for one in found] == ["dev", "test"]
    assert [one.samples.file for one in found if isinstance(one, Record) and one.samples] == [
        "run/evaluations/dev/samples.jsonl",
        "run/evaluations/test/samples.jsonl",
    ]


def test_of_several_seeds_the_chosen_one_says_so(tmp_path: Path) -> None:
    for seed, value in ((7, 0.5), (8, 0.6), (9, 0.7)):
        finetuned(tmp_path / "runs" / f"seed-{seed}", seed, value)
    spread = SeedSpread(
        seeds=[7, 8, 9], split="dev", metric="accuracy", median=0.6, deviation=0.1, lowest=0.5, highest=0.7
    )
    seeds = Seeds(spread=spread, values=[0.5, 0.6, 0.7], chosen=8)
    Path("runs/seeds.json").write_text(seeds.to_json(), encoding="utf-8")
    assert run_here("leaderboard add runs --store board.jsonl") == 0
    assert run_here("leaderboard add runs/seed-8 --store one.jsonl") == 0
    found = [one for one in read(Path("board.jsonl")) if isinstance(one, Record) and one.training]
    assert len(found) == 6
    chosen = [one for one in found if one.seeds]
    assert [(one.training.seed, one.training.selection, one.split) for one in chosen if one.training] == [
        (8, "dev median of 3 seeds", "dev"),
        (8, "dev median of 3 seeds", "test"),
    ]
    assert chosen == read(Path("one.jsonl"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda: shutil.rmtree("run1"), "no run at `run1`"),
        (lambda: Path("run1/results.json").unlink(), "it was not finished"),
        (lambda: [Path("run1", name).unlink() for name in ("results.json", "samples.jsonl")], "evaluate into it"),
        (lambda: Path("run1/results.json").write_text("{"), "cannot read `run1/results.json`"),
        (lambda: Path("run1/results.json").write_text("[]"), "`run1/results.json` holds no object"),
        (lambda: Path("run1/results.json").write_text("{}"), "holds no results of an evaluation"),
        (
            lambda: changed_results(lambda raw: raw["results"][0].update(metrics=[])),
            "holds no results of an evaluation",
        ),
        (lambda: changed_results(lambda raw: raw.update(results=[])), "`run1/results.json` is of no task"),
        (lambda: Path("run1/samples.jsonl").write_text("x\n"), "`run1/samples.jsonl` line 1 is no sample"),
        (
            lambda: Path("run1/samples.jsonl").write_text(Path("run1/samples.jsonl").read_text().partition("\n")[0]),
            "holds 1 samples under `race/megatron`",
        ),
    ],
    ids=["no-folder", "killed", "empty", "torn", "list", "other", "no-metric", "no-task", "samples", "fewer"],
)
def test_a_folder_without_a_whole_run_is_refused(
    spoil: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluations(tmp_path, 2)
    spoil()
    assert run_here("leaderboard add run2 run1 --store board.jsonl") == 1
    assert said in capsys.readouterr().err
    assert not Path("board.jsonl").exists()


def test_a_run_whose_samples_were_removed_is_added_without_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluations(tmp_path, 1)
    Path("run1/samples.jsonl").unlink()
    assert run_here("leaderboard add run1 --store board.jsonl") == 0
    assert [item["state"] for item in verdicts("--store board.jsonl", capsys)] == ["measured"]


# ---- retract ----


def test_a_record_is_taken_back_by_the_beginning_of_its_id(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "board.jsonl"
    append(store, [record(), record(digest="sha256:b")])
    first, second = read(store)
    name = first.record_id.removeprefix("sha256:")[:12]
    assert run_here(f"leaderboard retract {name} --reason 'wrong data' --store board.jsonl") == 0
    assert capsys.readouterr().out == f"took back sha256:{name}: LAMBADA, lambada/megatron-strict, gpt-345m\n"
    assert read(store) == [second]
    assert json.loads(store.read_text().splitlines()[-1])["reason"] == "wrong data"
    assert run_here(f"leaderboard retract {first.record_id} --reason again --store board.jsonl") == 1
    assert f"`sha256:{name}` was taken back already by line 3: wrong data" in capsys.readouterr().err
    assert len(store.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("name", "reason", "said"),
    [
        ("zz", "x", "no record has an id that begins `sha256:zz`"),
        ("sha256:", "x", "2 records have an id that begins"),
        ("", "x", "no record has an id"),
        ("sha256:", " ", "`--reason` says nothing"),
    ],
)
def test_nothing_is_taken_back_by_guess(
    name: str, reason: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append(tmp_path / "board.jsonl", [record(), record(digest="sha256:b")])
    assert run_here(f"leaderboard retract '{name}' --reason '{reason}' --store board.jsonl") == 1
    error = capsys.readouterr().err
    assert said in error
    assert "hint:" in error
    assert len(read(tmp_path / "board.jsonl")) == 2


# ---- lint ----


def test_lint_names_lines_and_fails_on_errors_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = record(n_correct=None)
    odd = record(n_correct=None, digest="sha256:b", split="strange")
    Path("good.jsonl").write_text(good.line() + "\n" + odd.line() + "\n")
    Path("bad.jsonl").write_text(good.line() + "\n" + good.line()[:100] + "\n")
    assert run_here("leaderboard lint --store good.jsonl") == 0
    said = capsys.readouterr().out
    assert said.startswith("good.jsonl:2: warning: LAMBADA has no split `strange` [split]\n")
    assert said.endswith("0 errors, 1 warning\n")
    assert run_here("leaderboard lint --store good.jsonl --store bad.jsonl") == 1
    captured = capsys.readouterr()
    assert re.search(r"^bad.jsonl:2: error: .* line 2 is no record: .* \[torn\]$", captured.out, re.MULTILINE)
    assert "bad.jsonl:1: warning: line 1 of `good.jsonl` has the same number" in captured.out
    assert "1 error, 2 warnings, the first error on line 2 of `bad.jsonl`" in captured.err
    assert run_here("leaderboard lint --store bad.jsonl --json") == 1
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["store"], found["line"], found["severity"], found["code"]) == ("bad.jsonl", 2, "error", "torn")


def test_lint_of_hostile_text_stays_on_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("board.jsonl").write_text(record(n_correct=None, split="a\nb\r\n: error: x").line() + "\n")
    assert run_here("leaderboard lint --store board.jsonl") == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_nothing_of_a_store_steers_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "a\x1b[2Jb\u202ec"
    line = record(n_correct=None, split=hostile, name=hostile).line()
    Path("board.jsonl").write_text(line + "\n")
    for command in ("lint", "verify", "show", f"retract {json.loads(line)['record_id']} --reason wrong"):
        assert run_here(f"leaderboard {command} --store board.jsonl") == 0
        out = capsys.readouterr().out
        assert "a[2Jbc" in "".join(out.split()) or command == "show"
        assert not {"\x1b", "\u202e"} & set(out)


def test_the_projects_own_store_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("leaderboard lint") == 0
    assert "0 errors" in capsys.readouterr().out


# ---- verify ----


def test_verify_names_the_file_and_the_record_that_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluations(tmp_path, 2)
    assert run_here("leaderboard add run1 run2 --store board.jsonl") == 0
    path = tmp_path / "run2" / "samples.jsonl"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    found = verdicts("--store board.jsonl", capsys, code=1)
    assert [item["state"] for item in found] == ["verified", "FAILED"]
    assert "run2/samples.jsonl" in found[1]["problem"]
    assert run_here("leaderboard verify --store board.jsonl") == 1
    captured = capsys.readouterr()
    assert "FAILED" in captured.out
    assert found[1]["record_id"][:19] in captured.out
    assert "1 verified, 1 FAILED" in captured.out
    assert "1 of 2 failed, first line 2 of `board.jsonl`" in captured.err
    assert run_here(f"leaderboard verify {found[0]['record_id'][:14]} --store board.jsonl") == 0


def test_one_byte_of_a_shard_is_found_and_the_shard_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "models", "models")
    shard = shard_file(Path("models/tiny"), "mp_rank_01")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    store = folder / "board" / "results.jsonl"
    one = read(store)[0].record_id
    (found,) = verdicts(f"{one} --store {store} --checkpoints .", capsys, code=1)
    assert (found["record_id"], found["state"]) == (one, "FAILED")
    assert found["checked"] == ["samples", "scores"]
    assert "mp_rank_01/model_optim_rng.pt" in found["problem"]
    assert "mp_rank_00" not in found["problem"]


@pytest.mark.parametrize("command", ["lint", "verify", "schema"])
def test_the_commands_need_no_torch(command: str) -> None:
    program = (
        "import sys\nfrom mpeval.cli import main\n"
        f"sys.argv[1:] = ['leaderboard', '{command}']\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)


# ---- schema ----


def test_the_schema_in_the_project_is_the_one_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("leaderboard schema") == 0
    printed = capsys.readouterr().out
    assert printed == schema_text()
    assert printed == (data_folder("leaderboard") / "schema.json").read_text(encoding="utf-8")


def test_the_schema_says_what_a_line_must_have() -> None:
    schema = json.loads(schema_text())
    assert schema["discriminator"]["mapping"].keys() == {"measured", "reported", "retraction"}
    for store in default_stores():
        for text in store.read_text(encoding="utf-8").splitlines():
            line = json.loads(text)
            kind = schema["$defs"][schema["discriminator"]["mapping"][line["kind"]].rpartition("/")[2]]
            assert set(kind["required"]) <= line.keys() <= kind["properties"].keys()
            assert kind["additionalProperties"] is False


def test_the_projects_lines_fit_the_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(schema_text()))
    for store in default_stores():
        for text in store.read_text(encoding="utf-8").splitlines():
            validator.validate(json.loads(text))
            for key in ("record_id", "schema", "kind"):
                broken = {name: value for name, value in json.loads(text).items() if name != key}
                assert not validator.is_valid(broken)
            assert not validator.is_valid({**json.loads(text), "unknown": 1})
