"""Ensembles average what their members stored, of exactly the same questions, or say what does not fit."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated import PROTOCOL, answers_to, change_line, line_of, race, write_evaluation, write_race
from sklearn.metrics import accuracy_score

from mpeval.errors import DataError, MpevalError, OutputError, UsageError
from mpeval.finetuned import Epoch, Finetuned, write_finetuned
from mpeval.leaderboard.boards import boards
from mpeval.leaderboard.store import read
from mpeval.predictions.ensemble import Options, run
from mpeval.predictions.lines import read_predictions
from mpeval.predictions.paired import compare, holm
from mpeval.results import Metric, TrainingInfo

PASSAGES = [("middle", 1, 4), ("middle", 2, 3), ("high", 1, 5), ("high", 2, 4), ("high", 3, 3)]
TRAINING = TrainingInfo(seed=1235, questions=100, steps=50, epochs=2, recipe="race-small", learning_rate=1e-5, batch=4)


def members(folder: Path, count: int = 3, **more: Any) -> tuple[Path, ...]:
    """Write a RACE set and evaluations of several models on it; return their folders."""
    data = race(write_race(folder / "data", PASSAGES))
    return tuple(
        write_evaluation(
            folder / f"run{number}",
            answers_to(data, number),
            data.digest,
            checkpoint={"name": f"seed-{number}", "digest": f"sha256:{number}"},
            **more,
        )
        for number in range(1, count + 1)
    )


def options(runs: tuple[Path, ...], **changes: Any) -> Options:
    fields: dict[str, Any] = {"runs": runs, "task": "race", "quiet": True, "command": "mpeval ensemble"}
    return Options(**fields | changes)


def stored(folder: Path) -> list[dict[str, Any]]:
    return [line.sample for line in read_predictions(folder / "samples.jsonl", PROTOCOL)]


def two(folder: Path, *probabilities: tuple[list[float], list[float]], target: int = 0) -> tuple[Path, Path]:
    """Write two evaluations; each argument is what they say of one question."""
    sides = [
        write_evaluation(
            folder / name,
            [line_of(f"q{number}", target, pair[side]) for number, pair in enumerate(probabilities)],
            checkpoint={"name": name, "digest": f"sha256:{name}"},
        )
        for side, name in enumerate("ab")
    ]
    return sides[0], sides[1]


# ---- the average ----


def test_probabilities_are_averaged_in_float64_and_the_best_is_chosen(tmp_path: Path) -> None:
    runs = members(tmp_path, 5)
    results = run(options(runs, output=tmp_path / "out"))
    made = stored(tmp_path / "out")
    each = [{line["id"]: line for line in stored(folder)} for folder in runs]
    for line in made:
        mean = np.mean([np.array(one[line["id"]]["probabilities"], np.float64) for one in each], axis=0)
        assert line["probabilities"] == pytest.approx(mean.tolist(), abs=1e-15)
        assert line["prediction"] == mean.argmax()
        assert line["correct"] == (mean.argmax() == line["target"])
        assert line["tokens"] == 500
    expected = accuracy_score([line["target"] for line in made], [line["prediction"] for line in made])
    assert results.metrics[0].value == pytest.approx(expected)
    assert (results.n, results.n_correct) == (19, round(19 * expected))
    assert [line["id"] for line in made] == [line["id"] for line in stored(runs[0])]


def test_an_average_can_be_right_where_most_members_are_wrong(tmp_path: Path) -> None:
    runs = [
        write_evaluation(
            tmp_path / name, [line_of("q", 0, values)], checkpoint={"name": name, "digest": f"sha256:{name}"}
        )
        for name, values in (("a", [0.9, 0.1]), ("b", [0.4, 0.6]), ("c", [0.45, 0.55]))
    ]
    run(options(tuple(runs), output=tmp_path / "out"))
    (line,) = stored(tmp_path / "out")
    assert line["probabilities"] == pytest.approx([1.75 / 3, 1.25 / 3], abs=1e-15)
    assert line["correct"]


def test_the_lowest_of_equal_options_is_chosen_whatever_the_order_of_members(tmp_path: Path) -> None:
    pairs = [([0.1, 0.2, 0.7], [0.1, 0.7, 0.2]), ([0.6, 0.3, 0.1], [0.3, 0.6, 0.1]), ([0.2, 0.4, 0.4], [0.4, 0.3, 0.3])]
    runs = two(tmp_path, *pairs)
    made = []
    for number, order in enumerate(itertools.permutations(runs)):
        run(options(order, output=tmp_path / str(number)))
        made.append(stored(tmp_path / str(number)))
    assert made[0] == made[1]
    assert [line["prediction"] for line in made[0]] == [1, 0, 1]


def test_members_in_any_order_of_lines_and_folders_give_the_same(tmp_path: Path) -> None:
    data = race(write_race(tmp_path / "data", PASSAGES))
    runs = members(tmp_path)
    shuffled = write_evaluation(
        tmp_path / "again",
        answers_to(data, 2)[::-1],
        data.digest,
        checkpoint={"name": "seed-2", "digest": "sha256:2"},
    )
    results = []
    for order in ([runs[0], runs[1], runs[2]], [runs[2], shuffled, runs[0]]):
        run(options(tuple(order), output=tmp_path / "out"))
        results.append({line["id"]: line for line in stored(tmp_path / "out")})
    assert results[0] == results[1]


# ---- the document ----


def test_groups_members_and_paired_tests_are_reported(tmp_path: Path) -> None:
    runs = members(tmp_path)
    results = run(options(runs, output=tmp_path / "out"))
    names = ["accuracy", "accuracy_middle", "accuracy_high"]
    assert [metric.name for metric in results.metrics] == names
    made = stored(tmp_path / "out")
    for metric, group in zip(results.metrics[1:], ("middle", "high"), strict=True):
        assert metric.value == np.mean([line["correct"] for line in made if line["group"] == group])
    for member, folder in zip(results.members, runs, strict=True):
        assert [metric.name for metric in member.metrics] == names
        assert member.metrics[0].value == np.mean([line["correct"] for line in stored(folder)])
    assert [(item.name, item.checkpoint) for item in results.members] == [
        (f"seed-{number}", f"sha256:{number}") for number in (1, 2, 3)
    ]
    p_values = [item.p_value for item in results.comparisons]
    for item, folder, name in zip(results.comparisons, runs, ("seed-1", "seed-2", "seed-3"), strict=True):
        alone = compare(made, stored(folder), ("ensemble of 3", name))
        assert item.model_copy(update={"p_value_holm": None}) == alone
        assert alone.clusters == len(PASSAGES)
    assert [item.p_value_holm for item in results.comparisons] == holm([p for p in p_values if p is not None])


def test_the_written_document_is_the_returned_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(options(members(tmp_path), output=tmp_path / "out", json=True))
    written = (tmp_path / "out" / "results.json").read_text()
    assert capsys.readouterr().out == written
    content = json.loads(written)
    assert content["schema"] == "mpeval.ensemble/1"
    assert content == results.document()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.json", "samples.jsonl"]


def test_the_tables_show_members_the_ensemble_and_the_differences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(options(members(tmp_path), quiet=False))
    said = capsys.readouterr().out
    for name in ("seed-1", "seed-2", "seed-3", "ensemble of 3", "accuracy middle", "accuracy high", "McNemar", "Holm"):
        assert name in said
    for metric in (results.metrics[0], *(member.metrics[0] for member in results.members)):
        assert f"{100 * metric.value:.2f} %" in said
    for item in results.comparisons:
        assert f"{100 * item.difference:+.2f} points" in said
        assert f"{item.only_first} : {item.only_second}" in said
    assert "5 clusters" in said


def test_two_members_of_one_name_are_called_by_their_paths(tmp_path: Path) -> None:
    runs = two(tmp_path, ([0.9, 0.1], [0.2, 0.8]))
    for folder in runs:
        path = folder / "results.json"
        path.write_text(path.read_text().replace(f'"name": "{folder.name}"', '"name": "bert"'))
    assert [member.name for member in run(options(runs)).members] == [str(folder) for folder in runs]


def test_an_ensemble_written_again_replaces_itself(tmp_path: Path) -> None:
    runs = members(tmp_path)
    run(options(runs, output=tmp_path / "out"))
    run(options(runs[:2], output=tmp_path / "out"))
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["members"]) == 2
    assert {line["tokens"] for line in stored(tmp_path / "out")} == {200}


def test_pairs_of_texts_can_be_averaged_too(tmp_path: Path) -> None:
    def lines(seed: int) -> list[dict[str, Any]]:
        random = np.random.default_rng(seed)
        shares = random.dirichlet([1, 1], 40)
        targets = np.random.default_rng(0).integers(0, 2, 40)
        return [
            {**line_of(f"qqp/dev#{row}", int(targets[row]), shares[row]), "task": "qqp/megatron"} for row in range(40)
        ]

    runs = tuple(
        write_evaluation(
            tmp_path / name,
            lines(seed),
            checkpoint={"name": name, "digest": f"sha256:{name}"},
            task="qqp",
            protocol="qqp/megatron",
            split="dev",
        )
        for seed, name in ((1, "a"), (2, "b"))
    )
    results = run(options(runs, task="qqp", split="dev"))
    assert [metric.name for metric in results.metrics] == ["accuracy", "f1"]
    assert results.comparisons[0].clusters == 40


# ---- where evaluations are found ----


def finetuned(folder: Path, seed: int, split: str = "test") -> Path:
    """Write a finetuned run with an evaluation of `split` in its place."""
    data = race(write_race(folder.parent / "data", PASSAGES))
    write_evaluation(
        folder / "evaluations" / split,
        answers_to(data, seed),
        data.digest,
        checkpoint={"name": folder.name, "digest": f"sha256:{seed}"},
        split=split,
    )
    write_finetuned(
        folder,
        Finetuned(
            task="race",
            protocol=PROTOCOL,
            protocol_version="1",
            train_split="train",
            dev_split="dev",
            pretrained="sha256:0",
            drawn=[],
            training=TRAINING.model_copy(update={"seed": seed}),
            epochs=[Epoch(epoch=1, step=50, metric=Metric(name="a", value=0.5, unit="proportion", direction="max"))],
        ),
    )
    return folder


def test_a_finetuned_run_gives_its_evaluation_and_its_seed(tmp_path: Path) -> None:
    runs = tuple(finetuned(tmp_path / f"seed-{seed}", seed) for seed in (1234, 1235))
    results = run(options(runs))
    assert [(member.name, member.seed) for member in results.members] == [("seed-1234", 1234), ("seed-1235", 1235)]
    inside = tuple(folder / "evaluations" / "test" for folder in runs)
    assert [member.seed for member in run(options(inside)).members] == [1234, 1235]
    assert run(options(inside)).metrics == results.metrics


def test_a_run_without_an_evaluation_is_told_the_command_that_makes_it(tmp_path: Path) -> None:
    first = finetuned(tmp_path / "seed-1234", 1234)
    other = finetuned(tmp_path / "seed-1235", 1235, split="dev")
    with pytest.raises(DataError) as raised:
        run(options((first, other), data=tmp_path / "data"))
    assert f"`{other}` has not been evaluated on RACE test" in raised.value.message
    assert f"{other}/evaluations/test/samples.jsonl" in raised.value.message
    assert raised.value.hint == (
        f"evaluate it: `mpeval evaluate {other} --task race --split test --data {tmp_path / 'data'} "
        f"--output {other}/evaluations/test`"
    )


def test_without_data_the_command_has_a_place_for_them(tmp_path: Path) -> None:
    first, other = finetuned(tmp_path / "a", 1), finetuned(tmp_path / "b c", 2, split="dev")
    with pytest.raises(DataError) as raised:
        run(options((first, other), task=PROTOCOL))
    assert f"'{other}' --task {PROTOCOL} --split test --data DATA" in raised.value.hint


def test_an_evaluation_that_was_stopped_is_refused_with_the_command_that_goes_on(tmp_path: Path) -> None:
    first, other = members(tmp_path, 2)
    (other / "results.json").unlink()
    with pytest.raises(DataError, match=r"is not finished: there is no `results\.json`") as raised:
        run(options((first, other)))
    assert f"mpeval evaluate {other} --task race --split test" in raised.value.hint
    assert f"--output {other}" in raised.value.hint


def test_a_folder_of_several_seeds_is_refused_with_its_runs(tmp_path: Path) -> None:
    for seed in (1, 2):
        finetuned(tmp_path / "seeds" / f"seed-{seed}", seed)
    (tmp_path / "seeds" / "seeds.json").write_text("{}")
    with pytest.raises(UsageError, match="holds 2 runs, each of which is a member") as raised:
        run(options((tmp_path / "seeds", finetuned(tmp_path / "other", 3))))
    assert raised.value.hint == f"give {tmp_path}/seeds/seed-1 {tmp_path}/seeds/seed-2"


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    (first,) = members(tmp_path, 1)
    with pytest.raises(DataError, match="no run at"):
        run(options((first, tmp_path / "nothing")))


def test_an_evaluation_on_another_split_is_refused(tmp_path: Path) -> None:
    runs = members(tmp_path, 2, split="dev")
    with pytest.raises(DataError, match="is an evaluation on the split `dev`, not on `test`") as raised:
        run(options(runs))
    assert "--split dev" in raised.value.hint
    assert run(options(runs, split="dev")).split == "dev"


def test_an_evaluation_under_several_protocols_needs_a_choice(tmp_path: Path) -> None:
    runs = members(tmp_path, 2)
    for folder in runs:
        content = json.loads((folder / "results.json").read_text())
        content["results"].append(content["results"][0] | {"protocol": "race/longest-context"})
        (folder / "results.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match="holds evaluations under `race/megatron`, `race/longest-context`") as raised:
        run(options(runs))
    assert "--task race/megatron" in raised.value.hint
    assert run(options(runs, task="race/megatron")).protocol == PROTOCOL
    with pytest.raises(DataError, match="holds no evaluation of `race/last-token`"):
        run(options(runs, task="race/last-token"))


def test_an_evaluation_of_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no evaluation of `piqa`") as raised:
        run(options(members(tmp_path, 2), task="piqa", split="valid"))
    assert PROTOCOL in raised.value.hint


# ---- mismatches ----


def drop_question(folder: Path) -> None:
    """Write the evaluation again without its third question."""
    kept = [line for number, line in enumerate(stored(folder)) if number != 2]
    digest = json.loads((folder / "run.json").read_text())[f"data of {PROTOCOL}"]
    for path in folder.iterdir():
        path.unlink()
    write_evaluation(folder, kept, digest, checkpoint={"name": "seed-2", "digest": "sha256:2"})


def drop_line(folder: Path) -> None:
    path = folder / "samples.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[1:]))


def repeat_line(folder: Path) -> None:
    path = folder / "samples.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("".join(line + "\n" for line in [*lines, lines[4]]))


def break_line(folder: Path) -> None:
    path = folder / "samples.jsonl"
    path.write_text(path.read_text().replace("\n", '\n{"task": "race', 1))


def edit(name: str, key: str, value: object) -> Callable[[Path], object]:
    """Return a function that changes one key of a JSON file in a folder."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        assert key in content
        (folder / name).write_text(json.dumps(content | {key: value}))

    return change


