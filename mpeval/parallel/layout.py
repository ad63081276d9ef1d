"""LAYOUT: how each parameter is cut over the tensor axis.  Splitting and merging both come from this one table.

Names are mpeval's canonical parameter names; full tensors have the shapes of `ModelConfig.shapes()`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

Tensor = torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a tensor is split: along `dim` into equal consecutive parts, or not at all (`dim` None: replicated).

    A `vocab` tensor has padding rows at its end and may be extended by zero rows to divide evenly.
    """

    dim: int | None = None
    vocab: bool = False


REPLICATED = Cut()
LAYOUT: tuple[tuple[str, Cut], ...] = (
    (r"embedding\.word\.weight", Cut(dim=0, vocab=True)),
    (r"head\.weight", Cut(dim=0, vocab=True)),
    (r"lm_head\.bias", Cut(dim=0, vocab=True)),
    (r"embedding\.(position|tokentype)\.weight", REPLICATED),
    (r"layers\.\d+\.attention\.qkv\.(weight|bias)", Cut(dim=0)),  # whole key-value heads
    (r"layers\.\d+\.attention\.out\.weight", Cut(dim=1)),
    (r"layers\.\d+\.attention\.out\.bias", REPLICATED),
    (r"layers\.\d+\.attention\.(query|key)_norm\.(weight|bias)", REPLICATED),
    (r"layers\.\d+\.mlp\.(gate|up)\.(weight|bias)", Cut(dim=0)),
    (r"layers\.\d+\.mlp\.down\.weight", Cut(dim=1)),
    (r"layers\.\d+\.mlp\.down\.bias", REPLICATED),
    (r"layers\.\d+\.(attention|mlp)_norm\.(weight|bias)", REPLICATED),
    (r"final_norm\.(weight|bias)", REPLICATED),
    (r"(lm_head|pooler)\.dense\.(weight|bias)", REPLICATED),
    (r"lm_head\.norm\.(weight|bias)", REPLICATED),
    (r"(binary|multichoice|classification|span)_head\.(weight|bias)", REPLICATED),
)


def cut_of(name: str) -> Cut:
    """Return how the parameter `name` is cut; a name the table does not know is a programming error."""
    for pattern, cut in LAYOUT:
        if re.fullmatch(pattern, name):
            return cut
    raise KeyError(f"no layout rule for parameter `{name}`")


def bounds(size: int, rank: int, ranks: int, cut: Cut) -> tuple[int, int]:
    """Return the half-open range of the cut dimension (of full `size`) that `rank` of `ranks` holds.

    For a vocabulary the range may reach beyond `size`: those rows are zero.
    """
    if size % ranks and not cut.vocab:
        raise ValueError(f"size {size} cannot be cut into {ranks} equal shards")
    local = -(-size // ranks)
    return rank * local, (rank + 1) * local


def split(name: str, full: Tensor, ranks: int) -> list[Tensor]:
    """Cut a full tensor into the shards of `ranks` ranks (copies)."""
    cut = cut_of(name)
    if cut.dim is None:
        return [full.clone() for _ in range(ranks)]
    if cut.vocab and full.shape[0] % ranks:
        missing = -full.shape[0] % ranks
        full = torch.cat([full, full.new_zeros(missing, *full.shape[1:])])
    if full.shape[cut.dim] % ranks:
        raise ValueError(f"`{name}` of shape {tuple(full.shape)} cannot be cut into {ranks} equal shards")
    return [shard.clone() for shard in full.chunk(ranks, cut.dim)]


def merge(name: str, shards: Sequence[Tensor], rows: int | None = None) -> Tensor:
    """Join the shards of all ranks; `rows` cuts a vocabulary back to its size before splitting."""
    cut = cut_of(name)
    if cut.dim is None:
        return shards[0].clone()
    full = torch.cat(list(shards), dim=cut.dim)
    return full[:rows].clone() if cut.vocab and rows is not None else full
