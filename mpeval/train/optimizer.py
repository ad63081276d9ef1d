"""Adam over float32 weights: master copies below float32, decay exclusions, clipping, dynamic loss scale."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from mpeval.models.transformer import Transformer
from mpeval.parallel.adam import MOMENTS, new_adam, read_moments, write_moments
from mpeval.parallel.gradients import Gradients
from mpeval.recipe import Training

Tensor = torch.Tensor


def decays(name: str) -> bool:
    """Tell whether a parameter has weight decay: matrices and tables have it, biases and norms have none."""
    return not (name.endswith("bias") or "norm" in name)


@dataclass(kw_only=True)
class LossScale:
    """float16's dynamic loss scale: halved at an overflow, doubled after `window` steps without one."""

    value: float = 1.0
    window: int = 1000
    good_steps: int = 0
    dynamic: bool = False
    smallest: float = 2.0**-14

    @classmethod
    def of(cls, training: Training) -> LossScale:
        """Return the scale a run begins with: 1, for ever, unless it is of float16."""
        dynamic = training.dtype == "float16"
        value = training.loss_scale if dynamic else 1.0
        return cls(value=value, window=training.loss_scale_window, dynamic=dynamic)

    def overflowed(self) -> None:
        """Halve the scale."""
        self.value, self.good_steps = max(self.smallest, self.value / 2), 0

    def went_well(self) -> None:
        """Count a step, and double the scale once there were enough."""
        self.good_steps += self.dynamic
        if self.dynamic and self.good_steps >= self.window:
            self.value, self.good_steps = self.value * 2, 0


class TrainingOptimizer:
    """Everything between the gradients of a model and its next weights."""

    def __init__(self, model: Transformer, training: Training) -> None:
        """Make master copies where the model is not float32, gradient buckets, and Adam over the masters."""
        self.model, self.training = model, training
        self.parameters = dict(model.named_parameters())
        self.masters = {name: _master(parameter) for name, parameter in self.parameters.items()}
        self.gradients = Gradients(self.parameters, model.group.dp, bucket_bytes=training.bucket_megabytes * 1e6)
        for name, master in self.masters.items():
            master.grad = self.gradients.views[name]
        self.scale = LossScale.of(training)
        self.steps = 0
        self.order = sorted(self.masters, key=lambda name: not decays(name))
        decayed = [self.masters[name] for name in self.order if decays(name)]
        plain = [self.masters[name] for name in self.order if not decays(name)]
        self.adam = new_adam(
            [{"params": decayed, "weight_decay": training.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=training.lr,
            betas=(training.beta1, training.beta2),
            eps=training.adam_eps,
            axis=model.group.dp,
            sharded=training.shard_optimizer,
        )

    def step(self, lr: float, norm: float) -> None:
        """Clip gradients of global norm `norm`, take one Adam step, and copy the masters into the model."""
        self.gradients.clip(self.training.clip, norm)
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        self.steps += 1
        self.scale.went_well()
        self.publish()

    @torch.no_grad()
    def publish(self) -> None:
        """Copy the float32 masters into the model's own weights, where these are not the same."""
        apart = [name for name in self.order if self.masters[name] is not self.parameters[name]]
        if apart:
            own: list[Tensor] = [self.parameters[name] for name in apart]
            torch._foreach_copy_(own, [self.masters[name] for name in apart])

    def finish_gradients(self) -> float:
        """Undo the loss scale in the gradients and return their global norm, which is not finite after an overflow."""
        if self.scale.value != 1.0:
            self.gradients.scale(1.0 / self.scale.value)
        norm = self.gradients.norm(self.model.group.tp)
        return norm if math.isfinite(norm) else math.inf

    def read(self) -> dict[str, dict[str, Tensor]]:
        """Return `exp_avg`, `exp_avg_sq` and, below float32, `master`, each by parameter name, of this rank's shards.

        Empty on all data-parallel ranks but the first; collective when the state is shared out.
        """
        moments = read_moments(self.adam, self.model.group.dp)
        if self.model.group.dp.rank:
            return {}
        kinds: dict[str, dict[str, Tensor]] = {
            kind: {name: values[kind] for name, values in zip(self.order, moments, strict=True)} for kind in MOMENTS
        }
        if any(self.masters[name] is not self.parameters[name] for name in self.order):
            kinds["master"] = {name: master.detach() for name, master in self.masters.items()}
        return kinds

    def write(self, kinds: dict[str, dict[str, Tensor]], steps: int) -> None:
        """Set the moments (and masters) of this rank's shards, as `read` returned them, after `steps` steps."""
        write_moments(self.adam, [{kind: kinds[kind][name] for kind in MOMENTS} for name in self.order], steps)
        with torch.no_grad():
            for name, master in kinds.get("master", {}).items():
                self.masters[name].copy_(master)
        self.steps = steps


def _master(parameter: nn.Parameter) -> nn.Parameter:
    """Return the float32 weights behind a parameter: itself if it is of float32."""
    return parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())
