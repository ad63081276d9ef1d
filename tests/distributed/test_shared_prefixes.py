"""Scores of requests that share rows, and by weights rearranged for oneDNN: those of each request alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ranks import run_ranks

from mpeval import prefixes
from mpeval.config import ModelConfig
from mpeval.items import Likelihoods, Request, Scored
from mpeval.models.gpt import GPT
from mpeval.models.weights import draw_weights
from mpeval.parallel.group import Group
from mpeval.parallel.packed import PackedLinear
from mpeval.scoring import Preamble, pack, score, score_any, score_batch

PLAIN = ModelConfig(
    layers=2, hidden=32, heads=4, ffn=64, context=40, vocab=50, padded_vocab=56, gelu="tanh", init_std=0.3
)
ROTARY = replace(PLAIN, rope=True, kv_heads=2, head_dim=8, norm="rmsnorm", swiglu=True, gelu=None, qk_norm=True)
CONFIGS = {"gpt-2": PLAIN, "untied, exact gelu": replace(PLAIN, tied=False, gelu="erf"), "rotary": ROTARY}


def make(name: str, group: Group | None = None, dtype: torch.dtype = torch.float32) -> GPT:
    # a vocabulary that four ranks can cut; wide, so that sharing pays
    model = GPT(CONFIGS[name], group, dtype).eval().requires_grad_(False)
    draw_weights(model, 2)
    return model


def questions() -> list[Likelihoods]:
    """Return options after prompts: one alone, two that share an article, one longer than the context, one repeated."""
    draw = np.random.default_rng(1)
    article = draw.integers(0, 50, 20)
    prompts = [
        draw.integers(0, 50, 9),
        np.concatenate([article, draw.integers(0, 50, 4)]),
        np.concatenate([article, draw.integers(0, 50, 6)]),
        draw.integers(0, 50, 60),
    ]
    made = [
        Likelihoods(
            options=tuple(Request(context=prompt, target=draw.integers(0, 50, size)) for size in (1, 3, 2, 3)),
            targets=np.array([0]),
        )
        for prompt in prompts
    ]
    return [*made, made[1]]


def all_scores(model: GPT, requests: list[Likelihoods], budget: int) -> tuple[list[tuple[Scored, ...]], list[int]]:
    """Score in the batches that `pack` makes; return also how many sequences share each row."""
    found: dict[int, tuple[Scored, ...]] = {}
    rows: list[int] = []
    preamble = Preamble(model)
    for batch in pack(model, requests, budget)[0]:
        asked = [requests[number] for number in batch.requests]
        scored = score_any(model, asked, rows=batch.rows, before=preamble.read(batch.preamble, asked[0]))
        for number, one in zip(batch.requests, scored, strict=True):
            assert isinstance(one, tuple)
            found[number] = one
        rows += batch.rows
    return [found[number] for number in range(len(requests))], rows


def assert_same(found: list[tuple[Scored, ...]], expected: list[tuple[Scored, ...]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, atol=2e-5)
            assert one.best.tolist() == other.best.tolist()
            assert (one.greedy, one.cut) == (other.greedy, other.cut)


def alone(name: str) -> list[tuple[Scored, ...]]:
    model = make(name)
    return [tuple(score_batch(model, [option])[0] for option in request.options) for request in questions()]


def shared_scores(group: Group, name: str, packed: bool, budget: int) -> tuple[list[tuple[Scored, ...]], list[int]]:
    model = make(name, group)
    if packed:
        model.prepack()
    return all_scores(model, questions(), budget)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("tp", [1, 2])
def test_scores_in_shared_rows_are_those_of_each_request_alone(tp: int, name: str, packed: bool) -> None:
    for found, rows in run_ranks(shared_scores, tp, name, packed, 64):
        assert_same(found, alone(name))
        assert max(rows) >= 8  # the two questions about one article, and the repeated one
        assert rows.count(1) >= 4  # what is cut on its left begins with other tokens


def test_scores_in_shared_rows_at_tensor_parallel_size_4() -> None:
    for found, rows in run_ranks(shared_scores, 4, "gpt-2", True, 64):
        assert_same(found, alone("gpt-2"))
        assert max(rows) > 1


@pytest.mark.parametrize("budget", [1, 30, 64, 100, 1000])
def test_budget_and_order_do_not_change_a_score(budget: int) -> None:
    expected, model = alone("rotary"), make("rotary")
    assert_same(all_scores(model, questions(), budget)[0], expected)
    turned, _ = all_scores(model, questions()[::-1], budget)
    assert_same(turned[::-1], expected)


def test_a_sequence_longer_than_the_context_is_refused_though_its_row_may_be_longer() -> None:
    model = make("gpt-2")
    long = [Request(context=[1] * 30, target=[number] * 10) for number in range(3)]
    scored = score_batch(model, long, rows=[3])  # a row of 30 + 27 tokens in a context of 40
    assert [one.cut for one in scored] == [0, 0, 0]
    with pytest.raises(ValueError, match="41 tokens do not fit the context of 40"):
        model.hidden(torch.zeros(1, 41, dtype=torch.int64))


# ---- preambles ----


def examples_before(count: int, draw: np.random.Generator, size: int = 20) -> list[Likelihoods]:
    """Return questions after one and the same text of `size` tokens, two options each; one has no text of its own."""
    text = draw.integers(0, 50, size)
    contexts = [np.concatenate([text, draw.integers(0, 50, 4 * (number > 0))]) for number in range(count)]
    return [
        Likelihoods(
            options=tuple(Request(context=context, target=draw.integers(0, 50, size)) for size in (1, 3)),
            targets=np.array([0]),
        )
        for context in contexts
    ]


def with_preambles(group: Group, name: str, packed: bool) -> tuple[list[tuple[Scored, ...]], list[int], float]:
    draw = np.random.default_rng(4)
    requests = [*questions()[:1], *examples_before(7, draw), *questions()[1:3], *examples_before(5, draw)]
    model = make(name, group)
    if packed:
        model.prepack()
    lengths = [batch.preamble for batch in pack(model, requests, 34)[0]]
    options = [option for request in requests for option in request.options]
    responses = score(model, options, batch_tokens=34)
    found = [tuple(score_batch(model, [option])[0] for option in request.options) for request in requests]
    together, _ = all_scores(model, requests, 34)
    assert_same(together, found)
    flat = [one for row in found for one in row]
    gap = max(abs(one.log_probability - other.log_probability) for one, other in zip(responses, flat, strict=True))
    return together, lengths, gap


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("tp", [1, 2])
def test_what_many_rows_begin_with_is_read_once(tp: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "LEAST", 10)
    monkeypatch.setattr(prefixes, "WORTH", 30)
    for packed in (False, True):
        for _, lengths, gap in run_ranks(with_preambles, tp, name, packed):
            assert gap < 2e-5
            # all 20 tokens but the last, after which a target follows at once in one question
            assert lengths.count(19) >= 2
            assert lengths.count(0) >= 1


def test_a_preamble_is_read_again_only_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, draw = make("gpt-2"), np.random.default_rng(5)
    one, other = (questions_of[1].options[0] for questions_of in (examples_before(2, draw), examples_before(2, draw)))
    preamble = Preamble(model)
    first = preamble.read(10, one)
    assert first is not None
    assert preamble.read(10, one) is first
    assert preamble.read(9, one) is not first
    assert preamble.read(10, other) is not preamble.read(10, one)
    assert preamble.read(0, one) is None


# ---- rearranged weights ----


def test_this_machine_has_the_kernels() -> None:
    linear = PackedLinear.of(torch.zeros(4, 8), None)
    assert linear is not None, "oneDNN is part of torch's CPU builds"
    assert PackedLinear.of(torch.zeros(4, 8, dtype=torch.float64), None) is None
    assert PackedLinear.of(torch.zeros(4, 8, device="meta"), None) is None


@pytest.mark.parametrize("rows", [(), (3,), (2, 5)])
@pytest.mark.parametrize("gelu", [None, "none", "tanh"])
def test_a_packed_layer_computes_what_torch_does(rows: tuple[int, ...], gelu: str | None) -> None:
    draw = torch.Generator().manual_seed(1)
    weight, bias, x = (torch.randn(shape, generator=draw) for shape in ((48, 40), (48,), (*rows, 40)))
    linear = PackedLinear.of(weight, bias)
    assert linear is not None
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    if gelu is not None:
        expected = torch.nn.functional.gelu(expected, approximate=gelu)
    torch.testing.assert_close(linear(x, gelu), expected.float(), atol=1e-5, rtol=1e-5)


def test_packing_gives_up_the_weights_of_blocks_and_keeps_the_tables() -> None:
    model = make("rotary")
    before = sum(parameter.numel() for parameter in model.parameters())
    model.prepack()
    left = {name for name, parameter in model.named_parameters() if parameter.numel()}
    assert "embedding.word.weight" in left
    assert not any(
        name.endswith(("qkv.weight", "out.weight", "up.weight", "gate.weight", "down.weight")) for name in left
    )
    assert sum(parameter.numel() for parameter in model.parameters()) < before / 2
    assert model.packed_head is not None


def test_padding_rows_of_the_vocabulary_still_enter_if_asked_for() -> None:
    request = [Request(context=[3, 1, 4], target=[1, 5])]
    packed = make("gpt-2")
    packed.prepack()
    plain = score_batch(make("gpt-2"), request, megatron_exact=True)[0].log_probabilities
    np.testing.assert_allclose(score_batch(packed, request, megatron_exact=True)[0].log_probabilities, plain, atol=2e-5)
    assert np.abs(score_batch(packed, request)[0].log_probabilities - plain).max() > 1e-3


def test_packed_bfloat16_scores_are_as_near_to_float32_as_plain_ones() -> None:
    expected = alone("gpt-2")
    gaps = []
    for packed in (False, True):
        model = make("gpt-2", dtype=torch.bfloat16)
        if packed:
            model.prepack()
        found, _ = all_scores(model, questions(), 64)
        pairs = [
            (one, other)
            for ours, theirs in zip(found, expected, strict=True)
            for one, other in zip(ours, theirs, strict=True)
        ]
        gaps.append(np.mean([abs(one.log_probability - other.log_probability) for one, other in pairs]))
    assert 0 < gaps[1] < 1.5 * gaps[0]
