"""The transformer that all models share, tensor-parallel: embeddings, blocks, norms, task heads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple, Unpack

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mpeval.config import ModelConfig
from mpeval.models.attention import attention_with_dropout
from mpeval.models.rotary import Rotation, rotation
from mpeval.models.tree import Tree
from mpeval.parallel.dropout import DropoutStreams, dropout
from mpeval.parallel.group import Axis, Group
from mpeval.parallel.layers import (
    ColumnLinear,
    Dense,
    Factory,
    LayerNorm,
    RMSNorm,
    RowLinear,
    VocabEmbedding,
    new_parameter,
    shard_size,
)
from mpeval.parallel.ops import enter
from mpeval.parallel.packed import PackedLinear

Tensor = torch.Tensor


Keep = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From an attention, and its keys and values [batch, kv_heads_local, time, head_dim], to those it attends to."""


class Pass(NamedTuple):
    """What all blocks of one forward pass share."""

    streams: DropoutStreams | None = None
    """Where dropout draws from; none in evaluation."""
    rotation: Rotation | None = None
    """Rotary positions; none with a position table."""
    mask: Tensor | None = None
    """[batch, 1, 1 or time, keys] bool, the keys that may be attended to, by all queries or by each; none: all."""
    causal: bool = True
    """Whether each position attends to itself and the positions before it only."""
    keep: Keep | None = None
    """Takes an attention's keys and values, and gives those to attend to (`models/cache.py`); none: just these."""

    def seen_from(self, places: Tensor, time: int) -> Pass:
        """Return this for some queries of each row, at `places` [batch, queries] of `time`, by a mask of their own."""
        mask = self.mask
        if mask is not None and mask.shape[2] > 1:
            mask = mask.take_along_dim(places[:, None, :, None], dim=2)
        if self.causal:
            past = (torch.arange(time, device=places.device) <= places[..., None])[:, None]
            mask = past if mask is None else past & mask
        return self._replace(mask=mask, causal=False)


def pick(x: Tensor, at: Tensor | None) -> Tensor:
    """Return the vectors [..., hidden] of x [batch, time, hidden] at flat positions `at` [...]; all without `at`."""
    return x if at is None else x.flatten(0, 1)[at]


def new_norm(
    config: ModelConfig, width: int, inside: Axis | None = None, **factory: Unpack[Factory]
) -> LayerNorm | RMSNorm:
    """Make the kind of norm that the configuration names, uninitialised."""
    return (RMSNorm if config.norm == "rmsnorm" else LayerNorm)(width, eps=config.eps, inside=inside, **factory)


class Table(nn.Module):
    """A plain table [rows, hidden]: of positions, of token types, or of an output layer whose head is not tied."""

    def __init__(self, rows: int, hidden: int, **factory: Unpack[Factory]) -> None:
        """Allocate the rows, uninitialised."""
        super().__init__()
        self.weight = new_parameter(rows, hidden, **factory)


