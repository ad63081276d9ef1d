"""The overlap of the published benchmarks with real text, against scikit-learn's n-grams and Python's sets."""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer

from mpeval.corpus.overlap import Overlap, articles, mark_texts, overlap_of, table_of
from mpeval.corpus.words import word_hashes
from mpeval.data import load_data
from mpeval.tasks.cards import load_card
from mpeval.tasks.perplexity import detokenize

WORD = r"[^\W_]+"


def measure(folder: Path, task: str, corpus: list[str], length: int = 8) -> Overlap:
    card = load_card(task)
    table = table_of(card, load_data(card, folder), length)
    mark_texts([table], corpus)
    return overlap_of(table)


def wikitext2(folder: Path) -> list[str]:
    with lzma.open(folder / "wikitext-2" / "wiki.train.tokens.xz", "rt", encoding="utf-8") as file:
        return articles(file.read())


def race(folder: Path) -> list[str]:
    paths = sorted((folder / "race" / "RACE" / "test").glob("*/*.txt"))
    return [json.loads(path.read_text(encoding="utf-8"))["article"] for path in paths]


def grams(text: str, length: int) -> Iterator[tuple[str, ...]]:
    """Yield the n-grams of a text by Python alone; none crosses `<unk>`."""
    for part in text.lower().split("<unk>"):
        words = re.findall(WORD, part)
        yield from zip(*(words[start:] for start in range(length)), strict=False)


def test_lambada_against_scikit_learn(shared_data: Path) -> None:
    """Counting 4-grams, for more of them to be found; LAMBADA has no `<unk>`."""
    corpus = race(shared_data)
    card = load_card("lambada")
    rows = load_data(card, shared_data).rows[:1500]
    vectorizer = CountVectorizer(ngram_range=(4, 4), token_pattern=WORD)
    counted = vectorizer.fit_transform(rows)
    there = np.asarray(vectorizer.transform(corpus).sum(axis=0)).ravel() > 0
    table = table_of(card, load_data(card, shared_data), 4)
    mark_texts([table], corpus)
    found = overlap_of(table)
    assert sum(len(row) for row in table.hashes[:1500]) == counted.sum()
    assert len(np.unique(np.concatenate(table.hashes[:1500]))) == counted.shape[1]
    by_row = {row.row: row.found for row in found.rows_found if row.row <= 1500}
    wanted = np.asarray(counted[:, there].sum(axis=1)).ravel()
    assert by_row == {number: int(count) for number, count in enumerate(wanted, start=1) if count}
    assert sum(by_row.values()) > 3000


def test_wikitext_103_against_the_training_text_of_wikitext_2(shared_data: Path) -> None:
    """The two test sets are the same articles, so this is the overlap of a test set with its own training set."""
    corpus = wikitext2(shared_data)
    assert len(corpus) == 600
    found = measure(shared_data, "wikitext103", corpus)
    rows = articles(load_data(load_card("wikitext103"), shared_data).text)
    want = [gram for row in rows for gram in grams(row, 8)]
    distinct = {*want}
    have = {gram for text in corpus for gram in grams(text, 8) if gram in distinct}
    assert (found.ngrams, found.distinct) == (len(want), len(distinct))
    assert (found.found, found.distinct_found) == (sum(gram in have for gram in want), len(have))
    assert 0.0005 < found.share < 0.005
    assert found.rows == 60


@pytest.mark.parametrize("task", ["wikitext103", "lambada"])
def test_a_benchmark_overlaps_itself_wholly(shared_data: Path, task: str) -> None:
    card = load_card(task)
    data = load_data(card, shared_data)
    found = measure(shared_data, task, articles(data.text) if card.format == "text" else list(data.rows))
    assert found.share == found.distinct_share == 1
    assert len(found.rows_found) == found.rows == (60 if task == "wikitext103" else 5153)


def test_the_plain_text_of_lambada_has_the_same_ngrams_but_for_its_tokenization(shared_data: Path) -> None:
    """The original, word-level files of the same passages differ in apostrophes split off and in spelling of quotes."""
    text = (shared_data / "lambada" / "lambada_test_plain_text.txt").read_text(encoding="utf-8")
    found = measure(shared_data, "lambada", text.splitlines())
    assert 0.9 < found.share < 0.95


def test_undoing_wikitexts_tokenization_changes_no_word(shared_data: Path) -> None:
    """But for Megatron-LM's rule that a lone `N` is a 1."""
    text = load_data(load_card("wikitext103"), shared_data).text
    assert np.array_equal(word_hashes(detokenize(text.replace(" N ", " 1 "))), word_hashes(text.replace(" N ", " 1 ")))
