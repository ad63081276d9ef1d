"""Rows of the `datasets` library become the questions that the published files make."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpeval.data import Data, load_data
from mpeval.errors import DataError
from mpeval.questions.question import digest_of
from mpeval.tasks.cards import Card, load_card

SAMPLES = Path(__file__).resolve().parents[2] / "tasks" / "samples"
Rows = list[dict[str, Any]]
Hub = Callable[[Rows], list[tuple[tuple[Any, ...], Mapping[str, Any]]]]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Put rows in the place of every hub; gives the list of what was asked for."""
    import datasets

    def serve(rows: Rows) -> list[tuple[tuple[Any, ...], Mapping[str, Any]]]:
        asked: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = []

        def load_dataset(*names: Any, **options: Any) -> Any:
            asked.append((names, options))
            return datasets.Dataset.from_list(rows)

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return asked

    return serve


def race_rows(split: str) -> Rows:
    """Return the samples as `ehovy/race` would have them: files sorted as text, a row for each question."""
    files = sorted((SAMPLES / "RACE" / split).rglob("*.txt"), key=lambda path: (path.parent.name, path.name))
    found = [json.loads(path.read_text()) for path in files]
    return [
        {
            "example_id": value["id"],
            "article": value["article"],
            "answer": answer,
            "question": question,
            "options": options,
        }
        for value in found
        for question, options, answer in zip(value["questions"], value["options"], value["answers"], strict=True)
    ]


def expecting(card: Card, split: str, rows: int, questions: str = "") -> Card:
    def known(item: Any) -> Any:
        return replace(item, published=replace(item.published, rows=rows, questions=questions))

    return replace(card, splits=tuple(known(item) if item.name == split else item for item in card.splits))


def without_place(data: Data) -> list[Any]:
    return [replace(item, where="") for item in data.questions]


def test_race_has_the_uids_and_order_of_the_files(hub: Hub) -> None:
    asked = hub(race_rows("test"))
    files = load_data(load_card("race"), SAMPLES)
    known = expecting(load_card("race"), "test", 24, digest_of(files.questions))
    data = load_data(known, None)
    assert asked == [(("ehovy/race", "all"), {"split": "test", "revision": "main"})]
    assert without_place(data) == without_place(files)
    assert [item.uid for item in data.questions] != sorted(item.uid for item in data.questions)
    assert (data.flags, data.digest) == ((), "sha256:" + digest_of(files.questions))
    assert data.questions[0].where == "`ehovy/race@main (all, test)`, row 1"
    assert data.source == "ehovy/race@main (all, test)"


def test_other_words_are_flagged_and_another_number_of_rows_is_refused(hub: Hub) -> None:
    hub(race_rows("dev"))
    assert load_data(expecting(load_card("race"), "dev", 24, "0" * 64), None, "dev").flags == ("unverified-data",)
    with pytest.raises(DataError, match=r"is not the published RACE dev set: 24 rows .* expected 4,887"):
        load_data(load_card("race"), None, "dev")
    assert load_data(load_card("race"), None, "dev", allow_modified=True).flags == ("modified-data",)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"example_id": "low3.txt"}, "row 2: `example_id` is `low3.txt`"),
        ({"example_id": "high/3.txt"}, "row 2: `example_id` is `high/3.txt`"),
        ({"options": ["a", "b", "c"]}, "row 2: question 2 has 3 options, not 4"),
        ({"answer": "F"}, "row 2: question 2 has the answer `F`"),
        ({"article": ""}, "row 2: `article` is empty"),
    ],
)
def test_a_bad_row_is_named(change: dict[str, Any], expected: str, hub: Hub) -> None:
    rows = race_rows("test")
    rows[1] |= change
    hub(rows)
    with pytest.raises(DataError) as caught:
        load_data(load_card("race"), None)
    assert f"`ehovy/race@main (all, test)`, {expected}" in caught.value.message


def test_a_column_that_is_gone_is_named(hub: Hub) -> None:
    hub([{"example_id": "high1.txt", "article": "x"}])
    with pytest.raises(DataError, match="has no column `question`"):
        load_data(load_card("race"), None)


