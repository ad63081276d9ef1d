"""Zero-shot protocols of RACE, PIQA and WikiText: what is asked, in which words, and how options are compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated import answers_to, race, write_evaluation, write_race
from finetuning import SAMPLES
from hypothesis import given
from hypothesis import strategies as st
from making import VOCAB, make_checkpoint, run_here, tokenizer_json

from mpeval.data import Data, load_data
from mpeval.errors import DataError
from mpeval.items import Request, Scored, page_windows
from mpeval.predictions.ensemble import Options
from mpeval.predictions.ensemble import run as average
from mpeval.predictions.lines import read_predictions
from mpeval.predictions.rescore import rescore
from mpeval.tasks.build import build_task
from mpeval.tasks.cards import load_card
from mpeval.tasks.perplexity import pages_of
from mpeval.tokenizer import Tokenizer, find_tokenizer

ARTICLE = json.loads((SAMPLES / "RACE/test/high/1.txt").read_text(encoding="utf-8"))
PASSAGES = [("middle", 1, 2), ("high", 1, 3), ("high", 2, 1), ("high", 10, 4)]


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("gpt")
    (folder / "tokenizer.json").write_text(tokenizer_json(VOCAB), encoding="utf-8")
    return find_tokenizer(folder, [])


@pytest.fixture(scope="module")
def samples() -> Data:
    return load_data(load_card("race"), SAMPLES)


def task_of(name: str, data: Data, tokenizer: Tokenizer, context: int = 4096) -> Any:
    card = load_card(name.split("/")[0])
    return build_task(card, card.protocol(name), data, tokenizer, context)


def texts_of(task: Any, tokenizer: Tokenizer) -> dict[str, list[tuple[str, str]]]:
    """Return the text of prompt and option of every request, by item."""
    return {
        item.id: [
            (tokenizer.decode(list(option.context)), tokenizer.decode(list(option.target)))
            for option in item.request.options
        ]
        for item in task.items
    }


def asked_of(folder: Path, questions: Sequence[str], tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Return prompts and options of `race/lm-eval` for one article with these questions, the answer always B."""
    content = {
        "article": "The ferry was late.",
        "questions": list(questions),
        "options": [["a", "two", "c", "d"]] * len(questions),
        "answers": ["B"] * len(questions),
        "id": "high1.txt",
    }
    path = folder / "RACE/test/high/1.txt"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    [found] = texts_of(task_of("race/lm-eval", race(folder), tokenizer), tokenizer).values()
    return found


def scored(*logs: Sequence[float]) -> tuple[Scored, ...]:
    """Return the score of one option per argument, token by token."""
    return tuple(
        Scored(log_probabilities=np.array(option, np.float32), best=np.zeros(len(option), np.int64), greedy=False)
        for option in logs
    )


# ---- what RACE's protocols ask ----


def test_the_last_question_follows_the_others_with_their_answers(samples: Data, gpt: Tokenizer) -> None:
    found = texts_of(task_of("race/lm-eval", samples, gpt), gpt)["RACE/test/high/1.txt#3"]
    prompt = (
        f"Article: {ARTICLE['article']}\n\n"
        "Question: What did the baker ask from each family?\n"
        "Answer: A piece of wood\n"
        'Question: "By February the wood was furniture" means that people _ .\n'
        "Answer: burned their furniture\n"
        "Why did the families give the widow twelve chairs?"
    )
    options = [
        " She had ordered them",
        " They wanted bread for them",
        " The hotels paid for them",
        " They were grateful to her",
    ]
    assert found == [(prompt, option) for option in options]


@pytest.mark.parametrize(
    ("question", "told"),
    [
        ("The fare was  _  .", "The fare was two\n"),
        ("  _  .", " two\n"),
        ("The fare was _ .", "Question: The fare was _ .\nAnswer: two\n"),
        ("The fare was   _  .", "The fare was  two\n"),
        ("The fare was  _  . ", "Question: The fare was  _  . \nAnswer: two\n"),
        ("What was the fare?", "Question: What was the fare?\nAnswer: two\n"),
    ],
)
def test_an_answer_takes_the_place_of_a_blank_at_the_end(
    question: str, told: str, tmp_path: Path, gpt: Tokenizer
) -> None:
    found = asked_of(tmp_path, [question, "It left at  _  ."], gpt)
    prompt = f"Article: The ferry was late.\n\n{told}It left at  _  ."
    assert found == [(prompt, f" {option}") for option in ("a", "two", "c", "d")]


