"""The learning-rate schedule against torch's schedulers, and the published points of the paper's recipes."""

from __future__ import annotations

import pytest
import torch

from mpeval.recipe import Training, find_recipe


def training(**changes: object) -> Training:
    values = {"steps": 40, "batch": 1, "lr": 3e-3, "min_lr": 2e-4, "warmup_steps": 8}
    return Training(**{**values, **changes})  # type: ignore[arg-type]


def torchs(made: Training, schedule: str, steps: int) -> list[float]:
    """torch's learning rates in steps 1, 2, ...; its schedulers count from 0, so one is asked one step ahead."""
    from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=made.lr)
    span = made.steps - made.warmup_steps
    rise = LinearLR(adam, start_factor=1e-12, end_factor=1.0, total_iters=made.warmup_steps)
    fall = (
        CosineAnnealingLR(adam, T_max=span, eta_min=made.min_lr)
        if schedule == "cosine"
        else LinearLR(adam, start_factor=1.0, end_factor=made.min_lr / made.lr, total_iters=span)
    )
    both = SequentialLR(adam, [rise, fall], milestones=[made.warmup_steps])
    rates = []
    for _ in range(steps):
        adam.step()
        both.step()
        rates.append(adam.param_groups[0]["lr"])
    return rates


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_rates_are_those_of_torch(schedule: str) -> None:
    made = training(schedule=schedule)
    ours = [made.lr_at(step) for step in range(1, 41)]
    assert ours == pytest.approx(torchs(made, schedule, 40), rel=1e-6)


def test_the_ends_of_the_schedule() -> None:
    made = training()
    assert made.lr_at(1) == pytest.approx(3e-3 / 8)
    assert made.lr_at(8) == 3e-3
    assert made.lr_at(40) == pytest.approx(2e-4)
    assert made.lr_at(1000) == pytest.approx(2e-4)
    assert training(schedule="constant").lr_at(1000) == 3e-3
    assert training(warmup_steps=0).lr_at(1) < 3e-3
    assert training(decay_steps=20).lr_at(20) == pytest.approx(2e-4)


def test_a_warm_up_longer_than_the_run_only_rises() -> None:
    made = training(steps=5)
    assert [made.lr_at(step) for step in range(1, 6)] == pytest.approx([3e-3 * step / 8 for step in range(1, 6)])


def test_the_papers_gpt_reaches_its_floor_after_300_000_iterations() -> None:
    made = find_recipe("gpt-2.5b").training
    assert made.lr_at(3000) == 1.5e-4
    assert made.lr_at(151_500) == pytest.approx((1.5e-4 + 1e-5) / 2)
    assert made.lr_at(300_000) == pytest.approx(1e-5)
