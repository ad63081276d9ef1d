"""BERT and today's GPT on real ranks: Megatron-core's logits, and gradients that do not depend on the ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks

import mpeval
from mpeval.config import ModelConfig
from mpeval.errors import ConfigError
from mpeval.models.bert import BERT
from mpeval.models.gpt import GPT
from mpeval.models.rotary import frequencies, rotation
from mpeval.models.weights import draw_full
from mpeval.parallel.dropout import DropoutStreams
from mpeval.parallel.group import Group
from mpeval.parallel.layout import split
from mpeval.parallel.vocab import cross_entropy

NO_ARGS = {"heads": 4, "gelu": "tanh", "vocab": 250}
SIZES: dict[str, Any] = {
    "layers": 2,
    "hidden": 32,
    "heads": 4,
    "ffn": 48,
    "context": 16,
    "vocab": 37,
    "padded_vocab": 40,
    "init_std": 0.15,
}
TODAY = ModelConfig(
    **SIZES,
    rope=True,
    norm="rmsnorm",
    swiglu=True,
    kv_heads=2,
    qk_norm=True,
    linear_bias=False,
    tied=False,
)
BIDIRECTIONAL = ModelConfig(
    **SIZES, gelu="erf", family="bert", tokentypes=2, lm_head=True, pooler=True, binary_head=True
)
MODELS = {
    "today": TODAY,
    "bert": BIDIRECTIONAL,
    "bert post norm": ModelConfig(**{**vars(BIDIRECTIONAL), "post_norm": True}),
}


def _reference(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / "reference.pt", weights_only=True)
    return found


def _logits(group: Group, path: Path, reference: dict[str, torch.Tensor], given: dict[str, Any]) -> Any:
    model = mpeval.load_model(mpeval.open_checkpoint(path, given), group)
    with torch.no_grad():
        if isinstance(model, GPT):
            return model(reference["tokens"])
        return model(reference["tokens"], tokentypes=reference["tokentypes"], padding_mask=reference["padding_mask"])


@pytest.mark.parametrize(
    ("name", "ranks"),
    [
        *(("gpt-mcore-llama-tp2", ranks) for ranks in (1, 2)),
        *(("gpt-legacy-v0-release-noargs", ranks) for ranks in (1, 2, 4)),
        *(("gpt-torch_dist-tp2", ranks) for ranks in (1, 2, 4)),
    ],
)
def test_logits_equal_those_that_megatron_core_computed(shared_fixtures: Path, name: str, ranks: int) -> None:
    reference = _reference(shared_fixtures / name)
    given = NO_ARGS if "noargs" in name else {}
    for logits in run_ranks(_logits, ranks, shared_fixtures / name, reference, given):
        torch.testing.assert_close(logits, reference["logits"], rtol=0, atol=2e-5)


def test_bert_computes_what_megatron_core_computed(shared_fixtures: Path, tp: int) -> None:
    folder = shared_fixtures / "bert-mcore-tp2"
    reference = _reference(folder)
    real = reference["padding_mask"].bool()
    for out in run_ranks(_logits, tp, folder, reference, {}):
        torch.testing.assert_close(out.logits[real], reference["logits"][real], rtol=0, atol=2e-5)
        torch.testing.assert_close(out.binary_logits, reference["binary_logits"], rtol=0, atol=2e-5)
        assert out.pooled.shape == (2, 64)
        assert out.hidden.shape == (2, 64, 64)


def test_grouped_queries_are_not_cut_finer_than_their_groups() -> None:
    with pytest.raises(ConfigError, match="does not divide the model's kv_heads 2"):
        TODAY.check_ranks(4)


def _inputs() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(0, SIZES["vocab"], (3, 12), generator=draw)
    mask = torch.ones_like(ids)
    mask[2, 7:] = 0
    return {"ids": ids, "types": (torch.arange(12) > 5).long().expand_as(ids), "mask": mask}


def _gradients(group: Group, config: ModelConfig) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss and this rank's gradients of one step, without dropout."""
    quiet = ModelConfig(**{**vars(config), "dropout": 0.0, "attention_dropout": 0.0})
    model = (GPT if config.family == "gpt" else BERT)(quiet, group).train()
    model.streams = DropoutStreams(1, group)
    given = _inputs()
    for name, parameter in model.named_parameters():
        draw = torch.Generator().manual_seed(sum(map(ord, name)))
        full = draw_full(config, name, 7)
        full = full + 0.1 * torch.randn(full.shape, generator=draw)
        parameter.data.copy_(split(name, full, group.tp.ranks)[group.tp.rank])
    targets = given["ids"].roll(-1, dims=1)
    if isinstance(model, GPT):
        local = model.local_logits(model.hidden(given["ids"]))
        loss = cross_entropy(local, targets, first=model.first_id, axis=group.tp).mean()
    else:
        hidden = model.encode(given["ids"], given["types"], given["mask"])
        local = model.lm_head(hidden, model.output_table)[..., : max(0, config.vocab - model.first_id)]
        losses = cross_entropy(local, targets, first=model.first_id, axis=group.tp)
        binary = model.binary_head(model.pooled(hidden)).float()
        order = torch.nn.functional.cross_entropy(binary, torch.tensor([0, 1, 0]))
        loss = (losses * given["mask"]).sum() / given["mask"].sum() + order
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_do_not_depend_on_the_ranks(name: str) -> None:
    config = MODELS[name]
    [(loss, whole)] = run_ranks(_gradients, 1, config)
    assert set(whole) == set(config.shapes())
    for rank, (sharded_loss, shards) in enumerate(run_ranks(_gradients, 2, config)):
        assert sharded_loss == pytest.approx(loss, abs=1e-5)
        for key, shard in shards.items():
            torch.testing.assert_close(shard, split(key, whole[key], 2)[rank], rtol=1e-4, atol=1e-6)


