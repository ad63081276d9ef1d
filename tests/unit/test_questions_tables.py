"""MNLI and QQP out of GLUE's tables, and SQuAD out of its JSON."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpeval.data import Data, load_data
from mpeval.errors import DataError
from mpeval.tasks.cards import Card, load_card

MNLI = [
    "index",
    "promptID",
    "pairID",
    "genre",
    *(f"sentence{n}{kind}" for kind in ("_binary_parse", "_parse", "") for n in (1, 2)),
]
QQP = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]


def load(task: str, folder: Path, split: str | None = None, *, allow_modified: bool = True) -> Data:
    return load_data(load_card(task), folder, split, allow_modified=allow_modified)


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in [header, *rows]), encoding="utf-8")
    return path


def mnli(label: str, first: str = "It rains.", second: str = "It is wet.", columns: int = 12) -> list[str]:
    """Return a row as training (12 columns), development (16) and test (10) sets have it."""
    row = ["3", "7", "7e", "fiction", "( It rains )", "( It is wet )", "(ROOT It)", "(ROOT Is)", first, second]
    return row if columns == 10 else [*row, *[label] * (columns - 10)]


def header(columns: int) -> list[str]:
    return MNLI if columns == 10 else [*MNLI, *(f"label{n}" for n in range(1, columns - 10)), "gold_label"]


# --- MNLI and QQP


@pytest.mark.parametrize(("split", "name", "columns"), [("train", "train", 12), ("dev-matched", "dev_matched", 16)])
def test_mnli_has_megatrons_columns_and_classes(split: str, name: str, columns: int, tmp_path: Path) -> None:
    labels = ["neutral", "contradiction", "entailment"]
    rows = [mnli(label, f" first {label}", 'say "it', columns) for label in labels]
    table(tmp_path / f"MNLI/{name}.tsv", header(columns), rows)
    questions = load("mnli", tmp_path, split).questions
    assert [item.answer for item in questions] == [2, 0, 1]
    assert [item.uid for item in questions] == [f"mnli/{split}#{number}" for number in (1, 2, 3)]
    assert [item.context for item in questions] == [f"first {label}" for label in labels]
    assert {item.question for item in questions} == {'say "it'}
    assert {item.group for item in questions} == {"matched" if "-" in split else ""}
    assert questions[2].where == f"`{tmp_path}/MNLI/{name}.tsv`, line 4"


@pytest.mark.parametrize("columns", [12, 16])
def test_columns_are_found_by_name_or_else_at_megatrons_places(columns: int, tmp_path: Path) -> None:
    path = tmp_path / "MNLI/dev_mismatched.tsv"
    rows = [mnli("neutral", columns=columns), mnli("entailment", columns=columns)]
    table(path, header(columns), rows)
    by_name = load("mnli", tmp_path, "dev-mismatched").questions
    table(path, [f"column {number}" for number in range(columns)], rows)
    assert load("mnli", tmp_path, "dev-mismatched").questions == by_name
    table(path, header(columns)[::-1], [row[::-1] for row in rows])
    assert load("mnli", tmp_path, "dev-mismatched").questions == by_name
    assert by_name[0].group == "mismatched"


def test_a_table_of_ten_columns_is_a_test_set(tmp_path: Path) -> None:
    table(tmp_path / "MNLI/test_matched.tsv", header(10), [mnli("", columns=10)])
    assert [item.answer for item in load("mnli", tmp_path, "test-matched").questions] == [-1]
    table(tmp_path / "MNLI/dev_matched.tsv", header(10), [mnli("", columns=10)])
    with pytest.raises(DataError, match=r"line 1: no column `gold_label`, but the dev-matched set has labels"):
        load("mnli", tmp_path)


def test_qqp_has_questions_and_a_class(tmp_path: Path) -> None:
    rows = [["5", "9", "10", "Why?", "How so?", "1"], ["6", "1", "2", "Who?", "Where?", "0"]]
    table(tmp_path / "QQP/dev.tsv", QQP, rows)
    questions = load("qqp", tmp_path / "QQP").questions
    found = [(item.uid, item.context, item.question, item.answer) for item in questions]
    assert found == [("qqp/dev#1", "Why?", "How so?", 1), ("qqp/dev#2", "Who?", "Where?", 0)]
    table(tmp_path / "QQP/test.tsv", ["id", "question1", "question2"], [["0", "Why?", "How so?"]])
    assert load("qqp", tmp_path, "test").questions[0].answer == -1


GOOD = ["5", "9", "10", "Why?", "How so?", "1"]


@pytest.mark.parametrize(
    ("head", "rows", "expected"),
    [
        (QQP, [GOOD, ["5", "9", "10", "Why?"]], "line 3: 4 columns, the header has 6"),
        (QQP, [GOOD, [*GOOD, "1"]], "line 3: 7 columns, the header has 6"),
        (QQP, [GOOD, [*GOOD[:5], "2"]], "line 3: unknown label `2`"),
        (QQP, [GOOD, [*GOOD[:5], ""]], "line 3: unknown label ``"),
        (QQP, [GOOD, [*GOOD[:4], " ", "1"]], "line 3: the second text is empty"),
        (QQP, [GOOD, ["5", "9", "10", "", "x", "1"]], "line 3: the first text is empty"),
        (GOOD, [GOOD], "line 1: a row where the names of the columns should be"),
        (list("abcde"), [GOOD], "line 1: no columns `question1` and `question2`, and 5 columns instead of 3 or 6"),
        ([""], [], "line 1: no columns `question1` and `question2`, and 1 columns instead of 3 or 6"),
    ],
)
def test_bad_tables_are_named_with_their_line(
    head: list[str], rows: list[list[str]], expected: str, tmp_path: Path
) -> None:
    table(tmp_path / "QQP/dev.tsv", head, rows)
    for allowed in (True, False):
        with pytest.raises(DataError) as caught:
            load("qqp", tmp_path, allow_modified=allowed)
        assert f"`{tmp_path}/QQP/dev.tsv`, {expected}" in caught.value.message


def test_a_label_of_another_task_is_unknown(tmp_path: Path) -> None:
    table(tmp_path / "MNLI/dev_matched.tsv", header(16), [mnli("-", columns=16)])
    with pytest.raises(DataError, match="line 2: unknown label `-`") as caught:
        load("mnli", tmp_path)
    assert caught.value.hint == "known: `contradiction`, `entailment`, `neutral`"


def expecting(card: Card, split: str, rows: int) -> Card:
    """Return the card with another number of published rows and an unknown checksum."""
    splits = [
        replace(item, published=replace(item.published, rows=rows, sha256="")) if item.name == split else item
        for item in card.splits
    ]
    return replace(card, splits=tuple(splits))


def test_rows_cut_in_two_are_left_out_of_a_set_of_the_published_size_only(tmp_path: Path) -> None:
    rows = [GOOD, ["7", "1", "2", "Is this"], ["", "a row?", "0"], GOOD]
    table(tmp_path / "QQP/dev.tsv", QQP, rows)
    data = load_data(expecting(load_card("qqp"), "dev", 2), tmp_path)
    assert data.flags == ("unverified-data", "rows-left-out")
    assert [item.uid for item in data.questions] == ["qqp/dev#1", "qqp/dev#4"]
    for other in (1, 3, 4):
        with pytest.raises(DataError, match="line 3: 4 columns"):
            load_data(expecting(load_card("qqp"), "dev", other), tmp_path, allow_modified=True)


def test_an_unknown_checksum_is_checked_by_the_number_of_rows(tmp_path: Path) -> None:
    table(tmp_path / "MNLI/dev_matched.tsv", header(16), [mnli("neutral", columns=16)] * 3)
    assert load_data(expecting(load_card("mnli"), "dev-matched", 3), tmp_path).flags == ("unverified-data",)
    with pytest.raises(DataError, match=r"not the published MNLI dev-matched set: 3 rows .* expected 9,815$"):
        load("mnli", tmp_path, allow_modified=False)
    assert load("mnli", tmp_path).flags == ("modified-data",)


# --- SQuAD

CONTEXT = "Zoë sold 12 apples – and then ten more – in Łódź."


def squad(**changes: Any) -> dict[str, Any]:
    question = {
        "id": "q1",
        "question": "How many apples?",
        "answers": [{"answer_start": 9, "text": "12"}, {"answer_start": 9, "text": "12 apples"}],
    } | changes
    other = {"id": "q2", "question": "Where?", "answers": [{"answer_start": 44, "text": "Łódź"}]}
    paragraphs = [{"context": CONTEXT, "qas": [question]}, {"context": CONTEXT + " Yes.", "qas": [other]}]
    return {"version": "1.1", "data": [{"title": "Zoë", "paragraphs": paragraphs}]}


def save(folder: Path, value: object, split: str = "dev-v1.1") -> None:
    (folder / "squad").mkdir(exist_ok=True)
    (folder / f"squad/{split}.json").write_text(json.dumps(value), encoding="utf-8")


def test_squad_answers_are_offsets_of_characters(tmp_path: Path) -> None:
    save(tmp_path, squad())
    first, second = load("squad", tmp_path).questions
    assert (first.uid, first.passage, second.passage) == ("q1", "Zoë#1", "Zoë#2")
    assert first.spans == ((9, "12"), (9, "12 apples"))
    for item in (first, second):
        assert all(item.context[start : start + len(text)] == text for start, text in item.spans)
        assert item.answerable
        assert item.answer == -1


def test_squad_may_be_compressed(tmp_path: Path) -> None:
    (tmp_path / "train-v1.1.json.gz").write_bytes(gzip.compress(json.dumps(squad()).encode()))
    assert [item.uid for item in load("squad", tmp_path, "train-v1.1").questions] == ["q1", "q2"]


def second(**changes: Any) -> dict[str, Any]:
    """Return a set of SQuAD 2.0 whose first question has no answer."""
    value = squad(**({"answers": [], "is_impossible": True, "plausible_answers": []} | changes))
    value["data"][0]["paragraphs"][1]["qas"][0]["is_impossible"] = False
    return value


def test_questions_without_answers_are_of_the_second_squad(tmp_path: Path) -> None:
    save(tmp_path, second(), "dev-v2.0")
    first, other = load("squad", tmp_path, "dev-v2.0").questions
    assert (first.answerable, first.spans, other.answerable) == (False, (), True)
    save(tmp_path, second())
    with pytest.raises(DataError, match=r"qas\[0\]: a question without an answer in SQuAD 1\.1"):
        load("squad", tmp_path)
    save(tmp_path, squad(), "dev-v2.0")
    with pytest.raises(DataError, match=r"qas\[0\]: no `is_impossible`, which each question of SQuAD 2\.0 has"):
        load("squad", tmp_path, "dev-v2.0")
    save(tmp_path, second(answers=[{"answer_start": 9, "text": "12"}]), "dev-v2.0")
    with pytest.raises(DataError, match=r"qas\[0\]: `is_impossible` with 1 answers"):
        load("squad", tmp_path, "dev-v2.0")
    save(tmp_path, second(is_impossible=False), "dev-v2.0")
    with pytest.raises(DataError, match="question `q1` has no answer"):
        load("squad", tmp_path, "dev-v2.0")


def answer(start: object, text: object) -> list[dict[str, object]]:
    return [{"answer_start": start, "text": text}]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"answers": answer(10, "12")}, "question `q1`: at `answer_start` 10 stands `2 `, not `12`"),
        ({"answers": answer(99, "12")}, "at `answer_start` 99 stands ``, not `12`"),
        ({"answers": answer(-40, "12")}, "`answer_start` is -40, not the number of a character"),
        ({"answers": answer("9", "12")}, "`answer_start` is 9, not the number of a character"),
        ({"answers": answer(True, "o")}, "`answer_start` is True, not the number of a character"),
        ({"answers": answer(9, "")}, "question `q1`: an answer is empty"),
        ({"answers": [{"text": "12"}]}, "qas[0]: not an object with `answer_start`, `text`"),
        ({"answers": []}, "qas[0]: question `q1` has no answer"),
        ({"answers": "12"}, "qas[0]: `answers` should be a list, found 12"),
        ({"question": ""}, "qas[0]: `question` is empty"),
        ({"id": ""}, "qas[0]: `id` is empty"),
        ({"id": 5}, "qas[0]: `id` should be text, found 5"),
        ({"id": "q2"}, "`, line 1: data[0].paragraphs[1].qas[0]: the id `q2` is there already, in"),
    ],
)
def test_bad_questions_of_squad_are_named_with_their_place(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    save(tmp_path, squad(**changes))
    with pytest.raises(DataError) as caught:
        load("squad", tmp_path)
    assert caught.value.message.startswith(f"`{tmp_path}/squad/dev-v1.1.json`, line 1: data[0].paragraphs[")
    assert expected in caught.value.message


def without(*path: str | int) -> Callable[[dict[str, Any]], object]:
    """Return a change that removes what `path` leads to."""

    def change(value: dict[str, Any]) -> object:
        inner: Any = value
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        return value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (without("data"), "line 1: not an object with `data`"),
        (without("data", 0, "title"), "line 1: data[0]: not an object with `title`, `paragraphs`"),
        (without("data", 0, "paragraphs", 1, "context"), "data[0].paragraphs[1]: not an object with `context`, `qas`"),
        (lambda value: value | {"data": 3}, "line 1: `data` should be a list, found 3"),
        (lambda value: [value], "line 1: not an object with `data`"),
    ],
)
def test_a_squad_of_another_shape_is_refused(
    change: Callable[[dict[str, Any]], object], expected: str, tmp_path: Path
) -> None:
    save(tmp_path, change(copy.deepcopy(squad())))
    with pytest.raises(DataError) as caught:
        load("squad", tmp_path)
    assert expected in caught.value.message


def test_json_broken_on_a_later_line_of_a_squad_says_which(tmp_path: Path) -> None:
    (tmp_path / "dev-v1.1.json").write_text(json.dumps(squad(), indent=1)[:-6])
    with pytest.raises(DataError, match=r"broken JSON: .* line \d\d"):
        load("squad", tmp_path)
