"""Linear layers and the embedding, cut over the tensor axis (sections 3 of arXiv 1909.08053).

`ColumnLinear` then `RowLinear` need one `enter` before and one `leave` after: the block calls `enter` once per
branch, `RowLinear` ends with `leave`.
"""

from __future__ import annotations

from typing import TypedDict, Unpack

import torch
from torch import nn
from torch.nn import functional as F

from mpeval.parallel.group import Axis
from mpeval.parallel.ops import enter, leave
from mpeval.parallel.packed import PackedLinear

Tensor = torch.Tensor


class Factory(TypedDict, total=False):
    """Where new parameters live and in which dtype (default: CPU, float32)."""

    device: torch.device
    dtype: torch.dtype


def new_parameter(*shape: int, **factory: Unpack[Factory]) -> nn.Parameter:
    """Allocate a parameter without writing to it: memory is taken only when it is filled."""
    return nn.Parameter(torch.empty(*shape, **factory))


def shard_size(full: int, axis: Axis, what: str) -> int:
    """Return `full / axis.ranks`, which must be whole."""
    if full % axis.ranks:
        raise ValueError(f"{what} {full} cannot be cut into {axis.ranks} equal shards")
    return full // axis.ranks


class Linear(nn.Module):
    """What is multiplied by a rank's shard of a weight, which inference on a CPU may want rearranged."""

    weight: nn.Parameter
    bias: nn.Parameter | None
    packed: PackedLinear | None = None

    def times(self, x: Tensor, bias: Tensor | None, gelu: str | None = None) -> Tensor:
        """Multiply x [..., inputs] by the shard and add `bias`; then apply torch's GELU of that approximation."""
        if self.packed is not None:
            return self.packed._replace(bias=bias)(x, gelu)
        product = F.linear(x, self.weight, bias)
        return product if gelu is None else F.gelu(product, approximate=gelu)

    def prepack(self) -> None:
        """Rearrange the weight for inference where that is faster; the parameter itself is given up."""
        self.packed = PackedLinear.of(self.weight, None)
        if self.packed is not None:
            self.release()

    def release(self) -> None:
        """Give up the weight's memory; [0, inputs] is left of it."""
        self.weight = nn.Parameter(self.weight.new_empty(0, self.weight.shape[1]), requires_grad=False)


class ColumnLinear(Linear):
    """Y = XA + b with the columns of A, the output features, cut over the ranks: A = [A_1 | A_2 | ... | A_p].

    Input [..., inputs], equal on all ranks; output [..., outputs / p], this rank's features.  Sends nothing.
    """

    def __init__(self, inputs: int, outputs: int, *, axis: Axis, bias: bool = True, **factory: Unpack[Factory]) -> None:
        """Allocate this rank's shard, weight [outputs / p, inputs] and bias [outputs / p], uninitialised."""
        super().__init__()
        local = shard_size(outputs, axis, "output size")
        self.weight = new_parameter(local, inputs, **factory)
        self.bias = new_parameter(local, **factory) if bias else None

    def forward(self, x: Tensor, gelu: str | None = None) -> Tensor:
        """Multiply by this rank's columns, and apply a GELU (`none` or `tanh`) if there is one."""
        return self.times(x, self.bias, gelu)


class RowLinear(Linear):
    """Y = XA + b with the rows of A, the input features, cut over the ranks.

    ::
                -   -
               | A_1 |
          A =  | ... |      X = [X_1 | ... | X_p]      Y = X_1 A_1 + ... + X_p A_p + b
               | A_p |
                -   -

    Input [..., inputs / p]; output [..., outputs], equal on all ranks.  Forward sends one all-reduce of the output.
    """

    def __init__(self, inputs: int, outputs: int, *, axis: Axis, bias: bool = True, **factory: Unpack[Factory]) -> None:
        """Allocate this rank's weight [outputs, inputs / p] and the whole bias [outputs], uninitialised."""
        super().__init__()
        self.axis = axis
        self.weight = new_parameter(outputs, shard_size(inputs, axis, "input size"), **factory)
        self.bias = new_parameter(outputs, **factory) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Multiply by this rank's rows, sum over ranks, then add the bias: once, not once per rank."""
        if self.axis.ranks == 1:
            return self.times(x, self.bias)
        summed = leave(self.times(x, None), self.axis)
        return summed if self.bias is None else summed + self.bias


class Dense(nn.Module):
    """Y = XA + b, whole on every rank: the small layers of heads.  Sends nothing."""

    def __init__(self, inputs: int, outputs: int, **factory: Unpack[Factory]) -> None:
        """Allocate weight [outputs, inputs] and bias [outputs], uninitialised."""
        super().__init__()
        self.weight = new_parameter(outputs, inputs, **factory)
        self.bias = new_parameter(outputs, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., inputs] to [..., outputs]."""
        return F.linear(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    """Layer normalisation over the last dimension; weight and bias [hidden] are equal on all ranks.

    A norm of what only this rank computes is made with `inside`, the tensor axis: each rank's gradient is then a part,
    and `enter` sums the parts.
    """

    def __init__(self, hidden: int, *, eps: float, inside: Axis | None = None, **factory: Unpack[Factory]) -> None:
        """Allocate weight and bias, uninitialised."""
        super().__init__()
        self.eps = eps
        self.inside = inside
        self.weight = new_parameter(hidden, **factory)
        self.bias = new_parameter(hidden, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each vector of x [..., hidden]."""
        weight, bias = _entered(self.weight, self.inside), _entered(self.bias, self.inside)
        return F.layer_norm(x, self.weight.shape, weight, bias, self.eps)


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (arXiv 1910.07467); weight and `inside` as in `LayerNorm`."""

    def __init__(self, hidden: int, *, eps: float, inside: Axis | None = None, **factory: Unpack[Factory]) -> None:
        """Allocate the weight, uninitialised."""
        super().__init__()
        self.eps = eps
        self.inside = inside
        self.weight = new_parameter(hidden, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Scale each vector of x [..., hidden] to unit mean square, in fp32, then by the weight."""
        scaled = F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype)
        return scaled * _entered(self.weight, self.inside)


def _entered(parameter: Tensor, inside: Axis | None) -> Tensor:
    return parameter if inside is None else enter(parameter, inside)


class VocabEmbedding(nn.Module):
    """A token table [rows, hidden] with its rows cut over the ranks.

    Each rank looks up the ids it owns and contributes zeros for the others; one all-reduce adds them up.  A table
    whose rows do not divide evenly ends in unused zero rows on the last rank.
    """

    def __init__(self, rows: int, hidden: int, *, axis: Axis, **factory: Unpack[Factory]) -> None:
        """Allocate this rank's rows, uninitialised."""
        super().__init__()
        self.axis = axis
        local = -(-rows // axis.ranks)
        self.first = axis.rank * local
        self.sparse = False
        """Whether the weight's gradient is a sparse tensor of the rows looked up: what adds it up passes over few."""
        self.weight = new_parameter(local, hidden, **factory)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids [...] int64 to vectors [..., hidden], equal on all ranks."""
        if self.axis.ranks == 1:
            return F.embedding(ids, self.weight, sparse=self.sparse)
        local = ids - self.first
        foreign = (local < 0) | (local >= self.weight.shape[0])
        vectors = F.embedding(local.masked_fill(foreign, 0), self.weight, sparse=self.sparse)
        return leave(vectors.masked_fill(foreign.unsqueeze(-1), 0.0), self.axis)
