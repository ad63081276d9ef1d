"""Hugging Face models read and written: the logits that transformers computes, no key missing or unexpected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from ranks import run_ranks
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MegatronBertConfig,
    MegatronBertForPreTraining,
    MegatronBertModel,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import mpeval
from mpeval.checkpoint.hugging_write import fill_hugging_face
from mpeval.checkpoint.names import Naming
from mpeval.checkpoint.weights import StoredWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.models.bert import BERT
from mpeval.parallel.group import Group

VOCAB, CONTEXT = 96, 32
GPT2_SIZES = {"n_layer": 3, "n_embd": 32, "n_head": 4, "n_positions": CONTEXT, "vocab_size": VOCAB}
SIZES = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
    "vocab_size": VOCAB,
}
GROUPED = {**SIZES, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Case:
    """One class of transformers with a configuration worth trying."""

    model: type[PreTrainedModel]
    config: Callable[[], PretrainedConfig]


CASES = {
    "gpt2": Case(GPT2LMHeadModel, lambda: GPT2Config(**GPT2_SIZES)),
    "gpt2-erf-wide": Case(GPT2LMHeadModel, lambda: GPT2Config(**GPT2_SIZES, n_inner=56, activation_function="gelu")),
    "gpt2-untied": Case(GPT2LMHeadModel, lambda: GPT2Config(**GPT2_SIZES, tie_word_embeddings=False)),
    "llama": Case(LlamaForCausalLM, lambda: LlamaConfig(**GROUPED)),
    "llama-tied": Case(LlamaForCausalLM, lambda: LlamaConfig(**SIZES, tie_word_embeddings=True, rms_norm_eps=1e-5)),
    "llama-biases": Case(LlamaForCausalLM, lambda: LlamaConfig(**GROUPED, attention_bias=True, mlp_bias=True)),
    "llama-3": Case(LlamaForCausalLM, lambda: LlamaConfig(**GROUPED, rope_parameters=dict(LLAMA3))),
    "llama-3-short": Case(
        LlamaForCausalLM,
        lambda: LlamaConfig(**GROUPED, rope_parameters={**LLAMA3, "original_max_position_embeddings": 16}),
    ),
    "llama-linear": Case(
        LlamaForCausalLM,
        lambda: LlamaConfig(**SIZES, rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}),
    ),
    "llama-wide-heads": Case(LlamaForCausalLM, lambda: LlamaConfig(**GROUPED, head_dim=12)),
    "qwen2": Case(Qwen2ForCausalLM, lambda: Qwen2Config(**GROUPED)),
    "qwen3": Case(Qwen3ForCausalLM, lambda: Qwen3Config(**GROUPED, head_dim=16)),
    "bert": Case(BertForPreTraining, lambda: BertConfig(**SIZES)),
    "bert-mlm": Case(BertForMaskedLM, lambda: BertConfig(**SIZES, hidden_act="gelu_new")),
    "bert-choice": Case(BertForMultipleChoice, lambda: BertConfig(**SIZES)),
    "bert-classes": Case(BertForSequenceClassification, lambda: BertConfig(**SIZES, num_labels=3)),
    "bert-bare": Case(BertModel, lambda: BertConfig(**SIZES)),
    "megatron-bert": Case(MegatronBertForPreTraining, lambda: MegatronBertConfig(**SIZES)),
    "megatron-bert-bare": Case(MegatronBertModel, lambda: MegatronBertConfig(**SIZES)),
}
CHOSEN = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """Keep transformers from printing what it loads."""
    transformers.logging.set_verbosity_error()


def _random(case: Case) -> PreTrainedModel:
    """Make a model whose every parameter matters: no zero bias, no norm of ones."""
    torch.manual_seed(5)
    model: PreTrainedModel = case.model(case.config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def _inputs(bert: bool) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, VOCAB, (3, 20), generator=draw)
    if not bert:
        return {"input_ids": ids}
    mask = torch.ones_like(ids)
    mask[1, 13:] = 0
    mask[2, 5:] = 0
    types = torch.zeros_like(ids)
    types[:, 4:] = 1
    return {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}


def _ours(group: Group, path: Path) -> dict[str, torch.Tensor]:
    model = mpeval.load_model(mpeval.open_checkpoint(path), group)
    with torch.no_grad():
        if not isinstance(model, BERT):
            return {"logits": model(_inputs(bert=False)["input_ids"])}
        given = _inputs(bert=True)
        out = model(given["input_ids"], given["token_type_ids"], given["attention_mask"])
        found = {key: value for key, value in out._asdict().items() if value is not None}
        if model.config.multichoice_head or model.config.classes:
            found["task"] = model.task_logits(out.pooled)
        return found


def _theirs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return what transformers computes, under our names."""
    bert = "Bert" in type(model).__name__
    given = _inputs(bert)
    with torch.no_grad():
        if not bert:
            return {"logits": model(**given).logits}
        bare = getattr(model, "bert", model)(**given)
        found = {"hidden": bare.last_hidden_state}
        if bare.pooler_output is not None:
            found["pooled"] = bare.pooler_output
        if isinstance(model, BertForMultipleChoice):
            found["task"] = model(**{key: value[:, None] for key, value in given.items()}).logits
        elif isinstance(model, BertForSequenceClassification):
            found["task"] = model(**given).logits
        elif isinstance(model, BertForMaskedLM):
            found["logits"] = model(**given).logits
        elif bare is not model and hasattr(model, "cls"):
            out = model(**given)
            found |= {"logits": out.prediction_logits, "binary_logits": out.seq_relationship_logits}
        return found