def test_piqa_is_numbered_by_row(hub: Hub) -> None:
    files = load_data(load_card("piqa"), SAMPLES)
    lines = (SAMPLES / "piqa/valid.jsonl").read_text().splitlines()
    labels = (SAMPLES / "piqa/valid-labels.lst").read_text().split()
    rows = [json.loads(line) | {"label": int(label)} for line, label in zip(lines, labels, strict=True)]
    hub(rows)
    card = expecting(load_card("piqa"), "valid", 16)
    assert without_place(load_data(card, None)) == without_place(files)
    rows[4]["label"] = -1
    hub(rows)
    with pytest.raises(DataError, match="row 5: the label `-1` is neither 0 nor 1"):
        load_data(card, None)
    hub([row | {"label": -1} for row in rows])
    unlabelled = load_data(expecting(load_card("piqa"), "test", 16), None, "test")
    assert {item.answer for item in unlabelled.questions} == {-1}
    hub(rows[:1])
    with pytest.raises(DataError, match="row 1: the label"):
        load_data(card, None, "test")


def test_mnlis_classes_have_other_numbers_on_the_hub(hub: Hub) -> None:
    rows = [
        {"premise": f"p{number} ", "hypothesis": f"h{number}", "label": label, "idx": 3 * number}
        for number, label in enumerate((0, 1, 2))
    ]
    asked = hub(rows)
    data = load_data(expecting(load_card("mnli"), "dev-mismatched", 3), None, "dev-mismatched")
    assert asked[0][0] == ("nyu-mll/glue", "mnli")
    assert asked[0][1]["split"] == "validation_mismatched"
    # 0 entailment, 1 neutral and 2 contradiction there; contradiction 0, entailment 1, neutral 2 here
    assert [item.answer for item in data.questions] == [1, 2, 0]
    assert [item.uid for item in data.questions] == [f"mnli/dev-mismatched#{number}" for number in (1, 4, 7)]
    assert data.questions[1].context == "p1"
    hub([rows[0] | {"label": -1}])
    with pytest.raises(DataError, match=r"row 1: unknown label `-1`"):
        load_data(load_card("mnli"), None)


def test_qqps_classes_are_the_cards(hub: Hub) -> None:
    hub([{"question1": "a?", "question2": "b?", "label": label, "idx": label} for label in (0, 1)])
    data = load_data(expecting(load_card("qqp"), "dev", 2), None)
    assert [(item.uid, item.question, item.answer) for item in data.questions] == [
        ("qqp/dev#1", "b?", 0),
        ("qqp/dev#2", "b?", 1),
    ]


@pytest.mark.parametrize(("split", "version"), [("dev-v1.1", 1), ("dev-v2.0", 2)])
def test_squad_has_the_spans_and_passages_of_the_file(split: str, version: int, hub: Hub, tmp_path: Path) -> None:
    contexts = [f"Paragraph {number} has {number} words." for number in (5, 6)]
    asked = [(0, "a1", 10), (0, "a2", None if version == 2 else 16), (1, "b1", 10)]
    answers = [
        {"answer_start": [] if start is None else [start], "text": [] if start is None else [contexts[at][start]]}
        for at, _, start in asked
    ]
    rows = [
        {"id": uid, "title": "Words", "context": contexts[at], "question": f"{uid}?", "answers": answer}
        for (at, uid, _), answer in zip(asked, answers, strict=True)
    ]
    paragraphs: list[dict[str, Any]] = [{"context": context, "qas": []} for context in contexts]
    for (at, uid, start), answer in zip(asked, answers, strict=True):
        pairs = zip(answer["answer_start"], answer["text"], strict=True)
        item = {"id": uid, "question": f"{uid}?", "answers": [{"answer_start": s, "text": t} for s, t in pairs]}
        paragraphs[at]["qas"].append(item | ({"is_impossible": start is None} if version == 2 else {}))
    (tmp_path / f"{split}.json").write_text(json.dumps({"data": [{"title": "Words", "paragraphs": paragraphs}]}))
    hub(rows)
    from_hub = load_data(expecting(load_card("squad"), split, 3), None, split)
    assert without_place(from_hub) == without_place(load_data(load_card("squad"), tmp_path, split, allow_modified=True))
    assert sum(not item.answerable for item in from_hub.questions) == version - 1


def test_a_hub_that_cannot_be_reached_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def fail(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no way out\nat all")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"cannot get RACE from the hub as `ehovy/race`: no way out$") as caught:
        load_data(load_card("race"), None)
    assert caught.value.hint == "give a folder that holds `RACE/test/middle` by `--data DIR`"


def test_a_split_without_a_hub_says_so() -> None:
    card = load_card("race")
    card = replace(card, splits=tuple(replace(item, hub=None) for item in card.splits))
    with pytest.raises(DataError, match="the test set of RACE is on no hub that is known"):
        load_data(card, None)
