"""GPT, from GPT-2 as Megatron-LM trains it to the models of today: causal, with a head over the token table."""

from __future__ import annotations

import torch
from torch import nn

from mpeval.models.transformer import Transformer
from mpeval.parallel.ops import enter, gather
from mpeval.parallel.vocab import linear_cross_entropy

Tensor = torch.Tensor


class GPT(Transformer):
    """A tensor-parallel, causal language model with its head over a split vocabulary."""

    def hidden(self, ids: Tensor, at: Tensor | None = None) -> Tensor:
        """Map ids [batch, time] int64 to the last block's output, before the final norm.

        Returns [batch, time, hidden], or [positions, hidden] for flat positions `at` (int64, in batch x time).
        """
        run = self.start(ids)
        return self.blocks(self.embedding(ids, run.streams), run, at)

    def local_logits(self, hidden: Tensor, vocab: int | None = None) -> Tensor:
        """Normalise `hidden` [..., hidden] and return this rank's logits [..., columns] in the model's dtype.

        Only columns of ids below `vocab` (default: the true vocabulary) are computed: padding never enters a
        softmax unless it is asked for.
        """
        table = self.output_table[: self.columns(vocab or self.config.vocab)]
        x = enter(self.final_norm(hidden), self.group.tp)
        return nn.functional.linear(x, table)

    def loss_sum(self, ids: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the summed negative log-likelihood of each next token, a scalar in fp32.

        Args:
            ids: [batch, time + 1] int64; the model reads all but the last and is asked for all but the first.
            weights: [batch, time] what each target counts (default: 1).
        """
        x = enter(self.final_norm(self.hidden(ids[:, :-1])), self.group.tp)
        return linear_cross_entropy(
            x.flatten(0, 1),
            self.output_table[: self.columns(self.config.vocab)],
            ids[:, 1:].flatten(),
            first=self.first_id,
            axis=self.group.tp,
            weights=None if weights is None else weights.flatten(),
        )

    def forward(self, ids: Tensor) -> Tensor:
        """Return fp32 logits [batch, time, true vocabulary], gathered on every tensor rank.

        Scoring and losses use `local_logits`, which gathers nothing.
        """
        local = self.local_logits(self.hidden(ids), vocab=self.first_id + self.output_table.shape[0]).float()
        return gather(local, self.group.tp)[..., : self.config.vocab]
