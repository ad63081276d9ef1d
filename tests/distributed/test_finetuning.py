"""Finetuning on real ranks: the same losses in every layout, the same bits after a kill anywhere, one epoch kept."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from finetuning import (
    SAMPLES,
    STILL,
    bert_config,
    finetune_rank,
    finetune_ranks,
    gpt_config,
    lines_of,
    make_mnli,
    make_pretrained,
    make_squad,
    options_for,
    untimed,
    weights_of,
)
from making import run_here
from ranks import RankError, run_ranks
from training import losses

import mpeval.finetune
from mpeval.checkpoint.open import open_checkpoint
from mpeval.errors import MpevalError
from mpeval.finetune import Options
from mpeval.finetuned import Finetuned, read_finetuned
from mpeval.parallel.group import Group

TRACKER = "latest_checkpointed_iteration.txt"
TASKS = {
    "race/megatron": [(2, 1), (4, 1), (1, 2), (2, 2)],
    "race/last-token": [(4, 1), (1, 2)],
    "race/all": [(2, 1), (1, 2)],
    "mnli/megatron": [(2, 1), (1, 2)],
    "squad/v1": [(2, 1), (1, 2)],
}
"""Layouts that are compared with one rank; tp 4 is slow, because four ranks share the machine's few cores."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A BERT and a GPT whose losses move, MNLI, SQuAD, and RACE with its whole training set and four dev articles."""
    root = tmp_path_factory.mktemp("places")
    make_pretrained(root / "bert", bert_config(init_std=0.2))
    make_pretrained(root / "gpt", gpt_config(init_std=0.2), tp=2)
    make_mnli(root)
    make_squad(root)
    shutil.copytree(SAMPLES / "RACE", root / "RACE")
    for path in [*sorted((root / "RACE/dev").rglob("*.txt"))[::2], *sorted((root / "squad").glob("dev*"))]:
        if path.suffix == ".txt":
            path.unlink()
        else:
            content = json.loads(path.read_text())
            content["data"][0]["paragraphs"] = content["data"][0]["paragraphs"][:2]
            path.write_text(json.dumps(content))
    return {"bert": root / "bert", "gpt": root / "gpt", "data": root}


def small_run(
    places: dict[str, Path], output: Path, *settings: str, task: str = "race/megatron", **more: Any
) -> Options:
    family = "gpt" if task in {"race/last-token", "race/all"} else "bert"
    values = {"data": places["data"], "allow_modified_data": True} | more
    return options_for(places[family], output, *settings, task=task, **values)


# ---- layouts ----


@pytest.mark.parametrize("task", TASKS)
def test_every_layout_gives_the_same_losses(task: str, places: dict[str, Path], tmp_path: Path) -> None:
    settings = ("steps=10", "lr=3e-3", "micro_tokens=4096", *STILL)
    expected = losses(finetune_ranks(small_run(places, tmp_path / "one", *settings, task=task)))
    assert len(expected) == 10
    assert max(expected) - min(expected) > 0.05
    for tp, dp in TASKS[task]:
        output = tmp_path / f"{tp}x{dp}"
        found = losses(finetune_ranks(small_run(places, output, *settings, task=task), tp=tp, dp=dp))
        assert found == pytest.approx(expected, abs=1e-4), (tp, dp)
        ours, theirs = (
            lines_of(run / f"evaluations/{split_of(run)}/samples.jsonl") for run in (output, tmp_path / "one")
        )
        assert [line["id"] for line in ours] == [line["id"] for line in theirs]


def split_of(run: Path) -> str:
    described = read_finetuned(run)
    assert described is not None
    return described.dev_split


@pytest.mark.parametrize("change", ["micro_tokens=1", "micro_tokens=100000", "recompute=true"])
def test_how_a_batch_is_cut_changes_no_loss(change: str, places: dict[str, Path], tmp_path: Path) -> None:
    settings = ("steps=6", "lr=3e-3", *(() if change == "recompute=true" else STILL))
    expected = losses(finetune_ranks(small_run(places, tmp_path / "one", *settings)))
    assert losses(finetune_ranks(small_run(places, tmp_path / "run", *settings, change))) == pytest.approx(
        expected, abs=1e-5
    )


# ---- kills and stops ----

