"""Text is divided at the ends of sentences, as the library finds them, and nothing of it is lost."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import PASSAGES
from sentencex import segment

from mpeval.corpus import sentences as module
from mpeval.corpus.sentences import sentences

ALPHABET = "ab Dr.!?\"'()\n1,;"


def test_sentences_end_where_a_reader_ends_them() -> None:
    text = 'Mr. Smith paid $3.50 at 5 p.m. on Monday. "Stop!" she said. Why?  He left.\nNobody\nknows'
    assert sentences(text) == [
        "Mr. Smith paid $3.50 at 5 p.m. on Monday.",
        '"Stop!" she said.',
        "Why?",
        "He left.",
        "Nobody\nknows",
    ]


def test_blank_lines_end_a_sentence() -> None:
    assert sentences("A title\n\nA text\n of two lines\n \t\n\n  Another. ") == [
        "A title",
        "A text\n of two lines",
        "Another.",
    ]


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\t\n \n"])
def test_no_text_has_no_sentences(text: str) -> None:
    assert sentences(text) == []


@given(text=st.text(alphabet=ALPHABET, max_size=300) | st.text(max_size=100), window=st.integers(1, 50))
def test_nothing_is_lost(text: str, window: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WINDOW", window)
        patch.setattr(module, "LONGEST", 4 * window)
        found = sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() != "" for sentence in found)


@given(parts=st.lists(st.text(alphabet=ALPHABET.replace("\n", ""), min_size=1, max_size=60), max_size=5))
def test_short_texts_are_divided_as_the_library_does(parts: list[str]) -> None:
    text = "\n\n".join(parts)
    assert sentences(text) == [piece.strip() for piece in segment("en", text) if piece.strip()]


def test_long_texts_are_divided_like_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"{passage} end." for passage in PASSAGES)
    whole = sentences(text)
    assert whole == [piece.strip() for piece in segment("en", text)]
    monkeypatch.setattr(module, "WINDOW", 200)
    assert sentences(text) == whole


def test_time_grows_with_the_length_not_its_square() -> None:
    text = " ".join(f"{passage} end." for passage in PASSAGES * 60)
    began = time.process_time()
    assert len(sentences(text * 10)) >= 60 * len(PASSAGES) * 10
    assert time.process_time() - began < 5  # 0.1 s; minutes if all of it were looked at together
