"""Pairs of texts: the sequences a head reads, against transformers, and the numbers, against torch and scikit-learn."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from texts import WORDPIECES, write_wordpiece

from mpeval.data import Data
from mpeval.errors import DataError, UsageError
from mpeval.items import Answered, Headed
from mpeval.questions.question import Question
from mpeval.tasks.build import build_task
from mpeval.tasks.cards import load_card
from mpeval.tasks.pairs import Pairs
from mpeval.tokenizer import Tokenizer, find_tokenizer

WORDS = ("the", "river", "old", "sailor", "came", "She", "looked.", "it's", "and", "9", "café", "日", "\n", " . ")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wordpiece(tmp_path_factory.mktemp("wordpiece"), WORDPIECES)


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return find_tokenizer(vocabulary, [])


def questions_of(count: int, classes: int, *, longest: int = 60, seed: int = 3) -> tuple[Question, ...]:
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest))) + " end"

    shared = [text() for _ in range(max(1, count // 3))]
    return tuple(
        Question(
            uid=f"mnli/dev-matched#{number}",
            passage=f"mnli/dev-matched#{number}",
            group="matched",
            context=draw.choice(shared),
            question=text(),
            answer=draw.randrange(classes),
        )
        for number in range(count)
    )


def made(name: str, questions: tuple[Question, ...], tokenizer: Tokenizer, context: int = 512) -> Pairs:
    card = load_card(name)
    data = Data(source="rows.tsv", digest="sha256:0", questions=questions, split="dev")
    task = build_task(card, card.protocol("megatron"), data, tokenizer, context)
    assert isinstance(task, Pairs)
    return task


@pytest.mark.parametrize("context", [512, 40])
def test_sequences_are_those_of_transformers_cut_as_megatron_cuts_them(
    context: int, vocabulary: Path, tokenizer: Tokenizer
) -> None:
    from transformers import BertTokenizerFast

    oracle = BertTokenizerFast(str(vocabulary / "vocab.txt"))
    questions = questions_of(200, 3)
    task = made("mnli", questions, tokenizer, context)
    cut = 0
    for item, question in zip(task.items, questions, strict=True):
        expected = oracle(question.context, question.question)
        ids, types = expected["input_ids"], expected["token_type_ids"]
        if len(ids) > context:
            cut += 1
            ids, types = [*ids[: context - 1], ids[-1]], [*types[: context - 1], 1]
        assert isinstance(item.request, Headed)
        assert item.request.ids[0].tolist() == ids
        assert [int(place >= item.request.firsts[0]) for place in range(len(ids))] == types
        assert item.request.targets.tolist() == [question.answer]
        assert item.id == question.uid
    assert task.constants()["cut_pairs"] == cut
    assert cut > 0 or context == 512
    assert task.flags == (() if context == 512 else ("window-40",))


def test_items_are_made_on_demand_and_cut_like_a_list(tokenizer: Tokenizer) -> None:
    task = made("mnli", questions_of(30, 3), tokenizer)
    every = [item.id for item in task.items]
    assert len(task.items) == len(every) == 30
    assert task.items[-1].id == every[-1]
    assert [item.id for item in task.items[3:21:4]] == every[3:21:4]
    assert [item.id for item in task.items[::-1][:5]] == every[::-1][:5]
    assert task.items[4].request is not task.items[4].request
    with pytest.raises(IndexError):
        task.items[30]


def test_a_text_that_several_pairs_share_is_kept_once(tokenizer: Tokenizer) -> None:
    questions = questions_of(60, 3)
    different = {text for question in questions for text in (question.context, question.question)}
    assert made("mnli", questions, tokenizer).constants()["texts"] == len(different) < 2 * len(questions)


def test_constants_are_those_of_the_items(tokenizer: Tokenizer) -> None:
    questions = questions_of(100, 3)
    task = made("mnli", questions, tokenizer, 50)
    lengths = [item.request.inputs for item in task.items]
    found = task.constants()
    assert found["questions"] == len(lengths)
    assert found["mean_tokens"] == round(sum(lengths) / len(lengths), 2)
    assert found["max_tokens"] == max(lengths) == 50
    answers = [question.answer for question in questions]
    assert found["classes"] == {str(number): answers.count(number) for number in range(3)}


@pytest.mark.parametrize(("name", "classes"), [("mnli", 3), ("qqp", 2)])
def test_probabilities_are_torchs_and_metrics_scikit_learns(name: str, classes: int, tokenizer: Tokenizer) -> None:
    questions = questions_of(300, classes, longest=5)
    task = made(name, questions, tokenizer)
    logits = np.random.default_rng(0).normal(size=(300, classes)).astype(np.float32) * 3
    logits[7] = 1000.0
    samples = [task.judge(item, Answered(logits=(row,))) for item, row in zip(task.items[:], logits, strict=True)]
    exact = torch.from_numpy(logits).double()
    np.testing.assert_allclose([sample["probabilities"] for sample in samples], exact.softmax(-1), rtol=1e-12)
    assert [sample["prediction"] for sample in samples] == exact.argmax(-1).tolist()
    targets, predictions = [question.answer for question in questions], exact.argmax(-1).tolist()
    metrics, pairs, correct = task.summarise(samples)
    assert (pairs, correct) == (300, int(accuracy_score(targets, predictions, normalize=False)))
    expected = {"accuracy": accuracy_score(targets, predictions)}
    if classes == 2:
        expected["f1"] = f1_score(targets, predictions)
    assert {metric.name: metric.value for metric in metrics} == pytest.approx(expected, rel=1e-12)
    assert next(iter(expected)) == metrics[0].name == task.protocol.metric


def test_a_sample_says_what_there_is_to_know(tokenizer: Tokenizer) -> None:
    task = made("mnli", questions_of(3, 3), tokenizer)
    logits = np.array([0.0, 2.0, 1.0], dtype=np.float32)
    sample = task.judge(task.items[1], Answered(logits=(logits,)))
    assert sample.pop("probabilities") == pytest.approx([0.09003057, 0.66524096, 0.24472847], rel=1e-6)
    answer = task.questions[1].answer
    assert sample == {
        "task": "mnli/megatron",
        "id": "mnli/dev-matched#1",
        "group": "matched",
        "target": answer,
        "prediction": 1,
        "correct": answer == 1,
        "tokens": task.items[1].request.inputs,
    }


def test_pairs_without_classes_are_refused(tokenizer: Tokenizer) -> None:
    hidden = tuple(dataclasses.replace(question, answer=-1) for question in questions_of(5, 3))
    with pytest.raises(UsageError, match=r"the right answers of the .* set are not public") as error:
        made("mnli", hidden, tokenizer)
    assert "--split dev-matched" in error.value.hint
    with pytest.raises(DataError, match="there is no question to sum up"):
        made("mnli", questions_of(5, 3), tokenizer).summarise([])
