"""Scores at any tensor-parallel size and in any company, against a dense log-softmax."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks

from mpeval.config import ModelConfig
from mpeval.errors import DataError
from mpeval.items import Request, Response
from mpeval.models.gpt import GPT
from mpeval.models.weights import draw_weights
from mpeval.parallel.group import Group
from mpeval.scoring import score, score_batch, token_batches

CONFIG = ModelConfig(
    layers=2, hidden=32, heads=4, ffn=64, context=16, vocab=50, padded_vocab=56, gelu="erf", init_std=0.3
)


def _requests() -> list[Request]:
    draw = torch.Generator().manual_seed(0)
    lengths = [(1, 1), (5, 2), (12, 5), (3, 1), (15, 1), (1, 15), (8, 8), (4, 3), (30, 2)]
    return [
        Request(
            context=torch.randint(0, 50, (before,), generator=draw).tolist(),
            target=torch.randint(0, 50, (after,), generator=draw).tolist(),
        )
        for before, after in lengths
    ]


def _model(group: Group) -> GPT:
    model = GPT(CONFIG, group).eval().requires_grad_(False)
    draw_weights(model, 2)
    return model


def _plain(request: Request, columns: int) -> tuple[float, bool, int]:
    model = _model(Group.single())
    row = torch.tensor([*request.context, *request.target])[-17:]
    logits = model.local_logits(model.hidden(row[None, :-1]), vocab=columns)[0, -len(request.target) :]
    logs = torch.log_softmax(logits.double(), dim=-1)
    target = torch.tensor(list(request.target))
    return logs.gather(-1, target[:, None]).sum().item(), logs.argmax(-1).equal(target), len(target)


def _score(group: Group, exact: bool, budget: int) -> list[Response]:
    return score(_model(group), _requests(), megatron_exact=exact, batch_tokens=budget)


@pytest.mark.parametrize("tp", [1, 2, 4])
@pytest.mark.parametrize("exact", [False, True])
def test_scores_equal_a_dense_log_softmax(tp: int, exact: bool) -> None:
    expected = [_plain(request, 56 if exact else 50) for request in _requests()]
    for responses in run_ranks(_score, tp, exact, 40):
        for response, (log_probability, greedy, tokens) in zip(responses, expected, strict=True):
            assert response.log_probability == pytest.approx(log_probability, abs=2e-5)
            assert response.greedy == greedy
            assert response.tokens == tokens


def test_greedy_targets_are_found() -> None:
    model = _model(Group.single())
    context = [3, 1, 4]
    best = model(torch.tensor([context]))[0, -1].argmax().item()
    [yes, no] = score(model, [Request(context=context, target=[t]) for t in (best, (best + 1) % 50)])
    assert yes.greedy
    assert not no.greedy
    assert yes.log_probability > no.log_probability


@pytest.mark.parametrize("budget", [1, 17, 64, 1000])
def test_the_batch_a_request_is_in_does_not_change_its_score(budget: int) -> None:
    alone = [score(_model(Group.single()), [request])[0] for request in _requests()]
    together = score(_model(Group.single()), _requests(), batch_tokens=budget)
    for one, other in zip(alone, together, strict=True):
        assert one.log_probability == pytest.approx(other.log_probability, abs=2e-5)
        assert one.greedy == other.greedy


def test_a_long_context_is_cut_on_the_left_and_the_cut_is_counted() -> None:
    *_, long = _requests()
    [scored] = score_batch(_model(Group.single()), [long])
    assert scored.cut == 30 + 2 - 1 - 16
    fitting = Request(context=list(long.context)[scored.cut :], target=long.target)
    [short] = score_batch(_model(Group.single()), [fitting])
    assert short.cut == 0
    assert short.log_probability == pytest.approx(scored.log_probability, abs=1e-6)


@pytest.mark.parametrize(("context", "target"), [([], [1]), ([1], []), ([1], [1] * 17)])
def test_requests_that_cannot_be_scored_are_refused(context: list[int], target: list[int]) -> None:
    with pytest.raises(DataError):
        score(_model(Group.single()), [Request(context=context, target=target)])


def test_batches_hold_every_item_once_within_the_budget() -> None:
    lengths = [3, 9, 1, 7, 7, 2, 20, 5, 5, 5]
    batches = token_batches(lengths, 15)
    assert sorted(item for batch in batches for item in batch) == list(range(10))
    for batch in batches:
        longest = max(lengths[item] for item in batch)
        assert len(batch) == 1 or longest * len(batch) <= 15
    assert batches[0] == [6]
