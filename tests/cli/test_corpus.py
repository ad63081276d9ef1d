"""`corpus dedup` and `corpus overlap`: what they print, write and refuse."""

from __future__ import annotations

import gzip
import json
import lzma
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from making import ROWS, run_here, tokenizer_json
from tokenizers import Tokenizer

from mpeval.corpus import clean, compressed, readers
from mpeval.corpus.indexed import IndexedWriter
from mpeval.folders import data_folder

SAMPLES = data_folder("tasks") / "samples"


def near(text: str, word: str) -> str:
    """Return the text with its middle word exchanged."""
    words = text.split()
    words[len(words) // 2] = word
    return " ".join(words)


def long_text(seed: int, words: int = 60) -> str:
    dice = random.Random(seed)
    return " ".join(f"w{dice.randrange(5000)}" for _ in range(words))


LINES = (
    json.dumps({"text": long_text(1), "id": 1, "score": 1.50}).replace("1.5", "1.50"),
    '{"meta": {"b": 2, "a": [1, 1e3]}, "text": "' + long_text(2) + ' \\u00e9t\\u00e9"}',
    json.dumps({"text": "too short", "id": 3}),
    json.dumps({"text": near(long_text(1), "other"), "id": 4}),
    json.dumps({"text": long_text(5) + " \u4e2d\u6587", "id": 5}, ensure_ascii=False),
    json.dumps({"id": 6, "text": long_text(1).upper() + "!"}),
)
KEPT = (LINES[0], LINES[1], LINES[4])
DEDUP = "--min-tokens 20 --threshold 0.7"


def write_lines(path: Path, lines: tuple[str, ...] = LINES) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def failure(capsys: pytest.CaptureFixture[str], command: str, code: int = 1) -> str:
    """Run a command that must fail with `code` and one error with a hint; return what it said."""
    assert run_here(command) == code
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert "\nhint: " in told.err
    return told.err


def test_rows_that_stay_are_the_same_bytes_in_the_same_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "in.jsonl")
    assert run_here(f"corpus dedup {source} --output {tmp_path}/out.jsonl {DEDUP}") == 0
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines() == list(KEPT)
    told = capsys.readouterr()
    assert told.err == ""
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in told.out.splitlines() if "│" in line]
    assert cells == [
        ["read", "6", "304"],
        ["too short (below 20 words)", "1", "2"],
        ["duplicates", "2", "120"],
        ["kept", "3", "182"],
    ]


