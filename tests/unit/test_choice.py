"""Multiple choice: sequences byte for byte against a slow reading of the protocols, cached ids, the order of epochs."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finetuning import SAMPLES, gpt_config, pieces, sample_words
from hypothesis import given, settings
from hypothesis import strategies as st
from making import VOCAB, tokenizer_json

from mpeval.data import Data, load_data
from mpeval.errors import DataError, UsageError
from mpeval.items import Answered, Headed, Item, Likelihoods, Scored
from mpeval.models.gpt import GPT
from mpeval.models.weights import draw_weights
from mpeval.questions.question import Question
from mpeval.scoring import score_any
from mpeval.tasks.build import build_task
from mpeval.tasks.cards import load_card
from mpeval.tasks.choice import question_with
from mpeval.tasks.packing import Packer, clean, encode_all
from mpeval.tokenizer import Tokenizer, find_tokenizer
from mpeval.train.answers import OptionLikelihood
from mpeval.train.questions import Epochs, Packed, QuestionSamples

WORDS = [word for word in sample_words() if word.isalnum()]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces()), encoding="utf-8")
    return find_tokenizer(folder, [])


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("gpt")
    (folder / "tokenizer.json").write_text(tokenizer_json(VOCAB), encoding="utf-8")
    return find_tokenizer(folder, [])


def text_of(draw: random.Random, words: int) -> str:
    """Return words with all the white space and full stops that cleaning is about."""
    gaps = (" ", " ", " ", "  ", "\n", "\r\n", "\t", " . ", " . . ", " . . . . ", " .", ". ", "\u00a0", " \u2009 ")
    return "".join(draw.choice(WORDS) + draw.choice(gaps) for _ in range(words)) + draw.choice(["", "?", "."])


def make_race(folder: Path) -> Path:
    """Write articles of 5 to 500 words, options of 1 to 120, questions with no underscore, one and several."""
    draw = random.Random(4)
    for number, words in enumerate((5, 300, 330, 340, 350, 360, 370, 500), start=1):
        asked = [text_of(draw, draw.choice([3, 10, 90, 110, 120])) for _ in range(3)]
        asked[1] = f"_ {asked[1]}" if number % 2 else f"{asked[1]} _ ."
        asked[2] = f"Who __ said {text_of(draw, 5)} _ and _?"
        content = {
            "article": text_of(draw, words),
            "questions": asked,
            "options": [[text_of(draw, draw.choice([1, 4, 9, most])) for _ in range(4)] for most in (100, 120, 26)],
            "answers": [draw.choice("ABCD") for _ in asked],
            "id": f"{number}.txt",
        }
        path = folder / "RACE/test" / ("middle" if number % 3 else "high") / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Data:
    return load_data(load_card("race"), make_race(tmp_path_factory.mktemp("race")), allow_modified=True)


def task_of(name: str, data: Data, tokenizer: Tokenizer, context: int = 512) -> Any:
    card = load_card(name.split("/")[0])
    return build_task(card, card.protocol(name), data, tokenizer, context)


# ---- the protocols, read slowly ----


def slow_clean(text: str) -> str:
    """Step 1 of the protocol: newline to space, runs of white space to one space, three passes over ` . `."""
    text = text.replace("\n", " ")
    out = ""
    for character in text:
        if character.isspace():
            out += "" if out.endswith(" ") else " "
        else:
            out += character
    for _ in range(3):
        out = ". ".join(out.split(" . "))
    return out


def slow_question(question: str, option: str) -> str:
    """Step 2: every underscore is replaced by the option; where there is none, it follows."""
    if any(character == "_" for character in question):
        return slow_clean("".join(option if character == "_" else character for character in question))
    return slow_clean(question + " " + option)


def slow_pack(first: list[int], second: list[int], longest: int) -> tuple[list[int], list[int]]:
    """Step 3, token by token: ids and types; what is too long is cut before the last [SEP] is put there."""
    cls, sep = pieces().index("[CLS]"), pieces().index("[SEP]")
    ids, types = [cls], [0]
    for token in [*first, sep]:
        ids.append(token)
        types.append(0)
    for token in second:
        ids.append(token)
        types.append(1)
    if len(ids) >= longest:
        ids, types = ids[: longest - 1], types[: longest - 1]
    return [*ids, sep], [*types, 1]


def types_of(request: Headed, option: int) -> list[int]:
    return [int(place >= request.firsts[option]) for place in range(len(request.ids[option]))]


def assert_item(item: Item, question: Question, expected: Sequence[tuple[list[int], list[int]]]) -> None:
    request = item.request
    assert isinstance(request, Headed)
    assert item.id == question.uid
    assert request.targets.tolist() == [question.answer]
    assert len(request.ids) == len(expected) == len(question.options)
    for option, (ids, types) in enumerate(expected):
        assert request.ids[option].dtype == np.int32
        assert request.ids[option].tobytes() == np.array(ids, dtype=np.int32).tobytes()
        assert types_of(request, option) == types


@pytest.mark.parametrize("context", [512, 600, 200, 64])
def test_race_is_packed_as_megatron_packs_it(context: int, race: Data, bert: Tokenizer) -> None:
    task = task_of("race/megatron", race, bert, context)
    longest, cut_options, cut_articles, lengths = min(context, 512), 0, 0, []
    for item, question in zip(task.items, race.questions, strict=True):
        article = bert.encode(slow_clean(question.context))
        asked = [bert.encode(slow_question(question.question, option)) for option in question.options]
        expected = [slow_pack(tokens[:128], article, longest) for tokens in asked]
        assert_item(item, question, expected)
        cut_options += sum(len(tokens) > 128 for tokens in asked)
        cut_articles += sum(len(tokens[:128]) + len(article) + 3 > longest for tokens in asked)
        lengths += [len(ids) for ids, _ in expected]
    constants = task.constants()
    assert constants["cut_options"] == cut_options > 8
    assert constants["cut_articles"] == cut_articles
    assert (constants["questions"], constants["sequences"], constants["passages"]) == (24, 96, 8)
    assert (constants["max_tokens"], constants["mean_tokens"]) == (max(lengths), round(np.mean(lengths), 2))
    assert task.flags == ("modified-data", *([f"window-{context}"] if context < 512 else []))


def test_two_texts_of_any_lengths_are_packed_as_megatron_packs_them(bert: Tokenizer) -> None:
    packer = Packer.of(bert, 8)
    for first in range(12):
        for second in range(12):
            one, two = list(range(20, 20 + first)), list(range(50, 50 + second))
            ids, types = slow_pack(one, two, 8)
            found, before = packer.pack(np.array(one, np.int32), np.array(two, np.int32))
            assert found.tolist() == ids
            assert [int(place >= before) for place in range(len(ids))] == types


@pytest.mark.parametrize("context", [512, 700])
def test_the_longest_context_never_cuts_an_option(context: int, race: Data, bert: Tokenizer) -> None:
    task = task_of("race/longest-context", race, bert, context)
    for item, question in zip(task.items, race.questions, strict=True):
        article = bert.encode(slow_clean(question.context))
        asked = [bert.encode(slow_question(question.question, option)) for option in question.options]
        assert_item(item, question, [slow_pack(tokens, article, context) for tokens in asked])
        for ids, tokens in zip(item.request.ids, asked, strict=True):
            assert ids[1 : len(tokens) + 1].tolist() == tokens
    assert task.constants()["cut_options"] == 0
    assert max(task.constants()["max_tokens"], 512) <= context
    assert task.flags == ("modified-data",)


def test_an_option_that_leaves_no_room_is_refused_with_its_question(race: Data, bert: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"`RACE/test/\w+/\d+.txt#\d` has an option that takes \d+ tokens") as caught:
        task_of("race/longest-context", race, bert, 200)
    assert "race/megatron" in caught.value.hint


@pytest.mark.parametrize("context", [512, 64, 12])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_piqa_is_goal_and_solution(split: str, context: int, bert: Tokenizer) -> None:
    data = load_data(load_card("piqa"), SAMPLES, split)
    task = task_of("piqa/pair", data, bert, context)
    cut = 0
    for item, question in zip(task.items, data.questions, strict=True):
        goal = bert.encode(slow_clean(question.context))
        solutions = [bert.encode(slow_clean(option)) for option in question.options]
        assert_item(item, question, [slow_pack(goal, tokens, context) for tokens in solutions])
        cut += sum(len(goal) + len(tokens) + 3 > context for tokens in solutions)
    assert task.constants()["cut_options"] == cut
    assert (cut > 10) == (context == 12)


@pytest.mark.parametrize("context", [2000, 300, 40])
def test_a_gpt_reads_the_article_the_question_and_an_end(context: int, race: Data, gpt: Tokenizer) -> None:
    task = task_of("race/last-token", race, gpt, context)
    end = gpt.encode("<|endoftext|>")
    cut_options = 0
    for item, question in zip(task.items, race.questions, strict=True):
        article = gpt.encode(slow_clean(question.context))
        for ids, first, option in zip(item.request.ids, item.request.firsts, question.options, strict=True):
            asked = gpt.encode("\n" + slow_question(question.question, option))
            kept = asked[: context - 1]
            expected = [*article[: context - 1 - len(kept)], *kept, *end]
            assert ids.tolist() == expected
            assert first == len(expected) <= context
            cut_options += len(asked) > len(kept)
    assert task.constants()["cut_options"] == cut_options
    assert (cut_options == 0) == (context == 2000)


def test_a_gpt_reads_goal_and_solution(gpt: Tokenizer) -> None:
    data = load_data(load_card("piqa"), SAMPLES, "train")
    task = task_of("piqa/last-token", data, gpt)
    for item, question in zip(task.items, data.questions, strict=True):
        for ids, option in zip(item.request.ids, question.options, strict=True):
            text = slow_clean(question.context) + "\n" + slow_clean(option) + "<|endoftext|>"
            assert gpt.decode(ids.tolist()) == text


@pytest.mark.parametrize(
    ("question", "option", "text"),
    [
        ("The keeper was known by _ .", "his voice", "The keeper was known by his voice ."),
        ("_ was late, and _ knew .  It", "A train", "A train was late, and A train knew. It"),
        ("Why?", "No  reason\n", "Why? No reason "),
        ("___", "x", "xxx"),
        ("a_b", "_", "a_b"),
        ("Why?", "_", "Why? _"),
    ],
)
def test_an_option_takes_the_place_of_every_underscore(question: str, option: str, text: str) -> None:
    assert question_with(option, question) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a . b", "a. b"),
        ("a . . b", "a.. b"),
        ("a . . . . b", "a. ... b"),
        ("a .b", "a .b"),
        ("a\n.\nb", "a. b"),
        ("\ta\r\n\u00a0 b ", " a b "),
        ("", ""),
    ],
)
def test_texts_are_cleaned(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned == slow_clean(text)


@given(st.text(alphabet=[" ", ".", "a", "\n", "\t", "\u00a0", "\x1f", "\u200b"], max_size=40))
@settings(max_examples=200, deadline=None)
def test_cleaning_is_the_slow_one(text: str) -> None:
    assert clean(text) == slow_clean(text)


# ---- likelihood ----


@pytest.mark.parametrize("context", [60, 5000])
def test_options_follow_the_prompt_after_a_space(context: int, race: Data, gpt: Tokenizer) -> None:
    task = task_of("race/all", race, gpt, context)
    samples = QuestionSamples(task.items, Epochs(questions=24, batch=24, seed=1), context)
    places = [samples.epochs.place(number) for number in range(24)]
    for number, question in enumerate(race.questions):
        request = task.items[number].request
        assert isinstance(request, Likelihoods)
        prompt = f"Article: {question.context}\n\n{question.question}"
        sample = samples[places.index(number)]
        ends = np.cumsum([0, *sample["lengths"]])
        for place, option in enumerate(question.options):
            whole = gpt.encode(f"{prompt} {option}")
            found, before = request.options[place], len(gpt.encode(prompt.rstrip()))
            assert found.context.tolist() == whole[:before]
            assert found.target.tolist() == whole[before:][-context:]  # of a long option its end
            row = sample["ids"][ends[place] : ends[place + 1]].tolist()
            assert row == [*found.context, *found.target][-context - 1 :]
            assert row[sample["firsts"][place] :] == found.target.tolist()


@pytest.mark.parametrize(("name", "context"), [("race/all", 60), ("piqa/lm-eval", 128)])
def test_an_option_is_scored_as_it_is_trained(name: str, context: int, race: Data, gpt: Tokenizer) -> None:
    """Whatever is cut off or padded: the loss is the cross-entropy of the log-likelihoods that scoring gives."""
    data = race if name.startswith("race") else load_data(load_card("piqa"), SAMPLES, "train")
    model = GPT(gpt_config(context=context)).eval()
    draw_weights(model, 3)
    task = task_of(name, data, gpt, context)
    samples = QuestionSamples(task.items, Epochs(questions=len(task.items), batch=8, seed=1), context)
    expected = 0.0
    for place in map(samples.epochs.place, range(8)):
        [scored] = score_any(model, [task.items[place].request])
        assert isinstance(scored, tuple)
        logs = torch.tensor([option.log_probability for option in scored], dtype=torch.float64)
        expected -= float(logs.log_softmax(0)[data.questions[place].answer])
    batch = Packed(1).stack([samples[number] for number in range(8)])
    assert (len(set(batch["lengths"].tolist())) == 1) == name.startswith("race")
    with torch.no_grad():
        [loss] = OptionLikelihood().sums(model, batch)
    assert float(loss) == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_the_likelihood_of_characters_chooses_too(gpt: Tokenizer) -> None:
    data = load_data(load_card("piqa"), SAMPLES, "valid")
    task = task_of("piqa/lm-eval", data, gpt)
    right, right_norm = 0, 0
    samples = []
    for item, question in zip(task.items, data.questions, strict=True):
        assert isinstance(item.request, Likelihoods)
        lengths = [len(option) for option in question.options]
        logs = [-2.0 * lengths[0], -2.2 * lengths[1]]
        scored = tuple(Scored(log_probabilities=np.array([log]), best=np.zeros(1), greedy=False) for log in logs)
        line = task.judge(item, scored)
        best = int(logs[1] > logs[0])
        assert line["prediction"] == best
        assert line["probabilities"][1] == pytest.approx(1 / (1 + np.exp(logs[0] - logs[1])))
        assert line["log_probabilities"] == logs
        assert line["correct_norm"] == (question.answer == 0)
        right += best == question.answer
        right_norm += question.answer == 0
        samples.append(line)
    metrics, n, correct = task.summarise(samples)
    assert {metric.name: metric.value for metric in metrics} == {"accuracy": right / n, "accuracy_norm": right_norm / n}
    assert correct == right


# ---- judging ----


def test_samples_hold_the_softmax_of_the_heads_outputs(race: Data, bert: Tokenizer) -> None:
    task = task_of("race/megatron", race, bert)
    draw = np.random.default_rng(3)
    lines, right = [], []
    for item, question in zip(task.items, race.questions, strict=True):
        logits = draw.normal(0, 30, 4).astype(np.float32)
        line = task.judge(item, Answered(logits=tuple(np.array([value]) for value in logits)))
        expected = torch.softmax(torch.from_numpy(logits).double(), 0)
        assert line["probabilities"] == pytest.approx(expected.tolist(), abs=1e-12)
        assert sum(line["probabilities"]) == pytest.approx(1, abs=1e-12)
        assert (line["prediction"], line["target"]) == (int(logits.argmax()), question.answer)
        assert line["correct"] == (line["prediction"] == line["target"])
        assert (line["id"], line["passage"], line["group"]) == (question.uid, question.passage, question.group)
        assert line["tokens"] == sum(len(ids) for ids in item.request.ids)
        lines.append(line)
        right.append((question.group, line["correct"]))
    metrics, n, correct = task.summarise(lines)
    values = {metric.name: metric.value for metric in metrics}
    assert n == 24
    assert correct == sum(good for _, good in right)
    assert values["accuracy"] == correct / 24
    for group in ("middle", "high"):
        own = [good for name, good in right if name == group]
        assert values[f"accuracy_{group}"] == sum(own) / len(own)


def test_a_set_without_answers_is_not_scored(tmp_path: Path, bert: Tokenizer) -> None:
    (tmp_path / "piqa").mkdir()
    shutil.copy(SAMPLES / "piqa/valid.jsonl", tmp_path / "piqa/tests.jsonl")
    data = load_data(load_card("piqa"), tmp_path, "test", allow_modified=True)
    with pytest.raises(UsageError, match="answers of the PIQA test set are not public") as caught:
        task_of("piqa/pair", data, bert)
    assert "`--split valid`" in caught.value.hint


# ---- cached ids ----


class Deaf:
    """A backend that must not be asked."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"`{name}` was asked for")


