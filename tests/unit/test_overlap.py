"""Word hashes and n-gram overlap, against regular expressions and Python's own sets."""

from __future__ import annotations

import dataclasses
import random
import re
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpeval.corpus import words
from mpeval.corpus.overlap import Overlap, articles, mark_texts, overlap_of, table_of
from mpeval.corpus.words import BREAK, ngram_hashes, whole_ngrams, word_hashes
from mpeval.data import Data
from mpeval.errors import DataError
from mpeval.tasks.cards import load_card
from mpeval.tasks.perplexity import detokenize

Gram = tuple[str, ...]


def split(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def grams(text: str, length: int) -> list[Gram]:
    """List the n-grams of a text by Python alone; none crosses `<unk>`."""
    found = []
    for part in text.split("<unk>"):
        parts = split(part)
        found += [tuple(parts[start : start + length]) for start in range(len(parts) - length + 1)]
    return found


def measure(rows: Sequence[str], corpus: Sequence[str], length: int, task: str = "lambada") -> Overlap:
    table = table_of(load_card(task), Data(rows=tuple(rows), source="rows", digest="sha256:0"), length)
    mark_texts([table], corpus)
    return overlap_of(table)


texts = st.text(
    st.one_of(st.sampled_from("ab cB,.'-_\n\u2019\u00c9\u00e92\u00bd\u4e2d\U0001d54f\ud800"), st.characters()),
    max_size=60,
)


@given(texts)
@settings(max_examples=300, deadline=None)
def test_words_are_those_of_a_regular_expression(text: str) -> None:
    text = text.replace(BREAK, "")
    found = word_hashes(text)
    wanted = split(text)
    assert len(found) == len(wanted)
    assert found.dtype == np.uint64
    assert len({*found.tolist()}) == len({*wanted})
    again = dict(zip(wanted, found.tolist(), strict=True))
    assert [again[word] for word in wanted] == found.tolist()
    assert all(value > 0 for value in again.values())


def test_every_character_is_in_a_word_or_between_words_as_the_regular_expression_says() -> None:
    every = [chr(code) for code in range(1, sys.maxunicode + 1) if len(chr(code).lower()) == 1]
    inside = re.compile(r"[^\W_]")
    wanted = np.array([inside.match(character.lower()) is not None for character in every])
    found = word_hashes(f"{BREAK}".join(every))
    counts = np.diff(np.flatnonzero(np.concatenate(([True], found == 0, [True])))) - 1
    assert np.array_equal(counts > 0, wanted)


def test_a_text_longer_than_a_piece_is_cut_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"word{number} caf\u00e9{number % 7}" for number in range(200))
    whole = word_hashes(text)
    for piece in (1, 2, 7, 50):
        monkeypatch.setattr(words, "_PIECE", piece)
        assert np.array_equal(word_hashes(text), whole)


@pytest.mark.parametrize("length", [1, 2, 3, 8])
def test_ngrams_do_not_cross_a_break(length: int) -> None:
    dice = random.Random(length)
    parts = [[dice.choice("abcdef") for _ in range(dice.randrange(12))] for _ in range(40)]
    hashes = word_hashes(BREAK.join(" ".join(part) for part in parts))
    found = ngram_hashes(hashes, length)
    wanted = [tuple(part[start : start + length]) for part in parts for start in range(len(part) - length + 1)]
    assert len(found) == len(wanted) == np.count_nonzero(whole_ngrams(hashes, length))
    alike: dict[Gram, int] = dict(zip(wanted, found.tolist(), strict=True))
    assert [alike[gram] for gram in wanted] == found.tolist()
    assert len({*found.tolist()}) == len({*wanted})


def test_order_counts_in_an_ngram() -> None:
    found = ngram_hashes(word_hashes("a b c a b c b a"), 3)
    assert len(np.unique(found)) == 5
    assert found[0] == found[3]


def test_the_number_of_words_may_be_below_the_length() -> None:
    assert len(ngram_hashes(word_hashes("a b"), 3)) == 0
    assert len(ngram_hashes(word_hashes(""), 3)) == 0
    assert len(whole_ngrams(word_hashes("a b"), 3)) == 0
    assert len(word_hashes("")) == 0


def make_texts(seed: int, count: int, length: int) -> list[str]:
    dice = random.Random(seed)
    vocabulary = [*"abcdefgh", "<unk>", "The", "it's"]
    return [" ".join(dice.choice(vocabulary) for _ in range(dice.randrange(length))) for _ in range(count)]