def test_several_files_are_one_corpus_and_the_report_says_where_what_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_lines(tmp_path / "a.jsonl", LINES[:2])
    second = tmp_path / "b.jsonl.gz"
    second.write_bytes(gzip.compress("\n\n".join(LINES[2:]).encode()))
    report = tmp_path / "reports" / "report.json"
    command = f"corpus dedup {first} {second} --output {tmp_path}/out.jsonl {DEDUP} --report {report} --json"
    assert run_here(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines() == list(KEPT)
    written: dict[str, Any] = json.loads(report.read_text())
    dropped = written.pop("dropped")
    assert printed == written
    assert [(item["file"], item["row"]) for item in dropped] == [(str(second), 1), (str(second), 2), (str(second), 4)]
    assert dropped[0]["words"] == 2
    assert dropped[1]["of"] == dropped[2]["of"] == {"file": str(first), "row": 1}
    assert dropped[1]["jaccard"] == pytest.approx(51 / 61)
    assert dropped[2]["jaccard"] == 1
    assert written["documents"] == {"read": 6, "short": 1, "duplicates": 2, "kept": 3}
    settings = {"minimum": 20, "threshold": 0.7, "ngrams": 5, "permutations": 128, "seed": 1, "unit": "words"}
    assert written["settings"] == settings
    assert written["files"] == [{"file": str(first), "documents": 2}, {"file": str(second), "documents": 4}]


@pytest.mark.parametrize("size", [1, 200, 1 << 20])
def test_rows_are_found_between_blank_lines_and_across_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A byte-order mark, carriage returns and white lines belong to the file, not to its rows."""
    monkeypatch.setattr(readers, "BATCH", size)
    monkeypatch.setattr(compressed, "BLOCK", 100)
    source = tmp_path / "in.jsonl"
    source.write_bytes(("\ufeff" + "\r\n \r\n\u3000\n\n".join(LINES)).encode())
    assert run_here(f"corpus dedup {source} --output {tmp_path}/out.jsonl {DEDUP} --quiet") == 0
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8") == "".join(f"{line}\n" for line in KEPT)


def test_a_file_that_changes_between_the_passes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "in.jsonl")
    judge = clean.judge

    def judge_and_change(*arguments: Any, **options: Any) -> Any:
        verdicts = judge(*arguments, **options)
        write_lines(source, (*LINES, LINES[0]))
        return verdicts

    monkeypatch.setattr(clean, "judge", judge_and_change)
    said = failure(capsys, f"corpus dedup {source} --output {tmp_path}/out.jsonl {DEDUP}")
    assert f"`{source}` changed while it was read" in said
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_the_name_of_the_output_says_how_it_is_packed(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl")
    wanted = "".join(f"{line}\n" for line in KEPT).encode()
    unpack = {"gz": gzip.decompress, "xz": lzma.decompress, "zst": lambda data: unzst(data)}
    for ending, decompress in unpack.items():
        made = []
        for attempt in "12":
            output = tmp_path / attempt / f"out.jsonl.{ending}"
            assert run_here(f"corpus dedup {source} --output {output} {DEDUP} --quiet") == 0
            made.append(output.read_bytes())
        assert made[0] == made[1]
        assert decompress(made[0]) == wanted
        assert run_here(f"corpus dedup {output} --output {tmp_path}/{ending}.jsonl {DEDUP} --quiet") == 0
        assert (tmp_path / f"{ending}.jsonl").read_bytes() == wanted


def unzst(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


def test_text_and_parquet_become_rows_of_the_field(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [long_text(1), "short", long_text(2)]
    (tmp_path / "in.txt").write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.table({"body": [*texts, near(texts[0], "x")]}), tmp_path / "in.parquet")
    output = tmp_path / "out.jsonl"
    assert run_here(f"corpus dedup {tmp_path}/in.txt {tmp_path}/in.parquet --field body --output {output} {DEDUP}") == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert rows == [{"body": texts[0]}, {"body": texts[2]}]
    assert capsys.readouterr().err == ""


def test_lengths_are_counted_in_the_tokenizers_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    source = write_lines(tmp_path / "in.jsonl")
    lengths = [len(Tokenizer.from_str(tokenizer_json()).encode(json.loads(line)["text"]).ids) for line in LINES]
    command = f"corpus dedup {source} --output {tmp_path}/out.jsonl --tokenizer {tmp_path} --min-tokens {lengths[4]}"
    assert run_here(f"{command} --keep-duplicates --json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["unit"] == "tokens"
    assert found["settings"]["threshold"] is None
    assert found["tokens"]["read"] == sum(lengths)
    kept = [line for line, length in zip(LINES, lengths, strict=True) if length >= lengths[4]]
    assert 0 < len(kept) < len(LINES)
    assert (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines() == kept


def test_the_paper_s_settings_are_the_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = tuple(json.dumps({"text": long_text(seed, words)}) for seed, words in ((1, 127), (2, 128)))
    source = write_lines(tmp_path / "in.jsonl", (*lines, lines[1]))
    assert run_here(f"corpus dedup {source} --output {tmp_path}/out.jsonl --json") == 0
    assert (tmp_path / "out.jsonl").read_text().splitlines() == [lines[1]]
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["threshold"] == 0.7
    assert found["settings"]["minimum"] == 128


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        ("--threshold 1", "`--threshold 1` is not between 0 and 1", 2),
        ("--threshold 0", "`--threshold 0` is not between 0 and 1", 2),
        ("--keep-duplicates --threshold 0.8", "`--threshold` has no effect with `--keep-duplicates`", 2),
        ("--keep-duplicates --seed 3", "`--seed` has no effect with `--keep-duplicates`", 2),
        ("--keep-duplicates --min-tokens 0", "drops nothing", 2),
        ("--threshold 0.1 --permutations 4", "4 permutations cannot find pairs", 2),
        ("--min-tokens 1000", "none of 6 documents would be kept: 6 are too short", 1),
        ("--field body", "line 1 has no field `body`; its fields: `text`, `id`, `score`", 1),
        ("--tokenizer nowhere", "no such tokenizer: `nowhere` does not exist", 1),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, said: str, code: int
) -> None:
    source = write_lines(tmp_path / "in.jsonl")
    assert said in failure(capsys, f"corpus dedup {source} --output {tmp_path}/out/out.jsonl {options}", code)
    out = tmp_path / "out"
    assert not out.exists() or list(out.iterdir()) == []


def test_outputs_that_cannot_be_written_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_lines(tmp_path / "in.jsonl")
    assert "already there" in failure(capsys, f"corpus dedup {source} --output {source} {DEDUP}")
    assert "cannot tell from its name" in failure(capsys, f"corpus dedup {source} --output {tmp_path}/o.txt", 2)
    assert "cannot write" in failure(capsys, f"corpus dedup {source} --output {source}/out.jsonl")
    output = f"corpus dedup {source} --output {tmp_path}/out.jsonl {DEDUP}"
    assert "by `--report`" in failure(capsys, f"{output} --report {source}/report.json")
    assert "by `--report`" in failure(capsys, f"{output} --report {tmp_path}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl"]
    assert source.read_text(encoding="utf-8").splitlines() == list(LINES)


def test_a_missing_file_and_a_broken_line_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(tmp_path / "in.jsonl")
    said = failure(capsys, f"corpus dedup {tmp_path}/inn.jsonl --output {tmp_path}/out.jsonl")
    assert "did you mean `in.jsonl`?" in said
    broken = write_lines(tmp_path / "broken.jsonl", (LINES[0], '{"text": '))
    said = failure(capsys, f"corpus dedup {broken} --output {tmp_path}/out.jsonl")
    assert f"`{broken}` line 2 is not JSON" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.jsonl", "in.jsonl"]


@pytest.mark.parametrize(
    ("task", "corpus"),
    [("lambada", "lambada/lambada_test.jsonl"), ("wikitext103", "wikitext-103/wiki.test.tokens")],
)
def test_a_benchmark_overlaps_its_own_file_wholly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, corpus: str
) -> None:
    samples = tmp_path / "samples.jsonl"
    command = f"corpus overlap {SAMPLES / corpus} --task {task} --data {SAMPLES} --samples {samples} --json"
    assert run_here(command) == 0
    found = json.loads(capsys.readouterr().out)
    (overlap,) = found["overlaps"]
    assert overlap["share"] == overlap["distinct_share"] == 1
    assert overlap["found"] == overlap["ngrams"] > 100
    assert overlap["length"] == 8
    assert overlap["flags"] == ["sample-rows"]
    assert overlap["rows_found"] == overlap["rows"]
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [row["row"] for row in rows] == list(range(1, overlap["rows"] + 1))
    assert all(row["found"] == row["ngrams"] and len(row["passages"]) == 1 for row in rows)


def test_the_table_has_a_row_for_each_task_and_its_worst_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = (SAMPLES / "lambada" / "lambada_test.jsonl").read_text().splitlines()
    part = json.loads(rows[4])["text"].split()[:12]
    corpus = write_lines(tmp_path / "in.jsonl", (json.dumps({"body": " ".join(part).upper()}),))
    tasks = "--task lambada --task wikitext103 --task lambada"
    assert run_here(f"corpus overlap {corpus} --field body {tasks} --data {SAMPLES}") == 0
    told = capsys.readouterr()
    assert told.err == ""
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in told.out.splitlines() if "│" in line]
    assert [(row[0], row[2], row[6], row[7]) for row in cells[:2]] == [
        ("lambada", "5", "1 of 16", "sample-rows"),
        ("wikitext103", "0", "0 of 3", "sample-rows"),
    ]
    assert cells[2][0] == "5"
    assert cells[2][1].startswith("5 of ")
    assert "corpus of 1 documents, 12 words" in told.out


def write_indexed(prefix: Path, texts: tuple[str, ...]) -> Path:
    """Write texts as an indexed dataset of the test tokenizer, each in two sequences and ended; return its folder."""
    (prefix.parent / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    tokenizer = Tokenizer.from_str(tokenizer_json())
    with IndexedWriter(prefix, np.dtype(np.uint16)) as writer:
        for text in texts:
            ids = tokenizer.encode(text).ids
            writer.add(ids[:7])
            writer.add([*ids[7:], tokenizer.token_to_id("<|endoftext|>")])
            writer.end_document()
    return prefix.parent


def test_an_indexed_dataset_has_the_overlap_of_its_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`ROWS` are passages of the sample too, so that some n-grams are found."""
    rows = (SAMPLES / "lambada" / "lambada_test.jsonl").read_text().splitlines()
    texts = (*ROWS, *(json.loads(line)["text"] for line in rows[:5]))
    folder = write_indexed(tmp_path / "corpus", texts)
    source = write_lines(tmp_path / "in.jsonl", tuple(json.dumps({"text": text}) for text in texts))
    found = []
    for corpus in (
        f"{source}",
        f"{tmp_path}/corpus --tokenizer {folder}",
        f"{tmp_path}/corpus.idx --tokenizer {folder}",
    ):
        assert run_here(f"corpus overlap {corpus} --task lambada --data {SAMPLES} --ngrams 4 --json") == 0
        found.append(json.loads(capsys.readouterr().out))
    assert found[0]["overlaps"] == found[1]["overlaps"] == found[2]["overlaps"]
    assert 0 < found[0]["overlaps"][0]["share"] < 1
    assert found[0]["words"] == found[1]["words"]
    assert found[0]["documents"] == found[1]["documents"] == len(texts)


def test_other_data_than_published_is_refused_unless_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lambada").mkdir()
    source = write_lines(tmp_path / "lambada" / "lambada_test.jsonl", (json.dumps({"text": long_text(1)}),))
    command = f"corpus overlap {source} --task lambada --data {tmp_path}"
    assert "is not the published LAMBADA test set" in failure(capsys, command)
    assert run_here(f"{command} --allow-modified-data --json") == 0
    (found,) = json.loads(capsys.readouterr().out)["overlaps"]
    assert found["flags"] == ["modified-data"]
    assert found["share"] == 1


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        ("{corpus} --task lambada", "is an indexed dataset: ids without text", 1),
        ("{text} --task lambada --tokenizer {folder}", "`--tokenizer` has no effect", 2),
        ("{text} --task lambda", "no task `lambda`", 2),
        ("{text} --task lambada --ngrams 500", "has 500 known words in a row", 1),
        ("{text} --task lambada --samples {text}/s.jsonl", "by `--samples`", 1),
        ("{folder}/nothing.jsonl --task lambada", "no such file", 1),
        ("{folder}/nothing.idx --task lambada --tokenizer {folder}", "no indexed dataset", 1),
        ("{text} --task lambada --data {folder}", "no LAMBADA data in", 1),
    ],
)
def test_overlaps_that_cannot_be_measured_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, said: str, code: int
) -> None:
    folder = write_indexed(tmp_path / "corpus", ROWS)
    text = write_lines(tmp_path / "in.jsonl")
    command = options.format(corpus=tmp_path / "corpus", text=text, folder=folder)
    data = "" if "--data" in command else f"--data {SAMPLES}"
    assert said in failure(capsys, f"corpus overlap {command} {data}", code)


def test_a_tokenizer_with_too_few_tokens_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_indexed(tmp_path / "corpus", ROWS)
    with IndexedWriter(tmp_path / "corpus", np.dtype(np.uint16)) as writer:
        writer.add([1, 2, 400])
        writer.end_document()
    said = failure(capsys, f"corpus overlap {tmp_path}/corpus --tokenizer {folder} --task lambada --data {SAMPLES}")
    assert f"has token 400, the tokenizer in `{folder}` only 400" in said