def line(number: int, **changes: object) -> Callable[[Path], object]:
    return lambda folder: change_line(folder, number, **changes)


FLAT = [0.25] * 4
MISMATCHES: dict[str, tuple[Callable[[Path], object], str]] = {
    "question absent": (drop_question, r"lacks 1 question \(`RACE/test/.*#\d`\)"),
    "line lost": (drop_line, "holds 18 predictions under `race/megatron`, its results are of 19"),
    "line twice": (repeat_line, "line 20 is a second prediction for"),
    "line broken": (break_line, "line 2 is no JSON"),
    "other uid": (line(3, id="RACE/test/high/9.txt#1"), "lacks 1 question"),
    "other task": (line(1, task="race/longest-context"), "holds 18 predictions"),
    "other passage": (line(3, passage="RACE/test/high/9.txt"), "has the passage"),
    "no id": (line(3, id=None), "line 3 has no `id`"),
    "no target": (line(3, target=None), "line 3 has no `target`"),
    "no probabilities": (line(3, probabilities=None), r"line 3 \(`.*`\) has no probabilities"),
    "one probability": (line(3, probabilities=[1.0]), r"line 3 \(`.*`\) has no probabilities of options"),
    "sum": (line(3, probabilities=[0.4, 0.2, 0.2, 0.1]), "line 3 .* sum to 0.9, not to 1"),
    "negative": (line(3, probabilities=[1.2, -0.2, 0.0, 0.0]), "line 3 .* has a probability of 1.2"),
    "no number": (line(3, probabilities=["a", 0.5, 0.5, 0.0]), "line 3 .* has a probability of a"),
    "not a number": (line(3, probabilities=[float("nan"), 0.5, 0.5, 0.0]), "line 3 .* has a probability of nan"),
    "prediction": (line(3, prediction=9), "line 3 .* `prediction` is ., the line says 9"),
    "correct": (line(3, correct="yes"), "line 3 .* `correct` is .*, the line says yes"),
    "other data": (edit("run.json", f"data of {PROTOCOL}", "sha256:x"), "the data of race/megatron is `sha256:x`"),
    "other version": (edit("run.json", f"version of {PROTOCOL}", "9"), "the version of race/megatron is `9`"),
    "other weights": (edit("run.json", "checkpoint", "sha256:x"), "the checkpoint is `sha256:x` by `run.json`"),
    "no run.json": (lambda folder: (folder / "run.json").unlink(), "there is no `run.json`"),
    "results broken": (lambda folder: (folder / "results.json").write_text("{"), "cannot read"),
    "results of another kind": (edit("results.json", "schema", "x/1"), "holds no results of an evaluation"),
    "results a list": (lambda folder: (folder / "results.json").write_text("[]"), "holds no object"),
}


