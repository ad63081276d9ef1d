"""Tokenizers are found under each of their names, agree with the `tokenizers` library, and must fit the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import ROWS, VOCAB, tokenizer_json
from tokenizers import Tokenizer as Backend

from mpeval.errors import TokenizerError
from mpeval.tokenizer import FILES, Tokenizer, check_fits, find_tokenizer

TEXTS = (*ROWS, "", " ", "a\nb\n\n c", "  two  spaces ", "naïve café \U0001f600", "<|endoftext|>", "don't 123,456.78")


def write_tokenizer(folder: Path, names: tuple[str, ...] = ("tokenizer.json",), vocab: int = VOCAB) -> Path:
    """Write the test tokenizer under one of the sets of names a GPT-2 tokenizer comes under."""
    folder.mkdir(parents=True, exist_ok=True)
    content = json.loads(tokenizer_json(vocab))
    if len(names) == 1:
        (folder / names[0]).write_text(json.dumps(content))
        return folder
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in content["model"]["merges"]]
    (folder / names[0]).write_text(json.dumps(content["model"]["vocab"]))
    (folder / names[1]).write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return find_tokenizer(write_tokenizer(tmp_path_factory.mktemp("made")), [])


@pytest.fixture(scope="module")
def backend() -> Backend:
    return Backend.from_str(tokenizer_json())


@pytest.mark.parametrize("names", FILES, ids="+".join)
def test_a_tokenizer_is_found_under_each_of_its_names(names: tuple[str, ...], tmp_path: Path, backend: Backend) -> None:
    found = find_tokenizer(None, [tmp_path / "absent", write_tokenizer(tmp_path / "here", names)])
    assert found.path == tmp_path / "here"
    assert found.size == VOCAB
    for text in ROWS:
        assert found.encode(text) == backend.encode(text).ids
        assert found.decode(found.encode(text)) == text


@pytest.mark.parametrize("names", FILES, ids="+".join)
def test_the_end_of_text_is_one_token_in_every_form(names: tuple[str, ...], tmp_path: Path) -> None:
    assert find_tokenizer(write_tokenizer(tmp_path, names), []).end_of_text == 0


def test_the_file_itself_may_be_given(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    assert find_tokenizer(tmp_path / "tokenizer.json", []).size == VOCAB


def test_the_first_folder_that_has_one_wins(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "a", vocab=390)
    write_tokenizer(tmp_path / "b")
    assert find_tokenizer(None, [tmp_path / "none", tmp_path / "a", tmp_path / "b"]).size == 390
    assert find_tokenizer(None, [tmp_path / "b", tmp_path / "a"]).size == VOCAB


def test_a_given_folder_is_the_only_one_looked_at(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "beside")
    (tmp_path / "given").mkdir()
    with pytest.raises(TokenizerError, match="no tokenizer in"):
        find_tokenizer(tmp_path / "given", [tmp_path / "beside"])


@pytest.mark.parametrize("names", FILES[1:], ids="+".join)
def test_half_of_a_pair_of_files_is_none(names: tuple[str, ...], tmp_path: Path) -> None:
    write_tokenizer(tmp_path, names)
    (tmp_path / names[1]).unlink()
    with pytest.raises(TokenizerError, match="no tokenizer in"):
        find_tokenizer(None, [tmp_path])


@pytest.mark.parametrize("content", ["", "{}", '{"model": null}', "[]", "\x00", '{"version": "1.0"}'])
def test_a_broken_file_is_an_error_that_names_it(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json` cannot be read") as raised:
        find_tokenizer(tmp_path, [])
    assert raised.value.hint
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("spoilt", ["vocab.json", "merges.txt"])
def test_a_broken_pair_is_an_error_that_names_both(spoilt: str, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, ("vocab.json", "merges.txt"))
    (tmp_path / spoilt).write_text("broken in a way that no reader of either file takes for one")
    with pytest.raises(TokenizerError, match=r"vocab\.json`, `.*merges\.txt` cannot be read"):
        find_tokenizer(tmp_path, [])


def test_the_digest_is_that_of_the_files(tmp_path: Path) -> None:
    first = find_tokenizer(write_tokenizer(tmp_path / "a"), []).digest
    assert find_tokenizer(write_tokenizer(tmp_path / "b"), []).digest == first
    assert find_tokenizer(write_tokenizer(tmp_path / "c", vocab=390), []).digest != first
    assert first.startswith("sha256:")
    assert len(first) == len("sha256:") + 64


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_encoded_as_the_library_does(text: str, made: Tokenizer, backend: Backend) -> None:
    assert made.encode(text) == backend.encode(text).ids
    assert made.encode_with_offsets(text)[0] == made.encode(text)
    assert made.decode(made.encode(text)) == text


def test_many_texts_are_encoded_like_each(made: Tokenizer) -> None:
    assert made.encode_batch(TEXTS) == [made.encode(text) for text in TEXTS]
    assert made.encode_batch([]) == []


@given(text=st.text(max_size=60))
def test_any_text_survives_a_round_trip(text: str) -> None:
    made = loaded()
    assert made.decode(made.encode(text)) == text


@given(text=st.text(alphabet="ab \n.é\U0001f600", min_size=1, max_size=40))
def test_offsets_are_the_characters_at_which_tokens_begin(text: str) -> None:
    ids, starts = loaded().encode_with_offsets(text)
    assert len(ids) == len(starts)
    assert starts == sorted(starts)
    assert all(0 <= start < len(text) for start in starts)
    assert starts[0] == 0


def loaded() -> Tokenizer:
    """Return the test tokenizer without any file, for tests that hypothesis repeats."""
    return Tokenizer(path=Path("made"), backend=Backend.from_str(tokenizer_json()), size=VOCAB, digest="")


def test_ids_of_padding_rows_are_shown_as_such(made: Tokenizer) -> None:
    assert made.decode([*made.encode(" river"), VOCAB, VOCAB + 7]) == " river<pad-row><pad-row>"


def test_a_tokenizer_without_an_end_of_text_says_so() -> None:
    content = json.loads(tokenizer_json())
    content["added_tokens"] = []
    content["model"]["vocab"] = {
        ("other" if token == "<|endoftext|>" else token): number for token, number in content["model"]["vocab"].items()
    }
    made = Tokenizer(path=Path("made"), backend=Backend.from_str(json.dumps(content)), size=VOCAB, digest="")
    with pytest.raises(TokenizerError, match=r"`made` has no `<\|endoftext\|>` token") as raised:
        _ = made.end_of_text
    assert raised.value.hint


@pytest.mark.parametrize("vocab", [VOCAB, None])
def test_a_tokenizer_that_fits_is_accepted(vocab: int | None, made: Tokenizer) -> None:
    check_fits(made, vocab=vocab, padded_vocab=512)


@pytest.mark.parametrize(
    ("vocab", "padded", "says", "offers_vocab"),
    [
        (VOCAB + 1, 512, "has 400 tokens, the checkpoint 401 tokens", True),
        (VOCAB - 1, 512, "has 400 tokens, the checkpoint 399 tokens", True),
        (384, 384, "has 400 tokens, the checkpoint 384 tokens", False),
        (None, 384, "has 400 tokens, the checkpoint a table of 384 rows", False),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(
    vocab: int | None, padded: int, says: str, offers_vocab: bool, made: Tokenizer
) -> None:
    with pytest.raises(TokenizerError) as raised:
        check_fits(made, vocab=vocab, padded_vocab=padded)
    assert says in raised.value.message
    assert ("--set vocab=400" in raised.value.hint) == offers_vocab


def test_no_special_tokens_are_added() -> None:
    content = json.loads(tokenizer_json())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }
    made = Tokenizer(path=Path("made"), backend=Backend.from_str(json.dumps(content)), size=VOCAB, digest="")
    plain = loaded().encode("a river")
    assert made.backend.encode("a river").ids == [0, *plain]
    assert made.encode("a river") == plain
    assert made.encode_batch(["a river"]) == [plain]
    assert made.encode_with_offsets("a river")[0] == plain
