"""Questions out of published layouts: where files are found, what order they come in, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import lzma
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpeval.corpus.overlap import passages, table_of
from mpeval.data import Data, load_data
from mpeval.errors import DataError, UsageError
from mpeval.questions.question import digest_of
from mpeval.tasks.cards import card_names, load_card

SAMPLES = Path(__file__).resolve().parents[2] / "tasks" / "samples"
Value = dict[str, Any]


def load(task: str, folder: Path, split: str | None = None, *, allow_modified: bool = True) -> Data:
    return load_data(load_card(task), folder, split, allow_modified=allow_modified)


def article(count: int = 2, /, **changes: Any) -> Value:
    """Return what a file of RACE holds."""
    return {
        "article": "The river was high that spring.",
        "questions": [f"What is {number} of the river?" for number in range(count)],
        "options": [[f"{letter}{number}" for letter in "wxyz"] for number in range(count)],
        "answers": ["ABCD"[number % 4] for number in range(count)],
        "id": "high1.txt",
    } | changes


def write(path: Path, *values: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


def pack(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def sample_files(split: str) -> dict[str, bytes]:
    paths = sorted((SAMPLES / "RACE" / split).rglob("*.txt"), reverse=True)
    return {path.relative_to(SAMPLES).as_posix(): path.read_bytes() for path in paths}


# --- RACE: where it is found, and in what order


@pytest.mark.parametrize("below", ["", "RACE", "RACE/test"])
def test_race_is_found_from_each_folder_of_its_layout(below: str) -> None:
    data = load("race", SAMPLES / below, allow_modified=False)
    assert (len(data.questions), data.split, data.flags) == (24, "test", ("sample-rows",))
    assert data.digest == "sha256:" + sample_sha("race", "test")


def test_race_is_found_below_a_folder_of_the_tasks_name(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "RACE", tmp_path / "race" / "RACE")
    assert load("race", tmp_path).questions[0].uid == "RACE/test/high/1.txt#1"


def sample_sha(task: str, split: str) -> str:
    sample = load_card(task).split_named(split).sample
    assert sample is not None
    return sample.sha256


def test_files_come_by_folder_and_number_whatever_their_order_on_disk(tmp_path: Path) -> None:
    for name in ("high/1002", "middle/9", "high/21", "middle/10", "high/3", "high/extra"):
        write(tmp_path / f"RACE/test/{name}.txt", article())
    write(tmp_path / "RACE/test/high/.hidden.txt", "no article")
    write(tmp_path / "RACE/test/high/notes.md", "no article")
    names = ["high/3", "high/21", "high/1002", "high/extra", "middle/9", "middle/10"]
    questions = load("race", tmp_path).questions
    assert [item.uid for item in questions] == [f"RACE/test/{name}.txt#{n}" for name in names for n in (1, 2)]
    assert [item.passage for item in questions[::2]] == [f"RACE/test/{name}.txt" for name in names]
    assert {item.group for item in questions} == {"high", "middle"}


def test_a_question_has_what_its_file_says(tmp_path: Path) -> None:
    write(tmp_path / "RACE/test/high/7.txt", article(), article(article="Second."))
    questions = load("race", tmp_path).questions
    assert [item.uid for item in questions] == [f"RACE/test/high/7.txt#{number}" for number in (1, 2, 3, 4)]
    assert questions[1].options == ("w1", "x1", "y1", "z1")
    assert [item.answer for item in questions] == [0, 1, 0, 1]
    assert [item.passage for item in questions[1:3]] == ["RACE/test/high/7.txt", "RACE/test/high/7.txt:2"]
    assert questions[2].context == "Second."
    assert questions[2].where == f"`{tmp_path}/RACE/test/high/7.txt`, line 2"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_an_archive_gives_what_folders_give(tmp_path: Path, mode: str) -> None:
    pack(tmp_path / f"race_test.tar{mode[1:].replace(':', '.')}", sample_files("test"), mode)
    packed, unpacked = load("race", tmp_path, allow_modified=False), load("race", SAMPLES)
    assert packed.digest == unpacked.digest
    assert digest_of(packed.questions) == digest_of(unpacked.questions)


def test_a_set_may_lie_in_several_archives_and_folders(tmp_path: Path) -> None:
    files = sample_files("train")
    groups = {group: {k: v for k, v in files.items() if f"/{group}/" in k} for group in ("high", "middle")}
    pack(tmp_path / "race_train_high.tar.xz", groups["high"], "w:xz")
    with pytest.raises(DataError, match="is not the published RACE train set: 12 rows"):
        load("race", tmp_path, "train", allow_modified=False)
    pack(tmp_path / "race_train_middle.tar", {f"./{name}": content for name, content in groups["middle"].items()})
    both = load("race", tmp_path, "train", allow_modified=False)
    (tmp_path / "race_train_middle.tar").unlink()
    shutil.copytree(SAMPLES / "RACE/train/middle", tmp_path / "RACE/train/middle")
    mixed = load("race", tmp_path, "train", allow_modified=False)
    assert both.digest == mixed.digest == "sha256:" + sample_sha("race", "train")
    assert [q.uid for q in both.questions] == [q.uid for q in mixed.questions]


def test_the_whole_set_in_one_archive_is_split_by_its_paths(tmp_path: Path) -> None:
    everything = sample_files("dev") | sample_files("test") | sample_files("train")
    pack(tmp_path / "RACE.tar.gz", everything, "w:gz")
    for split in ("train", "dev", "test"):
        assert load("race", tmp_path, split).digest == "sha256:" + sample_sha("race", split)


def test_the_digest_is_a_sha256_over_sorted_paths_and_digests() -> None:
    lines = sorted(f"{name}\0{hashlib.sha256(content).hexdigest()}\n" for name, content in sample_files("dev").items())
    assert sample_sha("race", "dev") == hashlib.sha256("".join(lines).encode()).hexdigest()


# --- RACE: what is refused


def only(folder: Path, value: object) -> None:
    write(folder / "RACE/test/middle/4.txt", article())
    write(folder / "RACE/test/high/31.txt", value)


def cut(folder: Path) -> None:
    text = json.dumps(article())
    only(folder, article())
    (folder / "RACE/test/high/31.txt").write_text(f"{text}\n{text[:90]}\n", encoding="utf-8")


def raw(content: bytes) -> Callable[[Path], None]:
    return lambda folder: (only(folder, article()), (folder / "RACE/test/high/31.txt").write_bytes(content))[0]


THREE = article(options=[["a", "b", "c", "d"], ["a", "b", "c"]])
BAD_RACE: dict[str, tuple[object, str]] = {
    "three options": (THREE, "line 1: question 2 has 3 options, not 4"),
    "five options": (article(1, options=[list("abcde")]), "line 1: question 1 has 5 options, not 4"),
    "answer E": (article(answers=["A", "E"]), "line 1: question 2 has the answer `E`, not a letter from A to D"),
    "two letters": (article(answers=["A", "AB"]), "question 2 has the answer `AB`"),
    "no letter": (article(answers=["", "A"]), "question 1 has the answer ``"),
    "a number": (article(answers=[0, "A"]), "question 1 has the answer `0`"),
    "lower case": (article(answers=["a", "A"]), "question 1 has the answer `a`"),
    "no questions": (article(0), "line 1: an article without questions"),
    "too few answers": (article(answers=["A"]), "line 1: numbers that differ: 2 questions, 2 options, 1 answers"),
    "too many options": (article(options=[list("abcd")] * 3), "numbers that differ: 2 questions, 3 options, 2 answers"),
    "empty option": (article(1, options=[["a", "", "c", "d"]]), "line 1: question 1: each option is empty"),
    "option of another kind": (article(1, options=[["a", 2, "c", "d"]]), "each option should be text, found 2"),
    "options that are text": (article(1, options=["abcd"]), "each option should be a list, found abcd"),
    "empty question": (article(1, questions=[" "]), "line 1: question 1: its text is empty"),
    "empty article": (article(article=""), "line 1: `article` is empty"),
    "answers that are text": (article(answers="AB"), "`answers` should be a list, found AB"),
    "no answers": ({k: v for k, v in article().items() if k != "answers"}, "not an object with `article`"),
    "a list": ([article()], "line 1: not an object with `article`"),
}


@pytest.mark.parametrize("name", BAD_RACE)
def test_a_bad_file_of_race_is_named(name: str, tmp_path: Path) -> None:
    value, expected = BAD_RACE[name]
    only(tmp_path, value)
    with pytest.raises(DataError) as caught:
        load("race", tmp_path)
    assert f"`{tmp_path}/RACE/test/high/31.txt`, line 1" in caught.value.message
    assert expected in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (cut, "31.txt`, line 2: broken JSON: "),
        (raw(b""), "31.txt`, line 1: the file is empty"),
        (raw(b'{"article": "x\n"}'), "31.txt`, line 1: broken JSON"),
        (raw(b'\n{"article": "caf\xe9"}'), "31.txt` is not UTF-8 text: line 2: "),
        (raw(b"[" * 100_000), "31.txt`, line 1: broken JSON: "),
        (raw(b'{"article": ' + b"1" * 5000), "31.txt`, line 1: broken JSON: "),
        (raw(b" " * (1 << 20) + b"{}"), "31.txt` has more than 1,048,576 bytes"),
    ],
)
def test_a_damaged_file_among_others_is_named(spoil: Callable[[Path], None], expected: str, tmp_path: Path) -> None:
    spoil(tmp_path)
    with pytest.raises(DataError) as caught:
        load("race", tmp_path)
    assert expected in caught.value.message


def test_a_damaged_file_in_an_archive_is_named(tmp_path: Path) -> None:
    pack(tmp_path / "race_test.tar", sample_files("test") | {"RACE/test/high/99.txt": b'{"article": '})
    with pytest.raises(DataError, match=r"race_test\.tar: RACE/test/high/99\.txt`, line 1: broken JSON"):
        load("race", tmp_path)


def test_an_article_without_questions_is_accepted_where_it_is_published_so(tmp_path: Path) -> None:
    bare = load_card("race").split_named("train").bare
    for path in bare:
        write(tmp_path / path, article(0))
    write(tmp_path / "RACE/train/high/1.txt", article())
    assert len(load("race", tmp_path, "train").questions) == 2
    write(tmp_path / "RACE/train/high/2.txt", article(0))
    with pytest.raises(DataError, match=r"high/2\.txt`, line 1: an article without questions"):
        load("race", tmp_path, "train")


def test_another_split_under_this_ones_name_is_refused_though_changed_data_are_allowed(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "RACE/dev", tmp_path / "RACE/train")
    with pytest.raises(DataError, match="holds the dev set of RACE, not train"):
        load("race", tmp_path, "train")


def test_the_folder_of_another_split_is_refused() -> None:
    with pytest.raises(DataError, match="is the dev split of RACE, not train"):
        load("race", SAMPLES / "RACE/dev", "train")


def test_an_archive_of_another_split_is_refused(tmp_path: Path) -> None:
    pack(tmp_path / "race_train.tar.xz", sample_files("dev"), "w:xz")
    with pytest.raises(DataError) as caught:
        load("race", tmp_path, "train")
    assert (
        "holds nothing of the train split: expected `RACE/train/middle/...`, found `RACE/dev/" in caught.value.message
    )


def test_a_file_that_an_archive_has_twice_is_refused(tmp_path: Path) -> None:
    files = sample_files("test")
    first = next(iter(files))
    pack(tmp_path / "race_test.tar", files | {f"./{first}": files[first]})
    with pytest.raises(DataError, match="is there already, in `"):
        load("race", tmp_path)


@pytest.mark.parametrize("made", [(), ("RACE/test/high", "RACE/test/middle"), ("RACE/train/high",)])
def test_no_files_are_an_error_that_says_what_there_is(made: tuple[str, ...], tmp_path: Path) -> None:
    for path in made:
        (tmp_path / path).mkdir(parents=True)
    with pytest.raises(DataError, match=r"no RACE data in `.*`: expected `RACE/test/middle`") as caught:
        load("race", tmp_path)
    assert ("`RACE`" if made else "nothing") in caught.value.hint


def test_a_changed_set_needs_to_be_allowed_and_is_flagged(tmp_path: Path) -> None:
    write(tmp_path / "RACE/test/high/1.txt", article())
    with pytest.raises(DataError, match=r"not the published RACE test set: 2 rows .* expected 4,934 with d8c0ad8b426"):
        load("race", tmp_path, allow_modified=False)
    assert load("race", tmp_path).flags == ("modified-data",)


def test_a_split_that_is_not_there_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="task `race` has no split `tests`") as caught:
        load("race", SAMPLES, "tests")
    assert caught.value.hint == "did you mean `test`?"


# --- archives that somebody made to do harm


def test_names_that_lead_elsewhere_are_no_files_of_the_set(tmp_path: Path) -> None:
    hostile = dict.fromkeys(("../up.txt", "/etc/x.txt", "RACE/test/high/../high/5.txt", "RACE/test/5.txt"), b"{")
    pack(tmp_path / "race_test.tar", hostile | sample_files("test"))
    before = sorted(tmp_path.parent.iterdir())
    assert load("race", tmp_path).flags == ("sample-rows",)
    assert sorted(tmp_path.parent.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["race_test.tar"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_link_or_device_of_a_files_name_is_refused(kind: bytes, tmp_path: Path) -> None:
    member = tarfile.TarInfo("RACE/test/high/5.txt")
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "race_test.tar", "w") as archive:
        archive.addfile(member)
    with pytest.raises(DataError, match=r"`RACE/test/high/5\.txt` is no regular file"):
        load("race", tmp_path)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (header("RACE/test/high/5.txt", 1 << 40), r"`RACE/test/high/5\.txt` has 1,099,511,627,776 bytes"),
        (header("x", 1 << 40, tarfile.XHDTYPE), "is a damaged tar archive, or none: a header of"),
        (header("x", 1 << 40, tarfile.GNUTYPE_LONGNAME), "is a damaged tar archive, or none: a header of"),
        (header("RACE/test/high/5.txt", 9000) + b"{" * 100, "is a damaged tar archive, or none"),
        (header("x", 0, tarfile.XHDTYPE) * 5000, "is a damaged tar archive, or none"),
        (b"no archive at all " * 99, "is a damaged tar archive, or none"),
        (b"", "is a damaged tar archive, or none"),
        (header("x", 0) + b"rubbish" * 99, "what follows a file is neither another nor the end"),
        (header("x", 0) + bytes(1024) + b"more", "what follows a file is neither another nor the end"),
        (gzip.compress(b"x" * 5000)[:-9], "is damaged or cut short"),
        (lzma.compress(header("x", 0) + bytes(1024))[:-9], "is damaged or cut short"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_hostile_or_damaged_archive_is_one_error(content: bytes, expected: str, tmp_path: Path) -> None:
    (tmp_path / "race_test.tar.xz").write_bytes(content)
    with pytest.raises(DataError, match=expected):
        load("race", tmp_path)


def test_an_archive_that_unpacks_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpeval.questions.archives.LONGEST", 3 << 20)
    files = {f"other/{number}": bytes(1 << 20) for number in range(5)}
    pack(tmp_path / "race_test.tar.xz", files, "w:xz")
    assert (tmp_path / "race_test.tar.xz").stat().st_size < 10_000
    with pytest.raises(DataError, match=r"race_test\.tar\.xz` unpacks to more than 3,145,728 bytes"):
        load("race", tmp_path)


def test_no_change_of_an_archives_bytes_causes_anything_but_an_error(tmp_path: Path) -> None:
    """Of 300 archives with a few bytes changed each is read or refused; the changed ones are never the sample."""
    path = pack(tmp_path / "race_test.tar", sample_files("test"))
    whole, draw = path.read_bytes(), random.Random(5)
    refused = 0
    for _ in range(300):
        changed = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.2 else whole)
        for _ in range(draw.randint(1, 3)):
            # half of the changes fall into headers, which are the 512 bytes before each file
            place = draw.randrange(len(changed))
            place = place - place % 1536 + draw.randrange(512) if draw.random() < 0.5 else place
            changed[place % len(changed)] = draw.randrange(256)
        path.write_bytes(changed)
        try:
            data = load("race", tmp_path)
        except DataError:
            refused += 1
        else:
            same = {item.uid: item for item in data.questions}
            assert len(same) == len(data.questions)
    assert refused > 100


# --- PIQA


def piqa(folder: Path, rows: list[Any], labels: str, name: str = "valid") -> Path:
    write(folder / f"piqa/{name}.jsonl", *rows)
    (folder / f"piqa/{name}-labels.lst").write_text(labels, encoding="utf-8")
    return folder


def solution(number: int = 0, **changes: Any) -> Value:
    return {"goal": f"goal {number}", "sol1": "first", "sol2": "second"} | changes


def test_piqa_joins_rows_and_labels_by_line(tmp_path: Path) -> None:
    piqa(tmp_path, [solution(number) for number in range(3)], "1\n0\n1\n")
    data = load("piqa", tmp_path)
    assert data.split == "valid"
    assert [(item.uid, item.passage, item.context, item.question, item.answer) for item in data.questions] == [
        (f"piqa/valid#{n + 1}", f"piqa/valid#{n + 1}", f"goal {n}", "", label) for n, label in enumerate((1, 0, 1))
    ]
    assert data.questions[0].options == ("first", "second")


@pytest.mark.parametrize("inside", [True, False])
def test_piqa_may_be_compressed_and_is_found_from_its_own_folder(inside: bool, tmp_path: Path) -> None:
    shutil.copytree(SAMPLES / "piqa", tmp_path / "piqa")
    plain = tmp_path / "piqa/train.jsonl"
    (tmp_path / "piqa/train.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    data = load("piqa", tmp_path / "piqa" if inside else tmp_path, "train", allow_modified=False)
    assert (len(data.questions), data.flags) == (16, ("sample-rows",))


def test_piqas_test_set_has_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "piqa/tests.jsonl", solution())
    assert [item.answer for item in load("piqa", tmp_path, "test").questions] == [-1]


TWO = [solution(1), solution(2)]


@pytest.mark.parametrize(
    ("rows", "labels", "expected"),
    [
        (
            TWO,
            "1\n",
            "has 1 labels for the 2 rows of `{0}/piqa/valid.jsonl`: `{0}/piqa/valid-labels.lst` ends at line 1",
        ),
        (
            TWO,
            "1\n0\n1\n",
            "has 3 labels for the 2 rows of `{0}/piqa/valid.jsonl`: `{0}/piqa/valid.jsonl` ends at line 2",
        ),
        (TWO, "1\n2\n", "`{0}/piqa/valid-labels.lst`, line 2: the label `2` is neither 0 nor 1"),
        (TWO, "1\n\n", "`{0}/piqa/valid-labels.lst`, line 2: the label `` is neither 0 nor 1"),
        (TWO, "1\n-1\n", "line 2: the label `-1` is neither 0 nor 1"),
        ([solution(1), solution(2, sol2=" ")], "1\n0\n", "`{0}/piqa/valid.jsonl`, line 2: `sol2` is empty"),
        ([solution(1), solution(2, goal=3)], "1\n0\n", "line 2: `goal` should be text, found 3"),
        ([solution(1), {"goal": "x", "sol1": "y"}], "1\n0\n", "line 2: not an object with `goal`, `sol1` and `sol2`"),
        ([solution(1), "x"], "1\n0\n", "line 2: not an object with `goal`, `sol1` and `sol2`"),
    ],
)
def test_bad_rows_and_labels_of_piqa_are_named(rows: list[Any], labels: str, expected: str, tmp_path: Path) -> None:
    piqa(tmp_path, rows, labels)
    with pytest.raises(DataError) as caught:
        load("piqa", tmp_path)
    assert expected.format(tmp_path) in caught.value.message


def test_broken_json_and_absent_labels_of_piqa_are_named(tmp_path: Path) -> None:
    piqa(tmp_path, TWO, "1\n0\n")
    path = tmp_path / "piqa/valid.jsonl"
    path.write_text(path.read_text().replace('"goal 2"', '"goal 2'))
    with pytest.raises(DataError, match=r"valid\.jsonl`, line 2: broken JSON"):
        load("piqa", tmp_path)
    (tmp_path / "piqa/valid-labels.lst").unlink()
    with pytest.raises(DataError, match=r"no PIQA data in `.*`: expected `piqa/valid-labels\.lst`"):
        load("piqa", tmp_path)


def test_the_valid_set_of_piqa_under_the_names_of_train_is_refused(tmp_path: Path) -> None:
    (tmp_path / "piqa").mkdir()
    for ending in (".jsonl", "-labels.lst"):
        shutil.copy(SAMPLES / f"piqa/valid{ending}", tmp_path / f"piqa/train{ending}")
    with pytest.raises(DataError, match="holds the valid set of PIQA, not train"):
        load("piqa", tmp_path, "train")


# --- what a corpus is compared with


def test_overlap_takes_each_passage_once_with_all_that_is_asked_about_it() -> None:
    data = load("race", SAMPLES)
    texts = passages(data.questions)
    assert len(texts) == 8
    assert texts[0].startswith(data.questions[0].context)
    for item in data.questions[:3]:
        assert texts[0].count(item.question) == 1
        assert all(option in texts[0] for option in item.options)
    table = table_of(load_card("race"), data, 8)
    assert len(table.rows) == len(table.hashes) == 8


@pytest.mark.parametrize(
    ("task", "split"), [(t, s) for t in ("race", "piqa") for s in ("train", "dev", "valid", "test")]
)
def test_the_samples_are_what_the_cards_say(task: str, split: str) -> None:
    card = load_card(task)
    known = {item.name: item for item in card.splits}.get(split)
    if known is None or known.sample is None:
        assert (task, split) in {("race", "valid"), ("piqa", "dev"), ("piqa", "test")}
        return
    data = load(task, SAMPLES, split, allow_modified=False)
    assert len(data.questions) == known.sample.rows
    answers = [item.answer for item in data.questions]
    assert set(answers) == set(range(len(data.questions[0].options)))
    assert max(map(answers.count, answers)) <= 0.7 * len(answers)
    assert card.name in card_names()
