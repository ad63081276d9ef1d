"""Rotary position embedding: positions as rotations of queries and keys (arXiv 2104.09864)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from mpeval.config import ModelConfig

Tensor = torch.Tensor


class Rotation(NamedTuple):
    """What to rotate by: `cos` and `sin` [time, width] in fp32, and which features form a pair."""

    cos: Tensor
    sin: Tensor
    interleaved: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate the first `width` features of x [batch, heads, time, head_dim]; leave the others alone.

        `cos` and `sin` are of the positions of `time`, the same or, [batch, 1, time, width], others in each sample.
        """
        width = self.cos.shape[-1]
        turned, rest = x[..., :width], x[..., width:]
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        turned = turned * cos + _quarter_turn(turned, self.interleaved) * sin
        return turned if not rest.shape[-1] else torch.cat([turned, rest], dim=-1)

    def at(self, positions: Tensor) -> Rotation:
        """Return the rotation of vectors at `positions` [batch, time] of the samples."""
        if self.cos.ndim > 2:
            places = positions[:, None, :, None]
            return self._replace(cos=self.cos.take_along_dim(places, 2), sin=self.sin.take_along_dim(places, 2))
        return self._replace(cos=self.cos[positions].unsqueeze(1), sin=self.sin[positions].unsqueeze(1))


def _quarter_turn(x: Tensor, interleaved: bool) -> Tensor:
    if interleaved:
        return torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def rotation(config: ModelConfig, time: int, device: torch.device) -> Rotation:
    """Return the rotation of positions 0 .. time - 1.

    Angles are position / wavelength in fp32, as Megatron-core and transformers compute them; a checkpoint stores
    none of this.
    """
    positions = torch.arange(time, device=device, dtype=torch.float32)
    angles = torch.outer(positions, frequencies(config).to(device))
    both = angles.repeat_interleave(2, dim=-1) if config.rope_interleaved else torch.cat([angles, angles], dim=-1)
    return Rotation(both.cos(), both.sin(), config.rope_interleaved)


def frequencies(config: ModelConfig) -> Tensor:
    """Return the angular frequency of each pair of features, [width / 2] fp32, stretched as the model was trained."""
    width = config.rope_width
    plain = 1.0 / config.rope_base ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
    if config.rope_scaling == "none":
        return plain
    stretched = plain / config.rope_factor
    if config.rope_scaling == "linear":
        return stretched
    # Llama 3.1: long wavelengths are stretched, short ones are not, those between are blended
    low, high = config.rope_low, config.rope_high
    turns = config.rope_original * plain / (2 * math.pi)
    share = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - share) * stretched + share * plain
