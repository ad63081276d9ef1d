"""torch_dist folders as PyTorch's own writer makes them, cut in any way, and damaged ones."""

from __future__ import annotations

import argparse
import io
import pickle
import re
import warnings
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import BERT, TODAY, small_config
from torch.distributed.checkpoint import metadata
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import _StorageInfo

import mpeval
from mpeval.checkpoint.logical import LogicalTensor
from mpeval.checkpoint.names import engine_spelling, stored_name
from mpeval.checkpoint.write import arguments
from mpeval.config import ModelConfig
from mpeval.errors import MpevalError

Tensors = dict[str, torch.Tensor]
MODELS: dict[str, dict[str, Any]] = {
    "gpt": {},
    "gpt of 12 layers": {"layers": 12},
    "swiglu": TODAY,
    "qk norm": {**TODAY, "qk_norm": True},
    "bert": BERT,
}
FC2 = "decoder.layers.mlp.linear_fc2.weight"
SEEN = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def model(name: str) -> tuple[ModelConfig, Tensors]:
    config = small_config(vocab=96, padded_vocab=128, **MODELS[name])
    draw = torch.Generator().manual_seed(3)
    return config, {key: torch.randn(shape, generator=draw) for key, shape in config.shapes().items()}


def payload(config: ModelConfig, full: Tensors, *, stacked: bool, engine: bool = True, prefix: str = "") -> Tensors:
    """Return the tensors under the keys of a torch_dist container: SwiGLU's halves together, layers stacked or not."""
    found: dict[str, list[torch.Tensor]] = {}
    for name, value in full.items():
        if "mlp.gate" in name:
            continue
        key = stored_name(name, "megatron-core", config.family)
        key = engine_spelling(key) if engine else key
        held = (
            torch.cat([full[name.replace("mlp.up", "mlp.gate")], value])
            if config.swiglu and "mlp.up" in name
            else value
        )
        layered = stacked and ".layers." in key
        key = re.sub(r"(coder\.layers)\.\d+\.", r"\1.", key) if layered else key
        found.setdefault(prefix + key, []).append(held)
    return {key: torch.stack(held) if stacked and ".layers." in key else held[0] for key, held in found.items()}


def common_state(config: ModelConfig) -> dict[str, Any]:
    return {"args": argparse.Namespace(**arguments(config, 1, 1, 5)), "checkpoint_version": 3.0, "iteration": 5}


