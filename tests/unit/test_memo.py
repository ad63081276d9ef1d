"""Looking up pieces of text that were tokenized before gives exactly the ids of the text, where it is known to."""

from __future__ import annotations

import functools
import json
from array import array
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import tokenizer_json
from texts import TEXTS, WORDPIECES, write_wordpiece
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from mpeval.corpus import memo
from mpeval.corpus.memo import Memo, cut_for
from mpeval.tokenizer import find_tokenizer

TRICKY = (
    "ab'stdrevml1²٣,.-—“’éèñ日本\u0301\u200d\U0001f600 \t\n\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2003\u2028\u2029"
    "\u202f\u3000\ufeff\ufffd\x00\x7f"
)


@functools.cache
def bpe() -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json())


@functools.cache
def wordpiece(lowercase: bool = True) -> Tokenizer:
    made = Tokenizer(models.WordPiece({piece: id for id, piece in enumerate(WORDPIECES)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


def by_memo(backend: Tokenizer, text: str, known: Memo | None = None) -> list[int]:
    cut = cut_for(backend)
    assert cut is not None
    pieces = cut.of(text)
    assert pieces is not None
    found = b"".join(map((Memo(backend, "i") if known is None else known).__getitem__, pieces))
    return array("i", found).tolist()


@pytest.mark.parametrize("backend", [bpe(), wordpiece(), wordpiece(False)], ids=["bpe", "wordpiece", "cased"])
@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_library(text: str, backend: Tokenizer) -> None:
    assert by_memo(backend, text) == backend.encode(text).ids


@given(text=st.text(alphabet=TRICKY, max_size=40) | st.text(max_size=40))
def test_any_text_has_the_ids_of_the_library(text: str) -> None:
    for backend in (bpe(), wordpiece(), wordpiece(False)):
        assert by_memo(backend, text) == backend.encode(text).ids


def test_every_kind_of_white_space_is_cut_as_the_library_does() -> None:
    for code in [*range(0x300), *range(0x1680, 0x1690), *range(0x180B, 0x1810), *range(0x2000, 0x2070), 0x3000, 0xFEFF]:
        mark = chr(code)
        text = f"a {mark} b{mark}{mark}c  {mark}d {mark}"
        for backend in (bpe(), wordpiece(), wordpiece(False)):
            assert by_memo(backend, text) == backend.encode(text).ids, hex(code)


def test_words_are_asked_for_once_and_long_ones_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Memo(bpe(), "i")
    long = "x" * 41
    assert by_memo(bpe(), f"river river {long}", known) == bpe().encode(f"river river {long}").ids
    assert set(known) == {"river", " river"}
    monkeypatch.setattr(memo, "WORDS", 3)
    text = "one two three four five two"
    assert by_memo(bpe(), text, known) == bpe().encode(text).ids
    assert len(known) <= 3


def changed(change: Callable[[dict[str, Any]], Any], backend: Tokenizer) -> Tokenizer:
    content = json.loads(backend.to_str())
    change(content)
    return Tokenizer.from_str(json.dumps(content))


SPLIT = {"type": "Split", "pattern": {"Regex": r"\s*[\r\n]+|\s+"}, "behavior": "Isolated", "invert": False}
OTHER: dict[str, Tokenizer] = {
    "a space before": changed(lambda made: made["pre_tokenizer"].update(add_prefix_space=True), bpe()),
    "no expression": changed(lambda made: made["pre_tokenizer"].update(use_regex=False), bpe()),
    "a normalizer": changed(lambda made: made.update(normalizer={"type": "NFC"}), bpe()),
    "dropout": changed(lambda made: made["model"].update(dropout=0.5), bpe()),
    "another expression": changed(
        lambda made: made.update(
            pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT, made["pre_tokenizer"] | {"use_regex": False}]}
        ),
        bpe(),
    ),
    "no cutting": changed(lambda made: made.update(pre_tokenizer=None), bpe()),
    "another cutting": changed(lambda made: made.update(pre_tokenizer={"type": "Whitespace"}), wordpiece()),
    "no lowering": changed(lambda made: made.update(normalizer=None), wordpiece()),
    "another model": Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
    "a normalized token": wordpiece(),
}
OTHER["a normalized token"] = Tokenizer.from_str(wordpiece().to_str())
OTHER["a normalized token"].add_tokens([AddedToken("the river", normalized=True)])


@pytest.mark.parametrize("kind", OTHER)
def test_other_tokenizers_are_left_to_the_library(kind: str) -> None:
    assert cut_for(OTHER[kind]) is None


def test_added_tokens_are_seen() -> None:
    cuts = cut_for(bpe()), cut_for(wordpiece())
    assert cuts[0] is not None
    assert cuts[1] is not None
    assert cuts[0].of("a <|endoftext|> b") is None
    assert cuts[0].of("a <|endoftex|> b") == ["a", " <|endoftex|>", " b"]
    assert cuts[1].of("a [MASK] b") == ["a", "[MASK]", "b"]


def test_the_vocabulary_file_of_a_bert_is_of_a_known_kind(tmp_path: Any) -> None:
    made = find_tokenizer(write_wordpiece(tmp_path), [])
    cut = cut_for(made.backend)
    assert cut is not None
    assert cut.pieces is memo.BERT
    assert by_memo(made.backend, TEXTS[0]) == made.encode(TEXTS[0])