class Embedding(nn.Module):
    """Token vectors, plus position vectors and token type vectors where the model has such tables."""

    def __init__(self, config: ModelConfig, *, group: Group, **factory: Unpack[Factory]) -> None:
        """Allocate this rank's rows of the token table and the whole of the small tables."""
        super().__init__()
        self.rate = config.dropout
        self.word = VocabEmbedding(config.padded_vocab, config.hidden, axis=group.tp, **factory)
        self.position = None if config.rope else Table(config.context, config.hidden, **factory)
        self.tokentype = Table(config.tokentypes, config.hidden, **factory) if config.tokentypes else None

    def forward(
        self,
        ids: Tensor,
        streams: DropoutStreams | None = None,
        tokentypes: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Map ids (and token types, and positions unless they are 0, 1, ...), all [batch, time], to vectors of each."""
        vectors = self.word(ids)
        if self.position is not None:
            rows = self.position.weight
            vectors = vectors + (rows[: ids.shape[-1]] if positions is None else F.embedding(positions, rows))
        if self.tokentype is not None and tokentypes is not None:
            vectors = vectors + F.embedding(tokentypes, self.tokentype.weight)
        return dropout(vectors, self.rate, streams)


def _by_head(rows: Tensor) -> Tensor:
    """Bring [batch, time, groups, heads of each, head_dim] into the order [batch, heads, time, head_dim]."""
    return rows.flatten(2, 3).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention, causal or over all keys that are not padding; each rank computes heads / p of the heads."""

    def __init__(self, config: ModelConfig, *, axis: Axis, **factory: Unpack[Factory]) -> None:
        """Allocate this rank's heads."""
        super().__init__()
        self.groups_local = shard_size(config.kv_heads, axis, "number of key-value heads")
        self.shared_by = config.heads // config.kv_heads
        self.head_dim = config.head_dim
        self.rate = config.attention_dropout
        self.qkv = ColumnLinear(config.hidden, config.qkv_rows, axis=axis, bias=config.qkv_bias, **factory)
        self.query_norm = new_norm(config, config.head_dim, axis, **factory) if config.qk_norm else None
        self.key_norm = new_norm(config, config.head_dim, axis, **factory) if config.qk_norm else None
        mixed = config.heads * config.head_dim
        self.out = RowLinear(mixed, config.hidden, axis=axis, bias=config.linear_bias, **factory)
        self.apart: tuple[PackedLinear, PackedLinear] | None = None
        """The QKV weight cut in two, where queries are read at other positions than keys and values."""

    def prepack(self, *, last: bool) -> None:
        """Rearrange the weights for inference; of a last block the queries' rows apart from the others."""
        self.out.prepack()
        if not last:
            self.qkv.prepack()
            return
        query, others = (PackedLinear.of(*self._rows(queries)) for queries in (True, False))
        if query is not None and others is not None:
            self.apart = query, others
            self.qkv.release()

    def forward(self, x: Tensor, run: Pass, at: Tensor | None = None) -> Tensor:
        """Map [batch, time, hidden] to the same shape, or at flat positions `at` to [positions, hidden].

        Where `at` is [batch, queries], as many positions of each row, only their queries are computed:
        [batch, queries, hidden].
        """
        one = at is not None and at.ndim == 2
        query, key, value = self._read_at(x, pick(x, at)) if one else self._read_all(x)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        places = at % x.shape[1] if one and at is not None else None
        if run.rotation is not None:
            query = (run.rotation if places is None else run.rotation.at(places))(query)
            key = run.rotation(key)
        if run.keep is not None:
            key, value = run.keep(self, key, value)
        mixed = self._mix(query, key, value, run if places is None else run.seen_from(places, x.shape[1]))
        mixed = mixed.transpose(1, 2).flatten(-2)  # of [batch, heads_local, time, head_dim]
        result: Tensor = self.out(mixed if one else pick(mixed, at))
        return result

    def _read_all(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values [batch, heads_local, time, head_dim] of all positions, from one product.

        Rows of the QKV weight are, for each key-value head, its query heads, then its key, then its value: with as
        many key-value heads as query heads [heads, 3, head_dim].
        """
        if self.apart is not None:
            return self._read_at(x, x)
        rows = self.qkv(x).unflatten(-1, (self.groups_local, self.shared_by + 2, self.head_dim))
        query, key, value = rows.split([self.shared_by, 1, 1], dim=-2)
        return _by_head(query), _by_head(key), _by_head(value)

    def _read_at(self, x: Tensor, readers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same with the queries of `readers` [batch, queries, hidden] only."""

        def read(vectors: Tensor, queries: bool) -> Tensor:
            if self.apart is not None:
                made = self.apart[not queries](vectors)
            else:
                made = F.linear(vectors, *self._rows(queries))
            return made.view(*vectors.shape[:2], self.groups_local, -1, self.head_dim)

        key, value = torch.split(read(x, queries=False), 1, dim=-2)
        return _by_head(read(readers, queries=True)), _by_head(key), _by_head(value)

    def _rows(self, queries: bool) -> tuple[Tensor, Tensor | None]:
        """Return the rows of the QKV weight and bias that make queries, or those that make keys and values."""
        parts = (self.groups_local, self.shared_by + 2, self.head_dim)
        rows = slice(self.shared_by) if queries else slice(self.shared_by, None)
        weight = self.qkv.weight.view(*parts, -1)[:, rows].reshape(-1, self.qkv.weight.shape[1])
        bias = self.qkv.bias
        return weight, None if bias is None else bias.view(parts)[:, rows].flatten()

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, run: Pass) -> Tensor:
        def mix(rate: float) -> Tensor:
            return F.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=run.mask,
                dropout_p=rate,
                is_causal=run.causal,
                enable_gqa=self.shared_by > 1,
            )

        if run.streams is None or self.rate == 0.0:
            return mix(0.0)
        if query.device.type == "cpu":
            return attention_with_dropout(
                query, key, value, mask=run.mask, causal=run.causal, rate=self.rate, streams=run.streams
            )
        with run.streams.using("own"):
            return mix(self.rate)