def test_ids_are_read_from_the_cache_and_made_again_where_it_is_damaged(bert: Tokenizer, tmp_path: Path) -> None:
    texts = ["The keeper was known to the captains", "", "bread", "unsqueezable \u4e2d"]
    plain = encode_all(bert, texts)
    assert [row.tolist() for row in (plain[number] for number in range(4))] == [bert.encode(text) for text in texts]
    cached = replace(bert, cache=tmp_path)
    deaf = replace(cached, backend=Deaf())

    def same(tokenizer: Tokenizer) -> bool:
        found = encode_all(tokenizer, texts)
        return np.array_equal(found.flat, plain.flat) and np.array_equal(found.ends, plain.ends)

    assert same(cached)
    assert same(deaf)
    [file] = tmp_path.rglob("flat.npy")
    for damage in (lambda raw: raw[:-1], lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), lambda raw: raw[:0]):
        file.write_bytes(damage(file.read_bytes()))
        with pytest.raises(AssertionError, match="was asked for"):
            encode_all(deaf, texts)
        assert same(cached)
        assert same(deaf)
    for other in (["The keeper"], [*texts, ""], texts[::-1], ["".join(texts)]):
        with pytest.raises(AssertionError, match="was asked for"):
            encode_all(deaf, other)
    with pytest.raises(AssertionError, match="was asked for"):
        encode_all(replace(deaf, digest="sha256:other"), texts)


