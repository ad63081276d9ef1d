"""Stored predictions scored again: the same numbers without a model, and every line that does not fit is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated import PROTOCOL, answers_to, change_line, line_of, race, write_evaluation, write_race
from sklearn.metrics import accuracy_score, f1_score

from mpeval.data import Data
from mpeval.errors import DataError, MpevalError, UsageError
from mpeval.leaderboard.records import records_of
from mpeval.predictions.lines import Predicted, protocols_in, read_predictions
from mpeval.predictions.rescore import from_predictions, rescore
from mpeval.questions.question import Question
from mpeval.results import RunResults
from mpeval.tasks.cards import load_card
from mpeval.tasks.summary import summarise_choices

PASSAGES = [("middle", 1, 4), ("high", 1, 5), ("high", 2, 4)]


def evaluation(folder: Path, **more: Any) -> Path:
    """Write a RACE set and an evaluation on it; return the evaluation's samples."""
    data = race(write_race(folder / "data", PASSAGES))
    return write_evaluation(folder / "run", answers_to(data, 1), data.digest, **more) / "samples.jsonl"


def again(path: Path, task: str = "race", **more: Any) -> RunResults:
    """Score predictions again against the data that lie two folders above."""
    data = path.parent.parent / "data"
    settings: dict[str, Any] = {"data": data, "allow_modified_data": True, "name": "bert", "command": "mpeval"}
    return from_predictions(path, task, **settings | more)


def pair_lines(count: int, classes: int, seed: int = 1) -> tuple[list[Predicted], tuple[Question, ...]]:
    """Return predictions of classes, and the questions they are about."""
    random = np.random.default_rng(seed)
    targets = [int(value) for value in random.integers(0, classes, count)]
    shares = random.dirichlet([1] * classes, count)
    task = "qqp/megatron" if classes == 2 else "mnli/megatron"
    lines = [
        Predicted(sample={**line_of(f"q#{n}", targets[n], shares[n]), "task": task}, where=f"`f` line {n + 1}")
        for n in range(count)
    ]
    questions = tuple(Question(uid=f"q#{n}", passage=f"q#{n}", context="a", answer=targets[n]) for n in range(count))
    return lines, questions


def squad(answers: dict[str, tuple[str, ...]]) -> Data:
    """Return a set of questions with these answers, none of which shares a paragraph."""
    questions = tuple(
        Question(
            uid=uid,
            passage=f"p{uid}",
            context="c",
            spans=tuple((0, text) for text in texts),
            answerable=bool(texts),
        )
        for uid, texts in answers.items()
    )
    return Data(questions=questions, source="squad.json", digest="sha256:s", split="dev-v2.0")


def span_line(uid: str, answers: tuple[str, ...], text: str, exact: int, f1: float) -> Predicted:
    sample = {
        "task": "squad/v2",
        "id": uid,
        "passage": f"p{uid}",
        "target": list(answers),
        "prediction": text,
        "exact": exact,
        "f1": f1,
        "no_answer": -1.0,
        "correct": bool(exact),
        "tokens": 9,
    }
    return Predicted(sample=sample, where=f"`f` line {uid}")


# ---- the same numbers ----


def test_the_results_are_those_of_the_evaluation(tmp_path: Path) -> None:
    path = evaluation(tmp_path)
    before = json.loads((path.parent / "results.json").read_text())
    after = again(path).document()
    assert after["results"][0].pop("data")["digest"] == before["results"][0].pop("data")["digest"]
    changed = {"flags", "items_resumed"}
    assert {key for key, value in after["results"][0].items() if value != before["results"][0][key]} == changed
    assert after["results"][0]["flags"] == ["modified-data"]
    assert {key for key, value in after.items() if value != before[key]} == {"created_at", "command", "results"}


def test_scores_come_from_the_probabilities_and_the_data(tmp_path: Path) -> None:
    path = evaluation(tmp_path)
    (result,) = again(path).results
    questions = {question.uid: question for question in race(tmp_path / "data").questions}
    samples = [line.sample for line in read_predictions(path, PROTOCOL)]
    targets = [questions[sample["id"]].answer for sample in samples]
    predicted = [int(np.argmax(sample["probabilities"])) for sample in samples]
    assert result.metrics[0].value == pytest.approx(accuracy_score(targets, predicted))
    assert result.metrics == summarise_choices(samples)[0]
    assert (result.n, result.items, result.items_total, result.split) == (13, 13, 13, "test")


