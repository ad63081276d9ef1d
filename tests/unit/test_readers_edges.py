"""Readers at their edges: any box of any layout, settings of the wrong kind, odd files and odd targets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import TODAY, edit_shard, run_here, shard_file, small_config
from safetensors.torch import load_file, save_file

import mpeval
from mpeval.checkpoint.names import Naming
from mpeval.checkpoint.safetensors import DTYPES, open_safetensors, write_safetensors
from mpeval.checkpoint.torchzip import Planned
from mpeval.checkpoint.weights import MadeWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.config import parse_overrides
from mpeval.convert import Target, convert
from mpeval.errors import MpevalError

Tensors = dict[str, torch.Tensor]
Output = pytest.CaptureFixture[str]
CLASSES = {"family": "bert", "tokentypes": 2, "pooler": True, "gelu": "erf", "classes": 3}
SEEN = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def make(root: Path, *, naming: Naming = "megatron-core", tp: int = 1, pp: int = 1, **changes: Any) -> Tensors:
    """Write a checkpoint of random weights and return them at full size."""
    config = small_config(**{"vocab": 96, "padded_vocab": 128, **changes})
    draw = torch.Generator().manual_seed(3)
    full = {name: torch.randn(shape, generator=draw) for name, shape in config.shapes().items()}
    write_megatron(root, MadeWeights(config, full.__getitem__), naming=naming, tp=tp, pp=pp)
    return full


def in_early_order(root: Path, version: float, tp: int) -> None:
    """Bring the QKV rows of every shard into the order of an early version."""

    def change(content: dict[str, Any]) -> None:
        content["checkpoint_version"] = version
        encoder = content["model"]["language_model"]["encoder"]
        for name, value in encoder.items():
            if "query_key_value" in name:
                rows = value.view(4 // tp, 3, 8, *value.shape[1:])
                turned = rows.transpose(0, 1) if version == 0 else rows.transpose(1, 2)
                encoder[name] = turned.reshape(value.shape).contiguous()

    for rank in range(tp):
        edit_shard(shard_file(root, f"mp_rank_{rank:02d}"), change)


def stored(kind: str, folder: Path) -> Tensors:
    """Write one layout of a model under `folder` / "x" and return its full tensors."""
    if kind.startswith("version"):
        full = make(folder / "x", naming="megatron", tp=2)
        in_early_order(folder / "x", float(kind[-1]), 2)
        return full
    if kind == "shards":
        return make(folder / "x", tp=2, pp=2, **TODAY)
    full = make(folder / "a", tp=2, **(TODAY if "swiglu" in kind else {}))
    target: Target = "huggingface" if "hugging" in kind else "torch_dist"
    convert(folder / "a", folder / "x", format=target)
    return {
        name: value[:96] if value.shape[0] == 128 and target == "huggingface" else value for name, value in full.items()
    }


@pytest.mark.parametrize("kind", ["version 0", "version 1", "shards", "hugging gpt2", "hugging swiglu", "dist swiglu"])
def test_any_box_of_any_layout_is_that_of_the_full_tensor(kind: str, tmp_path: Path) -> None:
    full = stored(kind, tmp_path)
    opened = mpeval.open_checkpoint(tmp_path / "x")
    assert set(opened.tensors) == set(full)

    @given(data=st.data())
    @SEEN
    def compare(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(full)))
        ends = [sorted(data.draw(st.tuples(*2 * [st.integers(0, extent)]))) for extent in full[name].shape]
        box = tuple(slice(low, high) for low, high in ends)
        assert torch.equal(opened.tensor(name)[box], full[name][box])
        inner = opened.tensor(name).box(name, [(low, high) for low, high in ends])
        assert torch.equal(inner[:], full[name][box])

    compare()


def test_many_layers_in_the_spelling_of_transformer_engine_are_read(tmp_path: Path) -> None:
    full = make(tmp_path / "a", layers=12)

    def respell(content: dict[str, Any]) -> None:
        content["model"] = {
            name.replace(".input_layernorm.", ".self_attention.linear_qkv.layer_norm_").replace(
                ".pre_mlp_layernorm.", ".mlp.linear_fc1.layer_norm_"
            ): value
            for name, value in content["model"].items()
        }

    edit_shard(shard_file(tmp_path / "a"), respell)
    opened = mpeval.open_checkpoint(tmp_path / "a")
    for name, value in full.items():
        assert torch.equal(opened.tensor(name)[:], value)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return one Hugging Face folder of each kind."""
    root = tmp_path_factory.mktemp("folders")
    models: dict[str, dict[str, Any]] = {"gpt2": {}, "llama": TODAY, "bert": CLASSES}
    for kind, changes in models.items():
        make(root / "a" / kind, **changes)
        convert(root / "a" / kind, root / kind, format="huggingface")
    return {kind: root / kind for kind in models}


