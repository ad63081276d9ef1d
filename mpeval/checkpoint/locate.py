"""From a path a person typed to the files of one checkpoint, or an error that says what is there instead."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from mpeval.errors import CheckpointError

TRACKER = "latest_checkpointed_iteration.txt"
MODEL_FILE = "model_optim_rng.pt"
MODEL_FILES = (MODEL_FILE, "model_rng.pt")
"""A shard's file; in 2022 and 2023 the distributed optimizer moved its part elsewhere and left the second name."""
_RANK_FOLDER = re.compile(r"mp_rank_(\d{2,})(?:_(\d{3,}))?(?:_(\d{3,}))?")
Format = Literal["megatron", "torch_dist", "huggingface"]


@dataclass(frozen=True, kw_only=True)
class Location:
    """One checkpoint on disk: its root, the folder of the iteration, and its files by (tp, pp) rank."""

    root: Path
    folder: Path
    format: Format = "megatron"
    files: dict[tuple[int, int], Path] = field(default_factory=dict)
    """Shards of the classic container; empty for the other formats."""

    @property
    def tp(self) -> int:
        """Tensor-parallel size of the files."""
        return 1 + max((tp for tp, _ in self.files), default=0)

    @property
    def pp(self) -> int:
        """Pipeline-parallel size of the files."""
        return 1 + max((pp for _, pp in self.files), default=0)


def locate(path: Path) -> Location:
    """Find the checkpoint that a path means.

    Args:
        path: a root with a tracker, an iteration folder, `release`, a file inside one, or a Hugging Face folder.

    Raises:
        CheckpointError: nothing there, no tracker, another format, or shards missing from the grid.
    """
    try:
        there = path.exists()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"no such checkpoint: {str(error)[:100]}", "give the path of a folder") from error
    if not there:
        raise CheckpointError(f"no such checkpoint: `{path}` does not exist", _neighbours(path))
    if path.is_file():
        if path.name not in MODEL_FILES and not _is_hugging_face(path.parent) and not _is_dist(path.parent):
            raise CheckpointError(
                f"`{path}` is a file, not a checkpoint folder", f"pass the folder above `{MODEL_FILE}`"
            )
        path = path.parent
    if _RANK_FOLDER.fullmatch(path.name):
        path = path.parent
    if _is_hugging_face(path):
        return Location(root=path, folder=path, format="huggingface")
    if _rank_folders(path) or _is_dist(path):
        root = path.parent if (path.parent / TRACKER).is_file() else path
        return _iteration(root, path)
    return _iteration(path, _tracked(path))


def _iteration(root: Path, folder: Path) -> Location:
    """Return the checkpoint in an iteration's folder, whatever its format."""
    if _is_dist(folder):
        return Location(root=root, folder=folder, format="torch_dist")
    return Location(root=root, folder=folder, files=_grid(folder))


def _is_dist(folder: Path) -> bool:
    return (folder / ".metadata").exists() or (folder / "metadata.json").exists()


def _is_hugging_face(folder: Path) -> bool:
    """Tell a Hugging Face folder by its configuration; Megatron writes no file of that name."""
    return (folder / "config.json").is_file() and not (folder / TRACKER).exists() and not _rank_folders(folder)


def _neighbours(path: Path) -> str:
    import difflib

    parent = path.parent
    while not parent.is_dir() and parent != parent.parent:
        parent = parent.parent
    names = sorted(item.name for item in parent.iterdir() if item.is_dir())
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean `{parent / close[0]}`?"
    return f"`{parent}` holds: {', '.join(f'`{name}`' for name in names[:8]) or 'no folders'}"


def _tracked(root: Path) -> Path:
    tracker = root / TRACKER
    candidates = sorted(item.name for item in root.iterdir() if re.fullmatch(r"iter_\d{7,}|release", item.name))
    example = f"pass one of them, e.g. `mpeval inspect {root / candidates[-1]}`" if candidates else ""
    found = f"found {', '.join(f'`{name}`' for name in candidates)}; {example}" if candidates else _holds(root)
    if not tracker.is_file():
        raise CheckpointError(f"no checkpoint under `{root}`: `{TRACKER}` is missing", found)
    text = tracker.read_text(encoding="utf-8", errors="replace").strip()
    if text != "release" and not text.isdecimal():
        raise CheckpointError(f"`{tracker}` holds `{text[:40]}`, neither a number nor `release`", found)
    folder = root / ("release" if text == "release" else f"iter_{int(text):07d}")
    if not folder.is_dir():
        raise CheckpointError(f"`{tracker}` names `{folder.name}`, which is not in `{root}`", found)
    return folder


def _holds(folder: Path) -> str:
    names = sorted(item.name for item in folder.iterdir())
    return f"`{folder}` holds: {', '.join(f'`{name}`' for name in names[:8]) or 'nothing'}"


def _rank_folders(folder: Path) -> list[tuple[re.Match[str], Path]]:
    matches = ((_RANK_FOLDER.fullmatch(item.name), item) for item in sorted(folder.iterdir()))
    return [(match, item) for match, item in matches if match]


def _grid(folder: Path) -> dict[tuple[int, int], Path]:
    files: dict[tuple[int, int], Path] = {}
    without: list[str] = []
    for match, item in _rank_folders(folder):
        if match[3] is not None and any((item / name).is_file() for name in MODEL_FILES):
            raise CheckpointError(
                f"`{item.name}` in `{folder}` belongs to an expert-parallel checkpoint",
                "mixture-of-experts models are not supported",
            )
        held = [item / name for name in MODEL_FILES if (item / name).is_file()]
        place = int(match[1]), int(match[2] or 0)
        if held and place in files:
            raise CheckpointError(
                f"`{folder}` holds the same shard twice, in `{files[place].parent.name}` and `{item.name}`",
                "files of two checkpoints are mixed in one folder; remove the surplus ones",
            )
        if held:
            files[place] = held[0]
        else:
            without.append(item.name)
    if not files:
        found = f"{', '.join(without)} hold no `{MODEL_FILE}`" if without else _holds(folder)
        raise CheckpointError(f"no shards under `{folder}`: expected `mp_rank_00/{MODEL_FILE}`", f"found: {found}")
    check_grid(folder, files, 1 + max(tp for tp, _ in files), 1 + max(pp for _, pp in files))
    return files


def check_grid(folder: Path, files: dict[tuple[int, int], Path], tp: int, pp: int) -> None:
    """Refuse a grid of `tp` x `pp` in which a shard is missing, naming each."""
    if len(files) == tp * pp:
        return
    missing = islice(((t, p) for t in range(tp) for p in range(pp) if (t, p) not in files), 8)
    names = [f"`mp_rank_{t:02d}" + (f"_{p:03d}`" if pp > 1 else "`") for t, p in missing]
    count = tp * pp - len(files)
    raise CheckpointError(
        f"`{folder}` lacks {count} of {tp * pp} shards: {', '.join(names)}{', ...' * (count > len(names))}",
        f"found: {', '.join(f'`{path.parent.name}`' for path in files.values())}; copy the missing ones here",
    )
