"""What finetuning minimises: the cross-entropy of the right option, class, or place of an answer."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

from mpeval.items import Head
from mpeval.models.gpt import GPT
from mpeval.models.transformer import Transformer
from mpeval.parallel.vocab import cross_entropy
from mpeval.train.objectives import Batch, Objective

Tensor = torch.Tensor


class OptionOrClass:
    """The right option of a question, or the right class of a pair of texts, by a head on a pooled vector."""

    names = ("answer_loss",)

    def counts(self, batch: Batch) -> list[float]:
        """Return the number of questions."""
        return [float(len(batch["targets"]))]

    def sums(self, model: Transformer, batch: Batch) -> list[Tensor]:
        """Return the summed cross-entropy over the options of each question, or over the classes."""
        logits = model.head_logits(batch["ids"], batch["lengths"], batch["firsts"])
        return [F.cross_entropy(logits.view(len(batch["targets"]), -1), batch["targets"], reduction="sum")]


class Places:
    """Where an answer begins and ends, each the mean over windows of the cross-entropy over places (Devlin 2018)."""

    names = ("answer_loss",)

    def counts(self, batch: Batch) -> list[float]:
        """Return the number of windows."""
        return [float(len(batch["lengths"]))]

    def sums(self, model: Transformer, batch: Batch) -> list[Tensor]:
        """Return half the sum over windows of both cross-entropies; padding is no place."""
        logits = model.head_logits(batch["ids"], batch["lengths"], batch["firsts"])  # [windows, time, 2]
        padding = torch.arange(logits.shape[1], device=logits.device) >= batch["lengths"][:, None]
        logits = logits.masked_fill(padding[..., None], float("-inf"))
        return [F.cross_entropy(logits, batch["targets"], reduction="sum") / 2]


class OptionLikelihood:
    """The right option of a question, the options' log-likelihoods being the logits."""

    names = ("answer_loss",)

    def counts(self, batch: Batch) -> list[float]:
        """Return the number of questions."""
        return [float(len(batch["targets"]))]

    def sums(self, model: Transformer, batch: Batch) -> list[Tensor]:
        """Return the summed cross-entropy over options; the head over the vocabulary sees option tokens only."""
        assert isinstance(model, GPT)
        ids, lengths, firsts = batch["ids"], batch["lengths"], batch["firsts"]
        places = torch.arange(ids.shape[1] - 1, device=ids.device)
        asked = (places >= firsts[:, None] - 1) & (places < lengths[:, None] - 1)
        at = asked.flatten().nonzero().squeeze(-1)
        logits = model.local_logits(model.hidden(ids[:, :-1], at))
        losses = cross_entropy(logits, ids[:, 1:].flatten()[at], first=model.first_id, axis=model.group.tp)
        rows = asked.nonzero()[:, 0]
        likelihoods = -torch.zeros(len(ids), device=ids.device).index_add(0, rows, losses)
        return [F.cross_entropy(likelihoods.view(len(batch["targets"]), -1), batch["targets"], reduction="sum")]


def answer_objective(head: Head) -> Objective:
    """Return what is minimised through a head."""
    kinds: dict[Head, Callable[[], Objective]] = {"span": Places, "lm": OptionLikelihood}
    return kinds.get(head, OptionOrClass)()
