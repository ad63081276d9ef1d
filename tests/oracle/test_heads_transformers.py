"""Task heads against transformers' own: logits, gradients of the cross-entropy, and folders read and written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from ranks import run_ranks
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    MegatronBertConfig,
    MegatronBertForMultipleChoice,
    MegatronBertForQuestionAnswering,
    MegatronBertForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

import mpeval
from mpeval.checkpoint.hugging_names import Kind, rows_of
from mpeval.checkpoint.hugging_write import fill_hugging_face
from mpeval.checkpoint.weights import StoredWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.items import Headed
from mpeval.models.bert import BERT
from mpeval.parallel.group import Group
from mpeval.parallel.layout import merge
from mpeval.scoring import score_any

VOCAB, CONTEXT, OPTIONS = 90, 24, 2
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCAB,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """A class of transformers, its configuration, and the names its weights have in a file."""

    model: type[PreTrainedModel]
    config: Callable[..., PretrainedConfig]
    kind: Kind


CASES = {
    "choice": Case(BertForMultipleChoice, BertConfig, "bert"),
    "classes": Case(BertForSequenceClassification, BertConfig, "bert"),
    "spans": Case(BertForQuestionAnswering, BertConfig, "bert"),
    "megatron-choice": Case(MegatronBertForMultipleChoice, MegatronBertConfig, "megatron-bert"),
    "megatron-classes": Case(MegatronBertForSequenceClassification, MegatronBertConfig, "megatron-bert"),
    "megatron-spans": Case(MegatronBertForQuestionAnswering, MegatronBertConfig, "megatron-bert"),
}
CHOSEN = pytest.mark.parametrize("name", CASES)


def _random(name: str) -> PreTrainedModel:
    """Make a model whose every parameter matters: no zero bias, no norm of ones."""
    transformers.logging.set_verbosity_error()
    torch.manual_seed(5)
    case = CASES[name]
    labels = {"num_labels": 3} if name.endswith("classes") else {}
    model: PreTrainedModel = case.model(case.config(**SIZES, **labels)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids [4, time], lengths and firsts: two questions of two options, or four texts."""
    ids = torch.randint(1, VOCAB, (4, CONTEXT), generator=torch.Generator().manual_seed(1))
    return ids, torch.tensor([24, 13, 20, 7]), torch.tensor([4, 9, 1, 6])


def _loss(logits: torch.Tensor, name: str) -> torch.Tensor:
    """Return the mean cross-entropy over questions, classes, or the places where answers begin and end."""
    if name.endswith("spans"):
        padding = torch.arange(CONTEXT) >= _batch()[1][:, None]
        targets = torch.tensor([[3, 5], [0, 0], [11, 19], [6, 6]])
        return F.cross_entropy(logits.masked_fill(padding[..., None], float("-inf")), targets)
    if name.endswith("choice"):
        return F.cross_entropy(logits.view(-1, OPTIONS), torch.tensor([1, 0]))
    return F.cross_entropy(logits, torch.tensor([2, 0, 1, 1]))


def _theirs(model: PreTrainedModel, name: str) -> tuple[torch.Tensor, Tensors]:
    """Return logits in the shape of ours, and gradients under the names of a file."""
    ids, lengths, firsts = _batch()
    places = torch.arange(CONTEXT)
    given = {
        "input_ids": ids,
        "token_type_ids": (places >= firsts[:, None]).long(),
        "attention_mask": (places < lengths[:, None]).long(),
    }
    if name.endswith("choice"):
        given = {key: value.view(-1, OPTIONS, CONTEXT) for key, value in given.items()}
    out = model(**given)
    if name.endswith("spans"):
        logits = torch.stack([out.start_logits, out.end_logits], dim=-1)
    else:
        logits = out.logits.view(len(ids), -1) if name.endswith("classes") else out.logits.view(len(ids), 1)
    _loss(logits, name).backward()
    return logits.detach(), {key: value.grad for key, value in model.named_parameters() if value.grad is not None}


