"""Loss and scores over logits whose vocabulary is cut over the tensor axis; full logits are never gathered."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from mpeval.parallel.group import Axis
from mpeval.parallel.ops import all_reduced

Tensor = torch.Tensor


class TokenScores(NamedTuple):
    """Scores of chosen target tokens, each [n]: fp32 log-probability, and the id of the most likely token."""

    log_probabilities: Tensor
    best: Tensor


def _max_or_floor(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row maxima and where they are; -inf and 0 for a rank that owns no true column."""
    if logits.shape[-1] == 0:
        floor = torch.full(logits.shape[:-1], float("-inf"), dtype=logits.dtype, device=logits.device)
        return floor, torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    found = logits.max(dim=-1)
    return found.values, found.indices


def _own_target(logits: Tensor, targets: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Return the logit of each target that this rank owns, zero elsewhere, and which it owns."""
    local = targets - first
    owned = (local >= 0) & (local < logits.shape[-1])
    if logits.shape[-1] == 0:
        return torch.zeros_like(targets, dtype=logits.dtype), owned
    picked = logits.gather(-1, local.masked_fill(~owned, 0).unsqueeze(-1)).squeeze(-1)
    return picked.masked_fill(~owned, 0.0), owned


def token_scores(logits: Tensor, targets: Tensor, *, first: int, axis: Axis) -> TokenScores:
    """Score `targets` under a softmax over the whole vocabulary.

    Args:
        logits: [n, columns] this rank's columns, those of vocabulary ids `first`, `first + 1`, ...; any float
            dtype, the arithmetic is fp32.  Padding columns are simply not passed.
        targets: [n] int64, equal on all ranks.
        first: the vocabulary id of column 0.
        axis: the tensor axis.

    Sends three small all-reduces, 4n numbers: the maximum, (sum of exponentials, target logit), the arg-max.  Of
    equal maxima the lowest id wins, as in `torch.argmax`.
    """
    logits = logits.float()
    peak, where = _max_or_floor(logits)
    top = all_reduced(peak, axis, "max")
    sums = (logits - top.unsqueeze(-1)).exp_().sum(dim=-1)
    picked, owned = _own_target(logits, targets, first)
    total, target = all_reduced(torch.stack([sums, torch.where(owned, picked - top, 0.0)]), axis)
    best = all_reduced(torch.where(peak == top, where + first, torch.iinfo(torch.int64).max), axis, "min")
    return TokenScores(target - total.log(), best)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, first: int, axis: Axis) -> Tensor:
        peak, _ = _max_or_floor(logits.float())
        shifted = logits.float() - all_reduced(peak, axis, "max").unsqueeze(-1)
        picked, owned = _own_target(shifted, targets, first)
        powers = shifted.exp_()
        total, target = all_reduced(torch.stack([powers.sum(dim=-1), picked]), axis)
        ctx.save_for_backward(powers.div_(total.unsqueeze(-1)), targets - first, owned)
        ctx.dtype = logits.dtype
        losses: Tensor = total.log() - target
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        probabilities, local, owned = ctx.saved_tensors
        grad = probabilities.clone()
        if grad.shape[-1]:
            one = torch.where(owned, -1.0, 0.0).to(grad.dtype).unsqueeze(-1)
            grad.scatter_add_(-1, local.masked_fill(~owned, 0).unsqueeze(-1), one)
        return grad.mul_(grads[0].unsqueeze(-1)).to(ctx.dtype), None, None, None


def cross_entropy(logits: Tensor, targets: Tensor, *, first: int, axis: Axis) -> Tensor:
    """Return the fp32 negative log-likelihood of each target, [...], differentiable in `logits`.

    Arguments as in `token_scores`, with any leading shape.  Forward sends two all-reduces, 3 numbers per target
    (the maximum, then sum and target logit together); backward sends nothing.  The input is not written to.
    """
    result: Tensor = _CrossEntropy.apply(logits, targets, first, axis)  # type: ignore[no-untyped-call]
    return result
