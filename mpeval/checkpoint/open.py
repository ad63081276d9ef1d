"""Open a checkpoint of any format as one logical model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpeval.checkpoint.classic import read_classic
from mpeval.checkpoint.dist import read_dist
from mpeval.checkpoint.huggingface import read_hugging_face
from mpeval.checkpoint.locate import locate
from mpeval.checkpoint.sharded import ShardedCheckpoint


def open_checkpoint(path: str | Path, overrides: Mapping[str, Any] | None = None) -> ShardedCheckpoint:
    """Open a checkpoint: Megatron's classic container of any era and grid, torch_dist, or a Hugging Face folder.

    Args:
        path: the root (with the tracker file), an iteration folder, `release`, a file inside one, or a folder with
            a `config.json`.
        overrides: configuration values that the file lacks or has wrong, by field of `ModelConfig`, and
            `checkpoint_version`.

    Returns:
        A lazy `ShardedCheckpoint`: headers are read, no tensor is.

    Raises:
        CheckpointError: missing, incomplete, damaged, hostile or of an unsupported kind.
        ConfigError: a configuration value is missing or impossible.
    """
    location = locate(Path(path).expanduser())
    return _READERS[location.format](location, overrides or {})


_READERS = {"megatron": read_classic, "torch_dist": read_dist, "huggingface": read_hugging_face}
