"""Dropout, and which random stream it draws from: one that all tensor ranks share, or one of the rank's own.

Outside a sharded region every tensor rank holds the same activations and must drop the same ones; inside it each
rank holds other heads and must draw independently.  Data-parallel ranks always differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from mpeval.parallel.group import Group

Tensor = torch.Tensor
State = dict[str, Tensor]


class DropoutStreams:
    """Two random number streams for one model on one rank, derived from one seed."""

    def __init__(self, seed: int, group: Group) -> None:
        """Derive the streams; equal seeds give equal `shared` streams on all tensor ranks of a replica."""
        self.device = group.device
        replica = seed + 1_000_003 * group.dp.rank
        seeds = {"shared": replica, "own": replica + 2718 + 7919 * group.tp.rank}
        self._generators = {
            name: torch.Generator(device=self.device).manual_seed(value) for name, value in seeds.items()
        }

    def masks(self, size: int, rate: float, stream: str) -> Tensor:
        """Draw `size` int16 that are 0 with probability `rate`, rounded to a multiple of 2 ** -16, and else all ones.

        Each 64-bit number drawn serves four of them.  Comparing integers into integers, and clearing bits with them,
        takes a CPU a fraction of the time of `bernoulli_` and a product.
        """
        bits = self._bits(-(-size // 4), stream)
        lowest = min(round(rate * 2**16), 2**16 - 1) - 2**15
        return bits.view(torch.int16)[:size].ge_(lowest).neg_()

    def _bits(self, size: int, stream: str) -> Tensor:
        """Draw int64 of random bits; on a CPU from a faster generator, SFC64, that the stream seeds each time."""
        generator = self._generators[stream]
        if self.device.type != "cpu":
            bits = torch.empty(size, dtype=torch.int64, device=self.device)
            return bits.random_(-(2**63), None, generator=generator)
        seed = torch.empty(2, dtype=torch.int64).random_(-(2**63), None, generator=generator)
        return torch.from_numpy(np.random.SFC64(seed.numpy().view(np.uint64)).random_raw(size).view(np.int64))

    @contextmanager
    def using(self, stream: str) -> Iterator[None]:
        """Let the device's default generator draw from `stream` inside the block; afterwards it is as it was."""
        generator, own = _default_generator(self.device), self._generators[stream]
        before = generator.get_state()
        generator.set_state(own.get_state())
        try:
            yield
        finally:
            own.set_state(generator.get_state())
            generator.set_state(before)

    def state(self) -> State:
        """Return the position of both streams, for checkpoints and for replaying a layer."""
        return {name: generator.get_state() for name, generator in self._generators.items()}

    def restore(self, state: State) -> None:
        """Go back to a position that `state` returned."""
        for name, generator in self._generators.items():
            generator.set_state(state[name])

    @contextmanager
    def replaying(self, state: State) -> Iterator[None]:
        """Draw again from the position `state` inside the block; afterwards the streams are where they were."""
        before = self.state()
        self.restore(state)
        try:
            yield
        finally:
            self.restore(before)


def mask_type(dtype: torch.dtype) -> torch.dtype:
    """Return the integers as wide as numbers of `dtype`."""
    return {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]


def clear(x: Tensor, masks: Tensor) -> Tensor:
    """Set x to 0 where `masks`, integers of any width, are 0, and leave it where they are all ones; in place."""
    kind = mask_type(x.dtype)
    x.view(kind).bitwise_and_(masks.to(kind))
    return x


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, streams: DropoutStreams, stream: str) -> Tensor:
        masks = streams.masks(x.numel(), rate, stream).view(x.shape)
        ctx.save_for_backward(masks.to(torch.int8))
        ctx.scale = 1 / (1 - rate)
        return clear(x * ctx.scale, masks)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return clear(grads[0] * ctx.scale, *ctx.saved_tensors), None, None, None


def dropout(x: Tensor, rate: float, streams: DropoutStreams | None, stream: str = "shared") -> Tensor:
    """Drop elements of `x` from the named stream; without streams (evaluation) return it unchanged."""
    if streams is None or rate == 0.0:
        return x
    result: Tensor = _Dropped.apply(x, rate, streams, stream)  # type: ignore[no-untyped-call]
    return result


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        index = device.index if device.index is not None else torch.cuda.current_device()
        return torch.cuda.default_generators[index]
    return torch.default_generator
