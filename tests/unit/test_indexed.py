"""The indexed dataset keeps what it is given, to the byte of the format, and refuses whatever is not whole."""

from __future__ import annotations

import itertools
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from corpora import write_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from mpeval.corpus import indexed
from mpeval.corpus.indexed import IndexedDataset, IndexedWriter, dtype_for, index_bytes
from mpeval.errors import DataError, MpevalError, OutputError

DOCUMENTS = [[[1, 2, 3], [4]], [], [[5, 6], [], [7]]]


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    write_corpus(tmp_path / "corpus", DOCUMENTS)
    return tmp_path / "corpus"


def both(prefix: Path) -> tuple[bytes, bytes]:
    return prefix.with_name(f"{prefix.name}.idx").read_bytes(), prefix.with_name(f"{prefix.name}.bin").read_bytes()


def test_the_bytes_are_those_of_the_format(prefix: Path) -> None:
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 5, 4)
    body = struct.pack("<5i", 3, 1, 2, 0, 1) + struct.pack("<5q", 0, 6, 8, 12, 12) + struct.pack("<4q", 0, 2, 2, 5)
    assert both(prefix) == (header + body, struct.pack("<7H", 1, 2, 3, 4, 5, 6, 7))


def test_everything_can_be_read_back(prefix: Path) -> None:
    dataset = IndexedDataset(prefix)
    assert (len(dataset), dataset.tokens, dataset.dtype) == (5, 7, np.uint16)
    assert [sequence.tolist() for sequence in dataset[:]] == [[1, 2, 3], [4], [5, 6], [], [7]]
    assert [sequence.tolist() for sequence in dataset[::-2]] == [[7], [5, 6], [1, 2, 3]]
    assert dataset[-1].tolist() == [7]
    assert dataset.get(0, 1).tolist() == [2, 3]
    assert dataset.get(0, 1, 1).tolist() == [2]
    assert dataset.documents.tolist() == [0, 2, 2, 5]
    assert dataset.pointers.tolist() == [0, 6, 8, 12, 12]
    assert dataset.modes is None


def test_sequences_are_views_that_cannot_be_written_to(prefix: Path) -> None:
    dataset = IndexedDataset(prefix)
    assert np.shares_memory(dataset[0], dataset.get(0, 1, 1))
    with pytest.raises(ValueError, match="read-only"):
        dataset[0][0] = 9


@pytest.mark.parametrize("arguments", [(5,), (-6,), (0, 4), (0, -1, 2), (0, 1, 3), (0, 2, -1)])
def test_there_is_nothing_outside(arguments: tuple[int, ...], prefix: Path) -> None:
    with pytest.raises(IndexError):
        IndexedDataset(prefix).get(*arguments)


@pytest.mark.parametrize("ending", ["", ".bin", ".idx"])
def test_either_file_names_the_dataset(ending: str, prefix: Path) -> None:
    dataset = IndexedDataset(f"{prefix}{ending}")
    assert dataset.prefix == prefix
    dataset.write(prefix.with_name(f"again{ending}"))
    assert both(prefix.with_name("again")) == both(prefix)
    with IndexedWriter(prefix.with_name(f"third{ending}"), np.uint16) as writer:
        writer.end_document()
    assert len(IndexedDataset(prefix.with_name("third"))) == 0


def test_a_name_with_dots_is_kept(tmp_path: Path) -> None:
    write_corpus(tmp_path / "v1.2", DOCUMENTS)
    assert sorted(os.listdir(tmp_path)) == ["v1.2.bin", "v1.2.idx"]
    assert IndexedDataset(tmp_path / "v1.2").tokens == 7


@pytest.mark.parametrize(("vocab", "dtype"), [(1, "uint16"), (65499, "uint16"), (65500, "int32"), (250_880, "int32")])
def test_small_vocabularies_take_two_bytes(vocab: int, dtype: str) -> None:
    assert dtype_for(vocab) == dtype


NUMBERS = {"uint8": 8, "int8": 7, "int16": 15, "int32": 31, "int64": 63, "float64": 50, "float32": 20, "uint16": 16}