@pytest.mark.parametrize("case", MISMATCHES)
def test_whatever_does_not_fit_is_refused_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    runs = members(tmp_path, 3)
    change, message = MISMATCHES[case]
    change(runs[1])
    with pytest.raises(MpevalError, match=message) as raised:
        run(options(runs, output=tmp_path / "out", record=tmp_path / "board.jsonl"))
    assert str(runs[1]) in raised.value.message or str(runs[1]) in raised.value.hint
    assert raised.value.hint
    assert "\n" not in raised.value.message
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "board.jsonl").exists()


@pytest.mark.parametrize(
    ("result", "what"),
    [({"protocol_version": "2"}, "version of the protocol"), ({"data_digest": "sha256:x"}, "digest of the data")],
)
def test_members_of_another_version_or_other_data_are_refused(
    result: dict[str, Any], what: str, tmp_path: Path
) -> None:
    data = race(write_race(tmp_path / "data", PASSAGES))
    digest = result.pop("data_digest", data.digest)
    runs = members(tmp_path, 2)
    other = write_evaluation(
        tmp_path / "other", answers_to(data, 9), digest, checkpoint={"name": "x", "digest": "sha256:x"}, **result
    )
    with pytest.raises(DataError, match=f"the {what} is `.*` in `.*run1`, `.*` in `.*other`"):
        run(options((*runs, other)))


