"""mpeval: train and evaluate sharded Megatron checkpoints, on a CPU or on GPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpeval.config import ModelConfig
from mpeval.errors import MpevalError

if TYPE_CHECKING:
    from mpeval.checkpoint.load import load_model
    from mpeval.checkpoint.open import open_checkpoint
    from mpeval.checkpoint.sharded import ShardedCheckpoint
    from mpeval.corpus.indexed import IndexedDataset
    from mpeval.items import Request, Response
    from mpeval.parallel.group import Group
    from mpeval.scoring import score

__version__ = "0.1.0"
__all__ = [
    "Group",
    "IndexedDataset",
    "ModelConfig",
    "MpevalError",
    "Request",
    "Response",
    "ShardedCheckpoint",
    "__version__",
    "load_model",
    "open_checkpoint",
    "score",
]

_LAZY = {
    "Group": "mpeval.parallel.group",
    "IndexedDataset": "mpeval.corpus.indexed",
    "Request": "mpeval.items",
    "Response": "mpeval.items",
    "ShardedCheckpoint": "mpeval.checkpoint.sharded",
    "load_model": "mpeval.checkpoint.load",
    "open_checkpoint": "mpeval.checkpoint.open",
    "score": "mpeval.scoring",
}


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is used, so that `mpeval --help` starts at once."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module `mpeval` has no attribute `{name}`")
