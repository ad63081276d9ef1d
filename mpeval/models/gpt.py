"""GPT-2 as Megatron-LM trains it: learned positions, pre-layer-norm blocks, a head tied to the token table."""

from __future__ import annotations

import hashlib
from typing import Unpack

import torch
from torch import nn

from mpeval.config import ModelConfig
from mpeval.models.transformer import Block, dropout
from mpeval.parallel.dropout import DropoutStreams
from mpeval.parallel.group import Group
from mpeval.parallel.layers import Factory, LayerNorm, VocabEmbedding, new_parameter
from mpeval.parallel.layout import cut_of, split
from mpeval.parallel.ops import enter, gather

Tensor = torch.Tensor


class Table(nn.Module):
    """A plain table [rows, hidden]: of positions, or of the output layer of a model whose head is not tied."""

    def __init__(self, rows: int, hidden: int, **factory: Unpack[Factory]) -> None:
        """Allocate the rows, uninitialised."""
        super().__init__()
        self.weight = new_parameter(rows, hidden, **factory)


class Embedding(nn.Module):
    """Token vectors plus position vectors."""

    def __init__(self, config: ModelConfig, *, group: Group, **factory: Unpack[Factory]) -> None:
        """Allocate this rank's rows of the token table and the whole position table."""
        super().__init__()
        self.rate = config.dropout
        self.word = VocabEmbedding(config.padded_vocab, config.hidden, axis=group.tp, **factory)
        self.position = Table(config.context, config.hidden, **factory)

    def forward(self, ids: Tensor, streams: DropoutStreams | None = None) -> Tensor:
        """Map ids [batch, time] int64 to [batch, time, hidden]."""
        vectors = self.word(ids) + self.position.weight[: ids.shape[-1]]
        return dropout(vectors, self.rate, streams)


class GPT(nn.Module):
    """A tensor-parallel GPT: `embedding`, `layers`, `final_norm`, and the head over a split vocabulary.

    Parameters hold this rank's shards, uninitialised: `draw_weights` or a checkpoint fills them.
    """

    def __init__(self, config: ModelConfig, group: Group | None = None, dtype: torch.dtype = torch.float32) -> None:
        """Lay out the model for this rank of `group` (default: a process of its own), on its device."""
        super().__init__()
        group = group or Group.single()
        config.check_ranks(group.tp.ranks)
        self.config = config
        self.group = group
        self.streams: DropoutStreams | None = None
        factory: Factory = {"device": group.device, "dtype": dtype}
        self.embedding = Embedding(config, group=group, **factory)
        self.layers = nn.ModuleList(Block(config, axis=group.tp, **factory) for _ in range(config.layers))
        self.final_norm = LayerNorm(config.hidden, eps=config.eps, **factory)
        if not config.tied:
            self.head = Table(self.embedding.word.weight.shape[0], config.hidden, **factory)

    @property
    def output_table(self) -> Tensor:
        """This rank's rows of the output table, [padded_vocab / p, hidden]."""
        return self.embedding.word.weight if self.config.tied else self.head.weight

    @property
    def first_id(self) -> int:
        """The vocabulary id of this rank's first row."""
        return self.embedding.word.first

    def _dropout(self) -> DropoutStreams | None:
        if self.training and self.streams is None:
            raise RuntimeError("training mode needs dropout streams: set `model.streams`, or call `model.eval()`")
        return self.streams if self.training else None

    def blocks(self, x: Tensor, start: int = 0, stop: int | None = None, at: Tensor | None = None) -> Tensor:
        """Run blocks `start:stop` on [batch, time, hidden]; with `at`, the last one keeps only those flat positions."""
        streams = self._dropout()
        chosen = self.layers[start:stop]
        for number, block in enumerate(chosen, start=1):
            x = block(x, streams, at if number == len(chosen) else None)
        return x

    def hidden(self, ids: Tensor, at: Tensor | None = None) -> Tensor:
        """Map ids [batch, time] int64 to the last block's output, before the final norm.

        Returns [batch, time, hidden], or [positions, hidden] for flat positions `at` (int64, in batch x time).
        """
        return self.blocks(self.embedding(ids, self._dropout()), at=at)

    def local_logits(self, hidden: Tensor, vocab: int | None = None) -> Tensor:
        """Normalise `hidden` [..., hidden] and return this rank's logits [..., columns] in the model's dtype.

        Only columns of ids below `vocab` (default: the true vocabulary) are computed: padding never enters a
        softmax unless it is asked for.
        """
        columns = max(0, min(self.output_table.shape[0], (vocab or self.config.vocab) - self.first_id))
        x = enter(self.final_norm(hidden), self.group.tp)
        return nn.functional.linear(x, self.output_table[:columns])

    def forward(self, ids: Tensor) -> Tensor:
        """Return fp32 logits [batch, time, true vocabulary], gathered on every tensor rank.

        Scoring and losses use `local_logits`, which gathers nothing.
        """
        if ids.shape[-1] > self.config.context:
            raise ValueError(f"{ids.shape[-1]} tokens do not fit the context of {self.config.context}")
        local = self.local_logits(self.hidden(ids), vocab=self.first_id + self.output_table.shape[0]).float()
        return gather(local, self.group.tp)[..., : self.config.vocab]


def draw_full(config: ModelConfig, name: str, seed: int) -> Tensor:
    """Draw one parameter at full size, float32: N(0, std), std/sqrt(2 layers) before residual adds, norms 1 and 0.

    The stream depends on (seed, name) only, and padding rows have a stream of their own: neither the
    tensor-parallel size nor the padding it causes changes a weight (Megatron-LM paper, section 4).
    """
    shape = config.shapes()[name]
    if name.endswith("bias"):
        return torch.zeros(shape)
    if "norm" in name:
        return torch.ones(shape)
    std = config.init_std
    if name.endswith(("attention.out.weight", "mlp.down.weight")):
        std /= (2 * config.layers) ** 0.5
    if not cut_of(name).vocab:
        return torch.randn(shape, generator=_stream(seed, name)) * std
    rows, hidden = shape
    true = torch.randn(config.vocab, hidden, generator=_stream(seed, name))
    padding = torch.randn(rows - config.vocab, hidden, generator=_stream(seed, name + ".padding"))
    return torch.cat([true, padding]) * std


def _stream(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@torch.no_grad()
def draw_weights(model: GPT, seed: int) -> None:
    """Fill a model with new weights, drawn full-size from `seed` and then cut for this rank."""
    tp = model.group.tp
    for name, parameter in model.named_parameters():
        parameter.copy_(split(name, draw_full(model.config, name, seed), tp.ranks)[tp.rank])
