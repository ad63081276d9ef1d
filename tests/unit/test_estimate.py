"""Estimates of a run's cost against what models, autograd, collectives and torch's own counters do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mpeval.activations import block_bytes
from mpeval.config import ModelConfig
from mpeval.errors import ConfigError
from mpeval.estimate import as_dict, estimate, flops_per_sequence, scored_share, show
from mpeval.models.bert import BERT
from mpeval.models.gpt import GPT
from mpeval.models.transformer import Transformer
from mpeval.models.weights import draw_weights
from mpeval.parallel.adam import new_adam
from mpeval.parallel.dropout import DropoutStreams
from mpeval.parallel.gradients import Gradients
from mpeval.parallel.group import Axis, Group
from mpeval.recipe import Recipe, find_recipe

VOCAB = 300
SMALL = ("layers=3", "hidden=32", "heads=4", "context=32", "batch=8", "micro_batch=2", "dropout=0.1", "warmup_steps=1")
TODAY = ("swiglu=true", "rope=true", "norm=rmsnorm", "kv_heads=2", "linear_bias=false", "qkv_bias=false", "tied=false")
QUARTER = ("mask_share=0.25",)
"""Of 32 tokens a whole number is masked, so that counts can be exact."""


def recipe_of(family: str, *settings: str) -> Recipe:
    return find_recipe(f"{family}-tiny", [*SMALL, *(QUARTER if family == "bert" else ()), *settings])


def model_of(recipe: Recipe, group: Group) -> Transformer:
    config = recipe.config(VOCAB, group.tp.ranks)
    model = (BERT if config.family == "bert" else GPT)(config, group, getattr(torch, recipe.training.dtype))
    draw_weights(model, 1)
    model.streams = DropoutStreams(1, group)
    model.recompute = recipe.training.recompute
    return model.train()


def loss_of(model: Transformer, recipe: Recipe, sequences: int) -> torch.Tensor:
    """Return the loss of `sequences` random sequences, a fixed number of positions of which are masked."""
    ids = torch.randint(0, VOCAB, (sequences, recipe.sequence + 1), generator=torch.Generator().manual_seed(2))
    if isinstance(model, GPT):
        return model.loss_sum(ids)
    assert isinstance(model, BERT)
    ids = ids[:, 1:]
    labels = torch.full_like(ids, -1)
    masked = slice(1, 1 + round(recipe.training.mask_share * recipe.sequence))
    labels[:, masked] = ids[:, masked]
    order = torch.zeros(sequences, dtype=torch.int64)
    return torch.stack(model.loss_sums(ids, ids % 2, torch.ones_like(ids, dtype=torch.bool), labels, order)).sum()


KINDS = pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gpt", ()),
        ("gpt", ("recompute=true",)),
        ("gpt", ("recompute=true", "dropout=0")),
        ("gpt", ("dtype=bfloat16",)),
        ("gpt", TODAY),
        ("gpt", ("qk_norm=true",)),
        ("gpt", (*TODAY, "qk_norm=true", "dtype=bfloat16")),
        ("bert", ()),
        ("bert", ("recompute=true", "post_norm=true")),
        ("bert", ("binary_head=false", "dtype=bfloat16")),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)


@KINDS
@pytest.mark.parametrize("tp", [1, 2])
def test_parameters_are_those_of_the_models_shards(family: str, settings: tuple[str, ...], tp: int) -> None:
    recipe = recipe_of(family, *settings)
    made = estimate(recipe, vocab=VOCAB, tp=tp, dp=1)
    shards = Group(tp=Axis(rank=tp - 1, ranks=tp))
    config = recipe.config(VOCAB, tp)
    model = (BERT if family == "bert" else GPT)(config, shards)
    assert made.parameters_per_rank == sum(parameter.numel() for parameter in model.parameters())
    assert made.parameters == config.parameters()


def kept(model: Transformer, recipe: Recipe) -> int:
    """Return the bytes that autograd keeps of a forward pass, each storage once, without the parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    seen: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage  # held, so that its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loss_of(model, recipe, recipe.micro_batch(1))
    assert loss.isfinite()
    return sum(storage.nbytes() for storage in seen.values()) + _made(loss)


