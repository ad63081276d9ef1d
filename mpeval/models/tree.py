"""Rows in which several sequences share the tokens they begin with, as the blocks see them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

Tensor = torch.Tensor


class Tree(NamedTuple):
    """For each token of a batch of rows, where it stands in its own sequence and where what continues it ends."""

    positions: Tensor
    """[batch, time] int64, from 0 in every sequence."""
    ends: Tensor
    """[batch, time] int64, the place from which on no token of the row continues the sequence; above its own place."""
    depth: int
    """Tokens of the longest sequence."""
    before: int = 0
    """Tokens before all rows that every token sees: their keys and values are kept elsewhere; positions count them."""

    def mask(self) -> Tensor:
        """Return [batch, 1, time, before + time] bool: a token sees itself and those before it that it continues."""
        places = torch.arange(self.ends.shape[1], device=self.ends.device)
        seen = (places <= places[:, None]) & (places[:, None] < self.ends[:, None, :])
        return F.pad(seen, (self.before, 0), value=True).unsqueeze(1)
