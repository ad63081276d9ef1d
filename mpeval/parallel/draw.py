"""Draw next tokens from a softmax whose vocabulary is cut over the tensor axis, the same ones on every rank."""

from __future__ import annotations

import torch

from mpeval.parallel.group import Axis
from mpeval.parallel.ops import all_gathered

Tensor = torch.Tensor


def drawn_tokens(
    logits: Tensor,
    uniforms: Tensor,
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    first: int,
    width: int,
    axis: Axis,
) -> Tensor:
    """Draw one id for each row, [n] int64, by the inverse of the cumulative distribution.

    Args:
        logits: [n, columns] this rank's columns, those of vocabulary ids `first`, `first + 1`, ...
        uniforms: [n] float64 in [0, 1), equal on all ranks: what decides.
        temperature: what logits are divided by, above 0.
        top_k: draw from so many most likely ids (0: all).
        top_p: of these, draw from the fewest most likely whose probabilities sum up to it (1: all).
        first: the vocabulary id of column 0.
        width: the most columns that any rank may have.
        axis: the tensor axis.

    The order is temperature, `top_k`, `top_p`, as in transformers; ids are sorted by probability, equals by id.  Sends
    two all-gathers of `top_k` numbers a row and rank, or of `width` without it.
    """
    values, ids = _candidates(logits.float() / temperature, top_k, first, width, axis)
    shares = torch.softmax(values.double(), dim=-1)
    sums = shares.cumsum(dim=-1)
    kept = torch.where(sums - shares < top_p, shares, 0.0).cumsum(dim=-1)
    reached = uniforms.to(kept.device).unsqueeze(-1) * kept[:, -1:]
    place = (kept <= reached).sum(dim=-1, keepdim=True)
    # rounding may put the last kept id out of reach: `kept` is flat behind it
    last = (kept < kept[:, -1:]).sum(dim=-1, keepdim=True)
    return ids.gather(-1, torch.minimum(place, last)).squeeze(-1)


def _candidates(scores: Tensor, top_k: int, first: int, width: int, axis: Axis) -> tuple[Tensor, Tensor]:
    """Return scores and ids that may be drawn, best first, equal on all ranks."""
    rows, columns = scores.shape
    ids = torch.arange(first, first + columns, device=scores.device).expand(rows, columns)
    if 0 < top_k < columns:
        scores, places = scores.topk(top_k, dim=-1)
        ids = places + first
    room = (min(top_k, width) if top_k else width) - scores.shape[-1]
    scores = torch.nn.functional.pad(scores, (0, room), value=float("-inf"))
    scores = all_gathered(scores, axis, 1)
    ids = all_gathered(torch.nn.functional.pad(ids, (0, room)), axis, 1)
    ids, order = ids.sort(dim=-1, stable=True)
    scores, best = scores.gather(-1, order).sort(dim=-1, descending=True, stable=True)
    kept = top_k or scores.shape[-1]
    return scores[:, :kept], ids.gather(-1, best)[:, :kept]
