"""Fill a model for this run's tensor-parallel size from a checkpoint of any other."""

from __future__ import annotations

import torch

from mpeval.checkpoint.logical import LogicalTensor
from mpeval.checkpoint.sharded import ShardedCheckpoint
from mpeval.errors import CheckpointError
from mpeval.models.bert import BERT
from mpeval.models.gpt import GPT
from mpeval.parallel.group import Group
from mpeval.parallel.layout import bounds, cut_of


def load_model(
    checkpoint: ShardedCheckpoint, group: Group | None = None, dtype: str | torch.dtype | None = None
) -> GPT | BERT:
    """Build this rank's shard of the model and read just the slices it needs.

    Args:
        checkpoint: what `open_checkpoint` returned.
        group: the ranks of this run (default: one process); their number need not be the file's.
        dtype: dtype of the parameters (default: the file's).

    Returns:
        The model in evaluation mode on `group.device`.  A GPT maps ids [batch, time] int64 to float32 logits
        [batch, time, true vocabulary]; a BERT returns a `BERTOutput`.

    Raises:
        CheckpointError: NaN or infinity in a weight, or copies that differ (compared on the world's first rank).
        ConfigError: the model cannot be cut into `group.tp.ranks` parts.
    """
    group = group or Group.single()
    wanted = getattr(torch, dtype or checkpoint.dtype) if not isinstance(dtype, torch.dtype) else dtype
    if group.world.rank == 0:
        checkpoint.check()
    kind = BERT if checkpoint.config.family == "bert" else GPT
    model = kind(checkpoint.config, group, wanted).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        _fill(parameter, checkpoint.tensor(name), group, checkpoint)
    return model


def _fill(parameter: torch.Tensor, tensor: LogicalTensor, group: Group, checkpoint: ShardedCheckpoint) -> None:
    """Copy this rank's part of `tensor` and refuse values that are not numbers."""
    cut = cut_of(tensor.name)
    box = [(0, extent) for extent in tensor.shape]
    if cut.dim is not None:
        low, high = bounds(tensor.shape[cut.dim], group.tp.rank, group.tp.ranks, cut)
        inside = min(high, tensor.shape[cut.dim])
        box[cut.dim] = (min(low, inside), inside)
        parameter[max(0, inside - low) :].zero_() if cut.vocab else None
        tensor.copy_into(parameter.narrow(cut.dim, 0, max(0, inside - low)), box)
    else:
        tensor.copy_into(parameter, box)
    low_value, high_value = torch.aminmax(parameter)
    if not bool((low_value.isfinite() & high_value.isfinite()).item()):
        bad = int((~parameter.isfinite()).sum())
        dtype = str(parameter.dtype).removeprefix("torch.")
        wider = ", or `--dtype float32`" if dtype != "float32" else ""
        raise CheckpointError(
            f"`{checkpoint.path}`: `{tensor.name}` holds {bad} values that are NaN or infinite in {dtype}",
            f"the training run diverged or the file is damaged; use another iteration{wider}",
        )
