"""Indexed datasets that Megatron wrote are read and written again to the byte, and Megatron-core reads ours.

The second half needs the extra `megatron` (megatron-core) and is skipped without it.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from corpora import random_documents, write_corpus

from mpeval.corpus.encoding import Settings
from mpeval.corpus.indexed import DTYPES, IndexedDataset, IndexedWriter, dtype_for
from mpeval.corpus.preprocess import Options, preprocess
from mpeval.tokenizer import Tokenizer, find_tokenizer

needs_megatron = [
    pytest.mark.skipif(
        importlib.util.find_spec("megatron") is None,
        reason="install the extra `megatron`: pip install -e '.[megatron]'",
    ),
    pytest.mark.filterwarnings("ignore"),
]
OPENWEBTEXT = "meg-gpt2-openwebtext_text_document"
PREFIXES = {OPENWEBTEXT: (1000, 1_361_845, "uint16"), "ag_news_prompt_targets_document": (100, 244, "int32")}


def with_megatron(test: Any) -> Any:
    """Mark a test that needs Megatron-core."""
    for mark in needs_megatron:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def fixtures(shared_data: Path) -> Path:
    return shared_data / "megatron-indexed"


@pytest.fixture
def tokenizer(fixtures: Path, tmp_path: Path) -> Tokenizer:
    """Return the tokenizer that the OpenWebText documents were made with."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    shutil.copy(fixtures / "gpt2-tiny-vocab.json", folder / "vocab.json")
    shutil.copy(fixtures / "gpt2-tiny-merges.txt", folder / "merges.txt")
    return find_tokenizer(folder, [])


def flat(lists: Iterable[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))


def same_files(first: Path, second: Path) -> bool:
    return all(
        first.with_name(first.name + end).read_bytes() == second.with_name(second.name + end).read_bytes()
        for end in (".bin", ".idx")
    )


@pytest.mark.parametrize("name", PREFIXES)
def test_megatrons_files_are_read_and_written_again_to_the_byte(name: str, fixtures: Path, tmp_path: Path) -> None:
    dataset = IndexedDataset(fixtures / name)
    assert (len(dataset), dataset.tokens, str(dataset.dtype)) == PREFIXES[name]
    assert dataset.documents.tolist() == list(range(len(dataset) + 1))
    dataset.write(tmp_path / "again")
    assert same_files(tmp_path / "again", fixtures / name)
    with IndexedWriter(tmp_path / "anew", dataset.dtype) as writer:
        for sequence in dataset[:]:
            writer.add(sequence.tolist())
            writer.end_document()
    assert same_files(tmp_path / "anew", fixtures / name)


def test_the_first_document_of_openwebtext_can_be_read(fixtures: Path, tokenizer: Tokenizer) -> None:
    *ids, last = IndexedDataset(fixtures / OPENWEBTEXT)[0].tolist()
    text = tokenizer.decode(ids)
    assert text.startswith("A magazine supplement with an image of Adolf Hitler and the title 'The Unreadable Book'")
    assert text.endswith("But for the moment, I am glad it is not.”")
    assert last == tokenizer.end_of_text == 4999


def test_megatrons_ids_are_made_again_from_the_text(fixtures: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    theirs = IndexedDataset(fixtures / OPENWEBTEXT)
    texts = [tokenizer.decode(sequence[:-1].tolist()) for sequence in theirs[:]]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    settings = Settings(tokenizer=tokenizer.path, append_eod=True)
    preprocess(Options(inputs=(str(tmp_path / "text.jsonl"),), output=tmp_path / "ours", settings=settings, workers=1))
    assert same_files(tmp_path / "ours", fixtures / OPENWEBTEXT)


@with_megatron
@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_megatron_reads_what_is_written_here(dtype: str, tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset as Theirs

    documents = random_documents(20, (1, 4), (1, 30))
    with IndexedWriter(tmp_path / "ours", dtype) as writer:
        for document in documents:
            for sequence in document:
                writer.add(sequence)
            writer.end_document()
    theirs, ours = Theirs(str(tmp_path / "ours")), IndexedDataset(tmp_path / "ours")
    assert len(theirs) == len(ours)
    assert [theirs[index].tolist() for index in range(len(theirs))] == flat(documents)
    np.testing.assert_array_equal(theirs.document_indices, ours.documents)
    np.testing.assert_array_equal(theirs.sequence_lengths, ours.lengths)
    assert theirs.get(3, 1).tolist() == ours.get(3, 1).tolist()
    assert theirs.index.dtype == ours.dtype


@with_megatron
@pytest.mark.parametrize("multimodal", [False, True])
@pytest.mark.parametrize("dtype", sorted(DTYPES.values()))
def test_megatrons_builder_writes_the_same_bytes(dtype: str, multimodal: bool, tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    documents = [[[7, 5, 9], [1]], [[2]], [[3, 3], [4, 100, 6]]]
    known = np.dtype(dtype)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=known.type, multimodal=multimodal)
    for document in documents:
        builder.add_document(
            torch.tensor(flat(document)), [len(sequence) for sequence in document], [1] * len(document)
        )
    builder.finalize(str(tmp_path / "theirs.idx"))
    theirs = IndexedDataset(tmp_path / "theirs")
    assert [sequence.tolist() for sequence in theirs[:]] == flat(documents)
    assert (theirs.modes is not None and theirs.modes.tolist() == [1] * 5) == multimodal
    theirs.write(tmp_path / "again")
    assert same_files(tmp_path / "again", tmp_path / "theirs")
    if not multimodal:
        with IndexedWriter(tmp_path / "ours", known) as writer:
            for document in documents:
                for sequence in document:
                    writer.add(sequence)
                writer.end_document()
        assert same_files(tmp_path / "ours", tmp_path / "theirs")


@with_megatron
def test_ids_are_as_wide_as_megatrons() -> None:
    from megatron.core.datasets.indexed_dataset import DType

    for vocab in (1, 5000, 50257, 65499, 65500, 250_880):
        assert dtype_for(vocab) == DType.optimal_dtype(vocab)


@with_megatron
def test_megatron_merges_corpora_written_here(tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    documents = random_documents(6, (1, 3), (1, 9))
    for name, part in (("a", documents[:4]), ("b", documents[4:]), ("both", documents)):
        write_corpus(tmp_path / name, part)
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for name in ("a", "b"):
        builder.add_index(str(tmp_path / name))
    builder.finalize(str(tmp_path / "theirs.idx"))
    assert same_files(tmp_path / "theirs", tmp_path / "both")
