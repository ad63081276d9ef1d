"""Keys and values of the tokens a model has read, kept so that each further token is computed alone."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from mpeval.models.gpt import GPT
from mpeval.models.rotary import rotation
from mpeval.models.transformer import Pass

Tensor = torch.Tensor


def bytes_per_token(model: GPT) -> int:
    """Return how much memory a rank keeps of one token: keys and values of its heads in every layer."""
    config = model.config
    heads = config.kv_heads // model.group.tp.ranks
    return 2 * config.layers * heads * config.head_dim * model.output_table.element_size()


class Cache:
    """What all layers keep of some rows of tokens, each row of its own length.

    A layer holds keys (rotated already) and values [rows, kv_heads_local, capacity, head_dim]; what lies behind a
    row's last token is never attended to.
    """

    def __init__(self, model: GPT, rows: int, capacity: int) -> None:
        """Make room for `rows` of up to `capacity` tokens, at most the model's context; filled as layers come by."""
        self.model = model
        self.rows = rows
        self.capacity = capacity
        self.held: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        device = model.group.device
        self.rotation = rotation(model.config, capacity, device) if model.config.rope else None
        self.places = torch.arange(capacity, device=device)

    def read(self, ids: Tensor, lengths: Tensor, first: int) -> Tensor:
        """Read the beginning of some rows, from row `first` on.

        Args:
            ids: [n, time] int64, padded on the right (causal: padding changes nothing).
            lengths: [n] int64, the true tokens of each, at least one.
            first: the row of `ids[0]`.

        Returns:
            [n, hidden], the last block's output at each row's last token.
        """
        count, time = ids.shape
        run = self.model.start(ids)._replace(keep=partial(self._fill, slice(first, first + count)))
        last = torch.arange(count, device=ids.device) * time + lengths - 1
        hidden = self.model.blocks(self.model.embedding(ids), run, last.unsqueeze(-1))
        return hidden[:, 0]

    def step(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Read one more token of every row, `ids` [rows] at `positions` [rows], both int64; return [rows, hidden]."""
        used = int(positions.max()) + 1
        run = Pass(
            rotation=self.rotation.at(positions[:, None]) if self.rotation else None,
            mask=(self.places[:used] <= positions[:, None])[:, None, None],
            causal=False,
            keep=partial(self._extend, positions, used),
        )
        vectors = self.model.embedding(ids[:, None], positions=positions[:, None])
        return self.model.blocks(vectors, run)[:, 0]

    def preamble(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Give the one row that was read to each of `batch` rows, before their own [batch, heads, time, head_dim]."""
        before, behind = self.held[layer]
        rows = len(key)
        return torch.cat([before.expand(rows, -1, -1, -1), key], 2), torch.cat(
            [behind.expand(rows, -1, -1, -1), value], 2
        )

    def select(self, rows: Tensor) -> None:
        """Keep only these rows, [n] int64, in this order."""
        self.rows = len(rows)
        self.held = {layer: (key[rows], value[rows]) for layer, (key, value) in self.held.items()}

    def _fill(self, rows: slice, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values [n, heads, time, head_dim] of the beginning of some rows; attend to just these."""
        if layer not in self.held:
            # zeros, because a masked value still counts 0 times what it is
            shape = (self.rows, key.shape[1], self.capacity, key.shape[3])
            self.held[layer] = (key.new_zeros(shape), value.new_zeros(shape))
        for kept, new in zip(self.held[layer], (key, value), strict=True):
            kept[rows, :, : new.shape[2]] = new
        return key, value

    def _extend(
        self, positions: Tensor, used: int, layer: nn.Module, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keep those of one more token a row, [rows, heads, 1, head_dim]; attend to all that were kept."""
        rows = torch.arange(self.rows, device=key.device)
        held = self.held[layer]
        for kept, new in zip(held, (key, value), strict=True):
            kept[rows, :, positions] = new[:, :, 0]
        return held[0][:, :, :used], held[1][:, :, :used]
