"""The published benchmark files: counts of their papers, checksums of their owners, and a reading of our own."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mpeval.data import Data, load_data
from mpeval.errors import DataError
from mpeval.questions.question import digest_of
from mpeval.tasks.cards import load_card

RACE_QUESTIONS = {"train": (25_421, 62_445), "dev": (1_436, 3_451), "test": (1_436, 3_498)}
RACE_FILES = {"train": (6_409, 18_728 - 2), "dev": (368, 1_021), "test": (362, 1_045)}
"""Files with questions, middle and high: two of the training set have none."""


def raw_dev(shared_data: Path) -> dict[str, dict[str, Any]]:
    """Read RACE's dev set with the standard library alone."""
    with tarfile.open(shared_data / "race/race_dev.tar.xz") as archive:
        files = [(member, archive.extractfile(member)) for member in archive if member.isfile()]
        return {member.name: json.loads(file.read()) for member, file in files if file}


@pytest.mark.parametrize("split", RACE_QUESTIONS)
def test_race_has_the_papers_numbers_of_questions(split: str, shared_data: Path) -> None:
    data = load_data(load_card("race"), shared_data, split)
    assert data.flags == ()
    counts = Counter(item.group for item in data.questions)
    assert (counts["middle"], counts["high"]) == RACE_QUESTIONS[split]
    passages = {item.passage: item.group for item in data.questions}
    files = Counter(passages.values())
    assert (files["middle"], files["high"]) == RACE_FILES[split]
    places = [re.fullmatch(rf"RACE/{split}/(\w+)/(\d+)\.txt#(\d+)", item.uid) for item in data.questions]
    keys = [(place[1], int(place[2]), int(place[3])) for place in places if place]
    assert len(keys) == len(data.questions)
    assert keys == sorted(set(keys))
    assert digest_of(data.questions) == load_card("race").split_named(split).published.questions


def test_the_digest_of_races_test_set_is_the_one_recorded_beside_it(shared_data: Path) -> None:
    recorded = re.search(r"\| ([0-9a-f]{64}) \(sha256 over", (shared_data / "race/PROVENANCE.md").read_text())
    assert recorded
    data = load_data(load_card("race"), shared_data / "race")
    assert data.digest == f"sha256:{recorded[1]}"


def test_every_question_of_races_dev_set_is_what_json_says(shared_data: Path) -> None:
    files = raw_dev(shared_data)
    for item in load_data(load_card("race"), shared_data, "dev").questions:
        path, _, number = item.uid.partition("#")
        value, index = files[path], int(number) - 1
        assert item.context == value["article"]
        assert item.question == value["questions"][index]
        assert list(item.options) == value["options"][index]
        assert "ABCD"[item.answer] == value["answers"][index]
        assert item.group == value["id"].rstrip(".tx0123456789")


def test_race_is_the_same_from_folders_and_from_an_archive(shared_data: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "race_test.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.add(shared_data / "race/RACE/test", "RACE/test")
    packed, unpacked = (load_data(load_card("race"), folder) for folder in (tmp_path, shared_data))
    assert packed.digest == unpacked.digest
    assert [replace(item, where="") for item in packed.questions] == [
        replace(item, where="") for item in unpacked.questions
    ]


def test_races_dev_set_passed_as_train_is_refused(shared_data: Path, tmp_path: Path) -> None:
    with tarfile.open(shared_data / "race/race_dev.tar.xz") as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        with tarfile.open(tmp_path / "race_train.tar", "w") as renamed:
            for member in members:
                content = archive.extractfile(member)
                member.name = member.name.replace("/dev/", "/train/")
                renamed.addfile(member, content)
    with pytest.raises(DataError, match="holds the dev set of RACE, not train"):
        load_data(load_card("race"), tmp_path, "train", allow_modified=True)
    (tmp_path / "race_train.tar").unlink()
    (tmp_path / "race_train_all.tar.xz").symlink_to(shared_data / "race/race_dev.tar.xz")
    with pytest.raises(DataError, match="holds nothing of the train split: expected `RACE/train/middle/"):
        load_data(load_card("race"), tmp_path, "train", allow_modified=True)


def served(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))


def same(left: Data, right: Data) -> bool:
    return [replace(item, where="") for item in left.questions] == [replace(item, where="") for item in right.questions]


def test_race_through_a_hubs_rows_is_known_by_its_questions(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"example_id": value["id"], "article": value["article"], "answer": answer, "question": text, "options": options}
        for value in raw_dev(shared_data).values()
        for text, options, answer in zip(value["questions"], value["options"], value["answers"], strict=True)
    ]
    served(monkeypatch, rows)
    data = load_data(load_card("race"), None, "dev")
    assert data.flags == ()
    assert same(data, load_data(load_card("race"), shared_data, "dev"))
    rows[7]["article"] += " "
    served(monkeypatch, rows)
    assert load_data(load_card("race"), None, "dev").flags == ("unverified-data",)


