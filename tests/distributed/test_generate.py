"""Continuations from a cache: those of transformers, those of reading everything again, whatever the ranks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from ranks import run_ranks

import mpeval
from mpeval.config import ModelConfig
from mpeval.errors import CheckpointError, DataError, UsageError
from mpeval.generate import CACHE_BYTES, Generated, Sampling, generate
from mpeval.models.gpt import GPT
from mpeval.models.weights import draw_weights
from mpeval.parallel.draw import drawn_tokens
from mpeval.parallel.group import Axis, Group
from mpeval.scoring import BATCH_TOKENS

VOCAB, CONTEXT, NEW = 96, 48, 14
LENGTHS = (1, 7, 19, 3, 12, 34)
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96, "vocab_size": VOCAB}
ROTARY = {**SIZES, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
THEIRS: dict[str, Any] = {
    "learned positions": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4, n_positions=CONTEXT, vocab_size=VOCAB)
    ),
    "rotary, grouped queries": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**ROTARY)),
    "rotary, queries and keys normed": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(**ROTARY, head_dim=16)
    ),
}
PADDED = ModelConfig(
    layers=2, hidden=32, heads=4, ffn=64, context=CONTEXT, vocab=37, padded_vocab=40, gelu="erf", init_std=0.3
)
GROUPED = ModelConfig(
    layers=2, hidden=32, heads=4, kv_heads=2, ffn=48, context=CONTEXT, vocab=37, padded_vocab=40, rope=True,
    rope_percent=0.5, norm="rmsnorm", swiglu=True, linear_bias=False, tied=False, init_std=0.3,
)  # fmt: skip


def prompts_of(vocab: int) -> list[list[int]]:
    draw = np.random.default_rng(2)
    return [draw.integers(0, vocab, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module", params=THEIRS)
def theirs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[int]]]:
    """A saved model of transformers whose every parameter matters, and how it goes on with each prompt by itself."""
    transformers.logging.set_verbosity_error()
    torch.manual_seed(7)
    model = THEIRS[request.param]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.12)
    folder = tmp_path_factory.mktemp("theirs")
    model.save_pretrained(folder)
    answers = []
    for prompt in prompts_of(VOCAB):
        ids = torch.tensor([prompt])
        settings = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
        found = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        answers.append(found[0, len(prompt) :].tolist())
    assert len({tuple(answer) for answer in answers}) > 3
    return folder, answers


def _saved(group: Group, path: Path) -> list[Generated]:
    model = mpeval.load_model(mpeval.open_checkpoint(path), group)
    assert isinstance(model, GPT)
    return generate(model, prompts_of(VOCAB), limit=NEW)


@pytest.mark.parametrize("tp", [1, 2])
def test_greedy_tokens_are_those_of_transformers(tp: int, theirs: tuple[Path, list[list[int]]]) -> None:
    folder, answers = theirs
    for found in run_ranks(_saved, tp, folder):
        assert [generated.ids for generated in found] == answers
        assert {generated.reason for generated in found} == {"length"}


def _made(config: ModelConfig, group: Group | None = None, dtype: torch.dtype = torch.float32) -> GPT:
    model = GPT(config, group, dtype).eval().requires_grad_(False)
    draw_weights(model, 5)
    return model


def again(model: GPT, prompt: list[int], limit: int) -> list[int]:
    """Go on greedily without a cache: the whole text is read anew for every token."""
    ids = list(prompt)
    for _ in range(limit):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def _drawn(group: Group, config: ModelConfig, sampling: Sampling | None, **options: Any) -> list[Generated]:
    return generate(_made(config, group), prompts_of(37), limit=NEW, sampling=sampling, **options)


@pytest.mark.parametrize("config", [PADDED, GROUPED], ids=["padded vocabulary", "rotary of half a head"])
def test_a_cache_changes_nothing(config: ModelConfig) -> None:
    model = _made(config)
    expected = [again(model, prompt, NEW) for prompt in prompts_of(37)]
    for ranks in (1, 2):
        for found in run_ranks(_drawn, ranks, config, None):
            assert [generated.ids for generated in found] == expected


def test_texts_end_by_themselves_or_where_they_are_told_to() -> None:
    model = _made(PADDED)
    prompts = prompts_of(37)
    plain = [again(model, prompt, NEW) for prompt in prompts]
    [(end, _)] = Counter(token for ids in plain for token in set(ids)).most_common(1)
    cut = [ids[: ids.index(end)] if end in ids else ids for ids in plain]
    found = generate(model, prompts, limit=NEW, end=end)
    assert [generated.ids for generated in found] == cut
    assert [generated.reason for generated in found] == ["end" if end in ids else "length" for ids in plain]
    assert {generated.reason for generated in found} == {"end", "length"}
    stopped = generate(model, prompts, limit=NEW, stop=lambda ids: ids[-1] == end)
    assert [generated.ids for generated in stopped] == [
        ids[: ids.index(end) + 1] if end in ids else ids for ids in plain
    ]
    assert [generated.reason == "stop" for generated in stopped] == [end in ids for ids in plain]


SAMPLINGS = [Sampling(seed=3), Sampling(temperature=0.7, top_k=6, seed=3), Sampling(top_p=0.8, temperature=1.3, seed=3)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["all", "top_k", "top_p"])
def test_draws_are_the_same_on_all_ranks_and_in_any_company(
    sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    [alone] = run_ranks(_drawn, 1, GROUPED, sampling)
    two = run_ranks(_drawn, 2, GROUPED, sampling)
    assert two == [alone, alone]
    monkeypatch.setitem(CACHE_BYTES, "cpu", 1)  # one prompt at a time
    monkeypatch.setitem(BATCH_TOKENS, "cpu", 1)
    assert _drawn(Group.single(), GROUPED, sampling) == alone
    assert _drawn(Group.single(), GROUPED, Sampling(seed=4)) != alone
    other = _drawn(Group.single(), GROUPED, sampling, streams=[(9, number) for number in range(len(LENGTHS))])
    assert other != alone


def test_the_streams_of_a_prompt_are_its_own() -> None:
    model, sampling = _made(GROUPED), Sampling(seed=1)
    prompts = prompts_of(37)
    together = generate(model, prompts, limit=NEW, sampling=sampling)
    back = generate(
        model,
        prompts[::-1],
        limit=NEW,
        sampling=sampling,
        streams=[(number,) for number in reversed(range(len(prompts)))],
    )
    assert back[::-1] == together


def _share_of_draws(group: Group, logits: torch.Tensor, uniforms: torch.Tensor, options: dict[str, Any]) -> Any:
    mine = logits.shape[1] // group.tp.ranks
    first = group.tp.rank * mine
    many = logits[:, first : first + mine].expand(len(uniforms), -1)
    found = drawn_tokens(many, uniforms, first=first, width=mine, axis=group.tp, **options)
    return torch.bincount(found, minlength=logits.shape[1]) / len(uniforms)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "top_k": 0, "top_p": 1.0},
        {"temperature": 0.6, "top_k": 5, "top_p": 1.0},
        {"temperature": 1.5, "top_k": 0, "top_p": 0.7},
        {"temperature": 1.5, "top_k": 9, "top_p": 0.7},
        {"temperature": 1.0, "top_k": 50, "top_p": 1.0},
    ],
)
def test_tokens_are_drawn_with_the_probabilities_of_transformers(options: dict[str, Any]) -> None:
    from transformers.generation.logits_process import (
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    logits = torch.randn(1, 24, generator=torch.Generator().manual_seed(0)) * 2
    warped = TemperatureLogitsWarper(options["temperature"])(None, logits.clone())
    if options["top_k"]:
        warped = TopKLogitsWarper(min(options["top_k"], 24))(None, warped)
    if options["top_p"] < 1:
        warped = TopPLogitsWarper(options["top_p"])(None, warped)
    expected = warped.softmax(-1)[0]
    count = 20_000
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count  # evenly, so that shares are exact
    for ranks in (1, 2):
        for shares in run_ranks(_share_of_draws, ranks, logits, uniforms, options):
            torch.testing.assert_close(shares, expected, atol=2 / count, rtol=0)


def test_the_largest_draw_takes_the_last_token_that_is_allowed() -> None:
    almost = torch.tensor([1.0 - 2**-53, 0.0], dtype=torch.float64)
    logits = torch.tensor([[3.0, 1.0, 2.0, -9.0]]).expand(2, -1)
    options: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "first": 0, "width": 4, "axis": Axis()}
    assert drawn_tokens(logits, almost, top_k=2, **options).tolist() == [2, 0]
    assert drawn_tokens(logits, almost, top_k=0, **options).tolist() == [3, 0]


@pytest.mark.parametrize(
    ("values", "said"),
    [({"temperature": 0.0}, "temperature=0.0"), ({"top_k": -1}, "top_k=-1"), ({"top_p": 0.0}, "top_p=0.0")],
)
def test_what_no_distribution_has_is_refused(values: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Sampling(**values)  # type: ignore[arg-type]


def test_prompts_that_do_not_fit_are_refused() -> None:
    model = _made(PADDED)
    assert len(generate(model, [[1] * (CONTEXT - 4)], limit=4)[0].ids) == 4
    for prompt in ([1] * (CONTEXT - 3), []):
        with pytest.raises(DataError, match=f"{len(prompt)} tokens and 4 new ones do not fit a context of {CONTEXT}"):
            generate(model, [[1], prompt], limit=4)


def test_logits_that_are_no_numbers_are_refused() -> None:
    model = _made(PADDED)
    model.layers[0].mlp.down.bias.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="no numbers"):
        generate(model, [[1, 2]], limit=2)


def test_no_prompt_asks_for_nothing() -> None:
    assert generate(_made(PADDED), [], limit=4) == []