class MLP(nn.Module):
    """The feed-forward branch: widen, GELU, narrow; or with SwiGLU down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, *, axis: Axis, **factory: Unpack[Factory]) -> None:
        """Allocate this rank's ffn / p features."""
        super().__init__()
        self.approximate = "tanh" if config.gelu == "tanh" else "none"
        sizes, bias = (config.hidden, config.ffn), config.linear_bias
        self.gate = ColumnLinear(*sizes, axis=axis, bias=bias, **factory) if config.swiglu else None
        self.up = ColumnLinear(*sizes, axis=axis, bias=bias, **factory)
        self.down = RowLinear(config.ffn, config.hidden, axis=axis, bias=bias, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., hidden] to the same shape."""
        wide = self.up(x, gelu=self.approximate) if self.gate is None else F.silu(self.gate(x)) * self.up(x)
        result: Tensor = self.down(wide)
        return result


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): two all-reduces forward, two backward.

    With `post_norm` the residual is added to the norm's output: n + attention(n) with n = norm(x).  Written that
    way the norm before attention is the one that Google's BERT draws at the end of the block before (for the first
    block, its embedding norm), so both orders have the same parameters in the same places.
    """

    def __init__(self, config: ModelConfig, *, axis: Axis, **factory: Unpack[Factory]) -> None:
        """Allocate this rank's shard of the block."""
        super().__init__()
        self.axis = axis
        self.rate = config.dropout
        self.post_norm = config.post_norm
        self.attention_norm = new_norm(config, config.hidden, **factory)
        self.attention = Attention(config, axis=axis, **factory)
        self.mlp_norm = new_norm(config, config.hidden, **factory)
        self.mlp = MLP(config, axis=axis, **factory)

    def prepack(self, *, last: bool) -> None:
        """Rearrange the weights for inference."""
        self.attention.prepack(last=last)
        for linear in (self.mlp.gate, self.mlp.up, self.mlp.down):
            if linear is not None:
                linear.prepack()

    def forward(self, x: Tensor, run: Pass, at: Tensor | None = None) -> Tensor:
        """Map [batch, time, hidden], equal on all tensor ranks, to the same shape.

        With `at` (flat positions in batch x time), return only those, [positions, hidden]: of a last block, nothing
        after the attention is computed for positions that nobody reads, and no query either if `at` is
        [batch, queries], as many positions of each row.
        """
        normed = self.attention_norm(x)
        mixed = self.attention(enter(normed, self.axis), run, at)
        x = pick(normed if self.post_norm else x, at) + dropout(mixed, self.rate, run.streams)
        normed = self.mlp_norm(x)
        widened = self.mlp(enter(normed, self.axis))
        return (normed if self.post_norm else x) + dropout(widened, self.rate, run.streams)