@pytest.mark.parametrize(("split", "labels"), [("train", (8_053, 8_060)), ("valid", (910, 928)), ("test", (0, 0))])
def test_piqa_has_the_published_rows_and_labels(split: str, labels: tuple[int, int], shared_data: Path) -> None:
    data = load_data(load_card("piqa"), shared_data, split)
    answers = Counter(item.answer for item in data.questions)
    assert data.flags == ()
    assert (answers[0], answers[1]) == labels
    assert len(data.questions) == {"train": 16_113, "valid": 1_838, "test": 3_084}[split]
    assert {item.uid for item in data.questions} == {f"piqa/{split}#{n + 1}" for n in range(len(data.questions))}


def test_piqas_valid_set_is_joined_as_json_and_lines_say(shared_data: Path) -> None:
    rows = [json.loads(line) for line in (shared_data / "piqa/valid.jsonl").read_text(encoding="utf-8").splitlines()]
    labels = [int(line) for line in (shared_data / "piqa/valid-labels.lst").read_text().split()]
    found = load_data(load_card("piqa"), shared_data / "piqa").questions
    assert [(item.context, *item.options, item.answer) for item in found] == [
        (row["goal"], row["sol1"], row["sol2"], label) for row, label in zip(rows, labels, strict=True)
    ]


def test_squads_dev_set_has_the_published_questions_and_answers(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_data(load_card("squad"), shared_data)
    assert data.flags == ()
    assert (data.split, len(data.questions)) == ("dev-v1.1", 10_570)
    assert sum(len(item.spans) for item in data.questions) == 34_726
    assert len({item.passage for item in data.questions}) == 2_067
    with gzip.open(shared_data / "squad/dev-v1.1.json.gz") as file:
        articles = json.load(file)["data"]
    rows = [
        {"id": item["id"], "title": article["title"], "context": paragraph["context"], "question": item["question"]}
        | {"answers": {key: [answer[key] for answer in item["answers"]] for key in ("answer_start", "text")}}
        for article in articles
        for paragraph in article["paragraphs"]
        for item in paragraph["qas"]
    ]
    served(monkeypatch, rows)
    from_hub = load_data(load_card("squad"), None)
    assert from_hub.flags == ()
    assert same(from_hub, data)


@pytest.mark.parametrize("genres", ["matched", "mismatched"])
def test_rows_of_multinli_in_glues_layout_keep_their_texts_and_classes(
    genres: str, shared_data: Path, tmp_path: Path
) -> None:
    lines = (shared_data / f"glue-subsets/textfooler_mnli_{genres}_1000.tsv").read_text(encoding="utf-8").split("\n")
    rows = [line.split("\t") for line in lines if line]
    names = [*(f"c{number}" for number in range(8)), "sentence1", "sentence2", *(f"label{n}" for n in range(1, 6))]
    table = [[*names, "gold_label"], *([*"01234567", first, second, *[label] * 6] for label, first, second in rows)]
    (tmp_path / f"dev_{genres}.tsv").write_text("".join("\t".join(row) + "\n" for row in table), encoding="utf-8")
    data = load_data(load_card("mnli"), tmp_path, f"dev-{genres}", allow_modified=True)
    assert data.flags == ("modified-data",)
    numbers = {"contradiction": 0, "entailment": 1, "neutral": 2}
    assert [(item.answer, item.context, item.question) for item in data.questions] == [
        (numbers[label], first.strip(), second.strip()) for label, first, second in rows
    ]
    assert {item.group for item in data.questions} == {genres}


def test_one_broken_file_of_races_training_set_is_found(shared_data: Path, tmp_path: Path) -> None:
    """One brace is removed from one of 6,409 files of the archive of middle schools."""
    with tarfile.open(shared_data / "race/race_train_middle.tar.xz") as archive:
        names = sorted(name for name in archive.getnames() if name.endswith(".txt"))
    victim = random.Random(1).choice(names)
    with (
        tarfile.open(shared_data / "race/race_train_middle.tar.xz", "r|xz") as archive,
        tarfile.open(tmp_path / "race_train_middle.tar", "w") as changed,
    ):
        for member in archive:
            file = archive.extractfile(member)
            if file is None:
                continue
            content = file.read()
            if member.name == victim:
                content = content.replace(b"}", b" ")
            changed.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError) as caught:
        load_data(load_card("race"), tmp_path, "train", allow_modified=True)
    assert f"race_train_middle.tar: {victim}`, line 1: broken JSON: " in caught.value.message
