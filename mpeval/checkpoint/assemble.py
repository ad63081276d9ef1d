"""From Megatron's stored tensors to canonical ones: feed-forward halves apart, QKV rows in one order, ranks joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mpeval.checkpoint.logical import LogicalTensor, Piece, joined, whole
from mpeval.checkpoint.names import FUSED
from mpeval.checkpoint.stored import StoredTensor
from mpeval.config import DTYPES, ModelConfig
from mpeval.errors import CheckpointError
from mpeval.parallel.layout import cut_of

MIXED = "files of two checkpoints are mixed, or one is damaged; copy all shards again"
WEIGHT_DTYPES = frozenset({"float64", *DTYPES})

Parts = Mapping[str, Sequence[StoredTensor]]
"""Each canonical name's shards in the order of tensor ranks; with SwiGLU `mlp.up` still holds both halves."""


def is_fused(wide: tuple[int, ...], down: tuple[int, ...]) -> bool:
    """Tell whether the stored `mlp.up`, of full shape `wide`, is SwiGLU's two halves: twice `mlp.down`'s inputs."""
    return len(wide) > 0 and len(down) == 2 and wide[0] == 2 * down[1]


def joined_shape(name: str, parts: Sequence[StoredTensor], path: Path) -> tuple[int, ...]:
    """Return the full shape of a tensor's shards, which must be of one dtype and fit together."""
    shape, dim = parts[0].shape, cut_of(name).dim
    if parts[0].dtype not in WEIGHT_DTYPES:
        raise CheckpointError(f"`{path}`: `{name}` is of dtype {parts[0].dtype}, no weight's", MIXED)
    if len({part.dtype for part in parts}) > 1:
        raise CheckpointError(f"`{path}`: `{name}` has shards of different dtypes", MIXED)
    if dim is None:
        return shape
    if dim >= len(shape) or len({part.shape for part in parts}) > 1:
        raise CheckpointError(f"`{path}`: the shards of `{name}` have unequal shapes", MIXED)
    return (*shape[:dim], shape[dim] * len(parts), *shape[dim + 1 :])


def shapes_of(parts: Parts, path: Path) -> dict[str, tuple[int, ...]]:
    """Return the full shape of every canonical tensor, SwiGLU's halves apart."""
    stored = {name: joined_shape(name, shards, path) for name, shards in parts.items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in stored.items():
        if FUSED[1] in name and is_fused(*_widths(name, stored)):
            for half in FUSED:
                shapes[name.replace(FUSED[1], half)] = (shape[0] // 2, *shape[1:])
        else:
            shapes[name] = shape
    return shapes


def _widths(name: str, stored: Mapping[str, tuple[int, ...]]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the full shapes of a block's stored `mlp.up` (weight or bias) and of its `mlp.down.weight`."""
    block = name.split(FUSED[1])[0]
    return stored[name], stored.get(f"{block}mlp.down.weight", ())


def assemble(parts: Parts, config: ModelConfig, version: float) -> dict[str, LogicalTensor]:
    """Return every canonical tensor, the shards of all tensor ranks joined.

    Args:
        parts: the shards, whose shapes are known to be those of `config`.
        config: the model.
        version: Megatron's `checkpoint_version`, which decides the order of QKV rows.
    """
    tensors: dict[str, LogicalTensor] = {}
    for name, shards in parts.items():
        dim = cut_of(name).dim
        if FUSED[1] in name and config.swiglu:
            tensors |= _halves(name, shards)
        elif "attention.qkv" in name and version < 2.0:
            tensors[name] = _ordered(name, shards, config, version)
        elif dim is None:
            tensors[name] = whole(name, shards[0], shards[1:])
        else:
            tensors[name] = joined(name, shards, dim)
    return tensors


def _halves(name: str, shards: Sequence[StoredTensor]) -> dict[str, LogicalTensor]:
    """Take SwiGLU's tensor apart: each rank's shard is its part of the gate above its part of `up`."""
    rows = shards[0].shape[0] // 2
    return {
        name.replace(FUSED[1], half): joined(
            name.replace(FUSED[1], half), [shard.narrow(0, rows * part, rows * (part + 1)) for shard in shards], 0
        )
        for part, half in enumerate(FUSED)
    }


def _ordered(name: str, shards: Sequence[StoredTensor], config: ModelConfig, version: float) -> LogicalTensor:
    """Bring the QKV rows of an early version into the order [heads, 3, head_dim], each shard by itself.

    Without a version a shard's rows are [3, heads, head_dim]; in version 1.0 they are [heads, head_dim, 3].
    """
    heads, width = config.heads // len(shards), config.head_dim
    pieces = []
    for rank, shard in enumerate(shards):
        for head, kind, rows in _early_rows(shard, heads, width, version):
            at = ((rank * heads + head) * 3 + kind) * width
            pieces.append(Piece((at, *(0,) * (len(shard.shape) - 1)), rows))
    shape = (shards[0].shape[0] * len(shards), *shards[0].shape[1:])
    return LogicalTensor(name=name, shape=shape, dtype=shards[0].dtype, pieces=tuple(pieces))


def _early_rows(shard: StoredTensor, heads: int, width: int, version: float) -> Iterator[tuple[int, int, StoredTensor]]:
    """Yield (head, 0 for query, 1 for key or 2 for value, its rows) of one shard."""
    for head in range(heads):
        for kind in range(3):
            if version < 1.0:
                first = (kind * heads + head) * width
                yield head, kind, shard.narrow(0, first, first + width)
            else:
                first = head * width * 3
                yield head, kind, shard.narrow(0, first + kind, first + width * 3, step=3)
