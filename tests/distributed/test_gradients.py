"""Gradient buckets, the global norm, clipping and Adam on real ranks, against torch on one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import run_ranks
from torch import nn

from mpeval.config import ModelConfig
from mpeval.models.gpt import GPT
from mpeval.models.weights import draw_full, draw_weights, fill_weights
from mpeval.parallel.gradients import Gradients, any_rank, summed_over
from mpeval.parallel.group import Group
from mpeval.parallel.layout import merge, split
from mpeval.recipe import Training
from mpeval.train.optimizer import LossScale, TrainingOptimizer, decays


def batch_of(config: ModelConfig, rows: int = 4) -> torch.Tensor:
    return torch.randint(config.vocab, (rows, config.context), generator=torch.Generator().manual_seed(5))


def model_of(config: ModelConfig, group: Group, dtype: torch.dtype = torch.float32) -> GPT:
    model = GPT(config, group, dtype).eval()
    draw_weights(model, seed=3)
    return model


def loss_of(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    return model(ids).log_softmax(-1).gather(-1, ids.roll(-1, 1).unsqueeze(-1)).mean().neg()


def dense_gradients(config: ModelConfig) -> dict[str, torch.Tensor]:
    model = model_of(config, Group.single())
    loss_of(model, batch_of(config)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def rank_gradients(group: Group, config: ModelConfig, bucket_bytes: float, dtype: torch.dtype) -> Any:
    """Half of the batch per data-parallel rank, in two micro-batches, summed into the mean."""
    model = model_of(config, group, dtype)
    gradients = Gradients(dict(model.named_parameters()), group.dp, bucket_bytes=bucket_bytes)
    gradients.zero()
    mine = batch_of(config).chunk(group.dp.ranks)[group.dp.rank]
    first, last = mine.chunk(2)
    share = first.shape[0] / 4
    (loss_of(model, first) * share).backward()
    with gradients.summing():
        (loss_of(model, last) * share).backward()
    norm = gradients.norm(group.tp)
    views = {name: view.clone() for name, view in gradients.views.items()}
    gradients.clip(0.5 * norm, norm)
    return group.tp.rank, views, norm, gradients.norm(group.tp)


@pytest.mark.parametrize(("tp", "dp"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("bucket_bytes", [1.0, 6000.0, 25e6], ids=["one each", "some", "one"])
def test_gradients_are_those_of_one_process(tp: int, dp: int, bucket_bytes: float, config: ModelConfig) -> None:
    expected = dense_gradients(config)
    results = run_ranks(rank_gradients, tp * dp, config, bucket_bytes, torch.float32, tp=tp)
    norm = nn.utils.get_total_norm(expected.values()).item()
    for replica in range(dp):
        shards = [views for _, views, _, _ in results[replica * tp : (replica + 1) * tp]]
        for name, full in expected.items():
            found = merge(name, [shard[name] for shard in shards], rows=full.shape[0])
            torch.testing.assert_close(found, full, rtol=1e-4, atol=1e-7)
    for _, _, found_norm, clipped in results:
        assert found_norm == pytest.approx(norm, rel=1e-5)
        assert clipped == pytest.approx(0.5 * norm, rel=1e-4)


def test_gradients_below_float32_are_summed_in_float32(config: ModelConfig) -> None:
    expected = dense_gradients(config)
    _, views, _, _ = run_ranks(rank_gradients, 2, config, 6000.0, torch.bfloat16, tp=1)[0]
    for name, full in expected.items():
        assert views[name].dtype == torch.float32
        assert (views[name] - full).norm() < 0.05 * full.norm() + 1e-6


def no_gradient(group: Group) -> list[float]:
    """Backward reaches only one of two parameters: the other's bucket is sent all the same."""
    parameters = {"pooler.dense.weight": nn.Parameter(torch.ones(3)), "final_norm.bias": nn.Parameter(torch.ones(3))}
    gradients = Gradients(parameters, group.dp, bucket_bytes=1.0)
    with gradients.summing():
        parameters["final_norm.bias"].sum().backward()
    return [float(view.sum()) for view in gradients.views.values()]


def test_a_parameter_without_gradient_does_not_stop_the_others() -> None:
    assert run_ranks(no_gradient, 2, tp=1) == [[6.0, 0.0]] * 2


def flags_and_sums(group: Group) -> tuple[bool, bool, list[float]]:
    rank = group.world.rank
    return any_rank(rank == 1, group), any_rank(False, group), summed_over([1.0, float(group.dp.rank)], group)


def test_flags_and_sums_reach_every_rank() -> None:
    assert run_ranks(flags_and_sums, 4, tp=2) == [(True, False, [2.0, 1.0])] * 4


TRAINING = Training(steps=10, batch=4, lr=1e-2, weight_decay=0.1, beta2=0.98, clip=0.05, adam_eps=1e-3)


