"""Spans of paragraphs: windows against transformers, the best span against every span, and what is counted."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from texts import WORDPIECES, write_wordpiece

from mpeval.data import Data
from mpeval.errors import DataError, UsageError
from mpeval.items import Answered, Headed
from mpeval.questions.question import Question
from mpeval.tasks.base import Item
from mpeval.tasks.build import build_task
from mpeval.tasks.cards import load_card
from mpeval.tasks.spans import ANSWER_LONGEST, BEST, Span, Spans, best_of_windows, best_span, best_windows, windows
from mpeval.tasks.squad_metrics import normalize, score_v1, score_v2
from mpeval.tokenizer import Tokenizer, find_tokenizer

WORDS = ("the", "river", "old", "sailor", "Came", "shells", "it's", "and", "1999", "Café", "日本", "—", "\n", "  ")


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wordpiece(tmp_path_factory.mktemp("wordpiece"), [*WORDPIECES, "river", "sail", "##or", "##s"])


@pytest.fixture(scope="module")
def tokenizer(vocabulary: Path) -> Tokenizer:
    return find_tokenizer(vocabulary, [])


def question_of(
    uid: str, context: str, answers: tuple[str, ...] = (), question: str = "who came?", passage: str = "p#1"
) -> Question:
    spans = tuple((context.index(answer), answer) for answer in answers)
    return Question(uid=uid, passage=passage, context=context, question=question, spans=spans, answerable=bool(answers))


def random_questions(count: int, seed: int = 5) -> tuple[Question, ...]:
    """Questions about paragraphs of up to 90 words, three a paragraph; the answer is one to five of its words."""
    draw = random.Random(seed)
    found = []
    for number in range(count):
        if number % 3 == 0:
            words = [draw.choice(WORDS) for _ in range(draw.randint(6, 90))] + ["end"]
        first = draw.choice([place for place, word in enumerate(words) if normalize(word)])
        begin = len(" ".join([*words[:first], ""]))
        answer = " ".join(words[first : first + draw.randint(1, 5)]).rstrip()
        asked = " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 12))) + "?"
        found.append(
            Question(
                uid=f"q{number}",
                passage=f"p#{number // 3}",
                context=" ".join(words),
                question=asked,
                spans=((begin, answer),),
            )
        )
    return tuple(found)


def made(
    questions: tuple[Question, ...],
    tokenizer: Tokenizer,
    *,
    version: str = "v1",
    window: int | None = None,
    stride: int | None = None,
    context: int = 512,
) -> Spans:
    card = load_card("squad")
    protocol = card.protocol(version)
    protocol = dataclasses.replace(protocol, window=window or protocol.window, stride=stride or protocol.stride)
    data = Data(source="rows.json", digest="sha256:0", questions=questions, split="dev-v1.1")
    task = build_task(card, protocol, data, tokenizer, context)
    assert isinstance(task, Spans)
    return task


def headed(item: Item) -> Headed:
    assert isinstance(item.request, Headed)
    return item.request


def pointing(item: Item, *, null: float = 0.0) -> Answered:
    """Logits that are 10 at the targets, `null` more at [CLS], and 0 elsewhere."""
    found = []
    for ids, (first, last) in zip(headed(item).ids, headed(item).targets, strict=True):
        logits = np.zeros((len(ids), 2), dtype=np.float32)
        logits[first, 0], logits[last, 1] = 10, 10
        logits[0] += null
        found.append(logits)
    return Answered(logits=tuple(found))


@pytest.mark.parametrize(("window", "stride"), [(384, 128), (48, 16), (40, 25), (40, 8)])
def test_windows_are_those_of_transformers(window: int, stride: int, vocabulary: Path, tokenizer: Tokenizer) -> None:
    from transformers import BertTokenizerFast

    oracle = BertTokenizerFast(str(vocabulary / "vocab.txt"))
    questions = random_questions(60)
    task = made(questions, tokenizer, window=window, stride=stride)
    counts = []
    for number, item in enumerate(task.items):
        question, room = questions[number], task.room(number)
        if room <= stride:  # which the tokenizer refuses
            continue
        # the tokenizer calls what two windows share their stride, `run_squad` the way from one to the next
        expected = oracle(
            question.question,
            question.context,
            truncation="only_second",
            max_length=window,
            stride=room - stride,
            return_overflowing_tokens=True,
        )
        assert [ids.tolist() for ids in headed(item).ids] == expected["input_ids"]
        types = [
            [int(place >= first) for place in range(len(ids))]
            for ids, first in zip(headed(item).ids, headed(item).firsts, strict=True)
        ]
        assert types == expected["token_type_ids"]
        counts.append(len(types))
    assert len(counts) > 20
    assert max(counts) > 4 or window == 384


@pytest.mark.parametrize(("tokens", "room", "step"), [(1, 5, 3), (5, 5, 3), (6, 5, 3), (30, 7, 3), (30, 4, 9)])
def test_windows_cover_every_token_and_stop_at_the_end(tokens: int, room: int, step: int) -> None:
    found = windows(tokens, room, step)
    assert {place for begin, end in found for place in range(begin, end)} == set(range(tokens))
    assert [begin for begin, _ in found] == [number * min(room, step) for number in range(len(found))]
    assert [end for _, end in found].count(tokens) == 1


def test_a_token_belongs_to_the_window_in_which_it_has_most_context() -> None:
    bounds = windows(50, 20, 8)
    owners = best_windows(50, bounds)
    for place in range(50):
        context = [
            (min(place - begin, end - 1 - place) + 0.01 * (end - begin), -number) if begin <= place < end else (-1, 0)
            for number, (begin, end) in enumerate(bounds)
        ]
        assert owners[place] == -max(context)[1]
    assert best_windows(9, [(0, 9)]).tolist() == [0] * 9


def every_span(
    logits: list[np.ndarray], before: int, bounds: list[tuple[int, int]], most: int
) -> list[tuple[float, int, int]]:
    """All spans that may be given, plainly: loops over windows and over their `most` best first and last places."""
    owners = best_windows(bounds[-1][1], bounds)
    found = []
    for number, (begin, end) in enumerate(bounds):
        window = logits[number].astype(float)
        firsts = sorted(range(len(window)), key=lambda place: -window[place, 0])[:most]
        lasts = sorted(range(len(window)), key=lambda place: -window[place, 1])[:most]
        for first in firsts:
            for last in lasts:
                low, high = first - before + begin, last - before + begin
                if begin <= low <= high < end and owners[low] == number and high - low < 30:
                    found.append((window[first, 0] + window[last, 1], low, high))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_the_best_span_is_the_best_of_all_that_may_be_given(seed: int) -> None:
    random_state = np.random.default_rng(seed)
    before, bounds = 9, windows(int(random_state.integers(1, 200)), 60, 25)
    logits = [
        random_state.normal(size=(before + end - begin + 1, 2)).astype(np.float32).round(seed % 3)
        for begin, end in bounds
    ]
    allowed = every_span(logits, before, bounds, BEST) or every_span(logits, before, bounds, 1000)
    best = max(score for score, _, _ in allowed)
    found = best_of_windows(logits, before, bounds)
    assert found == next(span for span in allowed if span[0] == best)
    assert found.last - found.first < ANSWER_LONGEST


def test_where_the_best_places_make_no_span_all_are_tried() -> None:
    logits = np.zeros((60, 2), dtype=np.float32)
    logits[:25] = 5  # all of the twenty best stand before the paragraph
    logits[40, 0], logits[42, 1] = 1, 1
    assert best_span(logits, 25, np.ones(34, dtype=bool)) is None
    assert best_of_windows([logits], 25, [(0, 34)]) == Span(2.0, 15, 17)


def test_a_span_may_go_on_where_it_may_not_begin() -> None:
    logits = np.zeros((12, 2), dtype=np.float32)
    logits[5, 0] = logits[9, 1] = 3
    allowed = np.zeros(9, dtype=bool)
    allowed[3] = True
    assert best_span(logits, 2, allowed) == Span(6.0, 3, 7)
    assert best_span(logits, 2, np.zeros(9, dtype=bool)) is None


def test_targets_are_the_tokens_of_the_answer_in_every_window_that_holds_it(tokenizer: Tokenizer) -> None:
    questions = random_questions(90)
    task = made(questions, tokenizer, window=40, stride=10)
    inside = outside = 0
    for item, question in zip(task.items, questions, strict=True):
        answer = tokenizer.encode(question.spans[0][1])
        for ids, (first, last) in zip(headed(item).ids, headed(item).targets, strict=True):
            if (first, last) == (0, 0):
                outside += 1
            else:
                inside += 1
                assert ids[first : last + 1].tolist() == answer
    assert inside > 90
    assert outside > 90
    missed = sum(not headed(item).targets.any() for item in task.items)
    assert task.constants()["answers_in_no_window"] == missed < 10


def test_perfect_logits_give_back_the_answers_as_the_paragraph_spells_them(tokenizer: Tokenizer) -> None:
    questions = random_questions(90)
    task = made(questions, tokenizer, window=64, stride=16)
    samples = [task.judge(item, pointing(item)) for item in task.items]
    assert [sample["prediction"].split() for sample in samples] == [
        question.spans[0][1].split() for question in questions
    ]
    metrics, n, correct = task.summarise(samples)
    assert (n, correct) == (90, 90)
    assert {metric.name: metric.value for metric in metrics} == {"f1": 1.0, "exact": 1.0}
    assert metrics[0].name == task.protocol.metric


def test_the_prediction_is_cut_out_of_the_original_text(tokenizer: Tokenizer) -> None:
    context = "The old\n sailor came — to the  CAFÉ\tof  Zoë, in 1999."
    task = made((question_of("q", context, ("CAFÉ\tof  Zoë", "Zoë")),), tokenizer)
    sample = task.judge(task.items[0], pointing(task.items[0]))
    assert sample == {
        "task": "squad/v1",
        "id": "q",
        "passage": "p#1",
        "target": ["CAFÉ\tof  Zoë", "Zoë"],
        "prediction": "CAFÉ\tof  Zoë",
        "exact": 1,
        "f1": 1.0,
        "no_answer": -20.0,
        "correct": True,
        "tokens": task.items[0].request.inputs,
    }


def test_what_is_cached_is_what_was_tokenized(tokenizer: Tokenizer, tmp_path: Path) -> None:
    questions = random_questions(30)
    keeping = dataclasses.replace(tokenizer, cache=tmp_path)
    plain, first, again = (made(questions, one, window=64) for one in (tokenizer, keeping, keeping))
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == ["ids", "offsets"]
    for items in zip(plain.items, first.items, again.items, strict=True):
        wanted, *others = (
            ([ids.tolist() for ids in headed(item).ids], headed(item).targets.tolist()) for item in items
        )
        assert others == [wanted, wanted]
    other = made(questions[:-3], keeping, window=64)
    assert other.constants() == made(questions[:-3], tokenizer, window=64).constants() != again.constants()


def test_an_answer_within_a_token_is_that_token(tokenizer: Tokenizer) -> None:
    question = Question(uid="q", passage="p", context="the rivers came", question="what?", spans=((5, "ive"),))
    task = made((question,), tokenizer)
    item = task.items[0]
    first, last = headed(item).targets[0]
    assert tokenizer.decode(headed(item).ids[0][first : last + 1].tolist()) == "river"
    assert task.judge(item, pointing(item))["prediction"] == "river"


@pytest.mark.parametrize(("null", "said"), [(9.5, "river"), (10.0, "river"), (10.5, "")])
def test_no_answer_is_given_when_it_is_ahead(null: float, said: str, tokenizer: Tokenizer) -> None:
    task = made((question_of("q", "the old river came", ("river",)),), tokenizer, version="v2")
    sample = task.judge(task.items[0], pointing(task.items[0], null=null))
    assert sample["no_answer"] == 2 * null - 20
    assert (sample["prediction"], sample["exact"]) == (said, int(said == "river"))
    plain = made((question_of("q", "the old river came", ("river",)),), tokenizer)
    assert plain.judge(plain.items[0], pointing(plain.items[0], null=null))["prediction"] == "river"


def test_the_window_least_sure_of_no_answer_speaks_for_all(tokenizer: Tokenizer) -> None:
    task = made((question_of("q", "the old river " * 40, ("old",)),), tokenizer, version="v2", window=30, stride=9)
    item = task.items[0]
    answered = pointing(item)
    for number, logits in enumerate(answered.logits):
        logits[0] = [4 + number % 3, 1 + number % 2]
    assert task.judge(item, answered)["no_answer"] == 5 - 20
    assert len(answered.logits) > 6


def test_questions_without_an_answer_are_counted_apart(tokenizer: Tokenizer) -> None:
    context = "the old river came"
    questions = (
        question_of("right", context, ("river",)),
        question_of("half", context, ("old",), passage="p#2"),
        question_of("none", context),
        question_of("wrong", context, passage="p#3"),
    )
    task = made(questions, tokenizer, version="v2")
    assert all(not headed(item).targets.any() for item in task.items[2:])
    samples = [task.judge(item, pointing(item, null=-5)) for item in task.items[:2]]
    longer = np.zeros((headed(task.items[1]).lengths[0], 2), dtype=np.float32)
    before = headed(task.items[1]).firsts[0]
    longer[before + 1, 0] = longer[before + 2, 1] = 9  # `old river` for `old`
    samples[1] = task.judge(task.items[1], Answered(logits=(longer,)))
    samples += [
        task.judge(task.items[2], pointing(task.items[2])),
        task.judge(task.items[3], Answered(logits=(longer,))),
    ]
    metrics, n, correct = task.summarise(samples)
    assert (n, correct) == (4, 2)
    assert {metric.name: metric.value for metric in metrics} == pytest.approx(
        {
            "f1": (1 + 2 / 3 + 1 + 0) / 4,
            "exact": 2 / 4,
            "HasAns_f1": (1 + 2 / 3) / 2,
            "HasAns_exact": 1 / 2,
            "NoAns_f1": 1 / 2,
            "NoAns_exact": 1 / 2,
        }
    )
    assert task.constants()["unanswerable"] == 2


def test_constants_are_those_of_the_items(tokenizer: Tokenizer) -> None:
    long = question_of("long", "came " * 50, ("came " * 31,), question="who " * 70)
    questions = (*random_questions(30), dataclasses.replace(long, answerable=True))
    task = made(questions, tokenizer, window=100, stride=20)
    lengths = [length for item in task.items for length in item.request.lengths]
    assert task.constants() == {
        "questions": 31,
        "passages": len({question.context for question in questions}),
        "windows": len(lengths),
        "unanswerable": 0,
        "cut_questions": 1,
        "answers_in_no_window": 0,
        "answers_too_long": 1,
        "mean_tokens": round(sum(lengths) / len(lengths), 2),
        "max_tokens": 100,
    }
    assert headed(task.items[30]).firsts[0] == 66
    narrow = made(questions, tokenizer, window=90, stride=20, context=80)
    assert narrow.flags == ("window-80",)
    assert narrow.constants()["answers_in_no_window"] == 1


def test_what_a_context_or_a_protocol_cannot_do_is_refused(tokenizer: Tokenizer) -> None:
    question = question_of("q", "the old river", ("old",), question="came " * 9)
    assert len(made((question,), tokenizer, context=13).items[0].request.lengths) == 3
    with pytest.raises(
        DataError, match="a window of 12 tokens has no room for a paragraph beside the question `q`"
    ) as error:
        made((question,), tokenizer, context=12)
    assert "68 or more" in error.value.hint
    without = question_of("w", "the old river")
    with pytest.raises(UsageError, match=r"1 of 2 questions .* have no answer, which `squad/v1` cannot say"):
        made((question, without), tokenizer)
    hidden = dataclasses.replace(without, answerable=True)
    with pytest.raises(UsageError, match=r"the answers to 1 of 2 questions .* are not public"):
        made((question, hidden), tokenizer, version="v2")
    with pytest.raises(DataError, match="the paragraph of the question `e` has no tokens"):
        made((dataclasses.replace(question, uid="e", context="\n \x00", spans=((0, "\n"),)),), tokenizer)
    with pytest.raises(DataError, match="there is no question to sum up"):
        made((question,), tokenizer).summarise([])


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("The  Old,\nRiver!", "old river"),
        ("a.", ""),
        ("O'Neil", "oneil"),
        ("an-other the_a", "another thea"),
        ("U.S.A.", "usa"),
        ("“a” café", "“ ” café"),
        ("", ""),
    ],
)
def test_texts_are_compared_without_case_punctuation_and_articles(text: str, same: str) -> None:
    assert normalize(text) == same


def test_the_two_scripts_differ_where_no_word_is_left() -> None:
    assert score_v1("the", ["a"]) == (1, 0.0)
    assert score_v2("the", ["a"]) == (1, 1.0)
    assert score_v2("river", ["a"]) == (0, 0.0)
    assert score_v2("river", ["a", "River."]) == (1, 1.0)
    assert score_v2("the", ["a", "river"]) == (0, 0.0)
    assert score_v1("the", ["a", "river"]) == (1, 0.0)
    assert score_v2("", []) == (1, 1.0)
    assert score_v2("river", []) == (0, 0.0)
    assert score_v1("old old river", ["the old river came", "sea"]) == (0, pytest.approx(2 * 2 / (3 + 3)))
