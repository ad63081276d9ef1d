"""Linear layers and the embedding, cut over the tensor axis (sections 3 of arXiv 1909.08053).

`ColumnLinear` then `RowLinear` need one `enter` before and one `leave` after: the block calls `enter` once per
branch, `RowLinear` ends with `leave`.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from mpeval.parallel.group import Axis
from mpeval.parallel.ops import leave

Tensor = torch.Tensor


def shard_size(full: int, axis: Axis, what: str) -> int:
    """Return `full / axis.ranks`, which must be whole."""
    if full % axis.ranks:
        raise ValueError(f"{what} {full} cannot be cut into {axis.ranks} equal shards")
    return full // axis.ranks


class ColumnLinear(nn.Module):
    """Y = XA + b with the columns of A, the output features, cut over the ranks: A = [A_1 | A_2 | ... | A_p].

    Input [..., inputs], equal on all ranks; output [..., outputs / p], this rank's features.  Sends nothing.
    """

    def __init__(self, inputs: int, outputs: int, *, axis: Axis) -> None:
        """Allocate this rank's shard, weight [outputs / p, inputs] and bias [outputs / p], uninitialised."""
        super().__init__()
        local = shard_size(outputs, axis, "output size")
        self.weight = nn.Parameter(torch.empty(local, inputs))
        self.bias = nn.Parameter(torch.empty(local))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by this rank's columns."""
        return F.linear(x, self.weight, self.bias)


class RowLinear(nn.Module):
    """Y = XA + b with the rows of A, the input features, cut over the ranks.

    ::
                -   -
               | A_1 |
          A =  | ... |      X = [X_1 | ... | X_p]      Y = X_1 A_1 + ... + X_p A_p + b
               | A_p |
                -   -

    Input [..., inputs / p]; output [..., outputs], equal on all ranks.  Forward sends one all-reduce of the output.
    """

    def __init__(self, inputs: int, outputs: int, *, axis: Axis) -> None:
        """Allocate this rank's weight [outputs, inputs / p] and the whole bias [outputs], uninitialised."""
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(torch.empty(outputs, shard_size(inputs, axis, "input size")))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by this rank's rows, sum over ranks, then add the bias: once, not once per rank."""
        if self.axis.ranks == 1:
            return F.linear(x, self.weight, self.bias)
        return leave(F.linear(x, self.weight), self.axis) + self.bias


class VocabEmbedding(nn.Module):
    """A token table [rows, hidden] with its rows cut over the ranks.

    Each rank looks up the ids it owns and contributes zeros for the others; one all-reduce adds them up.  A table
    whose rows do not divide evenly ends in unused zero rows on the last rank.
    """

    def __init__(self, rows: int, hidden: int, *, axis: Axis) -> None:
        """Allocate this rank's rows, uninitialised."""
        super().__init__()
        self.axis = axis
        local = -(-rows // axis.ranks)
        self.first = axis.rank * local
        self.weight = nn.Parameter(torch.empty(local, hidden))

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids [...] int64 to vectors [..., hidden], equal on all ranks."""
        if self.axis.ranks == 1:
            return F.embedding(ids, self.weight)
        local = ids - self.first
        foreign = (local < 0) | (local >= self.weight.shape[0])
        vectors = F.embedding(local.masked_fill(foreign, 0), self.weight)
        return leave(vectors.masked_fill(foreign.unsqueeze(-1), 0.0), self.axis)
