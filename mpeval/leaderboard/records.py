"""Numbers that mpeval measured: one line a result, with all it takes to believe it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from mpeval.leaderboard.entries import Entry
from mpeval.leaderboard.published import card_of
from mpeval.leaderboard.samples import samples_info
from mpeval.results import (
    CheckpointInfo,
    DataInfo,
    HarnessInfo,
    Layout,
    Result,
    RunResults,
    SamplesInfo,
    SeedSpread,
    TrainingInfo,
)


class Record(Entry):
    """One measured number (the primary metric of one result), with what it takes to believe it."""

    newer: ClassVar[frozenset[str]] = frozenset({"split", "training", "seeds", "members", "harness", "samples"})
    kind: Literal["measured"] = "measured"
    protocol_version: str
    n_correct: int | None
    model: CheckpointInfo
    data: DataInfo
    tokenizer_digest: str
    layout: Layout
    dtype: str
    device: str
    seconds: float
    tokens_per_second: float | None
    command: str
    mpeval_version: str
    torch_version: str
    training: TrainingInfo | None = None
    """How a finetuned model came to be."""
    seeds: SeedSpread | None = None
    """Of the run that stands for several with other seeds."""
    members: list[str] = Field(default_factory=list)
    """Of an ensemble: name and digest of each."""
    harness: HarnessInfo | None = None
    """Of a task of lm-eval."""
    samples: SamplesInfo | None = None
    """The predictions behind it."""

    @property
    def mark(self) -> str:
        """The weights' digest."""
        return self.model.digest

    @property
    def outdated(self) -> bool:
        """Whether the protocol has another version by now, whose numbers these may not stand beside."""
        card = card_of(self.task) if self.harness is None else None
        known = {protocol.id: protocol.version for protocol in card.protocols} if card else {}
        return known.get(self.protocol, self.protocol_version) != self.protocol_version

    @property
    def ranked(self) -> bool:
        """Whether the number may stand beside others of its protocol."""
        return super().ranked and not self.outdated

    @property
    def slot(self) -> tuple[Any, ...]:
        """What was measured: equal for a run repeated in any layout."""
        weights = (self.model.digest, self.model.gelu, self.model.vocab, self.tokenizer_digest, self.dtype)
        what = (self.protocol, self.protocol_version, self.part, self.metric.name, self.data.digest, self.n)
        selection = self.training.selection if self.training else ""
        members = sorted(member.rsplit(" ", 1)[-1] for member in self.members)
        return (*what, *weights, selection, *members, *sorted(self.flags))


def records_of(run: RunResults, samples: Path | None = None, store: Path | None = None) -> list[Record]:
    """Make one record of each result of a run.

    Args:
        run: an evaluation.
        samples: the `samples.jsonl` behind it, if that was kept.
        store: where the records go; their paths to the samples are relative to its folder.
    """
    return [
        _record(run, result, samples_info(samples, store, result.protocol, result.harness)) for result in run.results
    ]


def _record(run: RunResults, result: Result, samples: SamplesInfo | None) -> Record:
    return Record(
        created_at=run.created_at,
        task=result.task,
        title=result.title,
        protocol=result.protocol,
        protocol_version=result.protocol_version,
        metric=result.metrics[0],
        other_metrics=result.metrics[1:],
        n=result.n,
        n_correct=result.n_correct,
        flags=[*result.flags, *(["megatron-exact"] if run.megatron_exact else [])],
        model=run.checkpoint,
        data=result.data,
        tokenizer_digest=run.tokenizer_digest,
        layout=run.layout,
        dtype=run.dtype,
        device=run.device,
        seconds=result.seconds,
        tokens_per_second=result.tokens_per_second,
        command=run.command,
        mpeval_version=run.mpeval_version,
        torch_version=run.torch_version,
        split=result.split,
        training=run.training,
        seeds=run.seeds,
        harness=result.harness,
        samples=samples,
    )
