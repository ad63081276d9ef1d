"""Megatron-core itself loads what is written here, strictly, and computes the same logits.

It needs the extra `megatron` (megatron-core), runs on the CPU with gloo, and is skipped without it.
"""

from __future__ import annotations

import importlib.util
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from making import VOCAB
from ranks import run_ranks
from torch.nn import functional as F
from training import make_gpt_corpus, options_for, train

import mpeval
from mpeval.checkpoint.weights import MadeWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.convert import Target, convert
from mpeval.models.weights import draw_full
from mpeval.parallel.group import Group

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("megatron") is None, reason="install the extra `megatron`: pip install -e '.[megatron]'"
)
FIXTURES = ("gpt-mcore-tp2", "gpt-mcore-tp2-pp2", "gpt-legacy-v2-tp2", "gpt-mcore-llama-tp2", "bert-mcore-tp2")


def _model(config: mpeval.ModelConfig, tp: int) -> Any:
    """Build Megatron-core's model of a configuration, on the CPU, from its own (local) layers."""
    torch.cuda.current_device = lambda: "cpu"  # it asks for the device even with `use_cpu_initialization`
    from megatron.core import parallel_state
    from megatron.core.models.bert.bert_layer_specs import bert_layer_local_spec
    from megatron.core.models.bert.bert_model import BertModel
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.tensor_parallel import get_cuda_rng_tracker
    from megatron.core.transformer import TransformerConfig

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp)
    get_cuda_rng_tracker().fork = lambda *_: nullcontext()  # dropout is off, so no random state is needed
    gelu = partial(F.gelu, approximate="tanh" if config.gelu == "tanh" else "none")
    theirs = TransformerConfig(
        num_layers=config.layers,
        hidden_size=config.hidden,
        ffn_hidden_size=config.ffn,
        num_attention_heads=config.heads,
        num_query_groups=config.kv_heads,
        kv_channels=config.head_dim,
        rotary_interleaved=config.rope_interleaved,
        qk_layernorm=config.qk_norm,
        add_qkv_bias=config.qkv_bias and not config.linear_bias,
        normalization="RMSNorm" if config.norm == "rmsnorm" else "LayerNorm",
        layernorm_epsilon=config.eps,
        add_bias_linear=config.linear_bias,
        gated_linear_unit=config.swiglu,
        activation_func=F.silu if config.swiglu else gelu,
        bias_activation_fusion=False,
        tensor_model_parallel_size=tp,
        use_cpu_initialization=True,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    sizes = {"vocab_size": config.padded_vocab, "max_sequence_length": config.context, "parallel_output": False}
    if config.family == "bert":
        return BertModel(theirs, 2, bert_layer_local_spec, share_embeddings_and_output_weights=True, **sizes).eval()
    spec = get_gpt_layer_local_spec(normalization=theirs.normalization, qk_layernorm=config.qk_norm)
    position = "rope" if config.rope else "learned_absolute"
    return GPTModel(
        theirs,
        spec,
        share_embeddings_and_output_weights=config.tied,
        position_embedding_type=position,
        rotary_base=config.rope_base,
        rotary_percent=config.rope_percent,
        rope_scaling=config.rope_scaling == "llama3",
        rope_scaling_factor=config.rope_factor,
        seq_len_interpolation_factor=config.rope_factor if config.rope_scaling == "linear" else None,
        **sizes,
    ).eval()


VARIANTS: dict[str, dict[str, Any]] = {
    "partial rotation": {"rope_percent": 0.5},
    "interleaved rotation": {"rope_interleaved": True},
    "another base": {"rope_base": 500000.0},
    "linear scaling": {"rope_scaling": "linear", "rope_factor": 4.0},
    "llama3 scaling": {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_base": 500000.0},
    "qk norm": {"qk_norm": True},
    "qkv bias": {"qkv_bias": True},
    "wide heads": {"head_dim": 24},
    "layer norm and GELU": {"norm": "layernorm", "swiglu": False, "gelu": "erf", "linear_bias": True, "qkv_bias": True},
}


def _variant(group: Group, folder: Path, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return Megatron-core's logits and ours."""
    ours = mpeval.load_model(mpeval.open_checkpoint(folder), group)
    with torch.no_grad():
        mine: torch.Tensor = ours(ids)
    theirs, _ = _classic(group, folder, {"tokens": ids})
    return theirs[..., : ours.config.vocab], mine


@pytest.mark.parametrize("name", VARIANTS)
def test_todays_choices_are_computed_as_megatron_core_computes_them(tmp_path: Path, name: str) -> None:
    today = {"rope": True, "norm": "rmsnorm", "swiglu": True, "kv_heads": 2, "linear_bias": False, "qkv_bias": False}
    sizes = {"layers": 3, "hidden": 64, "heads": 4, "ffn": 96, "context": 64, "vocab": 120, "padded_vocab": 128}
    config = mpeval.ModelConfig(**{**sizes, **today, "tied": False, "init_std": 0.2, **VARIANTS[name]})

    def made(key: str) -> torch.Tensor:
        full = draw_full(config, key, 4)
        return full + 0.1 * torch.randn(full.shape, generator=torch.Generator().manual_seed(len(key)))

    write_megatron(tmp_path, MadeWeights(config, made), tp=2)
    ids = torch.randint(0, 120, (2, 50), generator=torch.Generator().manual_seed(2))
    for theirs, mine in run_ranks(_variant, 2, tmp_path, ids, timeout=200.0):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-4)
        assert theirs.std() > 0.5


def _logits(model: Any, reference: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor | None]:
    ids = reference["tokens"]
    with torch.no_grad():
        if "tokentypes" in reference:
            logits, binary = model(ids, reference["padding_mask"], tokentype_ids=reference["tokentypes"])
            return logits, binary
        time = ids.shape[1]
        mask = torch.ones(1, 1, time, time, dtype=torch.bool).triu(1)
        return model(ids, torch.arange(time).expand_as(ids), mask), None


def _classic(group: Group, folder: Path, reference: dict[str, torch.Tensor]) -> Any:
    warnings.simplefilter("ignore")
    opened = mpeval.open_checkpoint(folder)
    model = _model(opened.config, group.tp.ranks)
    shard = opened.path / f"mp_rank_{group.tp.rank:02d}" / "model_optim_rng.pt"
    model.load_state_dict(torch.load(shard, weights_only=False)["model"], strict=True)
    return _logits(model, reference)


def _dist(group: Group, folder: Path, reference: dict[str, torch.Tensor]) -> Any:
    warnings.simplefilter("ignore")
    opened = mpeval.open_checkpoint(folder)
    model = _model(opened.config, group.tp.ranks)
    from megatron.core import dist_checkpointing

    state = model.sharded_state_dict(prefix="")
    loaded = dist_checkpointing.load(state, str(opened.path))
    model.load_state_dict({key: value for key, value in loaded.items() if key in model.state_dict()}, strict=True)
    return _logits(model, reference)


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("format", ["megatron-core", "torch_dist"])
@pytest.mark.parametrize("name", FIXTURES)
def test_megatron_core_loads_it_strictly_and_computes_the_same(
    shared_fixtures: Path, tmp_path: Path, name: str, format: Target, tp: int
) -> None:
    reference = torch.load(shared_fixtures / name / "reference.pt", weights_only=True)
    convert(shared_fixtures / name, tmp_path / "out", format=format, tp=tp)
    load = _classic if format == "megatron-core" else _dist
    for logits, binary in run_ranks(load, tp, tmp_path / "out", reference, timeout=200.0):
        true = reference["logits"].shape[-1]
        real = reference.get("padding_mask", torch.ones_like(reference["tokens"])).bool()
        torch.testing.assert_close(logits[..., :true][real], reference["logits"][real], rtol=0, atol=2e-5)
        if binary is not None:
            torch.testing.assert_close(binary, reference["binary_logits"], rtol=0, atol=2e-5)


def test_megatron_core_reads_what_is_trained_here(tmp_path: Path) -> None:
    train(options_for(make_gpt_corpus(tmp_path / "corpus"), tmp_path / "run", "steps=3", "init_std=0.2"), tp=2)
    ids = torch.randint(0, VOCAB, (2, 30), generator=torch.Generator().manual_seed(2))
    for theirs, mine in run_ranks(_variant, 2, tmp_path / "run", ids, timeout=200.0):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-4)
        assert theirs.std() > 0.5