def test_texts_joined_otherwise_are_other_texts(bert: Tokenizer, tmp_path: Path) -> None:
    cached = replace(bert, cache=tmp_path)
    for texts in (["the bread", "rain"], ["the", "bread rain"], ["the bread rain", ""], ["", "the bread rain"]):
        found = encode_all(cached, texts)
        assert [found[row].tolist() for row in range(2)] == [bert.encode(text) for text in texts]


def test_no_texts_give_no_rows(bert: Tokenizer) -> None:
    assert len(encode_all(bert, [])) == 0


# ---- the order of epochs, micro-batches ----


@pytest.mark.parametrize(("questions", "batch"), [(24, 4), (25, 4), (7, 7), (103, 10)])
def test_an_epoch_takes_every_question_at_most_once(questions: int, batch: int) -> None:
    epochs = Epochs(questions=questions, batch=batch, seed=1234)
    size = epochs.steps * batch
    assert questions - batch < size <= questions
    taken = [[epochs.place(number * size + at) for at in range(size)] for number in range(4)]
    for order in taken:
        assert len(set(order)) == size
        assert all(0 <= place < questions for place in order)
    assert len({tuple(order) for order in taken}) == 4
    if questions > size:  # what one epoch leaves out, others take
        assert set().union(*map(set, taken)) == set(range(questions))
    other = Epochs(questions=questions, batch=batch, seed=77)
    assert [other.place(at) for at in range(size)] != taken[0]
    again = Epochs(questions=questions, batch=batch, seed=1234)
    assert [again.place(at) for at in range(size)] == taken[0]


