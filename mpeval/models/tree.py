"""Rows in which several sequences share the tokens they begin with, as the blocks see them."""

from __future__ import annotations

from typing import NamedTuple

import torch

Tensor = torch.Tensor


class Tree(NamedTuple):
    """For each token of a batch of rows, where it stands in its own sequence and where what continues it ends."""

    positions: Tensor
    """[batch, time] int64, from 0 in every sequence."""
    ends: Tensor
    """[batch, time] int64, the place from which on no token of the row continues the sequence; above its own place."""
    depth: int
    """Tokens of the longest sequence."""

    def mask(self) -> Tensor:
        """Return [batch, 1, time, time] bool: a token sees itself and those before it that it continues."""
        places = torch.arange(self.ends.shape[1], device=self.ends.device)
        return ((places <= places[:, None]) & (places[:, None] < self.ends[:, None, :])).unsqueeze(1)
