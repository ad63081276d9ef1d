"""What is asked of a model and what comes back: the contract between tasks and scoring.  No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Request:
    """Score `target` given `context`, both sequences of token ids (at least one each)."""

    context: Sequence[int] | np.ndarray
    target: Sequence[int] | np.ndarray

    @property
    def inputs(self) -> int:
        """Tokens the model reads: all but the last."""
        return len(self.context) + len(self.target) - 1


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Score `target`, the tokens that stood at the places `at` of `ids` before masks did (at least one)."""

    ids: np.ndarray
    """[time] int64, masks and special tokens in place; all of it is seen at every place."""
    at: np.ndarray
    """[target] int64, places in `ids`."""
    target: np.ndarray
    """[target] int64."""

    @property
    def inputs(self) -> int:
        """Tokens the model reads."""
        return len(self.ids)


class Response(NamedTuple):
    """The score of one request: natural-log probability of the whole target, whether it is greedy, its tokens."""

    log_probability: float
    greedy: bool
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The score of one request, token by token."""

    log_probabilities: np.ndarray
    """[target] float32, natural log."""
    best: np.ndarray
    """[target] int64: the most likely token at each place, given what the model sees there."""
    greedy: bool
    """Whether every target token is the most likely one."""
    cut: int = 0
    """Tokens removed from the left of the context because the request did not fit."""

    @property
    def log_probability(self) -> float:
        """The sum over the target's tokens, in float64."""
        return float(self.log_probabilities.astype(np.float64).sum())

    @property
    def response(self) -> Response:
        """The score without its details."""
        return Response(self.log_probability, self.greedy, len(self.log_probabilities))