def edited(folder: Path, to: Path, changes: dict[str, Any]) -> Path:
    """Copy a Hugging Face folder with other values in its `config.json`; a value `...` is taken out."""
    shutil.copytree(folder, to)
    values = json.loads((to / "config.json").read_text()) | changes
    kept = {name: value for name, value in values.items() if value is not ...}
    (to / "config.json").write_text(json.dumps(kept))
    return to


NUMBERS = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "head_dim")
WRONG: list[tuple[str, dict[str, Any]]] = [
    *(("llama", {name: value}) for name in NUMBERS for value in ("3", [2], True, 2.0, -1, 10**30)),
    *(("llama", {"num_key_value_heads": value}) for value in ("2", -1, 3, 1, 4, 10**30)),
    *(("llama", {"rms_norm_eps": value}) for value in ("1", [], -1.0, 0.0, float("nan"), float("inf"))),
    *(("llama", {"rope_theta": value}) for value in ("x", [1], -1, True, 10**400, float("nan"), float("inf"))),
    *(("llama", {"rope_parameters": value}) for value in ([1], "x", 5, True)),
    *(("llama", {"rope_scaling": value}) for value in ([1], "x", 5, {"rope_type": []}, {"rope_type": "yarn"})),
    *(("llama", {"rope_scaling": {"rope_type": "linear", "factor": value}}) for value in ("8", True, [], None, 0)),
    ("llama", {"rope_scaling": {"rope_type": "linear"}}),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}),
    ("llama", {"rope_scaling": {"partial_rotary_factor": []}}),
    ("llama", {"rope_scaling": {"partial_rotary_factor": 0.5}}),
    ("llama", {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 5.0}}}),
    *(("llama", {"hidden_act": value}) for value in ("gelu", ["silu"], {}, 5)),
    *(("llama", {"model_type": value}) for value in (["llama"], None, {}, "mixtral")),
    ("llama", {"tie_word_embeddings": "false"}),
    ("llama", {"num_attention_heads": ...}),
    ("llama", {"vocab_size": 90}),
    ("llama", {"quantization_config": {"bits": 4}}),
    *(("gpt2", {name: 10}) for name in ("n_layer", "n_embd", "n_head", "n_inner", "n_positions", "vocab_size")),
    *(("gpt2", {name: "10"}) for name in ("n_layer", "n_embd", "n_head", "n_inner", "n_positions", "vocab_size")),
    *(("gpt2", {"activation_function": value}) for value in (None, ["gelu"], {}, "relu")),
    ("gpt2", {"tie_word_embeddings": 1}),
    *(("bert", {"hidden_act": value}) for value in (None, ["gelu"], {}, "relu")),
    *(("bert", {"type_vocab_size": value}) for value in (-1, 0, 1, 3, "2")),
    *(("bert", {"num_labels": value}) for value in (-3, 2, 4, "3", True, [3])),
    *(("bert", {"id2label": value}) for value in (5, {"0": "a"}, [1, 2], "abcd")),
    ("bert", {"architectures": 5}),
    ("bert", {"tie_word_embeddings": "false"}),
]