def test_another_target_for_the_same_question_is_refused(tmp_path: Path) -> None:
    runs = two(tmp_path, ([0.9, 0.1], [0.2, 0.8]))
    change_line(runs[1], 1, target=1, correct=True)
    with pytest.raises(DataError, match=r"`q0` has the target `0` in `.*`, `1` in"):
        run(options(runs))


def test_another_number_of_options_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`q0` has 2 options in .*, 3 in"):
        run(options(two(tmp_path, ([0.9, 0.1], [0.2, 0.5, 0.3]))))


def test_a_member_given_twice_is_refused(tmp_path: Path) -> None:
    first, other = members(tmp_path, 2)
    with pytest.raises(UsageError, match="are the same folder"):
        run(options((first, other, first.parent / "run2" / ".." / "run1")))
    data = race(tmp_path / "data")
    same = write_evaluation(
        tmp_path / "same", answers_to(data, 5), data.digest, checkpoint={"name": "x", "digest": "sha256:1"}
    )
    with pytest.raises(UsageError, match="are the same checkpoint: `sha256:1`"):
        run(options((first, other, same)))
    copied = write_evaluation(
        tmp_path / "copied", answers_to(data, 2)[::-1], data.digest, checkpoint={"name": "x", "digest": "sha256:9"}
    )
    with pytest.raises(UsageError, match=r"`.*run2` and `.*copied` are the same predictions"):
        run(options((first, other, copied)))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_members_are_no_ensemble(count: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"an ensemble of {count} is none"):
        run(options(members(tmp_path, count)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "lambada"}, "`lambada` has no options or classes"),
        ({"task": "squad"}, "`squad` has no options or classes"),
        ({"task": "rice"}, "no task `rice`"),
        ({"task": "race/megatrom"}, "no protocol `megatrom`"),
        ({"split": "tets"}, "no split `tets`"),
        ({"allow_modified_data": True}, "`--allow-modified-data` is about `--data`"),
    ],
    ids=str,
)
def test_wrong_usage_is_refused_before_anything_is_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as raised:
        run(options((Path("none"), Path("nothing")), **changes))
    assert raised.value.hint


