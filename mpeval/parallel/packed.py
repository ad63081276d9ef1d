"""Linear layers on a CPU whose weights lie the way oneDNN multiplies them, rearranged once and not at each product."""

from __future__ import annotations

from typing import NamedTuple

import torch

Tensor = torch.Tensor
ROWS = 768
"""About how many rows the products have: what oneDNN lays weights out for.  Others are right, and nearly as fast."""


class PackedLinear(NamedTuple):
    """y = x A + b, for inference only.

    Against `torch.nn.functional.linear` the product of few rows (a head at scored positions) is up to three times as
    fast, that of many about 1.1 times, and a GELU after it costs next to nothing: it is applied in registers, in fp32.
    """

    weight: Tensor
    """A, in oneDNN's own order: no other operation can read it."""
    bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> PackedLinear | None:
        """Rearrange a weight [outputs, inputs], a copy; None where that has no kernel (not a CPU, another dtype)."""
        if not _has_kernel(weight):
            return None
        return cls(torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), ROWS), bias)

    def __call__(self, x: Tensor, gelu: str | None = None) -> Tensor:
        """Map x [..., inputs] to [..., outputs]; `gelu`, `none` or `tanh`, is that of torch and follows the product."""
        kind = "none" if gelu is None else "gelu"
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, kind, [], gelu or "")
        return result


def _has_kernel(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or not torch._C._has_mkldnn or not weight.numel():
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32
