"""Read a Hugging Face folder: `config.json` beside safetensors or `pytorch_model.bin`, sharded or whole."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpeval.checkpoint.args import check_shapes, refuse_more_than_stored
from mpeval.checkpoint.assemble import WEIGHT_DTYPES
from mpeval.checkpoint.container import open_torch_file
from mpeval.checkpoint.hugging_config import kind_of, read_config
from mpeval.checkpoint.hugging_names import BUFFERS, HEADS, PREFIXES, Rows, rows_of
from mpeval.checkpoint.locate import Location
from mpeval.checkpoint.logical import LogicalTensor, Piece, whole
from mpeval.checkpoint.safetensors import open_safetensors
from mpeval.checkpoint.sharded import Accounted, ShardedCheckpoint
from mpeval.checkpoint.stored import AGAIN, StoredTensor
from mpeval.config import ModelConfig
from mpeval.errors import CheckpointError, shown

CONFIG = "config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""What a folder's weights are called; `NAME.index.json` beside it where they are cut into several files."""
_TIED = {"lm_head.weight": "embedding.word.weight", "cls.predictions.decoder.weight": "embedding.word.weight"}
_AGAIN_BIAS = {"cls.predictions.decoder.bias": "lm_head.bias"}


def read_hugging_face(location: Location, overrides: Mapping[str, Any]) -> ShardedCheckpoint:
    """Open a Hugging Face folder; arguments and errors as in `read_classic`."""
    folder = location.folder
    values = _json(folder / CONFIG)
    kind = kind_of(folder / CONFIG, values)
    files = {}
    for name, (file, tensor) in _stored(folder).items():
        full = _full_name(name, PREFIXES[kind])
        if full in files:
            raise CheckpointError(f"`{folder / file}` holds `{shown(full)}` a second time, as `{shown(name)}`", AGAIN)
        files[full] = (file, name, tensor)
    tensors = {name: tensor for name, (_, _, tensor) in files.items()}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    config = read_config(folder / CONFIG, values, shapes, overrides)
    refuse_more_than_stored(config, shapes, folder)
    used: dict[str, str] = {}
    model = _assemble(folder, list(rows_of(kind, config, config.padded_vocab)), tensors, config, used)
    tied = _leftovers(folder, files, config, used, model)
    check_shapes(config, {name: tensor.shape for name, tensor in model.items()}, folder)
    entries = [
        Accounted(file=file, stored=stored, name=used.get(name), reason=_reason(name, used))
        for name, (file, stored, _) in files.items()
    ]
    return ShardedCheckpoint(
        path=folder,
        root=location.root,
        format="huggingface",
        version=0.0,
        iteration=0,
        release=True,
        grid=(1, 1),
        config=config,
        tensors={name: model[name] for name in config.shapes()},
        args={},
        entries=tuple(entries),
        tied_copies=tied,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"`{path}` cannot be read: {str(error)[:200]}", AGAIN) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"`{path}` holds no JSON object", AGAIN)
    return content


def _stored(folder: Path) -> dict[str, tuple[str, StoredTensor]]:
    """Return every tensor of the folder's weight files: name -> (file, tensor)."""
    for weights in WEIGHT_FILES:
        index = folder / f"{weights}.index.json"
        if (folder / weights).is_file():
            return {name: (weights, tensor) for name, tensor in _open(folder / weights).items()}
        if index.is_file():
            return _indexed(folder, index)
    found = ", ".join(f"`{item.name}`" for item in sorted(folder.iterdir())[:8])
    raise CheckpointError(f"`{folder}` has no `{WEIGHT_FILES[0]}` and no `{WEIGHT_FILES[1]}`", f"found: {found}")


def _indexed(folder: Path, index: Path) -> dict[str, tuple[str, StoredTensor]]:
    """Read the files that an index names, each tensor from the file it is said to be in."""
    named = _json(index).get("weight_map")
    if not isinstance(named, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in named.values()
    ):
        raise CheckpointError(f"`{index}` has no `weight_map` of file names", AGAIN)
    missing = sorted(file for file in set(named.values()) if not (folder / file).is_file())
    if missing:
        raise CheckpointError(
            f"`{folder}` lacks {', '.join(f'`{file}`' for file in missing[:4])}, named by `{index.name}`",
            "copy the missing files here",
        )
    held = {file: _open(folder / file) for file in sorted(set(named.values()))}
    stored: dict[str, tuple[str, StoredTensor]] = {}
    for name, file in named.items():
        if name not in held[file]:
            raise CheckpointError(f"`{folder / file}` lacks `{name}`, which `{index.name}` says it holds", AGAIN)
        stored[name] = (file, held[file][name])
    return stored