def test_white_space_at_the_end_of_a_prompt_belongs_to_the_option(tmp_path: Path, gpt: Tokenizer) -> None:
    found = asked_of(tmp_path, ["It left at \n "], gpt)
    prompt = "Article: The ferry was late.\n\nIt left at"
    assert found == [(prompt, f" \n  {option}") for option in ("a", "two", "c", "d")]


def test_items_say_which_question_of_which_article(tmp_path: Path, gpt: Tokenizer) -> None:
    task = task_of("race/lm-eval", race(write_race(tmp_path, PASSAGES)), gpt)
    last = ["RACE/test/high/1.txt#3", "RACE/test/high/2.txt#1", "RACE/test/high/10.txt#4"]
    assert [item.id for item in task.items] == last
    assert task.constants()["questions"] == task.constants()["passages"] == 3
    lines = [task.judge(item, scored([-1.0], [-2.0], [-3.0], [-4.0])) for item in task.items]
    assert [(line["id"], line["passage"], line["group"]) for line in lines] == [
        (uid, uid.split("#")[0], "high") for uid in last
    ]
    metrics, n, _ = task.summarise(lines)
    assert (n, [metric.name for metric in metrics]) == (3, ["accuracy", "accuracy_high"])


def test_a_set_without_a_high_part_is_refused(tmp_path: Path, gpt: Tokenizer) -> None:
    data = race(write_race(tmp_path, [("middle", 1, 2), ("middle", 2, 1)]))
    with pytest.raises(DataError, match=r"no question of RACE's high part, .* `race/lm-eval`") as caught:
        task_of("race/lm-eval", data, gpt)
    assert caught.value.hint == "add the test set's folder `high`, or choose `race/all`"
    assert len(task_of("race/all", data, gpt).items) == 3


@pytest.mark.parametrize("name", ["race/all", "race/gpt3"])
def test_every_question_stands_alone_after_its_article(name: str, samples: Data, gpt: Tokenizer) -> None:
    found = texts_of(task_of(name, samples, gpt), gpt)
    assert list(found) == [question.uid for question in samples.questions]
    for question in samples.questions:
        prompt = f"Article: {question.context}\n\n{question.question}"
        assert found[question.uid] == [(prompt, f" {option}") for option in question.options]


# ---- how options are compared ----


def test_gpt3_compares_the_mean_of_an_options_tokens(samples: Data, gpt: Tokenizer) -> None:
    by_sum, by_token = (task_of(name, samples, gpt) for name in ("race/all", "race/gpt3"))
    logs = ([-1.0, -3.0, -2.0, -2.0], [-3.0, -2.0], [-6.0], [-1.5, -3.0, -3.5, -1.0, -0.5])
    for item, question in zip(by_token.items, samples.questions, strict=True):
        line = by_token.judge(item, scored(*logs))
        powers = np.exp([-2.0, -2.5, -6.0, -1.9])
        assert line["probabilities"] == pytest.approx((powers / powers.sum()).tolist(), rel=1e-6)
        assert line["log_probabilities"] == [-8.0, -5.0, -6.0, -9.5]
        assert (line["prediction"], line["correct"]) == (3, question.answer == 3)
        assert "correct_norm" not in line
        other = by_sum.judge(item, scored(*logs))
        assert (other["prediction"], other["correct"]) == (1, question.answer == 1)
        sizes = np.array([len(option) for option in question.options])
        assert other["correct_norm"] == (int((np.array([-8.0, -5.0, -6.0, -9.5]) / sizes).argmax()) == question.answer)