def test_the_order_of_lines_does_not_matter(tmp_path: Path) -> None:
    path = evaluation(tmp_path)
    first = again(path).results[0].metrics[0]
    lines = path.read_text().splitlines()
    path.write_text("".join(line + "\n" for line in lines[::-1]))
    assert again(path).results[0].metrics[0] == first


def test_predictions_of_only_some_questions_are_partial_and_unranked(tmp_path: Path) -> None:
    path = evaluation(tmp_path)
    (path.parent / "results.json").unlink()
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:5]))
    run = again(path)
    assert run.results[0].flags == ["modified-data", "partial", "no-checkpoint"]
    assert (run.results[0].items, run.results[0].items_total) == (5, 13)


def test_a_file_without_results_beside_it_has_no_checkpoint_and_no_rank(tmp_path: Path) -> None:
    path = evaluation(tmp_path)
    alone = tmp_path / "alone" / "predictions.jsonl"
    alone.parent.mkdir()
    alone.write_bytes(path.read_bytes())
    run = again(alone)
    assert (run.checkpoint.name, run.checkpoint.digest) == ("bert", "unknown")
    assert "no-checkpoint" in run.results[0].flags
    (record,) = records_of(run)
    assert not record.model_copy(update={"flags": ["no-checkpoint"]}).ranked
    assert run.results[0].metrics == again(path).results[0].metrics


@pytest.mark.parametrize("classes", [2, 3])
def test_pairs_have_accuracy_and_with_two_classes_f1(classes: int) -> None:
    lines, questions = pair_lines(50, classes)
    card = load_card("qqp" if classes == 2 else "mnli")
    data = Data(questions=questions, source="s", digest="sha256:d", split=card.split)
    metrics = rescore(card, card.protocol("megatron"), data, lines, "f").metrics
    targets = [question.answer for question in questions]
    predicted = [int(np.argmax(line.sample["probabilities"])) for line in lines]
    assert metrics[0].value == pytest.approx(accuracy_score(targets, predicted))
    assert [metric.value for metric in metrics[1:]] == ([f1_score(targets, predicted)] if classes == 2 else [])


def test_spans_are_scored_from_their_text() -> None:
    answers: dict[str, tuple[str, ...]] = {"1": ("the red house", "red house"), "2": ("in 1912",), "3": ()}
    lines = [
        span_line("1", answers["1"], "Red house!", 1, 1.0),
        span_line("2", answers["2"], "1912", 0, 2 / 3),
        span_line("3", answers["3"], "", 1, 1.0),
    ]
    card = load_card("squad")
    result = rescore(card, card.protocol("v2"), squad(answers), lines, "f")
    values = {metric.name: metric.value for metric in result.metrics}
    assert values["f1"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert values["exact"] == pytest.approx(2 / 3)
    assert (result.n, result.n_correct) == (3, 2)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("exact", 1, "by its text `exact` is 0, the line says 1"),
        ("f1", 0.5, "by its text `f1` is 0.66"),
        ("correct", True, "by its text `correct` is False"),
        ("prediction", 7, "no text as its prediction"),
        ("target", ["1913"], "the target of `2` is"),
    ],
)
def test_a_span_that_says_something_else_is_refused_with_its_line(key: str, value: object, message: str) -> None:
    line = span_line("2", ("in 1912",), "1912", 0, 2 / 3)
    line.sample[key] = value
    card = load_card("squad")
    with pytest.raises(DataError, match=message) as raised:
        rescore(card, card.protocol("v2"), squad({"2": ("in 1912",)}), [line], "f")
    assert raised.value.message.startswith("`f` line 2")


