"""Attention with dropout, tile by tile: the values and gradients of torch's own with the same probabilities dropped."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mpeval.models import attention
from mpeval.models.attention import attention_with_dropout
from mpeval.parallel.dropout import DropoutStreams
from mpeval.parallel.group import Group

Tensor = torch.Tensor
RATE = 0.25


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make tiles so small that a head has many, the last of them cut short."""
    monkeypatch.setattr(attention, "ROWS", 4)
    monkeypatch.setattr(attention, "PROBABILITIES", 40)


def _inputs(time: int, width: int, heads: int = 4, groups: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Draw query, key and value, laid out as a QKV layer's output is cut: not contiguous."""
    draw = torch.Generator().manual_seed(time)
    rows = torch.randn(2, time, heads + 2 * groups, width, generator=draw).transpose(1, 2)
    return [part.to(dtype).requires_grad_() for part in rows.detach().split([heads, groups, groups], dim=1)]


def _mask(time: int) -> Tensor:
    mask = torch.ones(2, 1, 1, time, dtype=torch.bool)
    mask[0, ..., time - 3 :] = False
    return mask


def _ours(inputs: list[Tensor], mask: Tensor | None, causal: bool, seed: int = 1) -> Tensor:
    streams = DropoutStreams(seed, Group.single())
    query, key, value = inputs
    return attention_with_dropout(query, key, value, mask=mask, causal=causal, rate=RATE, streams=streams)


def _shares(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Return the probabilities before dropout, [batch, heads, time, time]."""
    scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).transpose(-1, -2)
    scores = scores / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), float("-inf"))
    return scores.softmax(dim=-1)


def _dropped(inputs: list[Tensor], mask: Tensor | None, causal: bool) -> Tensor:
    """Return the probabilities that were used: attention over values that are unit vectors shows them."""
    query, key, _ = (part.detach() for part in inputs)
    eye = torch.eye(query.shape[2]).expand(2, key.shape[1], -1, -1)
    return _ours([query, key, eye], mask, causal)


CASES = pytest.mark.parametrize(("masked", "causal"), [(False, True), (True, False), (False, False), (True, True)])


@CASES
@pytest.mark.parametrize("time", [11, 4])
def test_values_and_gradients_are_those_of_the_same_dropped_probabilities(
    masked: bool, causal: bool, time: int
) -> None:
    mask = _mask(time) if masked else None
    inputs = _inputs(time, time)  # values as wide as there are keys, so that `_dropped` draws the same numbers
    kept = _dropped(inputs, mask, causal) != 0
    query, key, value = inputs
    shares = _shares(query, key, mask, causal) * kept / (1 - RATE)
    expected = shares @ value.repeat_interleave(2, dim=1)
    found = _ours(inputs, mask, causal)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    theirs = torch.autograd.grad(expected, inputs, upstream)
    ours = torch.autograd.grad(found, inputs, upstream)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("masked", [True, False])
def test_one_query_of_each_sequence_attends_to_all_keys(masked: bool) -> None:
    time = 11
    mask = _mask(time) if masked else None
    query, key, value = _inputs(time, time)
    inputs = [query[:, :, 4:5].detach().requires_grad_(), key, value]
    eye = torch.eye(time).expand(2, key.shape[1], -1, -1)
    used = _ours([inputs[0].detach(), key.detach(), eye], mask, False)
    shares = _shares(inputs[0], key, mask, causal=False)
    assert 0 < (used == 0).sum() < used.numel()
    expected = shares * (used != 0) / (1 - RATE) @ value.repeat_interleave(2, dim=1)
    found = _ours(inputs, mask, causal=False)
    assert found.shape == (2, 4, 1, time)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    ours, theirs = (torch.autograd.grad(made, inputs, upstream) for made in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_keys_may_be_left_out_anywhere() -> None:
    time = 11
    mask = torch.rand(2, 1, 1, time, generator=torch.Generator().manual_seed(2)) < 0.5
    assert not (mask[..., 1:] <= mask[..., :-1]).all()
    inputs = _inputs(time, time)
    kept = _dropped(inputs, mask, causal=False) != 0
    shares = _shares(inputs[0], inputs[1], mask, causal=False) * kept / (1 - RATE)
    expected, found = shares @ inputs[2].repeat_interleave(2, dim=1), _ours(inputs, mask, causal=False)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    ours, theirs = (torch.autograd.grad(made.square().sum(), inputs) for made in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@CASES
def test_probabilities_are_dropped_independently_at_the_rate(masked: bool, causal: bool) -> None:
    time = 64
    mask = _mask(time) if masked else None
    inputs = _inputs(time, time)
    used, shares = _dropped(inputs, mask, causal), _shares(inputs[0], inputs[1], mask, causal)
    assert not used[shares == 0].any()
    kept = used != 0
    torch.testing.assert_close(used, shares.detach() * kept / (1 - RATE), rtol=1e-5, atol=1e-7)
    possible = shares > 0
    drawn = possible.sum().item()
    error = kept[possible].float().mean().item() - (1 - RATE)
    assert abs(error) < 4 * math.sqrt(RATE * (1 - RATE) / drawn)
    pairs = possible[:, :, 1:] & possible[:, :, :-1]
    both = (kept[:, :, 1:] & kept[:, :, :-1])[pairs].float().mean().item()
    assert abs(both - (1 - RATE) ** 2) < 4 * math.sqrt(0.25 / int(pairs.sum()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_is_as_near_as_its_digits(dtype: torch.dtype) -> None:
    exact = _inputs(11, 8)
    low = [part.detach().to(dtype).requires_grad_() for part in exact]
    found, expected = _ours(low, None, causal=True), _ours(exact, None, causal=True)
    assert found.dtype == dtype
    ours, theirs = torch.autograd.grad(found.sum(), low), torch.autograd.grad(expected.sum(), exact)
    limit = 4 * torch.finfo(dtype).eps
    for one, other in zip((found, *ours), (expected, *theirs), strict=True):
        assert (one.float() - other).norm() < limit * other.norm()


def test_without_a_drop_it_is_torch_s_attention() -> None:
    query, key, value = _inputs(11, 8)
    streams = DropoutStreams(1, Group.single())
    found = attention_with_dropout(query, key, value, mask=None, causal=True, rate=1e-9, streams=streams)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
