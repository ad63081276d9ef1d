"""What is minimised: for each kind of pretraining, sums of losses and the counts they are averaged over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from mpeval.models.bert import BERT
from mpeval.models.gpt import GPT
from mpeval.models.transformer import Transformer

Tensor = torch.Tensor
Batch = Mapping[str, Tensor]


class Objective(Protocol):
    """A loss that is a sum of means, each over the items of the whole batch, however the batch is cut.

    Sums and counts are kept apart, so that neither micro-batches nor data-parallel ranks change the mean.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Return what each mean is called in the metrics."""

    def counts(self, batch: Batch) -> list[float]:
        """Return over how many items of `batch` each loss is summed."""

    def sums(self, model: Transformer, batch: Batch) -> list[Tensor]:
        """Return the sum of each loss over `batch`, differentiable float32 scalars."""


class LanguageModelling:
    """GPT's: the negative log-likelihood of every next token."""

    names = ("lm_loss",)

    def counts(self, batch: Batch) -> list[float]:
        """Return the number of predicted tokens."""
        ids = batch["ids"]
        return [float(ids.shape[0] * (ids.shape[1] - 1))]

    def sums(self, model: Transformer, batch: Batch) -> list[Tensor]:
        """Return the summed loss of `ids` [batch, sequence + 1]."""
        assert isinstance(model, GPT)
        return [model.loss_sum(batch["ids"])]


class MaskedModelling:
    """BERT's: masked tokens, plus the order of two segments (section 3 of arXiv 1909.08053)."""

    def __init__(self, *, order: bool) -> None:
        """Keep whether the model has a head for the order."""
        self.names = ("lm_loss", "order_loss") if order else ("lm_loss",)

    def counts(self, batch: Batch) -> list[float]:
        """Return the numbers of masked tokens and of samples."""
        masked = float((batch["labels"] != -1).sum())
        return [masked, float(batch["ids"].shape[0])][: len(self.names)]

    def sums(self, model: Transformer, batch: Batch) -> list[Tensor]:
        """Return both summed losses of a batch as `Samples` gives it."""
        assert isinstance(model, BERT)
        fields = ("ids", "tokentypes", "padding_mask", "labels", "order")
        return list(model.loss_sums(**{name: batch[name] for name in fields}))[: len(self.names)]


def objective_of(family: str, *, order: bool) -> Objective:
    """Return the pretraining objective of a family of models."""
    return MaskedModelling(order=order) if family == "bert" else LanguageModelling()