@settings(deadline=None, max_examples=60)
@given(data=st.data(), dtype=st.sampled_from(sorted(NUMBERS)), multimodal=st.booleans())
def test_whatever_is_written_is_read_again(data: st.DataObject, dtype: str, multimodal: bool) -> None:
    ids = st.integers(0, 2 ** NUMBERS[dtype] - 1)
    documents = data.draw(st.lists(st.lists(st.lists(ids, max_size=5), max_size=4), max_size=6))
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "corpus"
        with IndexedWriter(prefix, dtype) as writer:
            for document in documents:
                for sequence in document:
                    writer.add(sequence)
                writer.end_document()
        if multimodal:
            with (Path(folder) / "corpus.idx").open("ab") as file:
                file.write(bytes(range(sum(map(len, documents)))))
        dataset = IndexedDataset(prefix)
        starts = dataset.documents.tolist()
        read = [[sequence.tolist() for sequence in dataset[a:b]] for a, b in itertools.pairwise(starts)]
        assert read == documents
        assert dataset.dtype == dtype
        dataset.write(Path(folder) / "again")
        assert both(Path(folder) / "again") == both(prefix)


def test_modes_are_kept(prefix: Path) -> None:
    with prefix.with_name("corpus.idx").open("ab") as file:
        file.write(bytes([0, 1, 0, 1, 1]))
    dataset = IndexedDataset(prefix)
    assert dataset.modes is not None
    assert dataset.modes.tolist() == [0, 1, 0, 1, 1]
    dataset.write(prefix.with_name("again"))
    assert both(prefix.with_name("again")) == both(prefix)


def test_large_files_are_written_in_pieces(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed, "CHUNK", 2)
    IndexedDataset(prefix).write(prefix.with_name("again"))
    assert both(prefix.with_name("again")) == both(prefix)


def test_offsets_go_past_two_gigabytes() -> None:
    lengths = np.array([2**30, 2**30, 2**30], np.int32)
    content = b"".join(index_bytes(np.dtype("<i4"), lengths, np.array([0, 3])))
    assert struct.unpack_from("<3q", content, 34 + 12) == (0, 2**32, 2**33)


def test_the_digest_is_that_of_the_index(prefix: Path) -> None:
    import hashlib

    assert IndexedDataset(prefix).digest == "sha256:" + hashlib.sha256(both(prefix)[0]).hexdigest()


def replaced(offset: int, content: bytes) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:offset] + content + raw[offset + len(content) :]


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "nothing": (lambda raw: raw[:0], "is no index of Megatron's: it begins with b''"),
    "another file": (lambda raw: b"PK\x03\x04" + raw, r"it begins with b'PK\\x03\\x04MMIDI'"),
    "half a header": (lambda raw: raw[:20], "is no index of Megatron's"),
    "the format before": (lambda raw: b"TNTIDX\x00\x00" + raw, "is of the format before MMIDIDX"),
    "a version": (replaced(9, b"\x02"), "is of version 2 of the format, not 1"),
    "a dtype": (replaced(17, b"\x09"), "has dtype code 9, not one of 1 to 8"),
    "no dtype": (replaced(17, b"\x00"), "has dtype code 0"),
    "a count": (replaced(18, b"\x06"), "has 126 bytes, its header says 138"),
    "a vast count": (replaced(18, b"\xff" * 8), "says 18,446,744,073,709,551,615 sequences but has 126 bytes"),
    "vast boundaries": (replaced(26, b"\xff" * 8), "document boundaries but has 126 bytes"),
    "the end": (lambda raw: raw[:-1], "has 125 bytes, its header says 126"),
    "more": (lambda raw: raw + b"12", "has 128 bytes, its header says 126"),
    "a length": (replaced(34, b"\x04"), "offsets that are not the running sum of its lengths"),
    "a negative length": (replaced(34, b"\xff" * 4), "offsets that are not the running sum of its lengths"),
    "an offset": (replaced(34 + 20 + 8, b"\x04"), "offsets that are not the running sum of its lengths"),
    "the last length": (replaced(34 + 16, b"\x02"), r"corpus.bin` has 14 bytes, its index says 16"),
    "the first boundary": (replaced(126 - 32, b"\x01"), "document boundaries that do not run from 0 to 5"),
    "a boundary": (replaced(126 - 24, b"\x03"), "document boundaries that do not run from 0 to 5"),
    "the last boundary": (replaced(126 - 8, b"\x04"), "document boundaries that do not run from 0 to 5"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_refused(damage: str, prefix: Path) -> None:
    change, says = DAMAGE[damage]
    path = prefix.with_name("corpus.idx")
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=says) as raised:
        IndexedDataset(prefix)
    assert raised.value.hint
    assert "corpus" in raised.value.message