def save(folder: Path, config: ModelConfig, state: Tensors, *, inside: bool = False) -> None:
    """Save with PyTorch's own writer; the common state in `common.pt`, or `inside` the payload."""
    content: dict[str, Any] = dict(state)
    if inside:
        content["common_state/shard_0_1"] = common_state(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(content, checkpoint_id=folder, no_dist=True, planner=DefaultSavePlanner(flatten_state_dict=False))
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist", "sharded_backend_version": 1}')
    if not inside:
        torch.save(common_state(config), folder / "common.pt")


def assert_holds(folder: Path, full: Tensors) -> None:
    opened = mpeval.open_checkpoint(folder)
    opened.check()
    assert opened.iteration == 5
    assert set(opened.tensors) == set(full)
    for name, value in full.items():
        assert torch.equal(opened.tensor(name)[:], value), name


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_what_pytorch_saves_is_read(name: str, stacked: bool, engine: bool, prefix: str, tmp_path: Path) -> None:
    config, full = model(name)
    save(tmp_path, config, payload(config, full, stacked=stacked, engine=engine, prefix=prefix))
    assert_holds(tmp_path, full)


def test_the_common_state_may_be_inside_the_payload(tmp_path: Path) -> None:
    config, full = model("gpt")
    save(tmp_path, config, payload(config, full, stacked=True), inside=True)
    assert_holds(tmp_path, full)


def test_every_key_is_accounted_for_once(tmp_path: Path) -> None:
    config, full = model("gpt of 12 layers")
    state = payload(config, full, stacked=False)
    moments = {f"optimizer.state.exp_avg.{key}": value for key, value in state.items()}
    save(tmp_path, config, state | moments)
    entries = mpeval.open_checkpoint(tmp_path).accounting()
    assert sorted(entry.stored for entry in entries) == sorted(state | moments)
    assert sum(entry.used for entry in entries) == len(state)


def save_in_chunks(
    folder: Path, config: ModelConfig, state: Tensors, cuts: Callable[[tuple[int, ...]], list[list[int]]]
) -> None:
    """Write each tensor in the chunks that `cuts` makes along every dimension, shared out over three files."""
    items: dict[str, Any] = {}
    places: dict[Any, Any] = {}
    files = [io.BytesIO() for _ in range(3)]
    for key, value in state.items():
        edges = cuts(tuple(value.shape))
        chunks = []
        for number, corner in enumerate(product(*map(pairwise, edges))):
            at, end = (torch.Size(side) for side in zip(*corner, strict=True))
            part = value[tuple(slice(low, high) for low, high in corner)].contiguous().clone()
            file = files[(number + len(key)) % 3]
            start = file.tell()
            single = io.BytesIO()
            torch.save(part, single)
            file.write(single.getvalue())
            places[metadata.MetadataIndex(key, at)] = _StorageInfo(
                relative_path=f"__{files.index(file)}_0.distcp", offset=start, length=len(single.getvalue())
            )
            sizes = torch.Size(high - low for low, high in zip(at, end, strict=True))
            chunks.append(metadata.ChunkStorageMetadata(offsets=at, sizes=sizes))
        properties = metadata.TensorProperties(dtype=value.dtype)
        items[key] = metadata.TensorStorageMetadata(properties=properties, size=value.shape, chunks=chunks)
    for number, file in enumerate(files):
        (folder / f"__{number}_0.distcp").write_bytes(file.getvalue())
    index = metadata.Metadata(state_dict_metadata=items, planner_data=None, storage_data=places)
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    torch.save(common_state(config), folder / "common.pt")


@pytest.mark.parametrize("name", ["gpt", "swiglu", "bert"])
@given(data=st.data())
@settings(parent=SEEN, max_examples=6)
def test_chunks_cut_along_any_dimensions_are_read_box_by_box(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config, full = model(name)
    folder = tmp_path_factory.mktemp("chunks")
    parts = data.draw(st.lists(st.integers(0, 2), min_size=3, max_size=3))

    def cuts(shape: tuple[int, ...]) -> list[list[int]]:
        """Cut each dimension at up to two places that divide nothing evenly."""
        return [
            sorted({0, extent, *(extent * (3 * n + 1) // 7 for n in range(count))})
            for extent, count in zip(shape, parts, strict=False)
        ]

    save_in_chunks(folder, config, payload(config, full, stacked=True), cuts)
    assert_holds(folder, full)
    opened = mpeval.open_checkpoint(folder)
    for name_ in data.draw(st.lists(st.sampled_from(sorted(full)), min_size=1, max_size=6)):
        ends = [sorted(data.draw(st.tuples(*2 * [st.integers(0, extent)]))) for extent in full[name_].shape]
        box = tuple(slice(low, high) for low, high in ends)
        assert torch.equal(opened.tensor(name_)[box], full[name_][box])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small container, written by PyTorch."""
    folder = tmp_path_factory.mktemp("sound")
    config, full = model("gpt")
    save(folder, config, payload(config, full, stacked=True))
    return folder


def copied(sound: Path, folder: Path) -> metadata.Metadata:
    """Copy a container and return its index."""
    for item in sound.iterdir():
        (folder / item.name).write_bytes(item.read_bytes())
    index: metadata.Metadata = pickle.loads((folder / ".metadata").read_bytes())
    index.planner_data = None
    return index


def item(**changes: Any) -> Callable[[metadata.Metadata], None]:
    """Change what the index says of one tensor."""
    return lambda index: vars(index.state_dict_metadata[FC2]).update(changes)


def place(**changes: Any) -> Callable[[metadata.Metadata], None]:
    """Change where the index says that tensor's chunk is."""

    def change(index: metadata.Metadata) -> None:
        vars(next(info for at, info in index.storage_data.items() if at.fqn == FC2)).update(changes)

    return change


def chunk(at: tuple[int, ...], sizes: tuple[int, ...]) -> metadata.ChunkStorageMetadata:
    return metadata.ChunkStorageMetadata(offsets=torch.Size(at), sizes=torch.Size(sizes))


WHOLE = chunk((0, 0, 0), (2, 32, 64))
DAMAGE: dict[str, Callable[[metadata.Metadata], object]] = {
    "no chunks": item(chunks=[]),
    "chunks are nothing": item(chunks=None),
    "chunks are a number": item(chunks=5),
    "a chunk is a text": item(chunks=["x"]),
    "a chunk twice": item(chunks=[WHOLE, WHOLE]),
    "a chunk elsewhere": item(chunks=[chunk((1, 0, 0), (2, 32, 64))]),
    "a chunk of another shape": item(chunks=[chunk((0, 0, 0), (2, 64, 32))]),
    "a chunk of fewer dimensions": item(chunks=[chunk((0, 0), (2, 32))]),
    "a chunk of negative size": item(chunks=[chunk((0, 0, 0), (2, -32, 64))]),
    "no size": item(size=None),
    "a size of no dimension": item(size=torch.Size([])),
    "a larger size": item(size=torch.Size([3, 32, 64])),
    "a huge size": item(size=(10**12, 32, 64)),
    "a negative size": item(size=(-2, 32, 64)),
    "a size of texts": item(size=("2", 32, 64)),
    "a path above": place(relative_path="../common.pt"),
    "the folder above": place(relative_path=".."),
    "an absolute path": place(relative_path="/etc/passwd"),
    "a missing file": place(relative_path="__9_0.distcp"),
    "no path": place(relative_path=""),
    "a path of number": place(relative_path=5),
    "a path with a zero byte": place(relative_path="a\0b"),
    "a path of 300 letters": place(relative_path="x" * 300),
    "another torch file": place(relative_path="common.pt", offset=0, length=None),
    "a negative offset": place(offset=-1),
    "an offset past the end": place(offset=10**30),
    "an offset of nothing": place(offset=None),
    "an offset off by one": place(offset=True),
    "a length past the end": place(length=10**30),
    "a negative length": place(length=-1),
    "an empty length": place(length=0),
    "items are a list": lambda index: setattr(index, "state_dict_metadata", []),
    "places are a list": lambda index: setattr(index, "storage_data", []),
    "places are nothing": lambda index: setattr(index, "storage_data", None),
    "a place of a text": lambda index: index.storage_data.update({"x": 5}),
    "a tensor less": lambda index: index.state_dict_metadata.pop(FC2),
    "a place less": lambda index: index.storage_data.pop(next(at for at in index.storage_data if at.fqn == FC2)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_crafted_index_is_an_error(name: str, sound: Path, tmp_path: Path) -> None:
    index = copied(sound, tmp_path)
    DAMAGE[name](index)
    (tmp_path / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(MpevalError) as raised:
        mpeval.open_checkpoint(tmp_path)
    assert raised.value.hint


FILES: dict[str, Callable[[Path], object]] = {
    "no index": lambda folder: (folder / ".metadata").unlink(),
    "an empty index": lambda folder: (folder / ".metadata").write_bytes(b""),
    "an index of a list": lambda folder: (folder / ".metadata").write_bytes(pickle.dumps([1])),
    "a short payload": lambda folder: (folder / "__0_0.distcp").write_bytes(
        (folder / "__0_0.distcp").read_bytes()[:-1000]
    ),
    "no payload": lambda folder: (folder / "__0_0.distcp").unlink(),
    "no common state": lambda folder: (folder / "common.pt").unlink(),
    "a damaged common state": lambda folder: (folder / "common.pt").write_bytes(b"x"),
    "a common state of a list": lambda folder: torch.save([1], folder / "common.pt"),
    "a common state without arguments": lambda folder: torch.save({}, folder / "common.pt"),
    "another backend": lambda folder: (folder / "metadata.json").write_text('{"sharded_backend": "zarr"}'),
    "a backend of a list": lambda folder: (folder / "metadata.json").write_text('{"sharded_backend": []}'),
    "a backend file of a list": lambda folder: (folder / "metadata.json").write_text("[]"),
    "a backend file nested deeply": lambda folder: (folder / "metadata.json").write_text("[" * 100_000),
    "a backend file of no text": lambda folder: (folder / "metadata.json").write_bytes(b"\xff"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_folder_is_an_error(name: str, sound: Path, tmp_path: Path) -> None:
    copied(sound, tmp_path)
    FILES[name](tmp_path)
    with pytest.raises(MpevalError) as raised:
        mpeval.open_checkpoint(tmp_path)
    assert raised.value.hint


MORE: dict[str, torch.Tensor] = {
    "decoder.layers.mlp.linear_fc2.bias": torch.tensor(1.0),
    "decoder.layers.mlp.linear_fc1.bias": torch.zeros(3, 128),
    "decoder.layers.0.mlp.linear_fc2.bias": torch.zeros(32),
    "decoder.final_layernorm.weight": torch.ones(32, dtype=torch.int64),
    "decoder.final_layernorm.bias": torch.tensor(0.0),
    "embedding.tokentype_embeddings.weight": torch.tensor(1.0),
    "classification_head.weight": torch.tensor(1.0),
    "embedding.position_embeddings.weight": torch.tensor(1.0),
    "decoder.layers.mlp.router.weight": torch.zeros(2, 4, 32),
    "decoder.layers.mlp.linear_fc2.scale": torch.zeros(2, 32),
}


@pytest.mark.parametrize("key", MORE)
def test_a_tensor_that_does_not_fit_is_an_error(key: str, tmp_path: Path) -> None:
    config, full = model("gpt")
    save(tmp_path, config, payload(config, full, stacked=True) | {key: MORE[key]})
    with pytest.raises(MpevalError) as raised:
        mpeval.open_checkpoint(tmp_path)
    assert raised.value.hint


def test_layers_that_no_argument_speaks_of_are_not_enumerated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, full = model("gpt")
    state = payload(config, full, stacked=True)
    save(tmp_path, config, state | {"decoder.layers.mlp.linear_fc2.bias": torch.zeros(10**12, 0)})
    made = LogicalTensor.box
    calls = iter(range(1000))

    def counted(*arguments: Any) -> LogicalTensor:
        assert next(calls, None) is not None, "a layer is made for each row of a tensor"
        return made(*arguments)

    monkeypatch.setattr(LogicalTensor, "box", counted)
    with pytest.raises(MpevalError):
        mpeval.open_checkpoint(tmp_path)
