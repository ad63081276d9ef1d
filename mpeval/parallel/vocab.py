"""Loss and scores over logits whose vocabulary is cut over the tensor axis; full logits are never gathered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from mpeval.parallel.group import Axis
from mpeval.parallel.ops import all_gathered, all_reduced

Tensor = torch.Tensor
CHUNK = 256
"""Positions whose logits `linear_cross_entropy` holds at a time: enough rows for a fast matrix product, and a number
that all ranks agree on, however many columns they own."""

ROWS = 8192
"""Rows of the table whose gradient of one chunk is held below float32."""


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
    exact = logits.float()
    peak, where = _max_or_floor(exact)
    top = all_reduced(peak, axis, "max")
    picked, owned = _own_target(exact, targets, first)
    # a copy is written to: memory of this size costs more to come by than what is done with it
    below = exact - top.unsqueeze(-1) if exact is logits else exact.sub_(top.unsqueeze(-1))
    sums = below.exp_().sum(dim=-1)
    total, target = all_reduced(torch.stack([sums, torch.where(owned, picked - top, 0.0)]), axis)
    return TokenScores(target - total.log(), _lowest_of_best(peak, top, where + first, axis))


def best_tokens(logits: Tensor, *, first: int, axis: Axis) -> Tensor:
    """Return the most likely id of each row of this rank's columns [n, columns], [n] int64; of equals the lowest.

    Arguments as in `token_scores`.  Sends two all-reduces of n numbers: the maximum, then where it is.
    """
    peak, where = _max_or_floor(logits.float())
    return _lowest_of_best(peak, all_reduced(peak, axis, "max"), where + first, axis)


def _lowest_of_best(peak: Tensor, top: Tensor, ids: Tensor, axis: Axis) -> Tensor:
    """Return the lowest of the `ids` whose rank has the highest logit of all; sends one all-reduce."""
    return all_reduced(torch.where(peak == top, ids, torch.iinfo(torch.int64).max), axis, "min")


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


class _LinearCrossEntropy(torch.autograd.Function):
    """The gradients for an upstream gradient of 1 are made in forward, while a chunk's logits are at hand.

    Logits are transposed, [columns, n]: float32 products whose result has many rows are the faster ones.  All chunks
    use the same memory: the operating system clears the pages of blocks as large as this each time it gives them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        table: Tensor,
        bias: Tensor | None,
        weights: Tensor,
        targets: Tensor,
        first: int,
        axis: Axis,
        differentiable: bool,
    ) -> Tensor:
        wanted = [differentiable and needed for needed in ctx.needs_input_grad[:3]]
        x_grad = torch.empty_like(x) if wanted[0] else None
        table_grad = torch.zeros_like(table, dtype=torch.float32) if wanted[1] else None
        bias_grad = torch.zeros_like(bias, dtype=torch.float32) if wanted[2] and bias is not None else None
        space = x.new_empty(len(table), min(CHUNK, len(x)))
        exact_space = space if x.dtype == torch.float32 else torch.empty_like(space, dtype=torch.float32)
        loss = torch.zeros((), dtype=torch.float32, device=x.device)
        for begin in range(0, len(x), CHUNK):
            chunk = slice(begin, begin + CHUNK)
            size = len(targets[chunk])
            low, logits = space[:, :size], exact_space[:, :size]
            logits.copy_(torch.mm(table, x[chunk].T, out=low))
            if bias is not None:
                logits += bias.unsqueeze(1)
            losses, gradient = _loss_and_gradient(logits, targets[chunk], weights[chunk], first, axis)
            loss += losses.dot(weights[chunk])
            if not any(wanted):
                continue
            grad = gradient()
            low.copy_(grad)
            if x_grad is not None:
                torch.mm(low.T, table, out=x_grad[chunk])
            if table_grad is not None:
                _add_product(table_grad, low, x[chunk])
            if bias_grad is not None:
                bias_grad += grad.sum(dim=1)
        ctx.made = (x_grad, table_grad, bias_grad)
        ctx.dtypes = (x.dtype, table.dtype, bias.dtype if bias is not None else None)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        made, ctx.made = ctx.made, None
        if made is None:
            raise RuntimeError("the gradients of this loss were handed out by an earlier backward pass")
        scaled = [
            None if grad is None else grad.mul_(grads[0]).to(dtype)
            for grad, dtype in zip(made, ctx.dtypes, strict=True)
        ]
        return (*scaled, None, None, None, None, None)


def _loss_and_gradient(
    logits: Tensor, targets: Tensor, weights: Tensor, first: int, axis: Axis
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Return the loss of each target, [n], and what makes the gradient of their weighted sum, in the logits' place.

    Sends one all-gather of 3n numbers: each rank's maximum, its sum of exponentials below that, and the target logit.
    """
    peak = logits.amax(dim=0) if len(logits) else logits.new_full(targets.shape, float("-inf"))
    picked, owned = _own_target(logits.T, targets, first)
    powers = logits.sub_(peak).exp_()
    found = all_gathered(torch.stack([peak, powers.sum(dim=0), picked]), axis, 0).view(axis.ranks, 3, -1)
    top = found[:, 0].amax(dim=0)
    total = (found[:, 1] * (found[:, 0] - top).exp()).sum(dim=0)

    def gradient() -> Tensor:
        grad = powers.mul_((peak - top).exp() * weights / total)
        if len(grad):
            local = (targets - first).masked_fill(~owned, 0).unsqueeze(0)
            grad.scatter_add_(0, local, torch.where(owned, -weights, 0.0).unsqueeze(0))
        return grad

    return top + total.log() - found[:, 2].sum(dim=0), gradient


def _add_product(to: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` to a float32 tensor, whatever the factors' dtype, some rows at a time."""
    if left.dtype == torch.float32:
        to.addmm_(left, right)
        return
    for total, rows in zip(torch.split(to, ROWS), torch.split(left, ROWS), strict=True):
        total += rows @ right


def linear_cross_entropy(
    x: Tensor,
    table: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    first: int,
    axis: Axis,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the fp32 sum of weights * negative log-likelihood of the targets, without ever holding all logits.

    Args:
        x: [n, hidden], equal on all ranks and passed through `enter`: its gradient is this rank's part.
        table: [columns, hidden] this rank's rows of the output table, those of ids `first`, `first + 1`, ...; none
            that are padding.  Of x's dtype, in which the matrix products are made; softmax and sums are fp32.
        targets: [n] int64, equal on all ranks.
        bias: [columns] to add to the logits.
        first: the vocabulary id of row 0 of `table`.
        axis: the tensor axis.
        weights: [n] fp32 (default: all 1), not differentiable.

    `CHUNK` positions at a time: their logits, loss and gradients, as Liger-Kernel does it (arXiv 2410.10989); backward
    only scales.  Sends one all-gather of 3 numbers per position and rank, in forward.
    """
    shares = torch.ones(targets.shape, device=x.device) if weights is None else weights.float()
    result: Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        x, table, bias, shares, targets, first, axis, torch.is_grad_enabled()
    )
    return result
