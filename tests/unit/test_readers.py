"""Every kind of input gives the same documents, and whatever is not a whole input of a known kind is an error."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import COMPRESS, TEXTS, json_lines, parquet, plain, write_all_kinds, zstd

from mpeval.corpus import compressed, readers
from mpeval.corpus.compressed import blocks
from mpeval.corpus.encoding import texts_of
from mpeval.corpus.readers import batches, find_source
from mpeval.errors import DataError


def read(path: Path | str, field: str = "text") -> list[str]:
    return [text for batch in batches(find_source(str(path), field), field) for text in texts_of(batch, field)]


def refused(path: Path | str, field: str = "text") -> DataError:
    with pytest.raises(DataError) as raised:
        read(path, field)
    assert raised.value.hint
    assert "\n" not in raised.value.message
    return raised.value


@pytest.mark.parametrize("sizes", [(1 << 20, 1 << 19), (64, 100), (7, 1)], ids=str)
def test_every_kind_gives_the_same_documents(
    sizes: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed, "BLOCK", sizes[0])
    monkeypatch.setattr(compressed, "PACKED", sizes[0])
    monkeypatch.setattr(readers, "BATCH", sizes[1])
    for path in write_all_kinds(tmp_path):
        assert read(path) == list(TEXTS), path.name


@pytest.mark.parametrize("name", ["plain.jsonl", "plain.txt", "packed.jsonl.zst", "packed.txt.gz", "rows.parquet"])
def test_batches_say_how_far_they_reach(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "BLOCK", 256)
    monkeypatch.setattr(compressed, "PACKED", 256)
    monkeypatch.setattr(readers, "BATCH", 300)
    write_all_kinds(tmp_path)
    source = find_source(str(tmp_path / name), "text")
    found = list(batches(source, "text"))
    assert len(found) > 1
    done = [batch.done for batch in found]
    assert done == sorted(done)
    assert done[-1] == source.size == (tmp_path / name).stat().st_size
    assert found == list(batches(source, "text"))


@given(
    texts=st.lists(st.text(alphabet="ab \n|<>é", max_size=30), min_size=1, max_size=6),
    block=st.integers(1, 40),
    batch=st.integers(1, 60),
)
def test_a_line_separates_documents_of_a_text_wherever_blocks_end(texts: list[str], block: int, batch: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(compressed, "BLOCK", block)
        patch.setattr(readers, "BATCH", batch)
        path = Path(folder) / "a.txt"
        path.write_bytes(plain(texts) + b"\n<|endoftext|>\n")
        assert read(path) == texts


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("a\n\n\nb\n", ["a\n\n\nb"]),
        ("a <|endoftext|>\nb<|endoftext|>", ["a <|endoftext|>\nb<|endoftext|>"]),
        ("a\n\t<|endoftext|> \r\nb", ["a", "b"]),
        ("<|endoftext|>\na\n<|endoftext|>\n\n", ["", "a"]),
        ("<|endoftext|>\n<|endoftext|>", ["", ""]),
        ("\n", [""]),
        ("\ufeff\ufeffa", ["\ufeffa"]),
    ],
)
def test_a_text_file_is_one_document_but_for_separators(content: str, documents: list[str], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content.encode())
    assert read(tmp_path / "a.txt") == documents


def test_a_field_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(json_lines(TEXTS, "body"))
    parquet(tmp_path / "a.parquet", TEXTS, "body")
    assert read(tmp_path / "a.jsonl", "body") == read(tmp_path / "a.parquet", "body") == list(TEXTS)


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_every_way_to_store_strings_in_parquet_is_read(kind: str, tmp_path: Path) -> None:
    types = {"string": pyarrow.string(), "large_string": pyarrow.large_string()}
    column = pyarrow.array(TEXTS, types.get(kind, pyarrow.string()))
    table = pyarrow.table({"text": column.dictionary_encode() if kind == "dictionary" else column})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", compression="zstd")
    assert read(tmp_path / "a.parquet") == list(TEXTS)


def test_long_rows_are_read_a_few_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "AT_ONCE", 3000)
    parquet(tmp_path / "a.parquet", [random.Random(row).randbytes(500).hex() for row in range(8)], group=8)
    found = list(batches(find_source(str(tmp_path / "a.parquet"), "text"), "text"))
    assert [batch.first for batch in found] == [1, 3, 5, 7]


LINES = json_lines(TEXTS)
BAD_LINES: dict[str, tuple[bytes, str, str]] = {
    "no JSON": (b'{"text": "a"}\n{"text": a}\n', "line 2 is not JSON: Expecting value", "mend the line"),
    "cut": (b'{"text": "a"}\n\n{"text": "b', "line 3 is cut short: Unterminated string", "mend the line"),
    "a list": (b'["a"]\n', "is one JSON array, not JSON lines", "jq"),
    "a later list": (b'{"text": "a"}\n["a"]\n', "line 2 is a list, not a JSON object", '{"text"'),
    "a number": (b"1\n", "line 1 is a number, not a JSON object", '{"text"'),
    "another field": (b'{"id": 1, "body": "a"}\n', "line 1 has no field `text`; its fields: `id`, `body`", "--field"),
    "no field": (b"{}\n", "line 1 has no field `text`; its fields: none", "--field"),
    "null": (b'{"text": null}\n', "line 1: `text` is null, not text", "--field"),
    "a number for text": (b'{"text": 1.5}\n', "line 1: `text` is a number, not text", "--field"),
    "true": (b'{"text": true}\n', "line 1: `text` is true or false, not text", "--field"),
    "an object": (b'{"text": {}}\n', "line 1: `text` is an object, not text", "--field"),
    "no UTF-8": (
        b'{"text": "a"}\n{"text": "caf\xe9"}\n',
        "line 2 is not UTF-8: invalid continuation byte (byte 0xe9)",
        "iconv",
    ),
    "half a character": (b'{"text": "a\\ud83d"}\n', r"line 1: `text` holds half a character, `\ud83d`", "mend"),
    "nesting": (b'{"text": "a"}\n' + b"[" * 100_000 + b"\n", "line 2 is not JSON", "mend"),
    "digits": (b'{"text": ' + b"1" * 5000 + b"}\n", "line 1 is not JSON: Exceeds the limit", "mend"),
}


@pytest.mark.parametrize("case", BAD_LINES)
@pytest.mark.parametrize("ending", ["", *COMPRESS])
def test_a_bad_line_is_an_error_that_names_it(case: str, ending: str, tmp_path: Path) -> None:
    content, says, hint = BAD_LINES[case]
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(COMPRESS[ending](content) if ending else content)
    error = refused(path)
    assert error.message.startswith(f"`{path}` {says}")
    assert hint in error.hint


def test_lines_are_counted_across_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "BLOCK", 200)
    monkeypatch.setattr(readers, "BATCH", 50)
    for name, content in (("a.jsonl", LINES + b"\n\n{\n" + LINES), ("a.txt", plain(TEXTS) + b"\n\xff" + plain(TEXTS))):
        (tmp_path / name).write_bytes(content)
        number = content[: content.index(b"\n{\n" if name == "a.jsonl" else b"\xff") + 1].count(b"\n") + 1
        assert f"a{Path(name).suffix}` line {number} is not" in refused(tmp_path / name).message


@pytest.mark.parametrize("kind", ["null", "number"])
def test_a_row_without_text_is_an_error_that_names_it(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    if kind == "null":
        parquet(path, [*TEXTS, None])
    else:
        pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    row, what = (len(TEXTS) + 1, "null") if kind == "null" else (1, "a number")
    assert refused(path).message == f"`{path}` row {row}: `text` is {what}, not text"


def test_a_column_that_is_not_there_is_an_error_that_lists_them(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", TEXTS, "body")
    assert refused(tmp_path / "a.parquet").message.endswith("a.parquet` has no column `text`: it has `id`, `body`")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "the end": lambda content: content[:-5],
    "a third": lambda content: content[: len(content) * 2 // 3],
    "a byte": lambda content: content[:60] + bytes([content[60] ^ 0x55]) + content[61:],
    "garbage behind": lambda content: content + b"garbage",
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("ending", COMPRESS)
def test_damaged_compressed_files_are_errors(ending: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    whole = COMPRESS[ending](random.Random(1).randbytes(2000).hex().encode() + b"\n")
    path.write_bytes(DAMAGE[damage](whole))
    assert f"`{path}` is damaged or cut short: " in refused(path).message


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstd], ids=["gz", "xz", "zst"])
def test_no_cut_compressed_file_is_taken_for_a_whole_one(compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    whole = compress(LINES)
    for cut in range(20, len(whole), 7):
        (tmp_path / "a.jsonl").write_bytes(whole[:cut])
        content = b""
        try:
            for block, _ in blocks(tmp_path / "a.jsonl"):
                content += block
        except DataError:
            continue
        # two frames one after another are two files' worth, so a cut between them cannot be told
        assert compress is zstd
        assert content == LINES[: len(LINES) // 2]


@pytest.mark.parametrize("content", [b"PAR1", b"PAR1" + bytes(100), b"PAR1" + bytes(100) + b"PAR1"])
def test_damaged_parquet_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    assert "a.parquet` cannot be read as parquet: " in refused(tmp_path / "a.parquet").message


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "is empty"),
        ("a.csv", b"text\na\n", "is of no known kind: its name ends with `.csv`"),
        ("a.csv.gz", gzip.compress(b"text\na\n", mtime=0), "is of no known kind: its name ends with `.csv`"),
        ("corpus", b'{"text": "a"}\n', "is of no known kind: its name ends with `corpus`"),
        ("a.parquet", b'{"text": "a"}\n', "is no parquet file: it begins with b'{\"te'"),
        ("a.json", b' \n[{"text": "a"}]', "is one JSON array, not JSON lines"),
        ("a.txt", b"caf\xe9", "line 1 is not UTF-8: unexpected end of data (byte 0xe9)"),
    ],
)
def test_files_of_other_kinds_are_refused(name: str, content: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert refused(tmp_path / name).message == f"`{tmp_path / name}` {says}"


def test_documents_of_any_length_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "BLOCK", 100)
    monkeypatch.setattr(readers, "BATCH", 100)
    monkeypatch.setattr(readers, "LONGEST", 1000)
    (tmp_path / "a.txt").write_text("short\n<|endoftext|>\n" + "long line\n" * 1000)
    error = refused(tmp_path / "a.txt")
    assert "a.txt` line 3: a document of more than 0 MiB" in error.message
    assert "<|endoftext|>" in error.hint
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}) + "\n" + json.dumps({"text": "a" * 2000}) + "\n")
    assert "a.jsonl` line 2: a document of more than" in refused(tmp_path / "a.jsonl").message
    monkeypatch.setattr("mpeval.corpus.encoding.LONGEST", 1000)
    parquet(tmp_path / "a.parquet", ["a", "a" * 1001])
    assert "a.parquet` row 2: a document of more than" in refused(tmp_path / "a.parquet").message


def test_a_missing_file_is_an_error_that_says_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus.jsonl").write_bytes(LINES)
    error = refused(tmp_path / "corpse.jsonl")
    assert error.message == f"no such file: `{tmp_path / 'corpse.jsonl'}`"
    assert error.hint == "did you mean `corpus.jsonl`?"
    assert "there is no folder" in refused(tmp_path / "nowhere" / "a.jsonl").hint
    (tmp_path / "empty").mkdir()
    assert "holds no files" in refused(tmp_path / "empty" / "a.jsonl").hint
    monkeypatch.chdir(tmp_path)
    assert "no such file" in refused("empty/a").message  # the folder is here, so no data set is meant
    assert "no such file" in refused("org/a.jsonl").message


def test_a_folder_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES)
    error = refused(tmp_path)
    assert error.message == f"`{tmp_path}` is a folder"
    assert f"`{tmp_path / 'a.jsonl'}`" in error.hint
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert refused(tmp_path / "pipe.jsonl").message.endswith("is no regular file")


def test_a_file_that_changes_meanwhile_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    source = find_source(str(path), "text")
    with path.open("ab") as file:
        file.write(LINES)
    with pytest.raises(DataError, match="changed while it was read"):
        list(batches(source, "text"))


class Hub:
    """Stands for the network: gives the data set that it was asked for, and remembers how."""

    def __init__(self, rows: dict[str, Sequence[Any]]) -> None:
        self.rows = rows
        self.asked: list[tuple[str, str | None, str]] = []

    def __call__(self, name: str, config: str | None, *, split: str) -> Any:
        import datasets

        self.asked.append((name, config, split))
        if name == "no/such":
            raise datasets.exceptions.DatasetNotFoundError("Dataset 'no/such' doesn't exist on the Hub\nor so")
        return datasets.Dataset.from_dict(self.rows)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub({"id": range(len(TEXTS)), "text": TEXTS, "other": [None] * len(TEXTS)})
    monkeypatch.setattr("datasets.load_dataset", made)
    return made


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("org/name", ("org/name", None, "train")),
        ("org/name:config-1", ("org/name", "config-1", "train")),
        ("org/na.me@test", ("org/na.me", None, "test")),
        ("org/name:config@train[:10%]+test", ("org/name", "config", "train[:10%]+test")),
    ],
)
def test_a_data_set_can_be_named(given: str, asked: tuple[str, str | None, str], hub: Hub) -> None:
    assert read(given) == list(TEXTS)
    assert hub.asked == [asked]


def test_rows_of_a_data_set_come_in_batches(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BATCH", 100)
    monkeypatch.setattr(readers, "ROWS", 5)
    source = find_source("org/name", "text")
    found = list(batches(source, "text"))
    assert [text for batch in found for text in batch.texts] == list(TEXTS)
    assert found[-1].done == source.size
    assert [batch.first for batch in found] == [1 + sum(len(b.texts) for b in found[:i]) for i in range(len(found))]


def test_a_data_set_that_cannot_be_had_is_an_error(hub: Hub) -> None:
    error = refused("no/such")
    assert (
        error.message == "no file `no/such`, and `datasets` cannot get it: Dataset 'no/such' doesn't exist on the Hub"
    )
    assert "spelling" in error.hint
    assert refused("org/name", "body").message == "`org/name` has no column `body`: it has `id`, `text`, `other`"
    assert refused("org/name", "other").message == "`org/name` row 1: `other` is null, not text"