def adam_steps(group: Group, config: ModelConfig, training: Training, steps: int) -> Any:
    model = model_of(config, group)
    optimizer = TrainingOptimizer(model, training)
    mine = batch_of(config).chunk(group.dp.ranks)[group.dp.rank]
    for step in range(1, steps + 1):
        optimizer.gradients.zero()
        with optimizer.gradients.summing():
            (loss_of(model, mine) / group.dp.ranks).backward()
        optimizer.step(training.lr_at(step), optimizer.finish_gradients())
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}, optimizer.read()


def torch_steps(config: ModelConfig, steps: int) -> tuple[dict[str, torch.Tensor], torch.optim.Optimizer]:
    """torch's AdamW, clip_grad_norm_ and schedule, on a model of one process."""
    model = model_of(config, Group.single())
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for name, p in named.items() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for name, p in named.items() if p.ndim == 1], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-3)
    for step in range(1, steps + 1):
        adam.zero_grad()
        loss_of(model, batch_of(config)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        for group in adam.param_groups:
            group["lr"] = TRAINING.lr_at(step)
        adam.step()
    return {name: parameter.detach() for name, parameter in named.items()}, adam


@pytest.mark.parametrize(("tp", "dp", "sharded"), [(1, 1, False), (2, 1, False), (1, 2, False), (2, 2, True)])
def test_adam_is_torchs_at_every_layout(tp: int, dp: int, sharded: bool, config: ModelConfig) -> None:
    from dataclasses import replace

    expected, _ = torch_steps(config, 4)
    training = replace(TRAINING, shard_optimizer=sharded)
    results = run_ranks(adam_steps, tp * dp, config, training, 4, tp=tp)
    for name, full in expected.items():
        for replica in range(dp):
            shards = [weights[name] for weights, _ in results[replica * tp : (replica + 1) * tp]]
            found = merge(name, shards, rows=full.shape[0])
            torch.testing.assert_close(found, full, rtol=1e-4, atol=2e-5)
    assert all(not state for _, state in results[tp:])
    assert set(results[0][1]) == {"exp_avg", "exp_avg_sq"}


def test_shared_out_moments_are_the_whole_ones(config: ModelConfig) -> None:
    from dataclasses import replace

    whole = run_ranks(adam_steps, 2, config, TRAINING, 3, tp=1)[0][1]
    shared = run_ranks(adam_steps, 2, config, replace(TRAINING, shard_optimizer=True), 3, tp=1)[0][1]
    for kind in ("exp_avg", "exp_avg_sq"):
        for name, value in whole[kind].items():
            torch.testing.assert_close(shared[kind][name], value, rtol=0, atol=0)


def rewritten(group: Group, config: ModelConfig, training: Training) -> bool:
    """Moments written into a new optimizer and read again are the same, and the next step too."""
    weights, state = adam_steps(group, config, training, 3)
    model = model_of(config, group)
    optimizer = TrainingOptimizer(model, training)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])
    box: list[Any] = [state]
    if group.dp.ranks > 1:
        torch.distributed.broadcast_object_list(box, src=0)
    optimizer.write(box[0], 3)
    mine = batch_of(config).chunk(group.dp.ranks)[group.dp.rank]
    optimizer.gradients.zero()
    with optimizer.gradients.summing():
        (loss_of(model, mine) / group.dp.ranks).backward()
    optimizer.step(training.lr_at(4), optimizer.finish_gradients())
    expected, _ = adam_steps(group, config, training, 4)
    return all(bool(torch.equal(parameter, expected[name])) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("sharded", [False, True])
def test_a_written_state_goes_on_as_if_nothing_had_happened(sharded: bool, config: ModelConfig) -> None:
    from dataclasses import replace

    assert run_ranks(rewritten, 2, config, replace(TRAINING, shard_optimizer=sharded), tp=1) == [True, True]


def test_biases_and_norms_have_no_decay(config: ModelConfig) -> None:
    plain = {name for name in config.shapes() if not decays(name)}
    assert plain == {name for name, shape in config.shapes().items() if len(shape) == 1}


def test_masters_keep_what_bfloat16_cannot(config: ModelConfig) -> None:
    from dataclasses import replace

    model = model_of(config, Group.single(), torch.bfloat16)
    optimizer = TrainingOptimizer(model, replace(TRAINING, dtype="bfloat16"))
    fill_weights(model, lambda name: draw_full(model.config, name, 3), into=optimizer.masters)
    optimizer.publish()
    for name, parameter in model.named_parameters():
        full = split(name, draw_full(config, name, 3), 1)[0]
        assert optimizer.masters[name].detach().equal(full)
        assert parameter.detach().equal(full.bfloat16())


def test_the_loss_scale_halves_and_doubles() -> None:
    from dataclasses import replace

    scale = LossScale.of(replace(TRAINING, dtype="float16", loss_scale=8.0, loss_scale_window=2))
    seen = []
    for good in (True, True, False, True, True, True):
        (scale.went_well if good else scale.overflowed)()
        seen.append(scale.value)
    assert seen == [8.0, 16.0, 8.0, 8.0, 16.0, 16.0]
    for _ in range(40):
        scale.overflowed()
    assert scale.value == scale.smallest
    assert LossScale.of(TRAINING).value == 1.0