# ---- with the data ----


def test_members_are_checked_against_the_data(tmp_path: Path) -> None:
    runs = members(tmp_path, 2)
    results = run(options(runs, data=tmp_path / "data", allow_modified_data=True))
    assert results.flags == ["modified-data"]
    assert str(tmp_path / "data") in results.data.source
    with pytest.raises(DataError, match="is not the published RACE test set"):
        run(options(runs, data=tmp_path / "data"))


def test_other_data_than_the_members_saw_are_refused(tmp_path: Path) -> None:
    runs = members(tmp_path, 2)
    other = write_race(tmp_path / "other", PASSAGES, seed=5)
    with pytest.raises(DataError, match=r"has the digest .* is of data with"):
        run(options(runs, data=other, allow_modified_data=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "RACE/test/high/9.txt#1"}, "is no question of"),
        ({"target": -5, "correct": False}, "the target of `RACE/test/.*` is `-5`, in `.*` it is"),
    ],
)
def test_an_error_that_all_members_share_is_seen_by_the_data(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    runs = members(tmp_path, 2)
    for folder in runs:
        change_line(folder, 2, **changes)
    with pytest.raises(DataError, match=message):
        run(options(runs, data=tmp_path / "data", allow_modified_data=True))


def test_questions_that_all_members_lack_are_seen_by_the_data(tmp_path: Path) -> None:
    data = race(write_race(tmp_path / "data", PASSAGES))

    def short(name: str, **more: Any) -> tuple[Path, ...]:
        return tuple(
            write_evaluation(
                tmp_path / name / str(seed),
                answers_to(data, seed)[:-3],
                data.digest,
                checkpoint={"name": f"s{seed}", "digest": f"sha256:{seed}"},
                **more,
            )
            for seed in (1, 2)
        )

    with pytest.raises(DataError, match="lacks 3 of 19 questions"):
        run(options(short("a"), data=tmp_path / "data", allow_modified_data=True))
    limited = run(options(short("b", flags=["partial"]), data=tmp_path / "data", allow_modified_data=True))
    assert limited.flags == ["partial", "modified-data"]


# ---- output and record ----


def test_a_members_own_folder_is_no_place_for_the_ensemble(tmp_path: Path) -> None:
    runs = members(tmp_path, 2)
    before = {path: path.read_bytes() for path in runs[0].iterdir()}
    with pytest.raises(OutputError, match="holds an evaluation"):
        run(options(runs, output=runs[0]))
    (runs[1] / "run.json").unlink()
    with pytest.raises(OutputError, match="holds an evaluation"):
        run(options((runs[0], tmp_path / "x"), output=runs[1]))
    assert {path: path.read_bytes() for path in runs[0].iterdir()} == before


def test_an_output_that_cannot_be_is_an_output_error(tmp_path: Path) -> None:
    runs = members(tmp_path, 2)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        run(options(runs, output=tmp_path / "file"))


def test_an_ensemble_becomes_a_record_of_its_own(tmp_path: Path) -> None:
    runs = members(tmp_path)
    store = tmp_path / "board.jsonl"
    results = run(options(runs, record=store))
    run(options(runs[::-1], record=store))
    (record,) = read(store)
    assert record.model.name == "ensemble of 3"
    assert record.model.parameters == 3_000_000
    assert record.members == [f"seed-{number} sha256:{number}" for number in (1, 2, 3)]
    assert (record.metric, record.other_metrics) == (results.metrics[0], results.metrics[1:])
    assert (record.split, record.seconds, record.tokens_per_second) == ("test", 7.5, None)
    assert record.ranked
    run(options(runs[:2], record=store))
    digests = [item.model.digest for item in read(store)]
    assert len(set(digests)) == 2
    (board,) = boards(read(store))
    assert {row.cells["model"] for row in board.rows} == {"ensemble of 3", "ensemble of 2"}
    assert not any(row.cells["iteration"] for row in board.rows)


def test_a_members_flags_are_the_ensembles(tmp_path: Path) -> None:
    data = race(write_race(tmp_path / "data", PASSAGES))
    flagged = write_evaluation(
        tmp_path / "flagged",
        answers_to(data, 7),
        data.digest,
        checkpoint={"name": "f", "digest": "sha256:f"},
        run={"megatron_exact": True, "dtype": "bfloat16"},
        flags=["window-128"],
    )
    store = tmp_path / "board.jsonl"
    run(options((*members(tmp_path, 2), flagged), record=store))
    (record,) = read(store)
    assert record.flags == ["window-128", "megatron-exact"]
    assert not record.ranked
    assert record.dtype == "bfloat16 and float32"


def test_an_ensemble_loads_no_torch(tmp_path: Path) -> None:
    import subprocess

    runs = [str(path) for path in members(tmp_path, 2)]
    program = (
        "import sys; from pathlib import Path; from mpeval.predictions.ensemble import Options, run\n"
        "run(Options(runs=tuple(map(Path, sys.argv[1:])), task='race', quiet=True))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, *runs], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
