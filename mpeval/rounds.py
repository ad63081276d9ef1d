"""Score the items of a task in rounds: each data-parallel rank its batches, then rank 0 writes what all have done."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mpeval.errors import ConfigError
from mpeval.items import AnyRequest, AnyScore, Scored
from mpeval.journal import Journal
from mpeval.parallel.group import gather_objects
from mpeval.score_cache import ScoreCache
from mpeval.tasks.base import Item, Sample, Task

if TYPE_CHECKING:
    from mpeval.models.bert import BERT
    from mpeval.models.cache import Cache
    from mpeval.models.gpt import GPT
    from mpeval.report import Advance
    from mpeval.scoring import Batch, Preamble

ROUND = 4
"""Batches that each of several data-parallel ranks scores between two hand-overs to rank 0, which writes them."""


@dataclass(frozen=True, kw_only=True)
class Keeper:
    """Where rank 0 puts what was scored."""

    journal: Journal
    cache: ScoreCache | None = None

    def take_known(self, protocol: str, items: Sequence[Item]) -> None:
        """Copy to the journal what the cache has of items of a protocol that the journal lacks."""
        if self.cache is not None:
            lacking = [item for item in items if (protocol, item.id) not in self.journal.samples]
            self.journal.append(self.cache.find(lacking))

    def keep(self, items: dict[str, Item], samples: Sequence[Sample]) -> None:
        """Write samples of items, each under its id."""
        self.journal.append(samples)
        if self.cache is not None and samples:
            self.cache.add(items, samples)


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A model and how it is to score."""

    model: GPT | BERT
    megatron_exact: bool
    batch_tokens: int | None
    quiet: bool

    def score_all(self, task: Task, todo: Sequence[Item], done: int, keeper: Keeper | None) -> tuple[float, int]:
        """Score `todo`, each item on exactly one data-parallel rank; return seconds and input tokens (collective).

        All ranks see the same batches; data-parallel rank d takes every dp-th, of about as many tokens.  `done` items
        of the task were scored before.
        """
        from mpeval.report import progress
        from mpeval.scoring import Preamble, pack

        if not todo:
            return 0.0, 0
        group, named = self.model.group, {item.id: item for item in todo}
        batches, tokens = pack(self.model, [item.request for item in todo], self.batch_tokens)
        mine = batches[group.dp.rank :: group.dp.ranks]
        length = ROUND if group.dp.ranks > 1 else 1
        preamble = Preamble(self.model)
        begin = time.perf_counter()
        shown = group.world.rank == 0 and not self.quiet
        with progress(task.protocol.id, len(todo) + done, done=done, shown=shown) as advance:
            for number in range(math.ceil(len(batches) / (group.dp.ranks * length))):
                chunk = mine[number * length : (number + 1) * length]
                lines = gather_objects(self._round(task, todo, chunk, preamble), group.dp)
                _hand_over([line for part in lines for line in part], named, keeper, advance)
        return time.perf_counter() - begin, tokens

    def _round(
        self, task: Task, todo: Sequence[Item], chunk: Sequence[Batch], preamble: Preamble
    ) -> list[tuple[Sample, int]]:
        """Score a few batches and return each sample with its input tokens."""
        lines: list[tuple[Sample, int]] = []
        for batch in chunk:
            items = [todo[index] for index in batch.requests]
            asked = [item.request for item in items]
            before = preamble.read(batch.preamble, asked[0])
            for item, score in zip(items, self.score(asked, batch.rows, before), strict=True):
                parts = score if isinstance(score, tuple) else (score,)
                cut = sum(part.cut for part in parts if isinstance(part, Scored))
                lines.append((task.judge(item, score), item.request.inputs - cut))
        return lines

    def score(
        self, requests: Sequence[AnyRequest], rows: Sequence[int] | None, before: Cache | None = None
    ) -> list[AnyScore]:
        """Score requests in one forward pass, or, where a GPU's memory does not hold that, each half on its own.

        Raises:
            ConfigError: one request alone does not fit, or the ranks of a model would have to halve together.
        """
        import torch

        from mpeval.scoring import score_any

        try:
            return list(score_any(self.model, requests, rows=rows, before=before, megatron_exact=self.megatron_exact))
        except torch.cuda.OutOfMemoryError as error:
            if len(requests) == 1 or self.model.group.tp.ranks > 1:
                raise ConfigError(
                    f"the GPU has no memory left for a batch of {len(requests)} requests",
                    "give a smaller `--batch-tokens`, or more ranks by `--tp`",
                ) from error
        torch.cuda.empty_cache()
        middle = len(requests) // 2
        return [*self.score(requests[:middle], None, before), *self.score(requests[middle:], None, before)]


def _hand_over(
    lines: Sequence[tuple[Sample, int]], items: dict[str, Item], keeper: Keeper | None, advance: Advance
) -> None:
    if keeper:
        keeper.keep(items, [sample for sample, _ in lines])
    advance(len(lines), sum(tokens for _, tokens in lines))
