"""SQuAD 1.1's published dev set: windows against transformers, scores against other copies of the official scripts."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mpeval.data import load_data
from mpeval.items import Answered, Headed
from mpeval.tasks.build import build_task
from mpeval.tasks.cards import load_card
from mpeval.tasks.spans import STEP, Spans
from mpeval.tasks.squad_metrics import score_v1, score_v2
from mpeval.tokenizer import find_tokenizer


@pytest.fixture(scope="module")
def task(shared_data: Path) -> Spans:
    card = load_card("squad")
    data = load_data(card, shared_data / "squad", "dev-v1.1")
    tokenizer = find_tokenizer(shared_data / "bert-base-uncased-vocab", [])
    made = build_task(card, card.protocol("v1"), data, tokenizer, 512)
    assert isinstance(made, Spans)
    return made


@pytest.fixture(scope="module")
def guesses(task: Spans) -> list[tuple[str, list[str]]]:
    """Texts that are right, nearly right, or wrong, each with the published answers to a question."""
    draw = random.Random(11)
    found = []
    for question in draw.sample(list(task.questions), 2000):
        answers = [text for _, text in question.spans]
        begin, text = draw.choice(question.spans)
        low, high = max(0, begin - draw.randint(0, 20)), begin + len(text) + draw.randint(-3, 20)
        found += [(draw.choice(answers).upper() + " the.", answers), (question.context[low:high], answers)]
        found.append((draw.choice(task.questions).spans[0][1], answers))
    return [*found, ("", ["a"]), ("the", ["a"]), ("the", ["an!"]), ("?", ["?", "river"]), ("the river", ["the"])]


def test_the_published_set_gives_these_windows(task: Spans) -> None:
    assert task.constants() == {
        "questions": 10570,
        "passages": 2067,
        "windows": 10833,
        "unanswerable": 0,
        "cut_questions": 0,
        "answers_in_no_window": 0,
        "answers_too_long": 9,
        "mean_tokens": 178.49,
        "max_tokens": 384,
    }
    assert task.flags == ()


def test_windows_are_those_of_transformers(task: Spans, shared_data: Path) -> None:
    from transformers import BertTokenizerFast

    oracle = BertTokenizerFast(str(shared_data / "bert-base-uncased-vocab" / "vocab.txt"))
    chosen = [number for number in range(len(task.items)) if number % 40 == 0 or len(task.bounds(number)) > 1]
    assert len(chosen) > 400
    for number in chosen:
        question, item = task.questions[number], task.items[number]
        expected = oracle(
            question.question,
            question.context,
            truncation="only_second",
            max_length=384,
            stride=task.room(number) - STEP,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        assert isinstance(item.request, Headed)
        assert [ids.tolist() for ids in item.request.ids] == expected["input_ids"]
        assert list(item.request.firsts) == [types.index(1) for types in expected["token_type_ids"]]
        begin, text = question.spans[0]
        for (first, last), offsets in zip(item.request.targets, expected["offset_mapping"], strict=True):
            if last:
                assert offsets[first][0] <= begin < offsets[first][1]
                assert offsets[last][0] < begin + len(text) <= offsets[last][1]


def test_logits_that_point_at_the_answers_score_what_tokens_can(task: Spans) -> None:
    samples = []
    for item in task.items:
        assert isinstance(item.request, Headed)
        logits = [np.zeros((length, 2), dtype=np.float32) for length in item.request.lengths]
        for window, (first, last) in zip(logits, item.request.targets, strict=True):
            window[first, 0], window[last, 1] = 9, 9
        samples.append(task.judge(item, Answered(logits=tuple(logits))))
    metrics, n, correct = task.summarise(samples)
    # 9 of the rest are of more than 30 tokens, the others begin or end within a word, such as `gold` of `golden`
    assert (n, correct) == (10570, 10538)
    assert {metric.name: metric.value for metric in metrics} == pytest.approx(
        {"f1": 0.9975277317, "exact": 10538 / 10570}, abs=1e-9
    )


def test_scores_are_those_of_the_first_script(guesses: list[tuple[str, list[str]]]) -> None:
    from lm_eval.tasks.qasper.metrics import f1_abstractive, normalize_answer

    scores = [score_v1(said, answers) for said, answers in guesses]
    assert scores == [
        (
            max(int(normalize_answer(said) == normalize_answer(answer)) for answer in answers),
            max(f1_abstractive([said], [answer]) for answer in answers),
        )
        for said, answers in guesses
    ]
    assert 0.3 < sum(exact for exact, _ in scores) / len(scores) < 0.7
    assert len({f1 for _, f1 in scores}) > 20


def test_scores_are_those_of_the_second_script(guesses: list[tuple[str, list[str]]]) -> None:
    metrics = pytest.importorskip(
        "transformers.data.metrics.squad_metrics", reason="versions 4 of transformers have the script"
    )
    asked = [*guesses, ("", []), ("the", []), ("river", [])]
    examples = [
        SimpleNamespace(qas_id=str(number), answers=[{"text": answer} for answer in answers])
        for number, (_, answers) in enumerate(asked)
    ]
    exact, f1 = metrics.get_raw_scores(examples, {str(number): said for number, (said, _) in enumerate(asked)})
    assert [score_v2(said, answers) for said, answers in asked] == [(exact[key], f1[key]) for key in exact]
