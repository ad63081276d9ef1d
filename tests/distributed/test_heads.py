"""Task heads: one padded pass over any number of ranks gives what each sequence alone gives, gradients included."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import TODAY
from ranks import run_ranks
from torch.nn import functional as F

import mpeval
from mpeval.checkpoint.weights import MadeWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.config import ModelConfig
from mpeval.errors import CheckpointError, ConfigError, DataError
from mpeval.items import AnyRequest, Headed, Likelihoods, Request, Scored
from mpeval.models.bert import BERT
from mpeval.models.gpt import GPT
from mpeval.models.weights import draw_full
from mpeval.parallel.dropout import DropoutStreams
from mpeval.parallel.group import Group
from mpeval.parallel.layout import merge, split
from mpeval.scoring import pack, score_any, score_batch

Tensors = dict[str, torch.Tensor]
ENCODER: dict[str, Any] = {"family": "bert", "tokentypes": 2, "gelu": "erf"}
MODELS: dict[str, dict[str, Any]] = {
    "bert": ENCODER,
    "post-norm bert": {**ENCODER, "post_norm": True},
    "gpt": {},
    "gpt of today": {**TODAY, "kv_heads": 4},
    "normed queries": {"qk_norm": True, "qkv_bias": False},
}
HEADS: dict[str, dict[str, Any]] = {
    "multichoice": {"pooler": True, "multichoice_head": True},
    "classification": {"pooler": True, "classes": 3},
    "span": {"span_head": True},
}
ROWS = ((9, 4), (3, 3), (16, 1), (1, 1))
"""Tokens of each sequence, and how many of them are of the first type."""


def _config(config: ModelConfig, model: str, head: str, **changes: Any) -> ModelConfig:
    return replace(config, **MODELS[model], **HEADS[head], **changes)


def _full(config: ModelConfig, name: str) -> torch.Tensor:
    """Draw a weight that matters, biases and norms too."""
    draw = torch.Generator().manual_seed(len(name))
    return draw_full(config, name, 4) + 0.1 * torch.randn(config.shapes()[name], generator=draw)


def _model(config: ModelConfig, group: Group | None = None, dtype: torch.dtype = torch.float32) -> BERT | GPT:
    """Make this rank's part of a model, without dropout."""
    model = (BERT if config.family == "bert" else GPT)(config, group, dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(split(name, _full(config, name), model.group.tp.ranks)[model.group.tp.rank])
    return model


def _batch(config: ModelConfig) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids with noise where padding is, lengths and firsts."""
    ids = torch.randint(0, config.vocab, (len(ROWS), config.context), generator=torch.Generator().manual_seed(6))
    lengths, firsts = torch.tensor(ROWS).unbind(1)
    return ids, lengths, firsts


def _upstream(logits: torch.Tensor) -> torch.Tensor:
    """Draw a gradient for logits that is 0 where padding is."""
    noise = torch.randn(len(ROWS), 16, 3, generator=torch.Generator().manual_seed(7))
    if logits.ndim == 2:
        return noise[:, 0, : logits.shape[1]]
    real = torch.arange(logits.shape[1]) < torch.tensor(ROWS)[:, :1]
    return noise[..., : logits.shape[2]] * real.unsqueeze(-1)


def _padded(group: Group, config: ModelConfig) -> tuple[torch.Tensor, Tensors]:
    model = _model(config, group)
    logits = model.head_logits(*_batch(config))
    logits.backward(_upstream(logits))
    return logits.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def _one_by_one(config: ModelConfig) -> tuple[torch.Tensor, Tensors]:
    """Compute every position of every sequence alone and unpadded, and the head from its definition."""
    model = _model(config)
    weights = dict(model.named_parameters())
    vectors = []
    ids, lengths, firsts = _batch(config)
    for row, length, first in zip(ids, lengths.tolist(), firsts.tolist(), strict=True):
        own = row[None, :length]
        if isinstance(model, BERT):
            vectors.append(model.encode(own, (torch.arange(length) >= first).long()[None])[0])
        else:
            vectors.append(model.final_norm(model.hidden(own))[0])

    def head(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    if config.span_head:
        parts = [F.pad(head("span_head", x), (0, 0, 0, config.context - len(x))) for x in vectors]
        logits = torch.stack(parts)
    else:
        read = torch.stack([x[0 if isinstance(model, BERT) else -1] for x in vectors])
        logits = head(f"{config.task_head}_head", head("pooler.dense", read).tanh())
    logits.backward(_upstream(logits))
    return logits.detach(), {name: value.grad for name, value in weights.items() if value.grad is not None}


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", MODELS)
def test_a_padded_batch_over_ranks_is_each_sequence_alone(config: ModelConfig, name: str, head: str, tp: int) -> None:
    config = _config(config, name, head)
    expected, gradients = _one_by_one(config)
    assert gradients.keys() == config.shapes().keys() - {"head.weight"}
    ranks = run_ranks(_padded, tp, config)
    for logits, _ in ranks:
        if config.span_head:
            logits = torch.stack([F.pad(x[:n], (0, 0, 0, 16 - n)) for x, (n, _) in zip(logits, ROWS, strict=True)])
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    for key, gradient in gradients.items():
        ours = merge(key, [grads[key] for _, grads in ranks], rows=config.padded_vocab)
        torch.testing.assert_close(ours, gradient, rtol=1e-3, atol=2e-4, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", MODELS)
def test_what_nobody_reads_is_not_computed(config: ModelConfig, name: str) -> None:
    config = _config(config, name, "multichoice", layers=1)
    model = _model(config)
    seen: list[torch.Size] = []
    for module in (model.layers[0].attention.out, model.layers[0].mlp, model.final_norm):
        module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    with torch.no_grad():
        model.head_logits(*_batch(config))
    assert [tuple(shape) for shape in seen] == [(len(ROWS), 1, 32)] * 3
    with torch.profiler.profile(record_shapes=True) as found, torch.no_grad():
        model.head_logits(*_batch(config))
    products = [event.input_shapes for event in found.events() if event.name in {"aten::addmm", "aten::mm"}]
    wide = [shapes for shapes in products if [len(ROWS) * config.context, config.hidden] in shapes]
    rows = 2 * config.kv_heads * config.head_dim
    assert len(wide) == 1  # keys and values, and nothing else of all positions
    assert [config.hidden, rows] in wide[0]


# ---- training ----


def _train(group: Group, config: ModelConfig, recompute: bool, dtype: torch.dtype) -> tuple[torch.Tensor, Tensors]:
    model = _model(config, group, dtype).train()
    model.streams = DropoutStreams(3, group)
    model.recompute = recompute
    found = []
    for _ in range(2):
        logits = model.head_logits(*_batch(config))
        logits.backward(_upstream(logits))
        found.append(logits.detach())
    return torch.stack(found), {key: value.grad for key, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("head", ["classification", "span"])
@pytest.mark.parametrize("name", ["bert", "gpt of today"])
def test_dropout_outside_attention_is_the_same_on_any_number_of_ranks(
    config: ModelConfig, name: str, head: str, tp: int
) -> None:
    config = _config(config, name, head, dropout=0.3, attention_dropout=0.0)
    [(alone, gradients)] = run_ranks(_train, 1, config, False, torch.float32)
    undropped, _ = _one_by_one(config)
    assert not torch.equal(alone[0], alone[1])
    if head == "classification":
        assert (alone[0] - undropped).abs().max() > 0.1
    ranks = run_ranks(_train, tp, config, False, torch.float32)
    for logits, _ in ranks:
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)
    for key, gradient in gradients.items():
        ours = merge(key, [grads[key] for _, grads in ranks], rows=config.padded_vocab)
        torch.testing.assert_close(ours, gradient, rtol=1e-3, atol=5e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["post-norm bert", "gpt of today"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_dropped_attention_agrees_on_all_ranks_and_is_computed_again_to_the_bit(
    config: ModelConfig, ranks: int, name: str, dtype: torch.dtype
) -> None:
    config = _config(config, name, "multichoice", dropout=0.1, attention_dropout=0.3)
    kept, again = (run_ranks(_train, ranks, config, recompute, dtype) for recompute in (False, True))
    for (logits, gradients), (logits_again, gradients_again) in zip(kept, again, strict=True):
        assert torch.equal(logits, kept[0][0])
        assert torch.equal(logits, logits_again)
        assert [key for key in gradients if not torch.equal(gradients[key], gradients_again[key])] == []
        assert all(value.isfinite().all() for value in gradients.values())


def test_training_drops_elements_of_the_pooled_vector(config: ModelConfig) -> None:
    config = _config(config, "bert", "classification", dropout=0.25)
    model = _model(config).train()
    model.streams = DropoutStreams(3, Group.single())
    pooled = torch.eye(config.hidden).repeat(200, 1)
    rows = (model.task_logits(pooled) - model.classification_head.bias) * 0.75
    kept = (rows.abs().sum(-1) > 0).view(200, -1)
    torch.testing.assert_close(
        rows.view(200, -1, 3)[kept], model.classification_head.weight.T.expand(200, -1, -1)[kept]
    )
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert torch.equal(model.eval().task_logits(pooled[:1]), model.classification_head(pooled[:1]))


# ---- scoring ----


def _requests(config: ModelConfig) -> list[Headed]:
    draw = np.random.default_rng(2)
    made = []
    for sequences in (1, 4, 2, 4, 3):
        lengths = draw.integers(1, config.context + 1, sequences)
        ids = tuple(draw.integers(0, config.vocab, length).astype(np.int32) for length in lengths)
        firsts = tuple(int(draw.integers(1, length + 1)) for length in lengths)
        made.append(Headed(ids=ids, firsts=firsts, targets=np.array([0])))
    return made


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["post-norm bert", "gpt"])
def test_an_answer_does_not_depend_on_what_else_is_asked(config: ModelConfig, name: str, head: str) -> None:
    config = _config(config, name, head)
    model, requests = _model(config), _requests(config)
    together = score_any(model, requests)
    for request, answer in zip(requests, together, strict=True):
        [alone] = score_any(model, [request])
        assert not isinstance(answer, Scored | tuple)
        assert not isinstance(alone, Scored | tuple)
        for length, one, other in zip(request.lengths, alone.logits, answer.logits, strict=True):
            assert one.shape == {"multichoice": (1,), "classification": (3,), "span": (length, 2)}[head]
            assert one.dtype == np.float32
            np.testing.assert_allclose(other, one, atol=1e-5)


def test_options_of_a_language_model_are_scored_as_requests(config: ModelConfig) -> None:
    model, draw = _model(config), np.random.default_rng(3)
    options = [
        [Request(context=draw.integers(0, 37, 5), target=draw.integers(0, 37, size)) for size in sizes]
        for sizes in ((1, 2), (3, 1, 4), (14, 2))
    ]
    asked = [Likelihoods(options=tuple(row), targets=np.array([1])) for row in options]
    for row, scored in zip(options, score_any(model, asked), strict=True):
        assert isinstance(scored, tuple)
        for option, one in zip(row, scored, strict=True):
            [expected] = score_batch(model, [option])
            np.testing.assert_allclose(one.log_probabilities, expected.log_probabilities, atol=1e-5)
            assert (one.greedy, one.cut) == (expected.greedy, expected.cut)
    assert score_any(model, asked)[2][0].cut == 2


@pytest.mark.parametrize("budget", [1, 40, 64, 1000])
def test_batches_hold_whole_questions_within_the_budget(config: ModelConfig, budget: int) -> None:
    model = _model(_config(config, "bert", "multichoice"))
    requests: list[AnyRequest] = [*_requests(config), *_requests(config)]
    batches, tokens = pack(model, requests, budget)
    assert sorted(number for batch in batches for number in batch.requests) == list(range(len(requests)))
    assert tokens == sum(request.inputs for request in requests)
    for batch in batches:
        rows = sum(len(requests[number].lengths) for number in batch.requests)
        longest = max(max(requests[number].lengths) for number in batch.requests)
        assert rows * longest <= budget or len(batch.requests) == 1
    assert (len(batches) == 1) is (budget == 1000)


def test_what_no_head_can_answer_is_refused(config: ModelConfig) -> None:
    config = _config(config, "bert", "multichoice")
    model = _model(config)

    def ask(*lengths: int) -> list[Headed]:
        ids = tuple(np.ones(length, dtype=np.int64) for length in lengths)
        return [Headed(ids=ids, firsts=(1,) * len(lengths), targets=np.array([0]))]

    with pytest.raises(DataError, match="a sequence of 17 tokens does not fit the model's context of 16"):
        score_any(model, ask(3, 17))
    with pytest.raises(DataError, match="a request of 2 sequences has one without a token"):
        score_any(model, ask(3, 0))
    with pytest.raises(DataError, match="a request without a sequence"):
        score_any(model, ask())
    with pytest.raises(ConfigError, match="the model has no task head"):
        score_any(_model(replace(config, multichoice_head=False)), ask(3))
    with torch.no_grad():
        model.multichoice_head.bias.fill_(float("inf"))
    with pytest.raises(CheckpointError, match="the model gives 2 of 2 sequences a logit that is not finite"):
        score_any(model, ask(3, 2))


# ---- configuration and files ----


def test_a_model_has_one_task_head(config: ModelConfig) -> None:
    assert [_config(config, "bert", head).task_head for head in HEADS] == list(HEADS)
    assert config.task_head is None
    with pytest.raises(ConfigError, match="one task head, not `classification` and `span`"):
        replace(config, pooler=True, classes=2, span_head=True)


@pytest.mark.parametrize("naming", ["megatron", "megatron-core"])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", ["bert", "gpt"])
def test_heads_are_read_as_they_were_written(
    config: ModelConfig, name: str, head: str, naming: Any, tmp_path: Path
) -> None:
    config = _config(config, name, head)
    write_megatron(tmp_path, MadeWeights(config, lambda key: _full(config, key)), tp=2, pp=2, naming=naming)
    opened = mpeval.open_checkpoint(tmp_path)
    opened.check()
    assert opened.config.computed() == config.computed()
    for key in config.shapes():
        assert torch.equal(opened.tensor(key)[:], _full(config, key))