class Transformer(nn.Module):
    """What GPT and BERT share: `embedding`, `layers`, `final_norm`, the output table, a pooler and task heads.

    Parameters hold this rank's shards, uninitialised: `draw_weights` or a checkpoint fills them.
    """

    packed_head: PackedLinear | None = None
    """The output table's rows of the true vocabulary, and its bias, rearranged for inference."""

    def __init__(self, config: ModelConfig, group: Group | None = None, dtype: torch.dtype = torch.float32) -> None:
        """Lay out the model for this rank of `group` (default: a process of its own), on its device."""
        super().__init__()
        group = group or Group.single()
        config.check_ranks(group.tp.ranks)
        self.config = config
        self.group = group
        self.streams: DropoutStreams | None = None
        self.recompute = False
        """Whether training keeps only each block's input, and computes the block again in the backward pass."""
        factory: Factory = {"device": group.device, "dtype": dtype}
        self.factory = factory
        self.embedding = Embedding(config, group=group, **factory)
        self.layers = nn.ModuleList(Block(config, axis=group.tp, **factory) for _ in range(config.layers))
        self.final_norm = new_norm(config, config.hidden, **factory)
        if not config.tied:
            self.head = Table(self.embedding.word.weight.shape[0], config.hidden, **factory)
        if config.pooler:
            self.pooler = nn.ModuleDict({"dense": Dense(config.hidden, config.hidden, **factory)})
        if config.binary_head:
            self.binary_head = Dense(config.hidden, 2, **factory)
        if config.multichoice_head:
            self.multichoice_head = Dense(config.hidden, 1, **factory)
        if config.classes:
            self.classification_head = Dense(config.hidden, config.classes, **factory)
        if config.span_head:
            self.span_head = Dense(config.hidden, 2, **factory)

    @property
    def output_table(self) -> Tensor:
        """This rank's rows of the output table, [padded_vocab / p, hidden]."""
        return self.embedding.word.weight if self.config.tied else self.head.weight

    @property
    def first_id(self) -> int:
        """The vocabulary id of this rank's first row."""
        return self.embedding.word.first

    def columns(self, vocab: int) -> int:
        """Return how many of this rank's rows of the output table are of ids below `vocab`."""
        return max(0, min(self.output_table.shape[0], vocab - self.first_id))

    def prepack(self) -> None:
        """Rearrange weights the way this machine multiplies them fastest, for inference only (a CPU's; else nothing).

        The parameters are given up one after the other, but for the tables, norms and biases: the model can
        neither be trained nor saved any more.  Scores change by rounding errors.
        """
        for number, block in enumerate(self.layers, start=1):
            assert isinstance(block, Block)
            block.prepack(last=number == len(self.layers))
        if self.config.task_head is None:
            columns, bias = self.columns(self.config.vocab), self.output_bias
            self.packed_head = PackedLinear.of(self.output_table[:columns], None if bias is None else bias[:columns])

    @property
    def output_bias(self) -> Tensor | None:
        """What is added to the logits of this rank's rows of the output table, [padded_vocab / p]: nothing."""
        return None

    def table_logits(self, x: Tensor, vocab: int) -> Tensor:
        """Return this rank's logits [..., columns], of ids below `vocab`, of vectors x [..., hidden]."""
        if self.packed_head is not None and vocab == self.config.vocab:
            return self.packed_head(x)
        columns, bias = self.columns(vocab), self.output_bias
        return F.linear(x, self.output_table[:columns], None if bias is None else bias[:columns])

    def start(self, ids: Tensor, mask: Tensor | None = None, *, causal: bool = True, tree: Tree | None = None) -> Pass:
        """Prepare what the blocks share for ids [batch, time]; refuse sequences longer than the context.

        With `tree`, several sequences stand in each row, and it says what each token sees.
        """
        time = ids.shape[-1] if tree is None else tree.depth
        if time > self.config.context:
            raise ValueError(f"{time} tokens do not fit the context of {self.config.context}")
        if self.training and self.streams is None:
            raise RuntimeError("training mode needs dropout streams: set `model.streams`, or call `model.eval()`")
        turn = rotation(self.config, time, ids.device) if self.config.rope else None
        if tree is not None:
            turn, mask, causal = turn.at(tree.positions) if turn else None, tree.mask(), False
        return Pass(self.streams if self.training else None, turn, mask, causal)

    def blocks(self, x: Tensor, run: Pass, at: Tensor | None = None) -> Tensor:
        """Run all blocks on [batch, time, hidden]; with `at`, the last one keeps only those flat positions."""
        for number, block in enumerate(self.layers, start=1):
            x = self._block(block, x, run, at if number == len(self.layers) else None)
        return x

    def _block(self, block: nn.Module, x: Tensor, run: Pass, at: Tensor | None) -> Tensor:
        """Run one block; with `recompute` its second run, in backward, drops the same elements again."""
        streams = run.streams
        if not self.recompute or streams is None:
            result: Tensor = block(x, run, at)
            return result
        state = streams.state()
        again: Tensor = checkpoint(
            block,
            *(x, run, at),
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), streams.replaying(state)),
        )
        return again

    def pooled(self, hidden: Tensor) -> Tensor:
        """Return tanh(dense(first position)) of the final norm's output [batch, time, hidden], [batch, hidden].

        Where only some positions were computed, `hidden` holds these: a GPT's first is then the last token.
        """
        vectors: Tensor = self.pooler["dense"](hidden[:, 0])
        return vectors.tanh()

    def task_logits(self, pooled: Tensor) -> Tensor:
        """Return the task head's logits of pooled vectors [batch, hidden], fp32; in training these lose some elements.

        [batch, classes] of a classification head; [batch, 1], one score per option, of a multiple-choice head.
        """
        head = self.multichoice_head if self.config.multichoice_head else self.classification_head
        logits: Tensor = head(dropout(pooled, self.config.dropout, self.streams if self.training else None))
        return logits.float()

    def head_logits(self, ids: Tensor, lengths: Tensor, firsts: Tensor) -> Tensor:
        """Return the task head's logits of sequences padded on the right, fp32 and differentiable.

        Args:
            ids: [rows, time] int64.
            lengths: [rows] int64, the real tokens of each, at least one; what follows changes nothing.
            firsts: [rows] int64, how many of these are of the first type; those that follow are of the second.

        Returns [rows, 1] of a multiple-choice head and [rows, classes] of a classification head, which read the
        pooled first position of a BERT and last real one of a GPT; [rows, time, 2] of a span head, of which what it
        says of padding means nothing.  Of the last block only what is read is computed.
        """
        assert self.config.task_head is not None, "the model has no task head"
        places = torch.arange(ids.shape[1], device=ids.device)
        bert, types, mask = self.config.family == "bert", None, None
        if bert and self.config.tokentypes:
            types = (places >= firsts[:, None]).long().clamp_(max=self.config.tokentypes - 1)
        if bert and not (lengths == ids.shape[1]).all():
            mask = (places < lengths[:, None])[:, None, None]
        at = None
        if not self.config.span_head:
            starts = torch.arange(0, ids.numel(), ids.shape[1], device=ids.device)
            at = (starts if bert else starts + lengths - 1)[:, None]
        run = self.start(ids, mask, causal=not bert)
        hidden = self.final_norm(self.blocks(self.embedding(ids, run.streams, types), run, at))
        if self.config.span_head:
            spans: Tensor = self.span_head(hidden)
            return spans.float()
        return self.task_logits(self.pooled(hidden))