def _ours(group: Group, path: Path, name: str) -> tuple[torch.Tensor, Tensors]:
    model = mpeval.load_model(mpeval.open_checkpoint(path), group).requires_grad_(True)
    logits = model.head_logits(*_batch())
    _loss(logits, name).backward()
    return logits.detach(), {key: value.grad for key, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("tp", [1, 2], ids="tp{}".format)
@CHOSEN
def test_logits_and_gradients_are_those_of_transformers(name: str, tp: int, tmp_path: Path) -> None:
    model = _random(name)
    model.save_pretrained(tmp_path)
    logits, gradients = _theirs(model, name)
    config = mpeval.open_checkpoint(tmp_path).config
    assert (
        config.task_head
        == {"choice": "multichoice", "classes": "classification", "spans": "span"}[name.removeprefix("megatron-")]
    )
    ranks = run_ranks(_ours, tp, tmp_path, name)
    real = torch.arange(CONTEXT) < _batch()[1][:, None]
    for found, _ in ranks:
        assert found.shape == logits.shape
        shown = real if name.endswith("spans") else slice(None)
        torch.testing.assert_close(found[shown], logits[shown], rtol=0, atol=1e-5)
    whole = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    compared = set()
    for rows in rows_of(CASES[name].kind, config, config.vocab):
        if rows.ours not in ranks[0][1]:
            continue  # an output layer without a head that reads it
        ours = merge(rows.ours, [grads[rows.ours] for _, grads in ranks])[rows.at : rows.at + rows.rows]
        theirs = gradients[rows.theirs]
        # biases that a softmax takes out again have the gradient 0: computed it is rounding errors
        error = (ours - theirs[rows.start : rows.start + rows.rows]).norm() / max(theirs.norm(), 1e-2 * whole)
        assert error < 1e-5, f"{rows.ours}: {error:.1e} of the gradient of `{rows.theirs}`"
        compared.add(rows.theirs)
    assert compared == gradients.keys()


@CHOSEN
def test_a_folder_written_from_shards_loads_without_a_key_missing_or_unexpected(name: str, tmp_path: Path) -> None:
    model = _random(name)
    model.save_pretrained(tmp_path / "first")
    first = mpeval.open_checkpoint(tmp_path / "first")
    write_megatron(tmp_path / "shards", StoredWeights(first, first.config), tp=2, pp=2, naming="megatron")
    shards = mpeval.open_checkpoint(tmp_path / "shards")
    shards.check()
    assert shards.digest() == first.digest()
    (tmp_path / "again").mkdir()
    fill_hugging_face(tmp_path / "again", StoredWeights(shards, shards.config))
    loaded, info = CASES[name].model.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    assert torch.equal(_theirs(loaded.eval(), name)[0], _theirs(model, name)[0])


@CHOSEN
def test_requests_are_answered_as_transformers_answers_each_alone(name: str, tmp_path: Path) -> None:
    model = _random(name)
    model.save_pretrained(tmp_path)
    ids, lengths, firsts = _batch()
    asked = [
        Headed(ids=(row[:length].numpy(),), firsts=(first,), targets=np.array([0]))
        for row, length, first in zip(ids, lengths.tolist(), firsts.tolist(), strict=True)
    ]
    ours = mpeval.load_model(mpeval.open_checkpoint(tmp_path))
    assert isinstance(ours, BERT)
    for request, answer in zip(asked, score_any(ours, asked), strict=True):
        [own], [first] = request.ids, request.firsts
        types = (torch.arange(len(own)) >= first).long()
        shape = (1, 1, -1) if name.endswith("choice") else (1, -1)
        with torch.inference_mode():
            out = model(input_ids=torch.from_numpy(own).view(shape), token_type_ids=types.view(shape))
        spans = name.endswith("spans")
        theirs = torch.stack([out.start_logits[0], out.end_logits[0]], dim=-1) if spans else out.logits[0]
        np.testing.assert_allclose(answer.logits[0], theirs.numpy(), atol=1e-5)