def _open(path: Path) -> dict[str, StoredTensor]:
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    content = open_torch_file(path).value
    if not isinstance(content, dict):
        raise CheckpointError(f"`{path}` holds no dictionary of weights", AGAIN)
    return {str(name): value for name, value in content.items() if isinstance(value, StoredTensor)}


def _full_name(name: str, prefix: str) -> str:
    """Return a name with its prefix, and with the endings of today for those of 2018."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith((prefix, *HEADS)) else prefix + name


def _assemble(
    folder: Path, rows: list[Rows], tensors: Mapping[str, StoredTensor], config: ModelConfig, used: dict[str, str]
) -> dict[str, LogicalTensor]:
    """Put canonical tensors together from rows of stored ones, noting in `used` which served for what."""
    pieces: dict[str, list[Piece]] = defaultdict(list)
    shapes = config.shapes()
    missing = sorted({row.theirs for row in rows} - set(tensors))
    if missing:
        more = f" and {len(missing) - 4} more" if len(missing) > 4 else ""
        raise CheckpointError(
            f"`{folder}` lacks {', '.join(f'`{name}`' for name in missing[:4])}{more}",
            "its files are incomplete, or `config.json` belongs to another model",
        )
    ends: dict[str, int] = {}
    for row in rows:
        ends[row.theirs] = max(ends.get(row.theirs, 0), row.start + row.rows)
    for row in rows:
        tensor = tensors[row.theirs]
        tensor = tensor.transposed() if row.transposed else tensor
        wanted = shapes[row.ours][1:]
        if not tensor.shape or tensor.shape[0] != ends[row.theirs] or tensor.shape[1:] != wanted:
            raise CheckpointError(
                f"`{folder}`: `{row.theirs}` has shape {list(tensors[row.theirs].shape)}, not what `config.json` says",
                "its files are damaged, or `config.json` belongs to another model",
            )
        if tensor.dtype not in WEIGHT_DTYPES:
            raise CheckpointError(f"`{folder}`: `{row.theirs}` is of dtype {tensor.dtype}, no weight's", AGAIN)
        at = (row.at, *(0,) * (len(tensor.shape) - 1))
        pieces[row.ours].append(Piece(at, tensor.narrow(0, row.start, row.start + row.rows)))
        used[row.theirs] = row.ours
    return {name: _logical(name, found, shapes[name], folder) for name, found in pieces.items()}


def _logical(name: str, pieces: list[Piece], shape: tuple[int, ...], folder: Path) -> LogicalTensor:
    dtypes = {piece.tensor.dtype for piece in pieces}
    if len(dtypes) > 1:
        raise CheckpointError(f"`{folder}`: the parts of `{name}` have different dtypes", AGAIN)
    return LogicalTensor(name=name, shape=shape, dtype=dtypes.pop(), pieces=tuple(pieces))


def _leftovers(
    folder: Path,
    files: Mapping[str, tuple[str, str, StoredTensor]],
    config: ModelConfig,
    used: dict[str, str],
    model: dict[str, LogicalTensor],
) -> tuple[LogicalTensor, ...]:
    """Refuse tensors that nothing used, but keep copies of tied ones for comparison."""
    tied: list[LogicalTensor] = []
    for name, (file, _, tensor) in files.items():
        if name in used or BUFFERS.fullmatch(name):
            continue
        if name in _TIED and config.tied:
            tied.append(whole(_TIED[name], tensor))
        elif name in _AGAIN_BIAS and _AGAIN_BIAS[name] in model:
            first = model[_AGAIN_BIAS[name]]
            model[first.name] = whole(first.name, first.pieces[0].tensor, [*first.copies, tensor])
        else:
            raise CheckpointError(
                f"`{folder / file}` holds a tensor that its `config.json` has no place for: `{name[:120]}`",
                "it is of another kind of model; nothing was read",
            )
    return tuple(tied)


def _reason(name: str, used: Mapping[str, str]) -> str:
    if name in used:
        return ""
    if name in _TIED:
        return "copy of the tied token table"
    return "copy of the output bias" if name in _AGAIN_BIAS else "no weight"
