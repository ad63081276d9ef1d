"""BERT's vocabulary files give the ids of BERT's own tokenizers, lowered or not as they should be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from texts import WORDPIECES, write_wordpiece

from mpeval.errors import TokenizerError
from mpeval.tokenizer import Tokenizer, find_tokenizer


def pieces_of(tokenizer: Tokenizer, text: str) -> list[str]:
    pieces = tokenizer.pieces()
    return [pieces[token] for token in tokenizer.encode(text)]


def test_a_vocabulary_is_found_by_its_folder_or_itself(tmp_path: Path) -> None:
    folder = write_wordpiece(tmp_path / "bert")
    for given in (folder, folder / "vocab.txt"):
        assert find_tokenizer(given, []).size == len(WORDPIECES)
    assert find_tokenizer(None, [tmp_path, folder]).path == folder


def test_words_fall_into_pieces(tmp_path: Path) -> None:
    made = find_tokenizer(write_wordpiece(tmp_path), [])
    assert pieces_of(made, "The sailor, ringed!") == ["the", "sailor", ",", "r", "##ing", "##ed", "!"]
    assert pieces_of(made, "café 日本 Ω") == ["c", "##a", "##f", "##e", "日", "[UNK]", "[UNK]"]
    assert made.decode(made.encode("The sailor ringed")) == "the sailor ringed"


def test_special_tokens_have_ids_but_texts_do_not_make_them(tmp_path: Path) -> None:
    made = find_tokenizer(write_wordpiece(tmp_path), [])
    assert [made.special_id(token) for token in WORDPIECES[:5]] == [0, 1, 2, 3, 4]
    assert not {0, 2, 3, 4} & set(made.encode("[CLS] [MASK] [SEP] [PAD]"))
    with pytest.raises(TokenizerError, match=r"has no `<\|endoftext\|>` token") as raised:
        made.special_id("<|endoftext|>")
    assert raised.value.hint


def test_pieces_are_in_the_order_of_ids(tmp_path: Path) -> None:
    made = find_tokenizer(write_wordpiece(tmp_path), [])
    assert made.pieces() == list(WORDPIECES)
    assert [made.special_id(piece) for piece in made.pieces()] == list(range(made.size))


@pytest.mark.parametrize(
    ("added", "settings", "lowered"),
    [
        ([], None, True),
        (["ℝ", "[unused1]", "[Entity]"], None, True),  # `ℝ` counts as a capital that lowering leaves alone
        (["River"], None, False),
        (["##S"], None, False),
        (["River"], {"do_lower_case": True}, True),
        ([], {"do_lower_case": False}, False),
        ([], {"unk_token": "[UNK]"}, True),
    ],
)
def test_letters_are_lowered_unless_the_vocabulary_has_capitals(
    added: list[str], settings: dict[str, object] | None, lowered: bool, tmp_path: Path
) -> None:
    write_wordpiece(tmp_path, [*WORDPIECES, *added])
    if settings is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    made = find_tokenizer(tmp_path, [])
    assert (made.encode("RIVER") == made.encode("river")) == lowered
    assert (made.encode("é") == made.encode("e")) == lowered


def test_other_settings_beside_the_vocabulary_hold(tmp_path: Path) -> None:
    write_wordpiece(tmp_path)
    plain = find_tokenizer(tmp_path, [])
    (tmp_path / "tokenizer_config.json").write_text('{"strip_accents": false, "tokenize_chinese_chars": false}')
    made = find_tokenizer(tmp_path, [])
    assert pieces_of(plain, "é 日日") == ["e", "日", "日"]
    assert pieces_of(made, "é 日日") == ["[UNK]", "[UNK]"]
    assert made.digest != plain.digest


def test_only_line_ends_divide_the_vocabulary(tmp_path: Path) -> None:
    folder = write_wordpiece(tmp_path, [*WORDPIECES, "\u2028", "\x85", "last"])
    assert find_tokenizer(folder, []).pieces()[-3:] == ["\u2028", "\x85", "last"]
    (folder / "vocab.txt").write_bytes("\r\n".join(WORDPIECES).encode())
    assert find_tokenizer(folder, []).pieces() == list(WORDPIECES)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", r"has no `\[UNK\]` token"),
        ("the\nriver\n", r"has no `\[UNK\]` token"),
        (b"\xff\xfe[UNK]\n", "cannot be read"),
    ],
)
def test_a_broken_vocabulary_is_an_error_that_names_it(content: str | bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TokenizerError, match=rf"vocab.txt` {says}") as raised:
        find_tokenizer(tmp_path, [])
    assert raised.value.hint


@pytest.mark.parametrize("content", ["", "[]", "{", '{"do_lower_case": "yes"}'])
def test_broken_settings_are_an_error(content: str, tmp_path: Path) -> None:
    write_wordpiece(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(TokenizerError, match="cannot be read"):
        find_tokenizer(tmp_path, [])


def test_files_that_ask_for_cut_or_filled_texts_are_not_obeyed(tmp_path: Path) -> None:
    made = find_tokenizer(write_wordpiece(tmp_path / "plain"), [])
    made.backend.enable_truncation(4)
    made.backend.enable_padding(length=8)
    (tmp_path / "tokenizer.json").write_text(made.backend.to_str())
    again = find_tokenizer(tmp_path, [])
    assert len(again.encode("a b c d e f")) == 6
    assert again.encode_batch(["a", "a b c d e f"]) == [again.encode("a"), again.encode("a b c d e f")]