def test_the_order_of_an_epoch_is_drawn_from_seed_and_epoch() -> None:
    """As Megatron's sampler is keyed: epoch e of seed s has the order of epoch 0 of seed s + e."""
    one, other = Epochs(questions=30, batch=7, seed=5), Epochs(questions=30, batch=7, seed=8)
    size = 28
    assert [one.place(3 * size + at) for at in range(size)] == [other.place(at) for at in range(size)]
    expected = np.random.RandomState(8).permutation(30)[:size].tolist()
    assert [other.place(at) for at in range(size)] == expected


@given(
    st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=24),
    st.integers(1, 300),
)
@settings(max_examples=150, deadline=None)
def test_micro_batches_hold_every_sample_once_within_the_budget(lengths: list[list[int]], budget: int) -> None:
    samples = [
        {
            "ids": np.concatenate([np.full(length, 100 * number + row) for row, length in enumerate(rows)]),
            "lengths": np.array(rows),
            "firsts": np.array([max(1, length // 2) for length in rows]),
            "targets": np.array([number]),
        }
        for number, rows in enumerate(lengths)
    ]
    packed = Packed(budget)
    groups = packed.cut(samples)
    assert sorted(place for group in groups for place in group) == list(range(len(samples)))
    for group in groups:
        batch = packed.stack([samples[place] for place in group])
        assert batch["ids"].numel() <= budget or len(group) == 1
        assert batch["targets"].tolist() == group
        row = 0
        for place in group:
            for number, length in enumerate(lengths[place]):
                assert batch["ids"][row].tolist() == [100 * place + number] * length + [0] * (
                    batch["ids"].shape[1] - length
                )
                assert int(batch["lengths"][row]) == length
                assert int(batch["firsts"][row]) == max(1, length // 2)
                row += 1
        assert row == len(batch["ids"])
        assert batch["ids"].shape[1] == max(max(lengths[place]) for place in group)


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 400)), min_size=1, max_size=7),
    st.sampled_from([50, 900, 5000]),
)
@settings(max_examples=100, deadline=None)
def test_micro_batches_are_the_cheapest_there_are(shapes: list[tuple[int, int]], budget: int) -> None:
    """No other way to cut samples, longest first, has fewer tokens with padding and overhead of the groups."""
    packed = Packed(budget)
    shapes = sorted(shapes, key=lambda shape: -shape[1])

    def cost(sizes: Sequence[int]) -> float:
        ends, total = np.cumsum([0, *sizes]), 0
        for begin, end in pairwise(ends):
            tokens = sum(rows for rows, _ in shapes[begin:end]) * shapes[begin][1]
            if tokens > budget and end - begin > 1:
                return float("inf")
            total += tokens + packed.overhead
        return total

    found = packed.cut([{"lengths": np.array([length] * rows)} for rows, length in shapes])
    cuts = product([False, True], repeat=len(shapes) - 1)
    ways = [np.diff([0, *(np.flatnonzero(cut) + 1), len(shapes)]).tolist() for cut in cuts]
    assert cost([len(group) for group in found]) == min(map(cost, ways))


def test_samples_say_whose_questions_they_are(race: Data, bert: Tokenizer) -> None:
    task = task_of("race/megatron", race, bert)
    epochs = Epochs(questions=24, batch=5, seed=2)
    samples = QuestionSamples(task.items, epochs, 512)
    assert len(samples) == 20
    for number in (0, 19, 20, 100):
        question = race.questions[epochs.place(number)]
        assert samples.documents(number) == [question.uid]
        sample = samples[number]
        assert sample["targets"].tolist() == [question.answer]
        request = task.items[epochs.place(number)].request
        assert sample["ids"].tolist() == np.concatenate(request.ids).tolist()
        assert sample["lengths"].tolist() == [len(ids) for ids in request.ids]
        assert sample["firsts"].tolist() == list(request.firsts)
