"""Checkpoints at any stored layout, loaded at any other: Megatron-core's logits, equal digests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from mpeval.checkpoint.load import load_model
from mpeval.checkpoint.names import Naming
from mpeval.checkpoint.open import open_checkpoint
from mpeval.checkpoint.weights import MadeWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.config import ModelConfig
from mpeval.errors import CheckpointError
from mpeval.models.weights import draw_full
from mpeval.parallel.group import Group

TP = pytest.mark.parametrize("tp", [1, 2, 4])
CONFIG = ModelConfig(
    layers=4, hidden=32, heads=4, ffn=64, context=16, vocab=50, padded_vocab=64, gelu="tanh", init_std=0.2
)


def _logits(group: Group, path: Path, ids: torch.Tensor) -> torch.Tensor:
    model = load_model(open_checkpoint(path), group)
    with torch.no_grad():
        logits: torch.Tensor = model(ids)
    return logits


@TP
@pytest.mark.parametrize("name", ["gpt-mcore-tp2", "gpt-mcore-tp2-pp2", "gpt-legacy-v2-tp2"])
def test_logits_equal_those_that_megatron_core_computed(shared_fixtures: Path, name: str, tp: int) -> None:
    reference = torch.load(shared_fixtures / name / "reference.pt", weights_only=True)
    for logits in run_ranks(_logits, tp, shared_fixtures / name, reference["tokens"]):
        torch.testing.assert_close(logits, reference["logits"], rtol=0, atol=2e-5)


def test_the_same_weights_under_other_names_have_the_same_digest(shared_fixtures: Path) -> None:
    core, legacy = (open_checkpoint(shared_fixtures / name) for name in ("gpt-mcore-tp2", "gpt-legacy-v2-tp2"))
    assert core.digest() == legacy.digest()
    assert core.digest() != open_checkpoint(shared_fixtures / "gpt-mcore-tp2-pp2").digest()


def _write(folder: Path, tp: int, pp: int, naming: Naming = "megatron-core", tied: bool = True) -> Path:
    config = CONFIG if tied else ModelConfig(**{**vars(CONFIG), "tied": False})
    write_megatron(
        folder, MadeWeights(config, lambda name: draw_full(config, name, 5)), tp=tp, pp=pp, naming=naming, iteration=7
    )
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layout to compare all others with."""
    return _write(tmp_path_factory.mktemp("plain"), 1, 1)


@TP
@pytest.mark.parametrize("pp", [1, 2, 4])
@pytest.mark.parametrize("naming", ["megatron-core", "megatron"])
def test_every_layout_and_naming_opens_to_the_same_tensors(
    plain: Path, tmp_path: Path, tp: int, pp: int, naming: Naming
) -> None:
    opened = open_checkpoint(_write(tmp_path, tp, pp, naming))
    assert opened.grid == (tp, pp)
    assert opened.iteration == 7
    assert opened.config == CONFIG
    assert opened.digest() == open_checkpoint(plain).digest()
    for name, shape in CONFIG.shapes().items():
        full = draw_full(CONFIG, name, 5)
        tensor = opened.tensor(name)
        assert tensor.shape == shape
        assert torch.equal(tensor[:], full)
        assert torch.equal(tensor[1:5], full[1:5])
        if len(shape) == 2:
            assert torch.equal(tensor[3:9, 5:29], full[3:9, 5:29])
    opened.check()
    used = [entry for entry in opened.accounting() if entry.used]
    assert {entry.name for entry in used} == set(CONFIG.shapes())
    assert all(entry.reason for entry in opened.accounting() if not entry.used)


def test_an_untied_head_survives_every_layout(tmp_path: Path) -> None:
    ids = torch.arange(12).view(1, 12)
    one = _logits(Group.single(), _write(tmp_path / "one", 1, 1, tied=False), ids)
    two = _logits(Group.single(), _write(tmp_path / "two", 2, 2, "megatron", tied=False), ids)
    tied = _logits(Group.single(), _write(tmp_path / "tied", 1, 1), ids)
    assert torch.equal(one, two)
    assert not torch.equal(one, tied)


def test_a_table_that_does_not_divide_ends_in_zero_rows(tmp_path: Path) -> None:
    config = ModelConfig(
        **{**vars(CONFIG), "heads": 8, "ffn": 96, "hidden": 48, "padded_vocab": 50, "kv_heads": 0, "head_dim": 0}
    )
    write_megatron(tmp_path, MadeWeights(config, lambda name: draw_full(config, name, 5)), tp=2)
    ids = torch.arange(12).view(1, 12)
    alone = _logits(Group.single(), tmp_path, ids)
    for logits in run_ranks(_logits, 4, tmp_path, ids):
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)


def test_a_file_that_does_not_say_so_can_be_called_untied(tmp_path: Path) -> None:
    folder = _write(tmp_path, 1, 1, tied=False)
    path = folder / "iter_0000007/mp_rank_00/model_optim_rng.pt"
    content = torch.load(path, weights_only=False)
    del content["args"].untie_embeddings_and_output_weights
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="tied output layer is stored in copies that differ"):
        open_checkpoint(folder).check()
    opened = open_checkpoint(folder, {"tied": False})
    opened.check()
    assert opened.config.origins["tied"] == "--set"
    assert torch.equal(opened.tensor("head.weight")[:], draw_full(opened.config, "head.weight", 5))


@pytest.mark.parametrize(
    ("spelled", "plain_name"),
    [
        (
            "language_model.transformer.layers.0.attention.dense.bias",
            "language_model.encoder.layers.0.self_attention.dense.bias",
        ),
        ("language_model.encoder.layers.1.input_norm.weight", "language_model.encoder.layers.1.input_layernorm.weight"),
        ("language_model.encoder.final_norm.bias", "language_model.encoder.final_layernorm.bias"),
        ("decoder.layers.2.self_attention.linear_qkv.layer_norm_weight", "decoder.layers.2.input_layernorm.weight"),
        ("decoder.layers.2.mlp.linear_fc1.layer_norm_bias", "decoder.layers.2.pre_mlp_layernorm.bias"),
        ("decoder.layers.2.mlp.linear_fc1.bias", "decoder.layers.2.mlp.linear_fc1.bias"),
    ],
)
def test_older_and_newer_spellings_come_together(spelled: str, plain_name: str) -> None:
    from mpeval.checkpoint.names import plain_spelling

    assert plain_spelling(spelled) == plain_name


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_can_be_loaded_in_another_dtype(plain: Path, dtype: str) -> None:
    model = load_model(open_checkpoint(plain), dtype=dtype)
    name = "layers.0.mlp.up.weight"
    expected = draw_full(CONFIG, name, 5).to(getattr(torch, dtype))
    assert torch.equal(dict(model.named_parameters())[name], expected)