def _made(loss: torch.Tensor) -> int:
    """Return the bytes of the output layer's gradients, which its node of the graph keeps by itself."""
    found, nodes = 0, [loss.grad_fn]
    seen: set[Any] = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found += sum(tensor.nbytes for tensor in getattr(node, "made", ()) if tensor is not None)
        nodes += [parent for parent, _ in node.next_functions]
    return found


WIDE = ("hidden=128", "context=128", "layers=2")
"""Large enough that indices and rotations of a few bytes per token do not count."""


@KINDS
@pytest.mark.parametrize("rate", ["0", "0.1"], ids=["fused", "attention dropout"])
def test_activations_are_what_autograd_keeps(family: str, settings: tuple[str, ...], rate: str) -> None:
    recipe = recipe_of(family, *WIDE, f"attention_dropout={rate}", *settings)
    made = estimate(recipe, vocab=VOCAB, tp=1, dp=1)
    expected = made.memory.activations + made.memory.head
    if recipe.training.recompute:  # the one block of the backward pass is not there yet
        config = recipe.config(VOCAB)
        expected -= round(sum(block_bytes(config, 128, tp=1, size=4)) * 128 * made.micro_batch)
    assert kept(model_of(recipe, Group.single()), recipe) == pytest.approx(expected, rel=0.015)


def test_drops_of_causal_attention_are_kept_up_to_each_tiles_last_key() -> None:
    recipe = recipe_of("gpt", "attention_dropout=0.1", "context=600", "layers=1")
    made = estimate(recipe, vocab=VOCAB, tp=1, dp=1)
    assert kept(model_of(recipe, Group.single()), recipe) == pytest.approx(
        made.memory.activations + made.memory.head, rel=0.015
    )


def test_activations_are_what_autograd_keeps_on_each_of_two_ranks() -> None:
    recipe = recipe_of("gpt", *WIDE, "attention_dropout=0")
    memory = estimate(recipe, vocab=VOCAB, tp=2, dp=1).memory
    found = run_ranks(lambda group: kept(model_of(recipe, group), recipe), 2)
    assert found[0] == pytest.approx(memory.activations + memory.head, rel=0.01)


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_a_block_of_gpt2_keeps_what_publications_count(tp: int) -> None:
    config = find_recipe("gpt-8.3b").config(50257, tp)
    statistics = 2 * 8 + 4 * config.heads / tp
    expected = 3072 * (10 + 24 / tp)  # equation 2 of arXiv 2205.05198 without its attention probabilities
    assert sum(block_bytes(config, 1024, tp=tp, size=2, device="cuda")) == expected + statistics


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_gradients_and_optimizer_take_their_known_bytes(dtype: str) -> None:
    made = estimate(recipe_of("gpt", f"dtype={dtype}"), vocab=VOCAB, tp=2, dp=2)
    memory, held = made.memory, made.parameters_per_rank
    assert memory.weights + memory.gradients + memory.optimizer == held * {"float32": 16, "bfloat16": 18}[dtype]
    assert memory.total == sum(value for name, value in as_dict(made)["memory"].items() if name != "total")
    assert as_dict(made)["memory"]["total"] == memory.total


def _moments(group: Group, recipe: Recipe) -> int:
    """Return the bytes of the moments that this rank keeps of a shared optimizer after a step."""
    model = model_of(recipe, group)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    adam = new_adam(
        [{"params": list(model.parameters())}], lr=1.0, betas=(0.9, 0.9), eps=1.0, axis=group.dp, sharded=True
    )
    adam.step()
    state: Any = adam.optim.state  # type: ignore[attr-defined]
    return sum(value.nbytes for values in state.values() for name, value in values.items() if name != "step")