# ---- what does not fit ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "RACE/test/high/9.txt#1"}, r"line 3: `RACE/test/high/9.txt#1` is no question of `.*data.*`"),
        ({"target": 7, "correct": False}, r"line 3: the target of `RACE/.*` is `7`, in `.*` it is `\d`"),
        ({"passage": "RACE/test/high/9.txt"}, r"line 3: the passage of"),
        ({"group": "low"}, r"line 3: the group of `RACE/.*` is `low`, in `.*` it is"),
        ({"prediction": 7}, r"line 3 .*`prediction` is \d, the line says 7"),
        ({"correct": 1}, r"line 3 .*`correct` is (true|false), the line says 1"),
        ({"correct": None}, r"line 3 .*`correct` is (true|false), the line says null"),
        ({"probabilities": [0.5, 0.5, 0.5, 0.5]}, r"line 3 .* sum to 2, not to 1"),
        ({"probabilities": None}, r"line 3 .* has no probabilities"),
        ({"task": 7}, r"line 3 has no `task`"),
    ],
    ids=lambda value: str(next(iter(value.items()))) if isinstance(value, dict) else "",
)
def test_a_line_that_does_not_fit_is_refused_with_file_and_line(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = evaluation(tmp_path)
    change_line(path.parent, 3, **changes)
    with pytest.raises(DataError, match=message) as raised:
        again(path)
    assert raised.value.message.startswith(f"`{path}` line 3")
    assert raised.value.hint


def test_another_number_of_options_than_the_question_has_is_refused(tmp_path: Path) -> None:
    path = evaluation(tmp_path)
    sample = json.loads(path.read_text().splitlines()[2])
    change_line(path.parent, 3, probabilities=[*sample["probabilities"], 0.0])
    with pytest.raises(DataError, match=r"line 3: 5 probabilities for `RACE/.*`, which has 4 options"):
        again(path)


def test_an_answer_turned_right_is_seen_by_the_results_beside(tmp_path: Path) -> None:
    path = evaluation(tmp_path)
    wrong = next(n for n, line in enumerate(read_predictions(path, PROTOCOL), start=1) if not line.sample["correct"])
    target = json.loads(path.read_text().splitlines()[wrong - 1])["target"]
    shares = [0.97 if option == target else 0.01 for option in range(4)]
    change_line(path.parent, wrong, probabilities=shares, prediction=target, correct=True)
    with pytest.raises(DataError, match=r"the number of right answers is `\d+` by `.*`, `\d+` by `.*results.json`"):
        again(path)


def test_predictions_of_other_data_are_refused(tmp_path: Path) -> None:
    path = evaluation(tmp_path)
    other = write_race(tmp_path / "other", PASSAGES, seed=3)
    with pytest.raises(DataError, match=r"line \d+: the target of"):
        again(path, data=other)
    content = json.loads((tmp_path / "data/RACE/test/high/1.txt").read_text())
    (tmp_path / "data/RACE/test/high/1.txt").write_text(json.dumps(content | {"article": "Another one."}))
    with pytest.raises(DataError, match="the digest of the data is"):
        again(path)


def test_data_that_are_not_the_published_ones_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not the published RACE test set"):
        again(evaluation(tmp_path), allow_modified_data=False)


@pytest.mark.parametrize("task", ["lambada", "wikitext103", "lambada/megatron-strict"])
def test_tasks_that_need_the_models_tokens_are_refused(task: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be scored from predictions: its metrics need the model's own tokens"):
        again(evaluation(tmp_path), task)
    card = load_card(task.split("/", maxsplit=1)[0])
    with pytest.raises(UsageError, match="cannot be scored from predictions"):
        rescore(card, card.protocols[0], race(tmp_path / "data"), [], "f")


def test_a_file_of_several_protocols_needs_a_choice(tmp_path: Path) -> None:
    path = evaluation(tmp_path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    others = [{**line, "task": "race/longest-context"} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *others]))
    assert protocols_in(path) == [PROTOCOL, "race/longest-context"]
    with pytest.raises(UsageError, match="holds `race/megatron`, `race/longest-context`") as raised:
        again(path)
    assert "--task race/megatron" in raised.value.hint
    assert again(path, PROTOCOL).results[0].n == 13


def test_a_file_without_the_task_says_what_it_holds(tmp_path: Path) -> None:
    path = evaluation(tmp_path)
    with pytest.raises(DataError, match="holds no prediction of `piqa`") as raised:
        again(path, "piqa")
    assert raised.value.hint == f"it holds `{PROTOCOL}`"
    with pytest.raises(DataError, match="holds no prediction under `race/last-token`"):
        again(path, "race/last-token")


@pytest.mark.parametrize("text", ["", "\n\n", "[1, 2]\n", "7\n", "nonsense\n", '{"task": "race/megatron"}\n', "\x80"])
def test_a_file_of_something_else_is_refused(text: str, tmp_path: Path) -> None:
    path = evaluation(tmp_path)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(MpevalError) as raised:
        again(path)
    assert str(path) in raised.value.message
    assert raised.value.hint


def test_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no predictions at"):
        again(tmp_path / "run" / "samples.jsonl", data=tmp_path)


def test_scoring_again_loads_no_torch_and_no_tokenizer(tmp_path: Path) -> None:
    path = evaluation(tmp_path)
    program = (
        "import sys; from pathlib import Path; from mpeval.predictions.rescore import from_predictions\n"
        "from_predictions(Path(sys.argv[1]), 'race', data=Path(sys.argv[2]), allow_modified_data=True, name='x', "
        "command='')\n"
        "print(sorted({'torch', 'tokenizers', 'datasets', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), str(tmp_path / "data")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
