"""Batches that a GPU's memory does not hold are scored in halves, with the scores they have together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from mpeval import scoring
from mpeval.config import ModelConfig
from mpeval.errors import ConfigError
from mpeval.items import Request, Scored
from mpeval.models.gpt import GPT
from mpeval.models.weights import draw_weights
from mpeval.rounds import Scorer


def ask(config: ModelConfig, count: int) -> tuple[Scorer, list[Request]]:
    model = GPT(config).eval().requires_grad_(False)
    draw_weights(model, 1)
    draw = np.random.default_rng(2)
    requests = [Request(context=draw.integers(0, 37, 6), target=draw.integers(0, 37, 2)) for _ in range(count)]
    return Scorer(model=model, megatron_exact=False, batch_tokens=None, quiet=True), requests


def with_memory_for(most: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let a forward pass of more than `most` requests run out of memory; return the sizes of all that were tried."""
    tried: list[int] = []
    real = scoring.score_any

    def limited(model: Any, requests: Sequence[Any], **more: Any) -> Any:
        tried.append(len(requests))
        if len(requests) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(model, requests, **more)

    monkeypatch.setattr(scoring, "score_any", limited)
    return tried


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, requests = ask(config, 7)
    whole = scorer.score(requests, [3, 2, 1, 1])
    tried = with_memory_for(2, monkeypatch)
    halves = scorer.score(requests, [3, 2, 1, 1])
    assert tried == [7, 3, 1, 2, 4, 2, 2]
    for one, other in zip(whole, halves, strict=True):
        assert isinstance(one, Scored)
        assert isinstance(other, Scored)
        np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, atol=2e-5)


def test_one_request_that_does_not_fit_is_an_error_that_says_what_to_do(
    config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, requests = ask(config, 2)
    with_memory_for(0, monkeypatch)
    with pytest.raises(ConfigError, match="the GPU has no memory left for a batch of 1 requests") as caught:
        scorer.score(requests, None)
    assert "--batch-tokens" in caught.value.hint
