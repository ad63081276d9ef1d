"""Loss and every gradient of one training step, at tp x dp, against plain models of transformers with their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from ranks import run_ranks
from transformers import (
    BertConfig,
    BertForPreTraining,
    GPT2Config,
    GPT2LMHeadModel,
    MegatronBertConfig,
    MegatronBertForPreTraining,
    PretrainedConfig,
    PreTrainedModel,
)

import mpeval
from mpeval.checkpoint.hugging_names import rows_of
from mpeval.models.bert import BERT
from mpeval.models.gpt import GPT
from mpeval.parallel.gradients import Gradients
from mpeval.parallel.group import Group
from mpeval.parallel.layout import merge
from mpeval.train.objectives import objective_of

VOCAB, CONTEXT, BATCH = 90, 24, 4
SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCAB,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
GPT2_SIZES = {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": CONTEXT, "vocab_size": VOCAB}
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One class of transformers, and the names its weights have in a file."""

    model: type[PreTrainedModel]
    config: Callable[[], PretrainedConfig]
    kind: Any


CASES = {
    "gpt2": Case(GPT2LMHeadModel, lambda: GPT2Config(**GPT2_SIZES, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0), "gpt2"),
    "gpt2-untied": Case(
        GPT2LMHeadModel,
        lambda: GPT2Config(**GPT2_SIZES, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, tie_word_embeddings=False),
        "gpt2",
    ),
    "bert": Case(BertForPreTraining, lambda: BertConfig(**SIZES), "bert"),
    "megatron-bert": Case(MegatronBertForPreTraining, lambda: MegatronBertConfig(**SIZES), "megatron-bert"),
}


def _random(case: Case) -> PreTrainedModel:
    """Make a model in training mode whose every parameter matters: no zero bias, no norm of ones."""
    transformers.logging.set_verbosity_error()
    torch.manual_seed(5)
    model: PreTrainedModel = case.model(case.config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.train()


def _batch(bert: bool) -> Tensors:
    """Return a batch with the fields of `mpeval.corpus.samples.Samples`; BERT's is padded and masked unevenly."""
    draw = torch.Generator().manual_seed(1)
    if not bert:
        return {"ids": torch.randint(0, VOCAB, (BATCH, CONTEXT + 1), generator=draw)}
    ids = torch.randint(1, VOCAB, (BATCH, CONTEXT), generator=draw)  # to the lookup of token 0 they give no gradient
    real = torch.arange(CONTEXT) < torch.tensor([CONTEXT, 13, 20, 7]).unsqueeze(1)
    asked = (torch.rand(ids.shape, generator=draw) < 0.3) & real
    return {
        "ids": ids,
        "tokentypes": (torch.arange(CONTEXT) >= 4).long().expand(BATCH, -1).clone(),
        "padding_mask": real,
        "labels": torch.where(asked, torch.randint(0, VOCAB, ids.shape, generator=draw), -1),
        "order": torch.tensor([0, 1, 1, 0]),
    }


def _theirs(case: Case, model: PreTrainedModel) -> Tensors:
    """Return the loss as transformers computes it from labels, and its gradients under the names of a file."""
    if case.kind == "gpt2":
        # they shift labels themselves and would leave out the last target: logits at every position, shifted here
        ids = _batch(bert=False)["ids"]
        logits = model(input_ids=ids[:, :-1]).logits
        loss = model.loss_function(logits, None, vocab_size=VOCAB, shift_labels=ids[:, 1:].contiguous())
    else:
        batch = _batch(bert=True)
        loss = model(
            input_ids=batch["ids"],
            token_type_ids=batch["tokentypes"],
            attention_mask=batch["padding_mask"].long(),
            labels=torch.where(batch["labels"] == -1, -100, batch["labels"]),
            next_sentence_label=batch["order"],
        ).loss
    loss.backward()
    grads = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {"loss": loss.detach(), **grads}


def _ours(group: Group, path: Path) -> Tensors:
    """Take this data-parallel rank's part of the batch; return the batch's mean loss and gradients of a step."""
    model = mpeval.load_model(mpeval.open_checkpoint(path), group).requires_grad_(True).eval()
    assert isinstance(model, (BERT, GPT))
    objective = objective_of(model.config.family, order=model.config.binary_head)
    whole = _batch(bert=isinstance(model, BERT))
    share = BATCH // group.dp.ranks
    mine = {name: value[group.dp.rank * share : (group.dp.rank + 1) * share] for name, value in whole.items()}
    gradients = Gradients(dict(model.named_parameters()), group.dp, bucket_bytes=20_000)
    gradients.zero()
    sums = objective.sums(model, mine)
    counts = objective.counts(whole)
    loss = torch.stack([value / count for value, count in zip(sums, counts, strict=True)]).sum()
    with gradients.summing():
        loss.backward()
    return {"loss": loss.detach(), **gradients.views}


def _renamed(merged: Tensors, case: Case, path: Path) -> dict[str, list[tuple[Any, torch.Tensor]]]:
    """Return, by their name, which of its rows our full gradients say what about."""
    config = mpeval.open_checkpoint(path).config
    found: dict[str, list[tuple[Any, torch.Tensor]]] = {}
    for rows in rows_of(case.kind, config, config.vocab):
        found.setdefault(rows.theirs, []).append((rows, merged[rows.ours][rows.at : rows.at + rows.rows]))
    return found


@pytest.mark.parametrize("dp", [1, 2], ids="dp{}".format)
@pytest.mark.parametrize("tp", [1, 2, 4], ids="tp{}".format)
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_those_of_transformers(name: str, tp: int, dp: int, tmp_path: Path) -> None:
    case = CASES[name]
    model = _random(case)
    model.save_pretrained(tmp_path)
    expected = _theirs(case, model)
    ranks = run_ranks(_ours, tp * dp, tmp_path, tp=tp)
    losses = [sum(ranks[d * tp + t]["loss"] for d in range(dp)) for t in range(tp)]
    for loss in losses:
        torch.testing.assert_close(loss, expected["loss"], rtol=1e-5, atol=0)
    whole = torch.cat([grad.flatten() for key, grad in expected.items() if key != "loss"]).norm()
    for replica in (ranks[d * tp : (d + 1) * tp] for d in range(dp)):
        merged = {key: merge(key, [rank[key] for rank in replica]) for key in replica[0] if key != "loss"}
        compared = set()
        for theirs, parts in _renamed(merged, case, tmp_path).items():
            grad = expected[theirs]
            size = max(grad.norm(), 1e-3 * whole)  # the gradient of a key's bias is 0, computed it is rounding errors
            for rows, ours in parts:
                slab = grad.T if rows.transposed else grad
                piece = slab[rows.start : rows.start + rows.rows]
                error = (ours - piece).norm() / size
                assert error < 1e-5, f"{rows.ours}: {error:.1e} of the gradient of `{theirs}`"
            compared.add(theirs)
        assert compared == expected.keys() - {"loss"}
