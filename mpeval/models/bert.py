"""BERT as Megatron-LM trains it: token types, padding mask, masked language model head, pooler, sentence order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from mpeval.config import ModelConfig
from mpeval.models.transformer import Transformer, new_norm
from mpeval.parallel.group import Group
from mpeval.parallel.layers import Dense, Factory, new_parameter
from mpeval.parallel.ops import enter, gather
from mpeval.parallel.vocab import linear_cross_entropy

Tensor = torch.Tensor


class BERTOutput(NamedTuple):
    """What a BERT computes; None for what it has no head for.  Vectors of padded positions mean nothing."""

    logits: Tensor | None
    """Masked language model, [batch, time, true vocabulary] fp32."""
    binary_logits: Tensor | None
    """Sentence order, [batch, 2] fp32."""
    pooled: Tensor | None
    """tanh(dense(first position)), [batch, hidden]."""
    hidden: Tensor
    """The final norm's output, [batch, time, hidden]."""


class LMHead(nn.Module):
    """norm(gelu(dense(x))), then the tied table with a bias of its own, split over the vocabulary like the table."""

    def __init__(self, config: ModelConfig, *, group: Group, rows_local: int, factory: Factory) -> None:
        """Allocate the transform on every rank and this rank's part of the bias."""
        super().__init__()
        self.axis = group.tp
        self.approximate = "tanh" if config.lm_head_gelu == "tanh" else "none"
        self.dense = Dense(config.hidden, config.hidden, **factory)
        self.norm = new_norm(config, config.hidden, **factory)
        self.bias = new_parameter(rows_local, **factory)

    def transform(self, x: Tensor) -> Tensor:
        """Map [..., hidden] to the vectors, of the same shape, that the table is multiplied by."""
        transformed = self.norm(F.gelu(self.dense(x), approximate=self.approximate))
        return enter(transformed, self.axis)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Map [..., hidden] to this rank's logits [..., rows] over `table` [rows, hidden]."""
        return F.linear(self.transform(x), table, self.bias)


class BERT(Transformer):
    """A tensor-parallel bidirectional encoder.

    The configuration chooses the order of layer norm (figure 7 of the paper): by default the paper's, (b), norms
    before each branch and after the last block; with `post_norm` Google's, (a), norms after each residual and after
    the embedding.
    """

    def __init__(self, config: ModelConfig, group: Group | None = None, dtype: torch.dtype = torch.float32) -> None:
        """Lay out the model for this rank of `group` (default: a process of its own), on its device."""
        super().__init__(config, group, dtype)
        rows = self.embedding.word.weight.shape[0]
        if config.lm_head:
            self.lm_head = LMHead(config, group=self.group, rows_local=rows, factory=self.factory)

    @property
    def output_bias(self) -> Tensor | None:
        """What is added to the logits of this rank's rows of the output table, [padded_vocab / p]."""
        return self.lm_head.bias if self.config.lm_head else None

    def encode(
        self,
        ids: Tensor,
        tokentypes: Tensor | None = None,
        padding_mask: Tensor | None = None,
        at: Tensor | None = None,
    ) -> Tensor:
        """Return the final norm's output [batch, time, hidden]; the first arguments as in `forward`.

        With `at` (int64, flat positions in batch x time), return only those, [positions, hidden].
        """
        mask = None
        if padding_mask is not None and not padding_mask.all():
            mask = padding_mask.bool()
            mask = mask | ~mask.any(dim=-1, keepdim=True)  # a row of padding alone attends to itself: no NaN arises
            mask = mask[:, None, None, :]
        run = self.start(ids, mask, causal=False)
        types = torch.zeros_like(ids) if tokentypes is None else tokentypes
        hidden: Tensor = self.final_norm(self.blocks(self.embedding(ids, run.streams, types), run, at))
        return hidden

    def loss_sums(
        self, ids: Tensor, tokentypes: Tensor, padding_mask: Tensor, labels: Tensor, order: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the summed losses of masked tokens and of sentence order, scalars in fp32.

        Args:
            ids: [batch, time] int64, and so are the other two of this shape.
            tokentypes: 0 for the first sentence, 1 for the second.
            padding_mask: [batch, time], 1 or True for real tokens.
            labels: the token behind a mask; -1 where none is asked for.
            order: [batch] int64, 1 where the sentences are swapped.

        The second is 0 for a model without that head.  The head over the vocabulary sees masked positions only, and
        so do the parts of the last block that come after its attention.
        """
        masked = (labels.flatten() != -1).nonzero().squeeze(-1)
        firsts = torch.arange(0, labels.numel(), labels.shape[1], device=ids.device)
        hidden = self.encode(ids, tokentypes, padding_mask, torch.cat([firsts, masked]))
        columns = self.columns(self.config.vocab)
        lm = linear_cross_entropy(
            self.lm_head.transform(hidden[len(firsts) :]),
            self.output_table[:columns],
            labels.flatten()[masked],
            bias=self.lm_head.bias[:columns],
            first=self.first_id,
            axis=self.group.tp,
        )
        if not self.config.binary_head:
            return lm, torch.zeros_like(lm)
        logits = self.binary_head(self.pooled(hidden[: len(firsts), None])).float()
        return lm, F.cross_entropy(logits, order, reduction="sum")

    def forward(self, ids: Tensor, tokentypes: Tensor | None = None, padding_mask: Tensor | None = None) -> BERTOutput:
        """Encode and apply every pretraining head the model has, gathered on every tensor rank.

        Args:
            ids: [batch, time] int64.
            tokentypes: [batch, time] int64, 0 for the first sentence, 1 for the second (default: all 0).
            padding_mask: [batch, time], 1 or True for real tokens (default: all real).
        """
        hidden = self.encode(ids, tokentypes, padding_mask)
        logits = binary = pooled = None
        if self.config.lm_head:
            local = self.lm_head(hidden, self.output_table).float()
            logits = gather(local, self.group.tp)[..., : self.config.vocab]
        if self.config.pooler:
            pooled = self.pooled(hidden)
        if self.config.binary_head and pooled is not None:
            binary = self.binary_head(pooled).float()
        return BERTOutput(logits, binary, pooled, hidden)
