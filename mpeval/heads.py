"""Ask a model's task head: sequences padded into one forward pass, their logits cut out again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from mpeval.errors import CheckpointError, ConfigError, DataError
from mpeval.items import Answered, Headed
from mpeval.models.transformer import Transformer

__all__ = ["Answered", "Headed", "padded", "score_headed"]


def padded(sequences: Sequence[np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sequences of integers as ids [rows, longest] int64, zeros on the right, and their lengths [rows]."""
    lengths = np.array([len(sequence) for sequence in sequences], dtype=np.int64)
    ids = np.zeros((len(sequences), int(lengths.max())), dtype=np.int64)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence)] = sequence
    return torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device)


@torch.inference_mode()
def score_headed(model: Transformer, requests: Sequence[Headed]) -> list[Answered]:
    """Apply the task head to all sequences of all requests in one forward pass.

    What a request is answered does not depend on the others: padding is masked, or lies in a causal model's future.

    Raises:
        ConfigError: the model has no task head.
        DataError: a sequence that is empty, or longer than the model's context.
        CheckpointError: a logit that is not finite.
    """
    if model.config.task_head is None:
        raise ConfigError(
            "the model has no task head to ask", "finetune it on the task first, or choose a protocol of its own head"
        )
    for request in requests:
        _check(request, model.config.context)
    ids, lengths = padded([row for request in requests for row in request.ids], model.group.device)
    firsts = torch.tensor([first for request in requests for first in request.firsts], device=ids.device)
    logits = model.head_logits(ids, lengths, firsts).cpu().numpy()
    rows = [
        row[: len(sequence)] if row.ndim == 2 else row for row, sequence in zip(logits, _all(requests), strict=True)
    ]
    _check_finite(rows)
    answers, start = [], 0
    for request in requests:
        stop = start + len(request.ids)
        answers.append(Answered(logits=tuple(rows[start:stop])))
        start = stop
    return answers


def _all(requests: Sequence[Headed]) -> list[np.ndarray]:
    return [sequence for request in requests for sequence in request.ids]


def _check(request: Headed, context: int) -> None:
    if not request.ids:
        raise DataError("a request without a sequence", "ask for at least one")
    longest, shortest = max(request.lengths), min(request.lengths)
    if not shortest:
        raise DataError(
            f"a request of {len(request.ids)} sequences has one without a token",
            "give each at least its special tokens",
        )
    if longest > context:
        raise DataError(
            f"a sequence of {longest} tokens does not fit the model's context of {context}",
            "make the items for this context, or score them with a model of longer context",
        )


def _check_finite(rows: Sequence[np.ndarray]) -> None:
    bad = sum(not np.isfinite(row).all() for row in rows)
    if bad:
        raise CheckpointError(
            f"the model gives {bad} of {len(rows)} sequences a logit that is not finite",
            "its activations overflow: use `--dtype float32` or `--dtype bfloat16`",
        )