@pytest.mark.parametrize("settings", [(), ("layers=1", "hidden=8", "heads=4")], ids=["even", "one large table"])
def test_a_shared_optimizer_takes_what_torchs_takes_on_the_fullest_rank(settings: tuple[str, ...]) -> None:
    recipe = recipe_of("gpt", "shard_optimizer=true", *settings)
    made = estimate(recipe, vocab=VOCAB, tp=1, dp=2)
    assert max(run_ranks(_moments, 2, recipe, tp=1)) == pytest.approx(made.memory.optimizer, rel=0.02)


@KINDS
def test_flops_are_those_that_torch_counts(family: str, settings: tuple[str, ...]) -> None:
    # bfloat16 without fused attention: torch's counter knows of every product
    recipe = recipe_of(family, *settings, "dtype=bfloat16", "attention_dropout=0")
    model = model_of(recipe, Group.single())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss_of(model, recipe, 2).backward()  # type: ignore[no-untyped-call]
    flops = estimate(recipe, vocab=VOCAB, tp=1, dp=1).flops
    assert counter.get_total_flops() == pytest.approx(2 * flops.hardware_per_step / 8, rel=1e-3)
    per_sequence = flops_per_sequence(model.config, 32, scored=scored_share(recipe))
    assert flops.model_per_step == pytest.approx(8 * per_sequence)
    assert flops.model_per_token == pytest.approx(per_sequence / 32)
    assert (flops.hardware_per_step > flops.model_per_step) == recipe.training.recompute


@pytest.mark.parametrize("name", ["gpt-355m", "gpt-1.2b", "gpt-8.3b"])
def test_flops_are_the_published_formulas(name: str) -> None:
    recipe = find_recipe(name)
    made = estimate(recipe, vocab=51200, tp=1, dp=1)
    config = recipe.config(51200)
    batch, sequence, layers, hidden, vocab = 512, 1024, config.layers, config.hidden, 51200
    again = 96 * batch * sequence * layers * hidden**2
    again *= 1 + sequence / (6 * hidden) + vocab / (16 * layers * hidden)  # equation 3 of arXiv 2104.04473
    assert made.flops.hardware_per_step == pytest.approx(again)
    once = 72 * batch * sequence * layers * hidden**2
    once *= 1 + sequence / (6 * hidden) + vocab / (12 * layers * hidden)
    assert made.flops.model_per_step == pytest.approx(once)
    assert made.flops.model == pytest.approx(300_000 * once)


Sent = dict[str, int]


def _step(group: Group, recipe: Recipe) -> Sent:
    """Take a step's forward and backward passes, and its optimizer step; return the bytes given to collectives."""
    model = model_of(recipe, group)
    parameters = dict(model.named_parameters())
    gradients = Gradients(parameters, group.dp)
    sharded = recipe.training.shard_optimizer
    adam = new_adam(
        [{"params": list(parameters.values())}], lr=1.0, betas=(0.9, 0.9), eps=1.0, axis=group.dp, sharded=sharded
    )
    sent: Counter[str] = Counter()

    def counting(name: str, payload: int) -> Callable[..., Any]:
        plain = getattr(dist, name)

        def call(*arguments: Any, **named: Any) -> Any:
            axis = "tp" if named.get("group") is group.tp.handle else "dp"
            sent[f"{axis} {name}"] += (arguments[payload] if arguments else named["tensor"]).nbytes
            return plain(*arguments, **named)

        return call

    for name, payload in (("all_reduce", 0), ("all_gather", 1), ("broadcast", 0)):
        setattr(dist, name, counting(name, payload))
    size = recipe.micro_batch(group.dp.ranks)
    passes = recipe.training.batch // (group.dp.ranks * size)
    for number in range(passes):
        loss = loss_of(model, recipe, size)
        if number < passes - 1:
            loss.backward()  # type: ignore[no-untyped-call]
            continue
        with gradients.summing():
            loss.backward()  # type: ignore[no-untyped-call]
    adam.step()
    return dict(sent)