def test_byte_norm_divides_by_the_bytes_of_a_solution_without_its_space(tmp_path: Path, gpt: Tokenizer) -> None:
    solutions = ("caf\u00e9 \u2014 \u96ea", "tea or ice")  # of 13 and 10 bytes, 8 and 10 characters
    assert [len(text.encode()) for text in solutions] == [13, 10]
    (tmp_path / "piqa").mkdir()
    row = {"goal": "Keep warm.", "sol1": solutions[0], "sol2": solutions[1]}
    (tmp_path / "piqa/valid.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "piqa/valid-labels.lst").write_text("0\n")
    data = load_data(load_card("piqa"), tmp_path, allow_modified=True)
    harness, task = (task_of(name, data, gpt) for name in ("piqa/lm-eval", "piqa/byte-norm"))
    assert texts_of(task, gpt) == texts_of(harness, gpt)
    [item] = task.items
    line = task.judge(item, scored([-12.0], [-10.0]))
    assert line["probabilities"][1] == pytest.approx(1 / (1 + np.exp(-12 / 13 + 10 / 10)))
    assert (line["prediction"], line["correct"], line["correct_norm"]) == (0, True, False)
    assert harness.judge(item, scored([-12.0], [-10.0]))["prediction"] == 1
    metrics, _, correct = task.summarise([line])
    assert [(metric.name, metric.value) for metric in metrics] == [("accuracy", 1.0), ("accuracy_norm", 0.0)]
    assert correct == 1


# ---- stored predictions ----


def predictions(folder: Path, seed: int, leave_out: int = 0) -> Path:
    """Write an evaluation of `race/lm-eval` on the RACE set below `folder`, of all but some of its questions."""
    data = race(folder)
    last = {"RACE/test/high/1.txt#3", "RACE/test/high/2.txt#1", "RACE/test/high/10.txt#4"}
    lines = [line | {"task": "race/lm-eval"} for line in answers_to(data, seed) if line["id"] in last]
    return write_evaluation(
        folder / f"run-{seed}-{leave_out}",
        lines[leave_out:],
        data.digest,
        checkpoint={"name": f"seed-{seed}", "digest": f"sha256:{seed}"},
        protocol="race/lm-eval",
    )


def test_predictions_of_all_that_a_protocol_asks_are_not_partial(tmp_path: Path) -> None:
    data, card = race(write_race(tmp_path, PASSAGES)), load_card("race")
    for leave_out, flags in ((0, ["modified-data"]), (1, ["modified-data", "partial"])):
        path = predictions(tmp_path, 1, leave_out) / "samples.jsonl"
        result = rescore(card, card.protocol("lm-eval"), data, read_predictions(path, "race/lm-eval"), str(path))
        assert (result.n, result.items_total, result.flags) == (3 - leave_out, 3, flags)


def test_members_that_answered_all_that_a_protocol_asks_are_averaged(tmp_path: Path) -> None:
    write_race(tmp_path, PASSAGES)
    fields: dict[str, Any] = {"task": "race/lm-eval", "data": tmp_path, "allow_modified_data": True, "quiet": True}
    runs = tuple(predictions(tmp_path, seed) for seed in (1, 2))
    assert average(Options(runs=runs, command="mpeval ensemble", **fields)).n == 3
    short = tuple(predictions(tmp_path, seed, 1) for seed in (1, 2))
    with pytest.raises(DataError, match="lacks 1 of 3 questions"):
        average(Options(runs=short, command="mpeval ensemble", **fields))


# ---- WikiText by pages ----

LINES = (
    " ",
    " = A Lake = ",
    " ",
    " It is deep = . ",
    " ",
    " = = Fish = = ",
    " ",
    " Few , at a rate of ",
    " = 1 cm per year = ",
    " , and small . ",
    " ",
    " = Ropes = ",
    " = ",
    " Knots . ",
    " ",
    "",
)
TEXT = "\n".join(LINES)


def test_a_page_begins_at_every_line_that_looks_like_a_title() -> None:
    assert pages_of(TEXT) == [
        " = A Lake = \n \n It is deep = . \n \n = = Fish = = \n \n Few , at a rate of ",
        " = 1 cm per year = \n , and small . \n ",
        " = Ropes = \n = \n Knots . \n \n",
    ]
    assert pages_of("no title\nat all") == ["no title\nat all"]
    assert pages_of("before\n= A =\n") == ["before", "= A =\n"]


@given(tokens=st.integers(1, 60), window=st.integers(1, 20))
def test_windows_score_every_token_of_a_page_once(tokens: int, window: int) -> None:
    """Place 0 is the end-of-text token; a slow reading of lm-eval's rolling windows."""
    found = list(page_windows(tokens, window))
    assert [place for _, first, end in found for place in range(first, end)] == list(range(1, tokens + 1))
    for number, (start, first, end) in enumerate(found):
        assert 0 <= start < first < end
        read = end - 1 - start
        assert read == min(window, tokens)  # as long as the model reads, if the page is
        if number < len(found) - 1:
            assert start == first - 1  # one token of context


def test_words_and_bytes_are_those_of_the_page_before_detokenization(tmp_path: Path, gpt: Tokenizer) -> None:
    (tmp_path / "wikitext-103").mkdir()
    (tmp_path / "wikitext-103/wiki.test.tokens").write_text(TEXT)
    data = load_data(load_card("wikitext103"), tmp_path, allow_modified=True)
    task = task_of("wikitext103/lm-eval", data, gpt, 8)
    pages = pages_of(TEXT)
    assert task.words == [22, 12, 8]  # an empty piece before the first word of each page, and one after its last
    assert task.constants()["bytes"] == sum(len(page.encode()) for page in pages)
    assert gpt.decode(task.rows[1].tolist()) == " = 1 cm per year =\n, and small.\n"
    samples = []
    for item in task.items:
        assert isinstance(item.request, Request)
        assert item.request.inputs <= 8
        if item.id.endswith("window-0000"):
            assert list(item.request.context) == [gpt.end_of_text]
        samples.append(task.judge(item, *scored([-0.5] * len(item.request.target))))
    metrics, n, correct = task.summarise(samples)
    assert (n, correct) == (len(task.rows.flat), None)
    loss = 0.5 * n
    values = {metric.name: metric.value for metric in metrics}
    assert list(values) == ["word_perplexity", "byte_perplexity", "bits_per_byte"]
    assert values["word_perplexity"] == pytest.approx(np.exp(loss / 42))
    assert values["byte_perplexity"] == pytest.approx(np.exp(loss / task.constants()["bytes"]))
    assert values["bits_per_byte"] == pytest.approx(loss / task.constants()["bytes"] / np.log(2))
    # a part of one page counts as much of its words as it has of its tokens, which all have the same loss here
    part = {metric.name: metric.value for metric in task.summarise(samples[:1])[0]}
    assert part["word_perplexity"] == pytest.approx(np.exp(0.5 * len(task.rows[0]) / 22))
    assert part["bits_per_byte"] == pytest.approx(0.5 * len(task.rows[0]) / len(pages[0]) / np.log(2))


# ---- commands ----


def test_the_sample_rows_are_scored_and_scored_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts = {"race/all": 24, "race/lm-eval": 4, "race/gpt3": 24, "piqa/byte-norm": 16, "wikitext103/lm-eval": None}
    asked = " ".join(f"--task {name}" for name in counts)
    model = make_checkpoint(tmp_path / "gpt")
    command = f"evaluate {model} --data {SAMPLES} --device cpu --quiet --json"
    assert run_here(f"{command} {asked} --output {tmp_path / 'run'}") == 0
    results = {result["protocol"]: result for result in json.loads(capsys.readouterr().out)["results"]}
    assert list(results) == list(counts)
    for name, count in counts.items():
        assert count in {None, results[name]["n"]}
        assert "partial" not in results[name]["flags"]
        assert results[name]["metrics"][0]["name"] == load_card(name.split("/")[0]).protocol(name).metric
    groups = ["accuracy", "accuracy_middle", "accuracy_high"]
    assert [metric["name"] for metric in results["race/gpt3"]["metrics"]] == groups
    again = f"evaluate {model} --data {SAMPLES} --quiet --json --from-predictions {tmp_path / 'run/samples.jsonl'}"
    for name in ("race/lm-eval", "race/gpt3", "piqa/byte-norm"):
        assert run_here(f"{again} --task {name}") == 0
        [result] = json.loads(capsys.readouterr().out)["results"]
        assert result["metrics"] == results[name]["metrics"]
        assert result["flags"] == results[name]["flags"]
