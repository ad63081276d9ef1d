"""The results document: what was measured, on what, how, and how sure it is.  Pydantic models, no torch."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and numbers that JSON cannot hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Document(Strict):
    """A model that stands in a file of its own, or on a line of its own, and begins by naming its schema."""

    schema_: str

    def document(self) -> dict[str, Any]:
        """Return plain JSON values, with the key `schema` first."""
        content = self.model_dump(mode="json")
        return {"schema": content.pop("schema_"), **content}


class Metric(Strict):
    """One number with its uncertainty.  Accuracy is a proportion, never a percentage."""

    name: str
    value: float
    unit: Literal["proportion", "perplexity"]
    direction: Literal["max", "min"]
    loss: float | None = None
    """Mean loss in nats, whose exponential a perplexity is."""
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    interval: str | None = None
    """How the 95 % interval was computed."""


class CheckpointInfo(Strict):
    """Which weights."""

    name: str
    path: str
    digest: str
    format: str
    version: float
    iteration: int
    grid: tuple[int, int]
    parameters: int
    gelu: str | None
    """None for a model with SwiGLU."""
    vocab: int
    padded_vocab: int


class DataInfo(Strict):
    """Which rows."""

    source: str
    digest: str
    rows_expected: int


class Layout(Strict):
    """How many processes computed it."""

    tp: int
    dp: int


class Result(Strict):
    """One benchmark under one protocol."""

    task: str
    protocol: str
    protocol_version: str
    title: str
    metrics: list[Metric]
    n: int
    n_correct: int | None
    items: int
    """Requests scored: passages or windows."""
    items_total: int
    """Requests of the whole benchmark."""
    truncated: int
    """Requests that lost context because they did not fit the model."""
    flags: list[str]
    data: DataInfo
    seconds: float
    """Scoring time of this run, without start-up."""
    tokens_per_second: float | None
    """Input tokens scored per second; null when every item came from an earlier run."""
    items_resumed: int
    """Items taken from an earlier, interrupted run into the same output folder."""


class RunResults(Document):
    """One `mpeval evaluate`: everything a reader needs to believe it or repeat it."""

    schema_: Literal["mpeval.results/1"] = "mpeval.results/1"
    created_at: str
    checkpoint: CheckpointInfo
    tokenizer_digest: str
    layout: Layout
    dtype: str
    device: str
    megatron_exact: bool
    results: list[Result]
    command: str
    mpeval_version: str
    torch_version: str

    def to_json(self) -> str:
        """Return the document as strict JSON (no NaN), `schema` first."""
        return json.dumps(self.document(), indent=2, allow_nan=False) + "\n"


def now() -> str:
    """Return the present time, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")
