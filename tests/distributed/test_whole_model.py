"""Scores, dropout and conversion of a whole model, against a dense model that shares no code with the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from ranks import run_ranks

import mpeval
from mpeval.checkpoint.weights import MadeWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.config import ModelConfig
from mpeval.models.gpt import GPT
from mpeval.models.transformer import dropout
from mpeval.models.weights import draw_full, draw_weights
from mpeval.parallel.dropout import DropoutStreams
from mpeval.parallel.group import Group
from mpeval.parallel.layout import split
from mpeval.parallel.vocab import cross_entropy

Weights = dict[str, torch.Tensor]
Dense = Callable[[Mapping[str, torch.Tensor], ModelConfig, torch.Tensor], torch.Tensor]


def _weights(config: ModelConfig) -> Weights:
    """Return full weights with random biases and norms, and padding rows that win whenever they are let in."""
    draw = torch.Generator().manual_seed(8)
    full = {
        name: draw_full(config, name, 1) + 0.2 * torch.randn(shape, generator=draw)
        for name, shape in config.shapes().items()
    }
    full["head.weight"][config.vocab :] *= 6
    return full


def _requests(config: ModelConfig) -> list[mpeval.Request]:
    draw = torch.Generator().manual_seed(2)
    sizes = [(1, 1), (4, 2), (10, 5), (15, 1), (1, 15), (7, 1), (3, 3), (25, 2)]
    ids = [torch.randint(0, config.vocab, (sum(size),), generator=draw).tolist() for size in sizes]
    return [mpeval.Request(context=row[:c], target=row[c:]) for row, (c, _) in zip(ids, sizes, strict=True)]


def _score(
    group: Group, config: ModelConfig, full: Weights, exact: bool, requests: list[mpeval.Request]
) -> list[mpeval.Response]:
    model = GPT(config, group).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.copy_(split(name, full[name], group.tp.ranks)[group.tp.rank])
    return mpeval.score(model, requests, megatron_exact=exact, batch_tokens=40)


@pytest.mark.parametrize("exact", [False, True], ids=["true-vocabulary", "megatron-exact"])
def test_scores_equal_the_log_softmax_of_an_independent_model(
    config: ModelConfig, dense_logits: Dense, tp: int, exact: bool
) -> None:
    config = replace(config, tied=False)
    full, requests = _weights(config), _requests(config)
    columns = config.padded_vocab if exact else config.vocab
    requests += [_greedy(dense_logits, full, config, request, columns) for request in requests]
    first, *others = run_ranks(_score, tp, config, full, exact, requests)
    assert all(other == first for other in others), "ranks must agree to the last bit"
    for request, response in zip(requests, first, strict=True):
        target = torch.tensor(request.target)
        row = torch.tensor([*request.context, *request.target])[-config.context - 1 :]
        logs = dense_logits(full, config, row[None, :-1])[0, -len(target) :, :columns].double().log_softmax(-1)
        total = logs.gather(-1, target[:, None]).sum().item()
        assert response.log_probability == pytest.approx(total, abs=1e-4)
        assert response.greedy == logs.argmax(-1).equal(target)
        assert response.tokens == len(target)
    assert {response.greedy for response in first} == {True, False}


def _greedy(dense: Dense, full: Weights, config: ModelConfig, request: mpeval.Request, columns: int) -> mpeval.Request:
    """Return the request with the likeliest next token as its target."""
    context = list(request.context)[-config.context :]
    best = dense(full, config, torch.tensor([context]))[0, -1, :columns].argmax().item()
    return mpeval.Request(context=context, target=[int(best)])


def _training_loss(group: Group, config: ModelConfig) -> tuple[float, bool, dict[str, bool]]:
    model = GPT(config, group).train()
    draw_weights(model, 3)
    model.streams = DropoutStreams(5, group)
    before, default = model.streams.state(), torch.get_rng_state()
    ids = torch.arange(32).view(2, 16)
    logits = model.local_logits(model.hidden(ids))
    loss = cross_entropy(logits, ids, first=model.first_id, axis=group.tp).mean().item()
    after = model.streams.state()
    moved = {name: not torch.equal(before[name], after[name]) for name in before}
    return loss, torch.equal(default, torch.get_rng_state()), moved


def test_dropout_outside_sharded_regions_does_not_depend_on_the_number_of_ranks(config: ModelConfig, tp: int) -> None:
    config = replace(config, dropout=0.3, attention_dropout=0.0)
    [(alone, _, _)] = run_ranks(_training_loss, 1, config)
    [(undropped, _, _)] = run_ranks(_training_loss, 1, replace(config, dropout=0.0))
    assert abs(alone - undropped) > 1e-2
    for loss, untouched, moved in run_ranks(_training_loss, tp, config):
        assert loss == pytest.approx(alone, abs=1e-5)
        assert untouched
        assert moved["shared"]


def test_attention_dropout_draws_from_the_rank_s_own_stream(config: ModelConfig, tp: int) -> None:
    config = replace(config, dropout=0.0, attention_dropout=0.3)
    for _, untouched, moved in run_ranks(_training_loss, tp, config):
        assert untouched
        assert moved == {"shared": False, "own": True}


def test_an_error_inside_a_stream_leaves_the_default_generator_as_it_was() -> None:
    streams = DropoutStreams(1, Group.single())
    before = torch.get_rng_state()

    def fail() -> None:
        with streams.using("own"):
            torch.rand(3)
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_remembered_position_does_not_move_with_the_streams() -> None:
    streams = DropoutStreams(1, Group.single())
    position = streams.state()
    kept = {name: state.clone() for name, state in position.items()}
    ones = torch.ones(1000)
    first = [dropout(ones, 0.5, streams, name) for name in ("shared", "own", "shared")]
    assert all(torch.equal(position[name], kept[name]) for name in kept)
    for _ in range(2):
        streams.restore(position)
        again = [dropout(ones, 0.5, streams, name) for name in ("shared", "own", "shared")]
        assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def _convert(source: Path, target: Path, tp: int, pp: int) -> Path:
    opened = mpeval.open_checkpoint(source)
    write_megatron(target, MadeWeights(opened.config, lambda name: opened.tensor(name)[:]), tp=tp, pp=pp)
    return target


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_conversion_from_one_to_four_to_two_ranks_and_back_is_bit_equal(
    config: ModelConfig, tmp_path: Path, tied: bool
) -> None:
    config = replace(config, tied=tied)
    write_megatron(tmp_path / "0", MadeWeights(config, lambda name: draw_full(config, name, 1)))
    for (number, following), (tp, pp) in zip(pairwise(range(4)), [(4, 1), (2, 2), (1, 1)], strict=True):
        _convert(tmp_path / str(number), tmp_path / str(following), tp, pp)
    first, last = (mpeval.open_checkpoint(tmp_path / name) for name in ("0", "3"))
    assert first.digest() == last.digest()
    for name in config.shapes():
        assert torch.equal(first.tensor(name)[:], last.tensor(name)[:])


def _digest_with(folder: Path, config: ModelConfig, name: str, at: tuple[int, ...]) -> str:
    full = {known: draw_full(config, known, 1) for known in config.shapes()}
    full[name][at] = torch.nextafter(full[name][at], torch.tensor(9.0))
    write_megatron(folder, MadeWeights(config, full.__getitem__), tp=2)
    return mpeval.open_checkpoint(folder).digest()


def test_the_digest_sees_the_last_bit_of_every_tensor_but_no_padding_row(config: ModelConfig, tmp_path: Path) -> None:
    write_megatron(tmp_path / "plain", MadeWeights(config, lambda name: draw_full(config, name, 1)))
    plain = mpeval.open_checkpoint(tmp_path / "plain").digest()
    changed = {
        _digest_with(tmp_path / name, config, name, tuple(-1 for _ in shape))
        for name, shape in config.shapes().items()
        if name != "embedding.word.weight"
    }
    changed.add(_digest_with(tmp_path / "true", config, "embedding.word.weight", (config.vocab - 1, 0)))
    assert len(changed - {plain}) == len(config.shapes())
    assert _digest_with(tmp_path / "padding", config, "embedding.word.weight", (config.vocab, 0)) == plain