def test_padding_changes_nothing_at_real_positions() -> None:
    model = BERT(BIDIRECTIONAL).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.copy_(draw_full(BIDIRECTIONAL, name, 7))
    given = _inputs()
    short = model(given["ids"][2:, :7], given["types"][2:, :7])
    long = model(given["ids"][2:], given["types"][2:], given["mask"][2:])
    torch.testing.assert_close(long.hidden[:, :7], short.hidden, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(long.pooled, short.pooled, rtol=1e-5, atol=1e-5)
    nothing = model(given["ids"][:1], padding_mask=torch.zeros(1, 12))
    assert nothing.hidden.isfinite().all()


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotations_keep_lengths_and_turn_by_the_distance(interleaved: bool) -> None:
    config = ModelConfig(**{**vars(TODAY), "rope_interleaved": interleaved, "rope_percent": 0.5})
    turn = rotation(config, 9, torch.device("cpu"))
    x, y = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(1))
    turned, other = turn(x.expand(1, 1, 9, 8)), turn(y.expand(1, 1, 9, 8))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1).expand(1, 1, 9))
    assert torch.equal(turned[..., 4:], x.expand(1, 1, 9, 8)[..., 4:])
    near = (turned[:, :, 3] * other[:, :, 1]).sum()
    far = (turned[:, :, 8] * other[:, :, 6]).sum()
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-5)


def test_interleaved_rotation_is_the_other_one_with_features_reordered() -> None:
    plain = rotation(TODAY, 9, torch.device("cpu"))
    config = ModelConfig(**{**vars(TODAY), "rope_interleaved": True})
    x = torch.randn(1, 2, 9, 8, generator=torch.Generator().manual_seed(1))
    order = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])
    torch.testing.assert_close(rotation(config, 9, torch.device("cpu"))(x[..., order]), plain(x)[..., order])


def test_llama3_scaling_leaves_short_waves_and_stretches_long_ones() -> None:
    config = ModelConfig(**{**vars(TODAY), "rope_scaling": "llama3", "rope_factor": 8.0, "rope_original": 64})
    plain, scaled = frequencies(TODAY), frequencies(config)
    waves = 2 * torch.pi / plain
    assert torch.equal(scaled[waves < 16], plain[waves < 16])
    torch.testing.assert_close(scaled[waves > 64], plain[waves > 64] / 8)
