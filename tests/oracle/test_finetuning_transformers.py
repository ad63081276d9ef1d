"""Finetuning step by step against transformers' models and torch's AdamW: same weights, data order, batch, schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from finetuning import SAMPLES, STILL, finetune_ranks, lines_of, make_mnli, make_squad, options_for, pieces
from making import run_here
from torch.nn import functional as F
from training import losses
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    PreTrainedModel,
)

from mpeval.finetune import Options, plan
from mpeval.items import Answered, Headed, Item
from mpeval.tasks.base import Task

BATCH, SEED, RATE, DECAY, WARMUP = 4, 1234, 2e-3, 0.1, 3
SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
Tensor = torch.Tensor


@dataclass(frozen=True)
class Case:
    """A class of transformers, the task it is for, and how many steps are compared."""

    model: type[PreTrainedModel]
    task: str
    steps: int
    more: dict[str, Any]


CASES = {
    "choice": Case(BertForMultipleChoice, "race/megatron", 10, {}),
    "classes": Case(BertForSequenceClassification, "mnli/megatron", 5, {"num_labels": 3}),
    "spans": Case(BertForQuestionAnswering, "squad/v1", 5, {}),
}


def make_model(case: Case, folder: Path) -> PreTrainedModel:
    """Write a model whose every parameter matters, with its vocabulary beside it."""
    transformers.logging.set_verbosity_error()
    torch.manual_seed(5)
    model: PreTrainedModel = case.model(BertConfig(**SIZES, vocab_size=len(pieces()), **case.more))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (1.0 if "classifier" in name else 0.1))
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces()), encoding="utf-8")
    return model


def padded(items: Sequence[Item]) -> dict[str, Tensor]:
    """Return the sequences of some items as transformers' models read them, padded to the longest."""
    rows, firsts = [], []
    for item in items:
        assert isinstance(item.request, Headed)
        rows += [row.tolist() for row in item.request.ids]
        firsts += item.request.firsts
    time = max(map(len, rows))
    return {
        "input_ids": torch.tensor([row + [0] * (time - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (time - len(row)) for row in rows]),
        "token_type_ids": torch.tensor([[0] * first + [1] * (time - first) for first in firsts]),
    }


def outputs(model: PreTrainedModel, items: Sequence[Item]) -> Tensor:
    """Return logits: [items, options], [items, classes] or [windows, time, 2], the padding's minus infinity."""
    given = padded(items)
    if isinstance(model, BertForMultipleChoice):
        given = {name: value.unflatten(0, (len(items), -1)) for name, value in given.items()}
        return model(**given).logits  # type: ignore[no-any-return]
    if isinstance(model, BertForSequenceClassification):
        return model(**given).logits  # type: ignore[no-any-return]
    found = model(**given)
    logits = torch.stack([found.start_logits, found.end_logits], -1)
    return logits.masked_fill(given["attention_mask"][..., None] == 0, float("-inf"))


def loss_of(model: PreTrainedModel, items: Sequence[Item]) -> Tensor:
    logits = outputs(model, items)
    targets = torch.from_numpy(np.concatenate([item.request.targets for item in items]))  # type: ignore[union-attr]
    if logits.ndim == 3:
        return (F.cross_entropy(logits[..., 0], targets[:, 0]) + F.cross_entropy(logits[..., 1], targets[:, 1])) / 2
    return F.cross_entropy(logits, targets)


def train(model: PreTrainedModel, task: Task, steps: int) -> list[float]:
    """Train with torch's AdamW, the questions of an epoch in the order drawn from its seed; return the losses."""
    model.train()
    matrices = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim == 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min((done + 1) / WARMUP, (steps - done - 1) / (steps - WARMUP))
    )
    per_epoch, found = len(task.items) // BATCH, []
    for step in range(steps):
        epoch, at = divmod(step, per_epoch)
        order = np.random.RandomState(SEED + epoch).permutation(len(task.items))
        loss = loss_of(model, [task.items[int(place)] for place in order[at * BATCH : (at + 1) * BATCH]])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        found.append(float(loss.detach()))
    return found


@torch.no_grad()
def judged(model: PreTrainedModel, task: Task) -> list[dict[str, Any]]:
    """Return sample lines of a trained model's own outputs, each item alone and so without padding."""
    model.eval()
    lines = []
    for item in task.items:
        logits = outputs(model, [item]).numpy()
        rows = logits[0][:, None] if task.protocol.head == "multichoice" else logits
        assert isinstance(item.request, Headed)
        cut = [row[:length] if row.ndim == 2 else row for row, length in zip(rows, item.request.lengths, strict=False)]
        lines.append(task.judge(item, Answered(logits=tuple(cut))))
    return lines


@pytest.fixture(scope="module", params=CASES)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Train both ways: transformers in this process, mpeval at tp 2 from converted shards."""
    case, root = CASES[request.param], tmp_path_factory.mktemp(request.param)
    model = make_model(case, root / "theirs")
    make_squad(make_mnli(root))
    assert run_here(f"convert {root / 'theirs'} {root / 'shards'} --format megatron --tp 2 --quiet") == 0
    options = options_for(
        root / "shards",
        root / "run",
        *(f"steps={case.steps}", f"batch={BATCH}", f"lr={RATE}", f"weight_decay={DECAY}", f"seed={SEED}"),
        *(f"warmup_share={WARMUP / case.steps}", "schedule=linear", "clip=1.0", "dtype=float32", *STILL),
        task=case.task,
        data=SAMPLES if case.task.startswith("race") else root,
        allow_modified_data=True,
    )
    lines = finetune_ranks(options, tp=2)
    made = plan(Options(**{**vars(options), "output": root / "unused"}), 1, 1)
    assert made.drawn == ()
    return {"case": case, "lines": lines, "run": root / "run", "model": model, "plan": made, "root": root}


@pytest.fixture(scope="module")
def theirs(both: dict[str, Any]) -> list[float]:
    return train(both["model"], both["plan"].train[0], both["case"].steps)


def test_the_loss_of_every_step_is_that_of_transformers(both: dict[str, Any], theirs: list[float]) -> None:
    assert losses(both["lines"]) == pytest.approx(theirs, rel=1e-4)
    assert len(theirs) == both["case"].steps
    assert max(theirs) - min(theirs) > 0.1 * max(theirs)


def test_predictions_are_those_of_transformers(both: dict[str, Any], theirs: list[float]) -> None:
    assert len(theirs) > 0
    last = max(path.name for path in (both["run"] / "evaluations").glob("*-epoch-*"))
    found = lines_of(both["run"] / "evaluations" / last / "samples.jsonl")
    expected = judged(both["model"], both["plan"].dev[0])
    assert [line["id"] for line in found] == [line["id"] for line in expected]
    for ours, other in zip(found, expected, strict=True):
        for key in ("probabilities", "no_answer"):
            assert ours.pop(key, 0) == pytest.approx(other.pop(key, 0), abs=1e-3)
        assert ours == other