def _assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], atol: float = 1e-4) -> None:
    assert set(ours) == set(theirs)
    real = _inputs(bert=True)["attention_mask"].bool()
    for key, expected in theirs.items():
        found = ours[key]
        if "hidden" in theirs and key in {"hidden", "logits"}:
            found, expected = found[real], expected[real]
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@CHOSEN
def test_a_folder_reads_to_what_transformers_computes(name: str, tmp_path: Path) -> None:
    model = _random(CASES[name])
    model.save_pretrained(tmp_path)
    theirs = _theirs(model)
    for ranks in (1, 2):
        for ours in run_ranks(_ours, ranks, tmp_path):
            _assert_same(ours, theirs)


@pytest.mark.parametrize("name", [name for name in CASES if name != "llama-3-short"])
def test_a_folder_written_from_shards_loads_without_a_key_missing_or_unexpected(name: str, tmp_path: Path) -> None:
    model = _random(CASES[name])
    model.save_pretrained(tmp_path / "first")
    first = mpeval.open_checkpoint(tmp_path / "first")
    config = first.config.changed("test", padded_vocab=128)
    naming: Naming = "megatron" if config.post_norm else "megatron-core"
    write_megatron(tmp_path / "shards", StoredWeights(first, config), tp=2, pp=3, naming=naming)

    shards = mpeval.open_checkpoint(tmp_path / "shards")
    shards.check()
    assert shards.digest() == first.digest()
    (tmp_path / "again").mkdir()
    fill_hugging_face(tmp_path / "again", StoredWeights(shards, shards.config))
    again = mpeval.open_checkpoint(tmp_path / "again")
    assert again.digest() == first.digest()
    loaded, info = CASES[name].model.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert {key: list(value) for key, value in info.items() if value} == {}
    _assert_same(_theirs(loaded.eval()), _theirs(model), atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "bert-bare"])
def test_older_and_larger_folders_read_to_the_same_weights(name: str, tmp_path: Path) -> None:
    model = _random(CASES[name])
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20kB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
    state: dict[str, Any] = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in model.state_dict().items()
    }
    state["h.0.attn.bias" if name == "gpt2" else "embeddings.position_ids"] = torch.ones(1, 1, 4, 4)
    torch.save(state, old / "pytorch_model.bin")
    digests = {mpeval.open_checkpoint(tmp_path / folder).digest() for folder in ("one", "many", "old")}
    assert len(digests) == 1
    mpeval.open_checkpoint(old).check()


def test_what_megatron_cannot_say_is_refused(tmp_path: Path) -> None:
    _random(CASES["llama-3-short"]).save_pretrained(tmp_path / "theirs")
    opened = mpeval.open_checkpoint(tmp_path / "theirs")
    with pytest.raises(mpeval.MpevalError, match="cannot say rotary scaling between 1 and 4 of 16"):
        write_megatron(tmp_path / "ours", StoredWeights(opened, opened.config))
    assert not list((tmp_path / "ours").glob("*"))


def test_a_copy_of_the_output_layer_that_differs_is_an_error(tmp_path: Path) -> None:
    model = _random(CASES["bert"])
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["cls.predictions.decoder.bias"][3] += 1
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(mpeval.MpevalError, match=r"lm_head\.bias is stored in copies that differ by up to 1"):
        mpeval.open_checkpoint(tmp_path).check()
