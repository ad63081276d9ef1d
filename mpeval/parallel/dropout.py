"""Which random stream dropout draws from: one that all tensor ranks share, or one of the rank's own.

Outside a sharded region every tensor rank holds the same activations and must drop the same ones; inside it each
rank holds other heads and must draw independently.  Data-parallel ranks always differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mpeval.parallel.group import Group


class DropoutStreams:
    """Two random number streams for one model on one rank, derived from one seed."""

    def __init__(self, seed: int, group: Group) -> None:
        """Derive the streams; equal seeds give equal `shared` streams on all tensor ranks of a replica."""
        self.device = group.device
        replica = seed + 1_000_003 * group.dp.rank
        self._states = {
            "shared": self._state_of(replica),
            "own": self._state_of(replica + 2718 + 7919 * group.tp.rank),
        }

    def _state_of(self, seed: int) -> torch.Tensor:
        return torch.Generator(device=self.device).manual_seed(seed).get_state()

    @contextmanager
    def using(self, stream: str) -> Iterator[None]:
        """Draw from `stream` ("shared" or "own") inside the block; the default generator is left as it was."""
        generator = _default_generator(self.device)
        before = generator.get_state()
        generator.set_state(self._states[stream])
        try:
            yield
        finally:
            self._states[stream] = generator.get_state()
            generator.set_state(before)

    def state(self) -> dict[str, torch.Tensor]:
        """Return the position of both streams, for checkpoints and for replaying a layer."""
        return {name: state.clone() for name, state in self._states.items()}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Go back to a position that `state` returned."""
        self._states = {name: value.clone() for name, value in state.items()}


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        index = device.index if device.index is not None else torch.cuda.current_device()
        return torch.cuda.default_generators[index]
    return torch.default_generator
