"""GPT, from GPT-2 as Megatron-LM trains it to the models of today: causal, with a head over the token table."""

from __future__ import annotations

import torch

from mpeval.models.transformer import Keep, Transformer
from mpeval.models.tree import Tree
from mpeval.parallel.ops import enter, gather
from mpeval.parallel.vocab import linear_cross_entropy

Tensor = torch.Tensor


class GPT(Transformer):
    """A tensor-parallel, causal language model with its head over a split vocabulary."""

    def hidden(
        self, ids: Tensor, at: Tensor | None = None, tree: Tree | None = None, keep: Keep | None = None
    ) -> Tensor:
        """Map ids [batch, time] int64 to the last block's output, before the final norm.

        Returns [batch, time, hidden], or [..., hidden] for flat positions `at` (int64, in batch x time): [positions],
        or as many of each row, [batch, positions], which computes least.  With `tree`, rows hold several sequences;
        `keep` adds the keys and values of what stands before them.
        """
        run = self.start(ids, tree=tree)._replace(keep=keep)
        vectors = self.embedding(ids, run.streams, positions=tree.positions if tree else None)
        return self.blocks(vectors, run, at)

    def local_logits(self, hidden: Tensor, vocab: int | None = None) -> Tensor:
        """Normalise `hidden` [..., hidden] and return this rank's logits [..., columns] in the model's dtype.

        Only columns of ids below `vocab` (default: the true vocabulary) are computed: padding never enters a
        softmax unless it is asked for.
        """
        return self.table_logits(enter(self.final_norm(hidden), self.group.tp), vocab or self.config.vocab)

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