@pytest.mark.parametrize("length", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_the_overlap_is_that_of_python_sets(seed: int, length: int) -> None:
    rows, corpus = make_texts(seed, 40, 30), make_texts(seed + 100, 60, 25)
    have = {gram for text in corpus for gram in grams(text, length)}
    want = [grams(row, length) for row in rows]
    found = measure(rows, corpus, length)
    flat = [gram for row in want for gram in row]
    assert (found.ngrams, found.found) == (len(flat), sum(gram in have for gram in flat))
    assert (found.distinct, found.distinct_found) == (len({*flat}), len({*flat} & have))
    assert found.share == found.found / found.ngrams
    assert {row.row: (row.ngrams, row.found) for row in found.rows_found} == {
        number: (len(row), sum(gram in have for gram in row))
        for number, row in enumerate(want, start=1)
        if any(gram in have for gram in row)
    }
    assert found.found > 0


@pytest.mark.parametrize("seed", range(3))
def test_passages_are_the_longest_runs_of_found_ngrams(seed: int) -> None:
    rows, corpus, length = make_texts(seed, 20, 40), make_texts(seed + 50, 5, 30), 3
    have = {gram for text in corpus for gram in grams(text, length)}
    for row in measure(rows, corpus, length).rows_found:
        for passage in row.passages:
            inside = grams(passage, length)
            assert inside
            assert all(gram in have for gram in inside)
        covered = [gram for passage in row.passages for gram in grams(passage, length)]
        assert covered == [gram for gram in grams(rows[row.row - 1], length) if gram in have]
        assert len(covered) == row.found


def test_the_worst_rows_come_first() -> None:
    rows = ["a b c x y z", "a b c d", "p q r s", "a b c d e"]
    found = measure(rows, ["a b c d e"], 3)
    assert [(row.row, row.found, row.ngrams) for row in found.worst(5)] == [(4, 3, 3), (2, 2, 2), (1, 1, 4)]
    assert found.worst(1)[0].passages == ("a b c d e",)
    assert (found.rows, len(found.rows_found)) == (4, 3)


def test_no_ngram_crosses_from_one_text_of_the_corpus_to_the_next() -> None:
    assert measure(["a b c d"], ["a b", "c d"], 4).found == 0
    assert measure(["a b c d"], ["a b c d"], 4).found == 1


def test_ngrams_with_an_unknown_word_are_left_out() -> None:
    found = measure(["a b <unk> c d e"], ["a b <unk> c d e", "a b c d"], 2)
    assert (found.ngrams, found.found, found.left_out) == (3, 3, 2)


def test_wikitexts_marks_do_not_matter() -> None:
    stored = ' \n = Title = \n \n It \'s a state @-@ of @-@ the @-@ art 1 @,@ 000.5 " car " ( sold for $ 1 @.@ 5 ) . \n'
    plain = 'Title. It\'s a state-of-the-art 1,000.5 "car" (sold for $1.5).'
    assert np.array_equal(word_hashes(stored), word_hashes(plain))
    assert np.array_equal(word_hashes(detokenize(stored)), word_hashes(plain))


def test_articles_begin_at_headings_of_the_first_level() -> None:
    first = " \n = One = \n \n Text , where r = 1 m \n = 2 and C = \n more \n = = Part = = \n \n Text \n \n"
    second = " = Two , 2 = \n \n Text \n"
    assert articles(first + second) == [first[2:], second]
    assert articles("no heading at all") == ["no heading at all"]
    assert measure([first + second], ["Two 2 text"], 3, task="wikitext103").rows == 2


def test_a_benchmark_without_one_long_row_is_refused() -> None:
    with pytest.raises(DataError, match="no row of `rows` has 8 known words in a row"):
        measure(["a b c", "d e"], ["a b c"], 8)


def test_tables_of_different_lengths_are_marked_in_one_pass() -> None:
    card, data = load_card("lambada"), Data(rows=("a b c d",), source="rows", digest="")
    tables = [table_of(card, data, length) for length in (2, 3, 4)]
    read = mark_texts(tables, ["a b c", "c d", "x"])
    assert read == (3, 6)
    assert [overlap_of(table).found for table in tables] == [3, 1, 0]


def test_the_facts_of_the_data_are_kept() -> None:
    data = Data(rows=("a b c",), source="a file", digest="sha256:1", flags=("modified-data",))
    found = overlap_of(table_of(load_card("lambada"), data, 2))
    assert (found.task, found.source, found.digest, found.flags) == (
        "lambada",
        "a file",
        "sha256:1",
        ("modified-data",),
    )
    assert dataclasses.asdict(found)["length"] == 2