@KINDS
def test_the_tensor_axis_sends_exactly_the_estimate(family: str, settings: tuple[str, ...]) -> None:
    recipe = recipe_of(family, *settings)
    expected = estimate(recipe, vocab=VOCAB, tp=2, dp=1).communication
    for sent in run_ranks(_step, 2, recipe):
        assert sent["tp all_reduce"] + sent["tp all_gather"] == expected.tensor
        assert expected.tensor_sent == sent["tp all_reduce"] + sent["tp all_gather"]  # a ring of two sends all once
        assert (expected.data, expected.data_sent, expected.weights, expected.weights_sent) == (0, 0, 0, 0)


@pytest.mark.parametrize("sharded", [False, True])
def test_the_data_axis_sends_exactly_the_estimate(sharded: bool) -> None:
    recipe = recipe_of("gpt", f"shard_optimizer={sharded}")
    expected = estimate(recipe, vocab=VOCAB, tp=1, dp=2).communication
    for sent in run_ranks(_step, 2, recipe, tp=1):
        assert sent == {"dp all_reduce": expected.data} | ({"dp broadcast": expected.weights} if sharded else {})
    assert (expected.tensor, expected.tensor_sent) == (0, 0)


def test_rings_send_more_the_more_ranks_there_are() -> None:
    small, large = (estimate(find_recipe("gpt-2.5b"), vocab=50257, tp=1, dp=dp).communication for dp in (2, 64))
    assert small.data == large.data == small.data_sent
    assert large.data_sent == pytest.approx(small.data_sent * 2 * 63 / 64, rel=1e-9)


def test_the_papers_largest_gpt_fits_the_cards_it_was_trained_on() -> None:
    made = estimate(find_recipe("gpt-8.3b"), vocab=50257, tp=8, dp=64, device="cuda")
    assert (made.micro_batch, made.micro_batches, made.tokens_per_step) == (8, 1, 524_288)
    assert made.tokens == 300_000 * 524_288
    assert 20e9 < made.memory.total < 32e9
    assert estimate(find_recipe("gpt-8.3b"), vocab=50257, tp=1, dp=64).memory.total > 100e9


@pytest.mark.parametrize(("tp", "dp", "message"), [(5, 1, "does not divide"), (1, 3, "multiple of the 3")])
def test_ranks_that_cannot_cut_the_run_are_refused(tp: int, dp: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        estimate(find_recipe("gpt-8.3b"), vocab=50257, tp=tp, dp=dp)


def test_a_table_shows_every_figure() -> None:
    made = estimate(find_recipe("gpt-8.3b", ["shard_optimizer=true"]), vocab=50257, tp=8, dp=64, device="cuda")
    rows = {what.strip(): (value, how) for what, value, how in show(made)}
    assert rows["parameters"][0] == "8,317,040,640"
    assert rows["tokens per step"] == ("524,288", "64 dp x 1 micro-batch of 8 sequences of 1,024 tokens")
    assert rows["FLOPs"][0] == "8.27 ZFLOP"
    assert rows["executed"][0] == "11.0 ZFLOP"
    assert rows["gradients"] == ("4.17 GB", "float32")
    assert rows["gradients, over replicas"][0] == "8.22 GB"
    assert {"memory per rank", "weights", "optimizer", "activations", "head", "logits"} <= set(rows)
    assert {"activations, over tensor ranks", "new weights, over replicas"} <= set(rows)


def test_a_table_of_one_rank_says_that_nothing_is_sent() -> None:
    rows = show(estimate(find_recipe("gpt-tiny"), vocab=1000, tp=1, dp=1))
    assert rows[-1] == ("sent per step", "nothing", "one rank")
    assert not any(what.strip() == "executed" for what, _, _ in rows)


def test_flops_of_a_bert_leave_out_what_nobody_reads() -> None:
    config: ModelConfig = find_recipe("bert-336m").config(30522)
    few, all_of_them = (flops_per_sequence(config, 512, scored=scored) for scored in (0.15, 1.0))
    head = 6 * 0.85 * 512 * 1024 * (30522 + 1024)
    block = 6 * (0.85 - 1 / 512) * 512 * 9 * 1024**2  # the last one's output layer and feed-forward layers
    assert all_of_them - few == pytest.approx(head + block)
