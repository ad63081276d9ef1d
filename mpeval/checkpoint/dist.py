"""Read Megatron's torch_dist container (PyTorch DCP): global tensors in chunks, without Megatron or a process group."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from mpeval.checkpoint.args import config_of, refuse_foreign, refuse_ignored_order, refuse_unsupported
from mpeval.checkpoint.assemble import MIXED, WEIGHT_DTYPES, is_fused
from mpeval.checkpoint.classic import OTHER_ENTRIES, args_of, iteration_of, stored_version
from mpeval.checkpoint.container import open_torch_file
from mpeval.checkpoint.locate import Location
from mpeval.checkpoint.logical import LogicalTensor, Piece
from mpeval.checkpoint.names import FUSED, canonical_name, plain_spelling
from mpeval.checkpoint.sharded import Accounted, ShardedCheckpoint
from mpeval.checkpoint.stored import AGAIN, StoredTensor
from mpeval.checkpoint.unpickle import read_pickle
from mpeval.errors import CheckpointError, name_in_file, shown

METADATA = ".metadata"
LAYERS = 10_000
"""No model has as many."""
_NO_MODEL = re.compile(
    r"optimizer\.|chained_\d+\.|rng_state|rerun_state_machine|opt_param_scheduler|lr_scheduler|common_state|content_metadata"
)
_STACKED = re.compile(r"((?:de|en)coder\.layers)\.(?!\d)")


def read_dist(location: Location, overrides: Mapping[str, Any]) -> ShardedCheckpoint:
    """Open one iteration of a torch_dist checkpoint; arguments and errors as in `read_classic`."""
    folder = location.folder
    _check_backend(folder)
    index = _Index(folder)
    common = index.common()
    args = args_of(common)
    refuse_unsupported(args, folder)
    version = stored_version(common, folder)
    refuse_ignored_order(args, overrides, folder)
    tensors, entries = _sort(index, folder)
    config = config_of(args, {name: tensor.shape for name, tensor in tensors.items()}, overrides, folder)
    tp, pp = (args.get(f"{kind}_model_parallel_size") for kind in ("tensor", "pipeline"))
    return ShardedCheckpoint(
        path=folder,
        root=location.root,
        format="torch_dist",
        version=version,
        iteration=iteration_of(common, folder),
        release=folder.name == "release",
        grid=(tp if isinstance(tp, int) else 1, pp if isinstance(pp, int) else 1),
        config=config,
        tensors=tensors,
        args=args,
        entries=tuple(entries),
    )


def _check_backend(folder: Path) -> None:
    path = folder / "metadata.json"
    if not path.is_file():
        return
    try:
        backend = json.loads(path.read_text(encoding="utf-8"))["sharded_backend"]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise CheckpointError(f"`{path}` is damaged: {error}", AGAIN) from error
    if backend != "torch_dist":
        raise CheckpointError(
            f"`{folder}` is a distributed checkpoint of format `{shown(backend)}`, which this version does not read",
            "`torch_dist` is read; save it in that format with the Megatron that wrote it",
        )


class _Index:
    """What `.metadata` says: of each key the chunks or the bytes, and where in which file they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / METADATA
        if not path.is_file():
            found = ", ".join(f"`{item.name}`" for item in sorted(folder.iterdir())[:8])
            raise CheckpointError(f"`{folder}` is a torch_dist checkpoint without its `{METADATA}`", f"found: {found}")
        stored = _attributes(read_pickle(path).value)
        try:
            self.items = {name_in_file(key): _attributes(item) for key, item in stored["state_dict_metadata"].items()}
            self.places = {_place(index): _attributes(info) for index, info in stored["storage_data"].items()}
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise CheckpointError(f"`{path}` is no metadata of PyTorch DCP: {error!r}", AGAIN) from error

    def common(self) -> dict[str, Any]:
        """Return the arguments, iteration and version: in `common.pt`, since July 2026 inside the payload."""
        path = self.folder / "common.pt"
        inside = next((key for key in self.items if key.startswith("common_state/")), None)
        if path.is_file():
            content = open_torch_file(path).value
        elif inside is not None:
            content = self._open(inside, None)
            if isinstance(content, list) and len(content) == 1:  # Megatron-core wraps every object it saves so
                content = content[0]
        else:
            raise CheckpointError(
                f"`{self.folder}` has no `common.pt`, which holds the model's arguments",
                "copy `common.pt` here from where the checkpoint was written",
            )
        if not isinstance(content, dict):
            raise CheckpointError(f"`{self.folder}`: the common state is no dictionary", AGAIN)
        return {shown(key): value for key, value in content.items()}

    def tensor(self, key: str) -> LogicalTensor:
        """Return the global tensor of a key, whose chunks must tile it."""
        item = self.items[key]
        shape = _sizes(item.get("size"))
        if not isinstance(item["chunks"], list):
            raise CheckpointError(f"`{self.folder}`: `{key}` has no list of chunks", AGAIN)
        chunks = [_attributes(chunk) for chunk in item["chunks"]]
        pieces = []
        for chunk in chunks:
            at, extent = _sizes(chunk.get("offsets")), _sizes(chunk.get("sizes"))
            found = self._open(key, at)
            if not isinstance(found, StoredTensor) or found.shape != extent:
                raise CheckpointError(f"`{self.folder}`: a chunk of `{key}` is not the tensor its index says", AGAIN)
            pieces.append(Piece(at, found))
        if not _tiles(shape, pieces):
            raise CheckpointError(f"`{self.folder}`: the chunks of `{key}` do not fill its {list(shape)}", AGAIN)
        dtypes = {piece.tensor.dtype for piece in pieces}
        if len(dtypes) != 1 or not dtypes <= WEIGHT_DTYPES:
            raise CheckpointError(
                f"`{self.folder}`: `{key}` is of dtype {', '.join(sorted(dtypes))}, no weight's", AGAIN
            )
        return LogicalTensor(name=key, shape=shape, dtype=dtypes.pop(), pieces=tuple(pieces))

    def _open(self, key: str, at: tuple[int, ...] | None) -> Any:
        """Decode the part of a file that holds the chunk of `key` at `at`, or its bytes."""
        place = self.places.get((key, at))
        if place is None:
            raise CheckpointError(f"`{self.folder / METADATA}` does not say where `{key}` is", AGAIN)
        name, start, length = (place.get(field) for field in ("relative_path", "offset", "length"))
        if (
            not isinstance(name, str)
            or Path(name).name != name
            or len(name) > 200
            or not isinstance(start, int)
            or not isinstance(length, int)
        ):
            raise CheckpointError(f"`{self.folder / METADATA}` places `{key}` outside the checkpoint", AGAIN)
        if place.get("transform_descriptors"):
            raise CheckpointError(
                f"`{self.folder}`: `{key}` is stored compressed, which this version does not read",
                "save it again without storage transforms",
            )
        path = self.folder / name
        if not path.is_file():
            raise CheckpointError(f"`{self.folder}` lacks `{name}`, which holds `{key}`", "copy the missing file here")
        return open_torch_file(path, start, length).value