LONG = ("epochs=2", "save_every=4", "lr=3e-3")
"""Two epochs of six steps with dropout, saved inside and at the end of each."""


@pytest.fixture(scope="module")
def straight(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs that nothing interrupted, by tp."""
    made = {tp: tmp_path_factory.mktemp("straight") / "run" for tp in (1, 2)}
    for tp, output in made.items():
        finetune_ranks(small_run(places, output, *LONG), tp=tp)
    return made


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(module: Any, name: str, after: int = 0) -> Callable[[], None]:
    """Return what makes the process die as it calls a function for the `after`-th time more (counted from 0)."""

    def patch() -> None:
        real, calls = getattr(module, name), 0

        def counted(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            return die() if calls > after else real(*args, **more)

        setattr(module, name, counted)

    return patch


def deaths() -> dict[str, tuple[Callable[[], None], list[int], int]]:
    """Return, in the order a run comes to them, places to die: what a resumed run finds saved, and how often it wrote.

    Each is the patch, the checkpoints that lie there afterwards, and lines of metrics.
    """
    import mpeval.checkpoint.write
    from mpeval import evaluate, journal
    from mpeval.train import loop, saving

    return {
        "before anything is saved": (dying(loop, "step", 2), [], 2),
        "after a save inside the epoch": (dying(loop, "step", 5), [4], 5),
        "before the tracker is written": (dying(saving, "write_tracker"), [4, 6], 6),
        "before the dev evaluation": (dying(evaluate, "evaluate"), [4, 6], 6),
        "inside the dev evaluation": (dying(journal.Journal, "append", 2), [4, 6], 6),
        "before the dev evaluation's end": (dying(journal.Journal, "finish"), [4, 6], 6),
        "before the epoch is noted": (dying(mpeval.finetune, "write_finetuned"), [4, 6], 6),
        "before old checkpoints go": (dying(saving, "keep_only"), [4, 6], 6),
        "inside the second epoch": (dying(loop, "step", 4), [4, 6, 8], 10),
        "inside the last dev evaluation": (dying(journal.Journal, "append", 1), [4, 6, 8, 12], 12),
        "before the best is named": (dying(mpeval.checkpoint.write, "write_tracker"), [], 12),
        "before its evaluation is copied": (dying(shutil, "copytree"), [], 12),
    }


def _die(group: Group, options: Options, patch: Callable[[], None]) -> None:
    patch()
    finetune_rank(group, options)


def saved(run: Path) -> list[int]:
    return sorted(int(item.name[5:]) for item in run.glob("iter_*"))


def assert_same_run(left: Path, right: Path) -> None:
    """Metrics, weights and samples are equal to the bit; nothing unfinished is left."""
    assert untimed(left) == untimed(right)
    ours, theirs = weights_of(left), weights_of(right)
    assert ours.keys() == theirs.keys()
    assert all(value.equal(theirs[name]) for name, value in ours.items())
    assert saved(left) == saved(right)
    assert (left / "finetune.json").read_text() == (right / "finetune.json").read_text()
    names = sorted(path.relative_to(left).as_posix() for path in left.rglob("samples.jsonl"))
    assert names == sorted(path.relative_to(right).as_posix() for path in right.rglob("samples.jsonl"))
    assert len(names) == 3
    for name in names:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name
    assert not list(left.glob(".*")) + list((left / "evaluations").glob(".*"))


@pytest.mark.parametrize("tp", [1, 2])
def test_a_run_killed_at_every_place_is_the_straight_one_to_the_bit(
    tp: int, straight: dict[int, Path], places: dict[str, Path], tmp_path: Path
) -> None:
    options = small_run(places, tmp_path / "run", *LONG)
    for place, (patch, checkpoints, lines) in deaths().items():
        with pytest.raises(RankError, match="was ended by signal 9"):
            run_ranks(_die, tp, options, patch, tp=tp)
        if checkpoints:
            assert saved(options.output) == checkpoints, place
        assert len((options.output / "metrics.jsonl").read_text().splitlines()) == lines, place
    finetune_ranks(options, tp=tp)
    assert_same_run(options.output, straight[tp])


def stopping(after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process SIGTERM inside its `after`-th step from now."""
    from mpeval.train import loop

    real, seen = loop.step, 0

    def counted(*args: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(loop, "step", counted)


def test_a_stopped_run_says_how_to_go_on_and_ends_as_the_straight_one(
    straight: dict[int, Path],
    places: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = small_run(places, tmp_path / "run", *LONG)
    for after, step in ((3, 3), (3, 6), (1, 7)):
        with monkeypatch.context() as patched:
            stopping(after, patched)
            finetune_rank(Group.single(), options)
        errors = capsys.readouterr().err
        assert len(untimed(options.output)) == step
        assert open_checkpoint(options.output).iteration == step
        assert f"stopped and saved after step {step} of 12; go on with:\n  mpeval finetune" in errors
    finetune_rank(Group.single(), options)
    assert_same_run(options.output, straight[1])


# ---- what a finished run is ----


@pytest.fixture(scope="module")
def finished(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs on the sample rows, at tp 2."""
    output = tmp_path_factory.mktemp("finished") / "run"
    finetune_ranks(options_for(places["bert"], output, "epochs=2", "lr=3e-3"), tp=2)
    return output


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_of_epochs_that_do_equally_well_the_first_is_kept(places: dict[str, Path], tmp_path: Path) -> None:
    output = tmp_path / "run"
    finetune_rank(Group.single(), small_run(places, output, "epochs=3", "lr=1e-20", *STILL))
    described = read_finetuned(output)
    assert described is not None
    assert [epoch.step for epoch in described.epochs] == [6, 12, 18]
    assert len({epoch.metric.value for epoch in described.epochs}) == 1
    assert (described.best, described.training.steps, described.training.epochs) == (6, 6, 1.0)
    assert saved(output) == [6]
    assert (output / TRACKER).read_text().strip() == "6"
    assert len(untimed(output)) == 18


def test_the_best_epoch_is_kept_though_the_last_is_another(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, values, lying = mpeval.finetune._scored, iter([0.25, 0.75, 0.5]), []

    def scored(*args: Any) -> Any:
        found = real(*args)
        metric = found.results[0].metrics[0].model_copy(update={"value": next(values)})
        changed = found.results[0].model_copy(update={"metrics": [metric]})
        lying.append(saved(tmp_path / "run"))
        return found.model_copy(update={"results": [changed]})

    monkeypatch.setattr(mpeval.finetune, "_scored", scored)
    options = small_run(places, tmp_path / "run", "epochs=3", "lr=3e-3")
    finetune_rank(Group.single(), options)
    assert lying == [[6], [6, 12], [12, 18]]
    assert saved(options.output) == [12]
    assert open_checkpoint(options.output).iteration == 12
    evaluations = options.output / "evaluations"
    samples = {number: (evaluations / f"dev-epoch-{number}/samples.jsonl").read_bytes() for number in (1, 2, 3)}
    assert len(set(samples.values())) == 3
    assert (evaluations / "dev/samples.jsonl").read_bytes() == samples[2]
    described = read_finetuned(options.output)
    assert described is not None
    assert described.best == described.training.steps == 12


def test_evaluate_gives_the_numbers_of_the_best_epoch(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = lines_of(finished / "evaluations/dev/samples.jsonl")
    kept = json.loads((finished / "evaluations/dev/results.json").read_text())
    assert len(stored) == 24
    for option in ("", "--dtype float32 --batch-tokens 5000"):
        output = tmp_path / f"again{len(option)}"
        command = f"evaluate {finished} --task race --split dev --data {SAMPLES} --output {output} --json --quiet"
        assert run_here(f"{command} --device cpu {option}") == 0
        found = json.loads(capsys.readouterr().out)
        for ours, theirs in zip(lines_of(output / "samples.jsonl"), stored, strict=True):
            assert ours.pop("probabilities") == pytest.approx(theirs["probabilities"], abs=1e-6)
            assert ours == {key: value for key, value in theirs.items() if key != "probabilities"}
        [result], [before] = found["results"], kept["results"]
        assert result["metrics"] == before["metrics"]
        assert [metric["name"] for metric in result["metrics"]] == ["accuracy", "accuracy_middle", "accuracy_high"]
        assert (result["split"], result["n"], result["protocol"]) == ("dev", 24, "race/megatron")
        assert "sample-rows" in result["flags"]
        assert found["checkpoint"]["digest"] == kept["checkpoint"]["digest"]
        assert found["training"]["seed"] == 1234
        assert found["training"]["questions"] == 24
        assert found["training"] == kept["training"]


def test_a_finished_run_is_left_as_it_is(finished: Path, places: dict[str, Path]) -> None:
    before = snapshot(finished)
    options = options_for(places["bert"], finished, "epochs=2", "lr=3e-3")
    finetune_ranks(options, tp=2)
    finetune_rank(Group.single(), options)
    assert snapshot(finished) == before


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        (("lr=2e-3",), {}, "its lr is `0.003`, this run's `0.002`"),
        (("epochs=3",), {}, "its warmup steps is `1`, this run's `2`"),
        (("dropout=0.2",), {}, "its dropout is `0.1`, this run's `0.2`"),
        (("seed=9",), {}, "its seed is `1234`, this run's `9`"),
        (
            (),
            {"task": "race/longest-context"},
            "its protocol is `race/megatron 1`, this run's `race/longest-context 1`",
        ),
        ((), {"checkpoint": "other"}, "its pretrained is"),
        ((), {"data": "other", "allow_modified_data": True}, "its dev data is"),
    ],
)
def test_another_run_may_not_go_on_in_the_same_folder(
    settings: tuple[str, ...],
    more: dict[str, Any],
    message: str,
    finished: Path,
    places: dict[str, Path],
    tmp_path: Path,
) -> None:
    before = snapshot(finished)
    if more.get("checkpoint"):
        more = {"checkpoint": make_pretrained(tmp_path / "other", bert_config(init_std=0.2), seed=8)}
    if more.get("data"):
        more = more | {"data": places["data"]}
    options = options_for(places["bert"], finished, "epochs=2", "lr=3e-3", *settings)
    with pytest.raises(MpevalError) as caught:
        finetune_rank(Group.single(), replace(options, **more))
    assert message in str(caught.value)
    assert caught.value.hint
    assert {name: value for name, value in snapshot(finished).items() if "index-cache" not in name} == {
        name: value for name, value in before.items() if "index-cache" not in name
    }


def test_a_run_goes_on_in_another_layout(straight: dict[int, Path], places: dict[str, Path], tmp_path: Path) -> None:
    settings = (*LONG, *STILL)
    whole, other = (small_run(places, tmp_path / name, *settings) for name in ("whole", "other"))
    finetune_ranks(whole)
    with pytest.raises(RankError, match="signal 9"):
        run_ranks(_die, 2, other, deaths()["inside the second epoch"][0], tp=2)
    assert losses(finetune_ranks(other, dp=2)) == pytest.approx(losses(untimed(whole.output)), abs=1e-4)
    for ours, theirs in zip(
        *(lines_of(run.output / "evaluations/dev/samples.jsonl") for run in (other, whole)), strict=True
    ):
        assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=1e-3)


# ---- several seeds ----


@pytest.fixture(scope="module")
def seeds(places: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs that differ in their seeds, with a leaderboard beside them; killed once between two of them."""
    root = tmp_path_factory.mktemp("seeds")
    options = options_for(places["bert"], root / "runs", "epochs=1", "lr=3e-3", seeds=3, record=root / "board.jsonl")
    with pytest.raises(RankError, match="signal 9"):
        run_ranks(_die, 1, options, dying(mpeval.finetune, "finetune", 1))
    finetune_rank(Group.single(), options)
    finetune_rank(Group.single(), options)
    tested = sorted(path.parent.parent.name for path in (root / "runs").glob("*/evaluations/test"))
    (root / "tested.json").write_text(json.dumps(tested))  # another test evaluates them all
    return root


def described_of(root: Path) -> dict[int, Finetuned]:
    found = {}
    for folder in sorted((root / "runs").glob("seed-*")):
        described = read_finetuned(folder)
        assert described is not None
        assert described.training.seed == int(folder.name[5:])
        found[described.training.seed] = described
    return found


def test_every_seed_is_a_run_and_the_median_one_is_tested(seeds: Path) -> None:
    runs = described_of(seeds)
    assert list(runs) == [1234, 1235, 1236]
    values = {seed: run.kept().metric.value for seed, run in runs.items()}
    stored = json.loads((seeds / "runs/seeds.json").read_text())
    assert stored["values"] == list(values.values())
    assert stored["spread"]["median"] == sorted(values.values())[1] == values[stored["chosen"]]
    assert (stored["spread"]["lowest"], stored["spread"]["highest"]) == (min(values.values()), max(values.values()))
    assert json.loads((seeds / "tested.json").read_text()) == [f"seed-{stored['chosen']}"]
    weights = [weights_of(seeds / "runs" / f"seed-{seed}") for seed in runs]
    assert not weights[0]["layers.0.mlp.up.weight"].equal(weights[1]["layers.0.mlp.up.weight"])


def test_every_seed_is_a_record_and_the_chosen_ones_say_how(seeds: Path) -> None:
    stored = json.loads((seeds / "runs/seeds.json").read_text())
    records = lines_of(seeds / "board.jsonl")
    assert sorted((record["split"], record["training"]["seed"]) for record in records) == sorted(
        [("dev", 1234), ("dev", 1235), ("dev", 1236), ("test", stored["chosen"])]
    )
    for record in records:
        chosen = record["training"]["seed"] == stored["chosen"]
        assert record.get("seeds") == (stored["spread"] if chosen else None)
        assert record["training"]["selection"] == ("dev median of 3 seeds" if chosen else "")
        assert record["training"]["epochs"] == 1.0
        assert record["training"]["steps"] == 6
    assert run_here(f"leaderboard show --store {seeds / 'board.jsonl'}") == 0


def test_an_ensemble_averages_the_runs_and_predictions_are_scored_again(
    seeds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [seeds / "runs" / f"seed-{seed}" for seed in (1234, 1235, 1236)]
    data = f"--task race --split test --data {SAMPLES}"
    for run in runs:
        assert run_here(f"evaluate {run} {data} --output {run}/evaluations/test --device cpu --quiet") == 0
        file = run / "evaluations/test/samples.jsonl"
        assert run_here(f"evaluate {run} {data} --from-predictions {file} --json --quiet") == 0
        again = json.loads(capsys.readouterr().out)
        before = json.loads((run / "evaluations/test/results.json").read_text())
        assert again["results"][0]["metrics"] == before["results"][0]["metrics"]
        assert again["checkpoint"] == before["checkpoint"]
        assert again["training"] == before["training"]
    listed = " ".join(map(str, runs))
    board = tmp_path / "board.jsonl"
    command = f"ensemble {listed} {data} --output {tmp_path / 'out'} --json --quiet --record {board}"
    assert run_here(command) == 0
    found = json.loads(capsys.readouterr().out)
    assert [member["seed"] for member in found["members"]] == [1234, 1235, 1236]
    members = [lines_of(run / "evaluations/test/samples.jsonl") for run in runs]
    averaged = lines_of(tmp_path / "out/samples.jsonl")
    right = 0
    for line, *three in zip(averaged, *members, strict=True):
        mean = [sum(column) / 3 for column in zip(*(one["probabilities"] for one in three), strict=True)]
        assert line["probabilities"] == pytest.approx(mean, abs=1e-12)
        right += mean.index(max(mean)) == line["target"]
    assert found["n_correct"] == right
    assert found["metrics"][0]["value"] == right / 24
    assert len(found["comparisons"]) == 3
    assert len(lines_of(board)) == 1


def test_runs_of_other_questions_are_no_ensemble(
    seeds: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = seeds / "runs/seed-1234"
    assert run_here(f"ensemble {run} {seeds / 'runs'} --task race --split dev") == 2
    assert "holds 3 runs, each of which is a member" in capsys.readouterr().err
    assert run_here(f"ensemble {run} {finished} --task race --split train") == 1
    assert "has not been evaluated on RACE train" in capsys.readouterr().err


def test_a_stop_of_one_seeds_run_is_a_stop_of_all(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = small_run(places, tmp_path / "runs", "epochs=1", seeds=2)
    stopping(3, monkeypatch)
    finetune_rank(Group.single(), options)
    assert [path.name for path in options.output.glob("*seed*")] == ["seed-1234"]
    assert len(untimed(options.output / "seed-1234")) == 3
