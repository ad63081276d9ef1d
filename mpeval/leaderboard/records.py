"""What one line of a leaderboard is, and what makes two of them the same measurement."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from mpeval.results import (
    CheckpointInfo,
    DataInfo,
    Document,
    HarnessInfo,
    Layout,
    Metric,
    Result,
    RunResults,
    SeedSpread,
    TrainingInfo,
)

UNRANKED = (
    "partial",
    "sample-rows",
    "modified-data",
    "unverified-data",
    "window-",
    "truncated",
    "megatron-exact",
    "no-checkpoint",
)
"""A result with a flag that begins like one of these is shown, but never ranked against the published set."""


_NEWER = {"split", "training", "seeds", "members", "harness"}


class Record(Document):
    """One measured number (the primary metric of one result), with what it takes to believe it."""

    schema_: Literal["mpeval.result/1"] = "mpeval.result/1"
    kind: Literal["measured"] = "measured"
    record_id: str = ""
    created_at: str
    task: str
    title: str
    protocol: str
    protocol_version: str
    metric: Metric
    other_metrics: list[Metric]
    n: int
    n_correct: int | None
    flags: list[str]
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
    split: str = ""
    training: TrainingInfo | None = None
    """How a finetuned model came to be."""
    seeds: SeedSpread | None = None
    """Of the run that stands for several with other seeds."""
    members: list[str] = Field(default_factory=list)
    """Of an ensemble: name and digest of each."""
    harness: HarnessInfo | None = None
    """Of a task of lm-eval."""

    def document(self) -> dict[str, Any]:
        """Return plain JSON values; what stands empty in the newer fields is left out, so that older ids stay."""
        return {key: value for key, value in super().document().items() if value or key not in _NEWER}

    def line(self) -> str:
        """Return the record as one line of JSON, with an id that changes when anything in it does."""
        return canonical({**self.document(), "record_id": self.identity()})

    def identity(self) -> str:
        """Return the sha256 of the record's content without id and time."""
        body = {key: value for key, value in self.document().items() if key not in {"record_id", "created_at"}}
        return "sha256:" + hashlib.sha256(canonical(body).encode()).hexdigest()

    @property
    def slot(self) -> tuple[Any, ...]:
        """What was measured: equal for a run repeated in any layout."""
        weights = (self.model.digest, self.model.gelu, self.model.vocab, self.tokenizer_digest, self.dtype)
        what = (self.protocol, self.protocol_version, self.part, self.metric.name, self.data.digest, self.n)
        selection = self.training.selection if self.training else ""
        members = sorted(member.rsplit(" ", 1)[-1] for member in self.members)
        return (*what, *weights, selection, *members, *sorted(self.flags))

    @property
    def part(self) -> str:
        """The split; records older than the choice of one are of test sets."""
        return self.split or "test"

    def repeats(self, other: Record) -> bool:
        """Tell whether `other` is the same measurement with the same outcome, up to the order of summation."""
        return self.slot == other.slot and math.isclose(self.metric.value, other.metric.value, rel_tol=1e-6)

    @property
    def ranked(self) -> bool:
        """Whether the number may stand beside others of its protocol."""
        return not any(flag.startswith(UNRANKED) for flag in self.flags)


def canonical(value: Mapping[str, Any]) -> str:
    """Return JSON of one form only: keys in order, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def records_of(run: RunResults) -> list[Record]:
    """Make one record of each result of a run."""
    return [_record(run, result) for result in run.results]


def _record(run: RunResults, result: Result) -> Record:
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
    )