@settings(deadline=None, max_examples=80)
@given(cut=st.integers(0, 125), name=st.sampled_from([".idx", ".bin"]))
def test_no_cut_file_is_taken_for_a_whole_one(cut: int, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        prefix = Path(folder) / "corpus"
        write_corpus(prefix, DOCUMENTS)
        path = prefix.with_name(f"corpus{name}")
        content = path.read_bytes()
        path.write_bytes(content[: cut % len(content)])
        with pytest.raises(DataError):
            IndexedDataset(prefix)


@pytest.mark.parametrize("size", [0, 13, 15])
def test_ids_that_do_not_fit_the_index_are_refused(size: int, prefix: Path) -> None:
    prefix.with_name("corpus.bin").write_bytes(b"\x01" * size)
    with pytest.raises(DataError, match=f"corpus.bin` has {size} bytes, its index says 14"):
        IndexedDataset(prefix)


@pytest.mark.parametrize(("missing", "other"), [(".bin", ".idx"), (".idx", ".bin")])
def test_half_of_a_dataset_is_none(missing: str, other: str, prefix: Path) -> None:
    prefix.with_name(f"corpus{missing}").unlink()
    with pytest.raises(
        DataError, match=rf"no indexed dataset `.*corpus`: `.*corpus\{missing}` does not exist"
    ) as raised:
        IndexedDataset(prefix)
    assert raised.value.hint == f"`corpus{other}` is there without it"


def test_an_absent_dataset_is_an_error_that_names_its_neighbours(prefix: Path) -> None:
    for wrong in (prefix.with_name("corpse"), prefix.parent):
        with pytest.raises(DataError, match="no indexed dataset") as raised:
            IndexedDataset(wrong)
        assert raised.value.hint == f"`{prefix.parent}` holds: `{prefix}`"
    with pytest.raises(DataError) as raised:
        IndexedDataset(prefix / "nowhere" / "corpus")
    assert "mpeval preprocess" in raised.value.hint


@pytest.mark.parametrize("ids", [[70000], [-1], [0.5], [2**40]])
def test_ids_that_do_not_fit_are_refused_and_nothing_is_left(ids: list[int], tmp_path: Path) -> None:
    def write() -> None:
        with IndexedWriter(tmp_path / "corpus", np.uint16) as writer:
            writer.add([1])
            writer.add(ids)

    with pytest.raises(OutputError, match="do not fit uint16"):
        write()
    assert os.listdir(tmp_path) == []


def test_a_document_that_is_not_ended_is_a_mistake_and_nothing_is_left(tmp_path: Path) -> None:
    def write() -> None:
        with IndexedWriter(tmp_path / "corpus", np.uint16) as writer:
            writer.add([1])

    with pytest.raises(AssertionError, match="not ended"):
        write()
    assert os.listdir(tmp_path) == []


def test_an_error_leaves_an_older_dataset_alone(prefix: Path) -> None:
    before = both(prefix)

    def write() -> None:
        with IndexedWriter(prefix, np.uint16) as writer:
            writer.add([9])
            raise KeyError

    with pytest.raises(KeyError):
        write()
    assert both(prefix) == before
    assert sorted(os.listdir(prefix.parent)) == ["corpus.bin", "corpus.idx"]


def test_an_open_dataset_outlives_its_replacement(prefix: Path) -> None:
    old = IndexedDataset(prefix)
    write_corpus(prefix, [[[9, 9]]])
    assert old[0].tolist() == [1, 2, 3]
    old.write(prefix)
    assert IndexedDataset(prefix)[0].tolist() == [1, 2, 3]


def test_the_index_appears_last(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        seen.append((target.name, prefix.with_name("corpus.idx").exists()))
        replace(source, target)

    monkeypatch.setattr(indexed.os, "replace", watched)
    write_corpus(prefix, [[[9]]])
    assert seen == [("corpus.bin", False), ("corpus.idx", False)]


def test_a_place_that_cannot_be_written_is_an_error(prefix: Path) -> None:
    file = prefix.with_name("corpus.bin")
    for work in (lambda: IndexedWriter(file / "x", np.uint16), lambda: IndexedDataset(prefix).write(file / "x")):
        with pytest.raises(OutputError, match="cannot write") as raised:
            work()
        assert isinstance(raised.value, MpevalError)
