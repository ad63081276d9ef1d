"""What is asked of a model and what comes back: the contract between tasks and scoring.  No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np


def page_windows(tokens: int, window: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, first target, end) of the windows that lm-eval lays over a page, as positions in the page.

    Position 0 is the end-of-text token that the page is given as a context, its `tokens` follow.  Every window scores
    `window` tokens that no other scores, with one token before them; the last scores what is left, and begins earlier
    to be as long as the others.
    """
    for first in range(1, tokens + 1, window):
        end = min(first + window, tokens + 1)
        yield max(0, end - window - 1), first, end


Head = Literal["lm", "multichoice", "classification", "span"]
"""What of a model a protocol reads: its language model head, or one of the heads that finetuning adds."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Score `target` given `context`, both sequences of token ids (at least one each)."""

    context: Sequence[int] | np.ndarray
    target: Sequence[int] | np.ndarray

    @property
    def inputs(self) -> int:
        """Tokens the model reads: all but the last."""
        return len(self.context) + len(self.target) - 1

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence the model reads: there is one."""
        return (self.inputs,)


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

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence the model reads: there is one."""
        return (self.inputs,)


@dataclass(frozen=True, kw_only=True)
class Headed:
    """Apply the task head to sequences: one per option of a question, one for a pair of texts, or windows of a text."""

    ids: tuple[np.ndarray, ...]
    """[time] of integers each, special tokens in place, no padding."""
    firsts: tuple[int, ...]
    """How many tokens at the start of each sequence are of type 0; those that follow are of type 1."""
    targets: np.ndarray
    """What is right, int64: [1], the option or class (-1: unknown); [sequences, 2] for spans: first and last place."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence the model reads."""
        return tuple(len(ids) for ids in self.ids)

    @property
    def inputs(self) -> int:
        """Tokens the model reads."""
        return sum(self.lengths)


@dataclass(frozen=True, kw_only=True)
class Likelihoods:
    """Score each option of a question by the probability that a language model gives its tokens."""

    options: tuple[Request, ...]
    targets: np.ndarray
    """[1] int64, the option that is right (-1: unknown)."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence the model reads."""
        return tuple(option.inputs for option in self.options)

    @property
    def inputs(self) -> int:
        """Tokens the model reads."""
        return sum(self.lengths)


AnyRequest = Request | Masked | Headed | Likelihoods


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing to score: its id, unique in its task, and the request."""

    id: str
    request: AnyRequest


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


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What a task head says of one `Headed` request."""

    logits: tuple[np.ndarray, ...]
    """float32, one array per sequence: [outputs], 1 of a multiple-choice head or the classes; [time, 2] of a span head,
    for each place how likely the answer begins there and ends there."""


AnyScore = Scored | Answered | tuple[Scored, ...]
"""What comes back: `Scored` for a `Request` or `Masked`, `Answered` for a `Headed`, one `Scored` per option."""