@pytest.mark.parametrize(("kind", "changes"), WRONG, ids=lambda value: str(value)[:70])
def test_a_setting_that_is_not_the_models_is_an_error(
    kind: str, changes: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(MpevalError) as raised:
        mpeval.open_checkpoint(edited(folders[kind], tmp_path / "x", changes))
    assert raised.value.hint


def test_an_untouched_folder_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    for kind, folder in folders.items():
        opened = mpeval.open_checkpoint(edited(folder, tmp_path / kind, {}))
        assert opened.digest() == mpeval.open_checkpoint(folder).digest()


def test_two_spellings_of_one_weight_are_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = edited(folders["gpt2"], tmp_path / "x", {})
    state = load_file(folder / "model.safetensors")
    save_file(state | {"wte.weight": torch.zeros(96, 32)}, folder / "model.safetensors")
    with pytest.raises(MpevalError):
        mpeval.open_checkpoint(folder)


@pytest.mark.parametrize("file", ["../x/model.safetensors", "/etc/passwd", "..", "", 5, None, "missing.safetensors"])
def test_an_index_names_files_of_its_own_folder(file: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = edited(folders["gpt2"], tmp_path / "x", {})
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    index = {"weight_map": dict.fromkeys(names, "part.safetensors") | {"transformer.wte.weight": file}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(MpevalError):
        mpeval.open_checkpoint(folder)


def described(shape: object, offsets: object, dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS: dict[str, object] = {
    "two tensors on the same bytes": {"a": described([16], [0, 64]), "b": described([16], [0, 64])},
    "two tensors that overlap": {"a": described([12], [0, 48]), "b": described([12], [16, 64])},
    "a truth value as size": {"a": described([True, 16], [0, 64])},
    "a truth value as offset": {"a": described([16], [False, 64])},
    "a negative size": {"a": described([-4, -4], [0, 64])},
    "a size of NaN": {"a": described([float("nan")], [0, 64])},
    "an infinite size": {"a": described([float("inf")], [0, 64])},
    "a size of text": {"a": described(["16"], [0, 64])},
    "a size too large": {"a": described([10**30], [0, 64])},
    "no offsets": {"a": {"dtype": "F32", "shape": [16]}},
    "offsets past the end": {"a": described([16], [64, 128])},
    "offsets turned round": {"a": described([16], [64, 0])},
    "three offsets": {"a": described([16], [0, 32, 64])},
    "a dtype of a list": {"a": described([16], [0, 64], ["F32"])},
    "a list": [1],
    "a text": "x",
    "a tensor of a text": {"a": "x"},
    "a key twice": b'{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},"a":'
    b'{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}',
    "no text": b'{"\xff": 1}',
    "deeply nested": b"[" * 100_000,
    "nothing": b"",
    "20,000 dimensions": {"a": described([1] * 20_000 + [16], [0, 64])},
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_crafted_safetensors_header_is_an_error(name: str, tmp_path: Path) -> None:
    header = HEADERS[name]
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(64))
    with pytest.raises(MpevalError):
        open_safetensors(path)


def test_a_header_as_long_as_a_large_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write(((1 << 28) - 8).to_bytes(8, "little"))
        file.truncate(1 << 28)
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("256 MiB were read as a header"))
    with pytest.raises(MpevalError):
        open_safetensors(path)


def test_tensors_in_another_order_than_their_bytes_are_read(tmp_path: Path) -> None:
    raw = json.dumps({"a": described([8], [32, 64]), "b": described([2, 4], [0, 32])}).encode()
    values = torch.arange(16.0)
    (tmp_path / "x.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + values.numpy().tobytes())
    found = open_safetensors(tmp_path / "x.safetensors")
    for name, expected in (("a", values[8:]), ("b", values[:8].view(2, 4))):
        out = torch.empty(expected.shape)
        found[name].copy_into(out, [(0, extent) for extent in expected.shape])
        assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", sorted(DTYPES.values()))
@pytest.mark.parametrize("shape", [(3, 5), (7,), (), (0, 4)])
def test_safetensors_of_every_dtype_go_both_ways(dtype: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    kind = getattr(torch, dtype)
    value = torch.randn(shape, generator=torch.Generator().manual_seed(1)).mul(20).to(kind)
    lead = torch.ones(3, dtype=torch.uint8)  # an odd number of bytes before the tensor
    planned = {
        name: Planned(shape=tuple(item.shape), dtype=item.dtype, make=lambda item=item: [item])
        for name, item in (("a", lead), ("b", value))
    }
    write_safetensors(tmp_path / "ours.safetensors", planned)
    save_file({"a": lead, "b": value}, tmp_path / "theirs.safetensors")
    loaded = load_file(tmp_path / "ours.safetensors")["b"]
    assert loaded.dtype == kind
    assert torch.equal(loaded, value)
    for file in ("ours", "theirs"):
        found = open_safetensors(tmp_path / f"{file}.safetensors")["b"]
        out = torch.empty(found.shape, dtype=kind)
        found.copy_into(out, [(0, extent) for extent in found.shape])
        assert (found.dtype, found.shape) == (dtype, shape)
        assert torch.equal(out, value)


ODD: dict[str, Callable[[Path], Path]] = {
    "a link to an empty folder": lambda folder: _link(folder, folder / "empty"),
    "a link to nothing": lambda folder: _link(folder, folder / "nothing"),
    "an empty folder": lambda folder: _made(folder / "new"),
    "below a file": lambda folder: folder / "file" / "b",
    "a file": lambda folder: folder / "file",
    "a name of 300 letters": lambda folder: folder / ("x" * 300),
    "a name with a zero byte": lambda folder: folder / "a\0b",
    "inside the source": lambda folder: folder / "a" / "inside",
    "the source's iteration": lambda folder: folder / "a" / "iter_0000001",
    "the source by a link": lambda folder: _link(folder, folder / "a"),
    "the working folder": lambda _: Path(),
}


def _link(folder: Path, to: Path) -> Path:
    if to.name == "empty":
        to.mkdir()
    (folder / "link").symlink_to(to)
    return folder / "link"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("format", ["megatron-core", "huggingface"])
@pytest.mark.parametrize("name", ODD)
def test_an_odd_target_is_written_whole_or_is_an_error(
    name: str, format: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "a")
    before = mpeval.open_checkpoint(tmp_path / "a").digest()
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(_made(tmp_path / "here"))
    target = ODD[name](tmp_path)
    with suppress(MpevalError):
        convert(tmp_path / "a", target, format=format)
        assert mpeval.open_checkpoint(target).digest() == before
    assert mpeval.open_checkpoint(tmp_path / "a").digest() == before
    assert (tmp_path / "file").read_text() == "x"
    assert not list(tmp_path.glob("**/.*"))


def test_a_folder_that_holds_the_source_is_not_replaced(folders: dict[str, Path], tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "inner"
    shutil.copytree(folders["gpt2"], outer)
    shutil.copytree(folders["llama"], inner)
    with pytest.raises(MpevalError):
        convert(inner, outer, format="huggingface", force=True)
    assert mpeval.open_checkpoint(inner).digest() == mpeval.open_checkpoint(folders["llama"]).digest()


def test_a_folder_made_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    from mpeval.folders import new_folder

    def overtaken() -> None:
        with new_folder(tmp_path / "x") as folder:
            (folder / "ours").write_text("")
            _made(tmp_path / "x").joinpath("theirs").write_text("")

    with pytest.raises(MpevalError):
        overtaken()
    assert [item.name for item in (tmp_path / "x").iterdir()] == ["theirs"]


@pytest.mark.parametrize("format", ["megatron", "megatron-core", "torch_dist", "huggingface"])
def test_values_that_the_wanted_dtype_cannot_hold_are_reported(format: str, tmp_path: Path, capsys: Output) -> None:
    make(tmp_path / "a")
    edit_shard(
        shard_file(tmp_path / "a"),
        lambda content: content["model"]["decoder.layers.0.mlp.linear_fc1.weight"][0, :3].fill_(1e6),
    )
    code = run_here(f"convert {tmp_path / 'a'} {tmp_path / 'b'} --format {format} --dtype float16")
    printed = capsys.readouterr()
    assert "`layers.0.mlp.up.weight`" in printed.out + printed.err
    assert code == 1 or "note: " in printed.out


@pytest.mark.parametrize(
    ("left", "right", "verdict", "gap"),
    [
        (float("nan"), float("nan"), "equal", 0.0),
        (float("nan"), 1.0, "differs", float("nan")),
        (1.0, float("nan"), "differs", float("nan")),
        (float("inf"), float("inf"), "equal", 0.0),
        (float("inf"), float("-inf"), "differs", float("inf")),
        (float("inf"), 1.0, "differs", float("inf")),
        (0.0, -0.0, "equal", 0.0),
        (2.0, 1.5, "differs", 0.5),
    ],
)
def test_diff_of_values_that_are_no_numbers(
    left: float, right: float, verdict: str, gap: float, tmp_path: Path, capsys: Output
) -> None:
    for name, value in (("a", left), ("b", right)):
        make(tmp_path / name)
        edit_shard(
            shard_file(tmp_path / name),
            lambda content, value=value: content["model"]["decoder.final_layernorm.bias"][5:6].fill_(value),
        )
    assert run_here(f"diff {tmp_path / 'a'} {tmp_path / 'b'} --json") == int(verdict != "equal")
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)["tensors"]}["final_norm.bias"]
    assert found["verdict"] == verdict
    assert found["gap"] == pytest.approx(gap, nan_ok=True)


def test_copies_that_share_an_infinity_differ_by_what_else_differs(tmp_path: Path) -> None:
    make(tmp_path / "a", tp=2)
    for rank in (0, 1):
        edit_shard(
            shard_file(tmp_path / "a", f"mp_rank_0{rank}"),
            lambda content, rank=rank: content["model"]["decoder.final_layernorm.bias"].copy_(
                torch.tensor([float("inf"), 0.5 * rank, *[0.0] * 30])
            ),
        )
    [error] = mpeval.open_checkpoint(tmp_path / "a").unequal_copies()
    assert "differ by up to 0.5" in error.message


SILENT = ("swiglu=true", "post_norm=true", "norm=rmsnorm", "qk_norm=true", "kv_heads=2", "lm_head=true", "classes=3")


@pytest.mark.parametrize("setting", SILENT)
def test_a_setting_that_is_given_is_never_ignored(setting: str, folders: dict[str, Path]) -> None:
    with pytest.raises(MpevalError):
        mpeval.open_checkpoint(folders["gpt2"], parse_overrides([setting]))


@pytest.mark.parametrize("iteration", [-5, 10**30, True])
def test_an_iteration_that_training_cannot_reach_is_an_error(iteration: int, tmp_path: Path, capsys: Output) -> None:
    make(tmp_path / "a")
    edit_shard(shard_file(tmp_path / "a"), lambda content: content.update({"iteration": iteration}))
    with pytest.raises(MpevalError):
        mpeval.open_checkpoint(tmp_path / "a")


@pytest.mark.parametrize(
    "name", ["embedding.tokentype_embeddings.weight", "classification_head.weight", "decoder.final_layernorm.weight"]
)
def test_a_tensor_of_no_dimension_is_an_error(name: str, tmp_path: Path) -> None:
    make(tmp_path / "a")
    edit_shard(shard_file(tmp_path / "a"), lambda content: content["model"].update({name: torch.tensor(1.0)}))
    with pytest.raises(MpevalError):
        mpeval.open_checkpoint(tmp_path / "a")