def _attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object that the file describes."""
    return vars(value) if hasattr(value, "__dict__") else {}


def _place(index: Any) -> tuple[str, tuple[int, ...] | None]:
    fields = vars(index)
    offset = fields.get("offset")
    return name_in_file(fields["fqn"]), None if offset is None else _sizes(offset)


def _sizes(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, int) and item >= 0 for item in value):
        raise CheckpointError(f"a shape in `{METADATA}` is no list of sizes: {shown(value)}", AGAIN)
    return tuple(value)


def _tiles(shape: tuple[int, ...], pieces: list[Piece]) -> bool:
    """Tell whether pieces fill `shape` exactly: inside it, of the right volume, none over another."""
    boxes = [[(low, low + n) for low, n in zip(piece.at, piece.tensor.shape, strict=False)] for piece in pieces]
    if any(len(box) != len(shape) or any(high > n for (_, high), n in zip(box, shape, strict=True)) for box in boxes):
        return False
    if sum(prod(high - low for low, high in box) for box in boxes) != prod(shape):
        return False
    boxes.sort()
    for number, box in enumerate(boxes):
        for other in boxes[number + 1 :]:
            if box and other[0][0] >= box[0][1]:
                break
            if all(low < top and bottom < high for (low, high), (bottom, top) in zip(box, other, strict=True)):
                return False
    return True


def _sort(index: _Index, folder: Path) -> tuple[dict[str, LogicalTensor], list[Accounted]]:
    """Turn every key of the payload into canonical tensors, or account for why it is none."""
    found: dict[str, LogicalTensor] = {}
    entries: list[Accounted] = []
    for key, item in index.items.items():
        plain = key.removeprefix("model.")
        if "chunks" not in item or _NO_MODEL.match(plain) or "._extra_state" in plain:
            known = OTHER_ENTRIES.get(re.split(r"[./]", plain)[0], "not part of the model")
            reason = "no weight" if "._extra_state" in plain else known
            entries.append(Accounted(file=METADATA, stored=key, name=None, reason=reason))
            continue
        whole = index.tensor(key)
        if 0 in whole.shape or not whole.shape or (_STACKED.match(plain) and whole.shape[0] > LAYERS):
            raise CheckpointError(f"`{folder}`: `{key}` has the shape {list(whole.shape)}, which no weight has", AGAIN)
        for name, tensor in _layers(plain, whole):
            canonical = canonical_name(plain_spelling(name), "megatron-core")
            if canonical is None:
                refuse_foreign(key, folder)
                raise CheckpointError(
                    f"`{folder}` holds a tensor that no GPT or BERT has: `{key[:120]}`",
                    "it is of another kind of model, or a newer format; nothing was read",
                )
            if canonical in found:
                raise CheckpointError(f"`{folder}` holds `{canonical}` a second time", MIXED)
            found[canonical] = replace(tensor, name=canonical)
            entries.append(Accounted(file=METADATA, stored=key, name=canonical, reason=""))
    return dict(_apart(found)), entries


def _layers(key: str, tensor: LogicalTensor) -> Iterator[tuple[str, LogicalTensor]]:
    """Yield (name with a layer number, tensor): equal layers are stacked along a first dimension, under one key."""
    if not _STACKED.match(key):
        yield key, tensor
        return
    for layer in range(tensor.shape[0]):
        name = _STACKED.sub(rf"\g<1>.{layer}.", key)
        bounds = [(layer, layer + 1), *((0, extent) for extent in tensor.shape[1:])]
        yield name, tensor.box(name, bounds).without_first()


def _apart(found: Mapping[str, LogicalTensor]) -> Iterator[tuple[str, LogicalTensor]]:
    """Cut SwiGLU's tensors in two: globally, the whole gate lies above the whole of `up`."""
    for name, tensor in found.items():
        down = found.get(f"{name.split(FUSED[1])[0]}mlp.down.weight")
        if FUSED[1] not in name or not is_fused(tensor.shape, down.shape if down else ()):
            yield name, tensor
            continue
        rows = tensor.shape[0] // 2
        for part, half in enumerate(FUSED):
            own = name.replace(FUSED[1], half)
            yield own, tensor.box(own, [(rows * part, rows * (part + 1)), *((0, n) for n in tensor.shape[1:])])
