"""The results document: what was measured, on what, how, and how sure it is.  Pydantic models, no torch."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


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

    def to_json(self) -> str:
        """Return the document as strict JSON (no NaN), `schema` first."""
        return json.dumps(self.document(), indent=2, allow_nan=False) + "\n"


class Metric(Strict):
    """One number with its uncertainty.  Accuracy is a proportion, never a percentage."""

    name: str
    value: float
    unit: Literal["proportion", "perplexity", "bits", "number"]
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


class SamplesInfo(Strict):
    """Which lines of which `samples.jsonl` a number was computed from."""

    file: str
    """Path from the folder of the leaderboard; with `.gz` behind it, it is the same file compressed."""
    sha256: str
    """Of those lines, in the order of their bytes: the order in the file and what else it holds change nothing."""
    rows: int
    """How many they are."""


class Layout(Strict):
    """How many processes computed it."""

    tp: int
    dp: int


class HarnessInfo(Strict):
    """What of lm-eval a result was computed with."""

    version: str
    """The library's."""
    task_version: str
    config: str
    """Digest of the task's configuration, functions included, without where its data come from."""
    shots: int
    """Answered examples before each question."""
    tasks: list[str] = []
    """Of a group: what was averaged."""


class Result(Strict):
    """One benchmark under one protocol."""

    task: str
    protocol: str
    protocol_version: str
    title: str
    metrics: list[Metric] = Field(min_length=1)
    """The primary one first."""
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
    split: str = ""
    """Part of the benchmark that was scored, empty in documents older than the choice of one."""
    harness: HarnessInfo | None = None
    """Of a task of lm-eval."""


class TrainingInfo(Strict):
    """How a finetuned model came to be."""

    seed: int
    questions: int
    """Training questions of one epoch."""
    steps: int
    """Steps taken up to the weights that were kept."""
    epochs: float
    recipe: str
    learning_rate: float
    """The highest."""
    batch: int
    """Questions of one step."""
    selection: str = ""
    """How the run was chosen among several, such as `dev median of 5 seeds`; empty where there was no choice."""


class SeedSpread(Strict):
    """How the same training ends from different seeds, on the set that chooses among them."""

    seeds: list[int]
    split: str
    metric: str
    median: float
    """The lower of the two in the middle where the count is even, so that a run has it."""
    deviation: float | None
    """Standard deviation (n - 1); None for one seed."""
    lowest: float
    highest: float


class Comparison(Strict):
    """Two models on the same questions: `first` minus `second`."""

    first: str
    second: str
    metric: str
    n: int
    clusters: int
    """Passages, or questions where none share one."""
    difference: float
    stderr: float | None
    """Clustered standard error of the difference; None where there is one cluster."""
    low: float | None
    high: float | None
    p_value: float | None
    """Two-sided, from z = difference / stderr, so that clusters count."""
    p_value_holm: float | None = None
    """The same after Holm's correction for all comparisons made together."""
    only_first: int
    """Questions that the first alone has right, or on which its score is the higher."""
    only_second: int
    mcnemar: float
    """Exact McNemar p-value (of scores: sign test), which treats questions as independent."""
    correlation: float | None = None
    """Of the two models' errors, clusters summed: the error of the difference is smaller the more they share.  None
    where either has none, and in older documents."""


class PerplexityComparison(Strict):
    """Two models on the same texts: the first's perplexity / the second's."""

    first: str
    second: str
    metric: str
    n: int
    """Tokens scored, or items of which each counts as one."""
    clusters: int
    """Documents, or items."""
    ratio: float
    """Below 1 where the first is better."""
    difference: float
    """Its logarithm: mean loss of the first less that of the second, in nats, scaled as the perplexity is."""
    stderr: float | None
    """Of the difference, clusters being documents; None where there is one."""
    low: float | None
    """Of the ratio, as `high`."""
    high: float | None
    p_value: float | None
    """Two-sided, of Student's t with clusters - 1 degrees of freedom."""
    p_value_holm: float | None = None
    correlation: float | None = None


class Verdict(Strict):
    """What the comparison of two runs under one protocol shows."""

    protocol: str
    split: str
    """Empty where nothing says it."""
    flags: list[str]
    """Of either result."""
    comparison: Comparison | PerplexityComparison
    better: str | None
    """The run that is better at the level of the document, after Holm's correction; None where neither is shown to
    be."""


class ComparedRun(Strict):
    """A side of comparisons."""

    name: str
    path: str
    checkpoint: str | None
    """Digest of the weights; None of samples without results beside them."""


class TieGroups(Strict):
    """Runs that no test tells from the best of their group, groups from best to worst."""

    protocol: str
    metric: str
    groups: list[list[str]]


class ComparisonResults(Document):
    """One `mpeval leaderboard compare`: every pair of runs under every protocol that both have."""

    schema_: Literal["mpeval.comparison/1"] = "mpeval.comparison/1"
    created_at: str
    level: float
    """Of significance, after Holm's correction for all comparisons here."""
    runs: list[ComparedRun]
    comparisons: list[Verdict]
    groups: list[TieGroups]
    """Where there are three runs or more."""
    not_compared: list[str]
    """Protocols whose samples hold nothing that can be compared item by item."""
    command: str
    mpeval_version: str


class EnsembleMember(Strict):
    """One of the models whose probabilities were averaged."""

    name: str
    path: str
    checkpoint: str
    """Digest of the weights."""
    predictions: str
    """Digest of the probabilities."""
    parameters: int
    seed: int | None
    metrics: list[Metric]


class EnsembleResults(Document):
    """One `mpeval ensemble`: the members, their average, and whether it is better."""

    schema_: Literal["mpeval.ensemble/1"] = "mpeval.ensemble/1"
    created_at: str
    task: str
    protocol: str
    protocol_version: str
    title: str
    split: str
    data: DataInfo
    flags: list[str]
    members: list[EnsembleMember]
    metrics: list[Metric] = Field(min_length=1)
    n: int
    n_correct: int
    comparisons: list[Comparison]
    """The ensemble against each member."""
    command: str
    mpeval_version: str


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
    training: TrainingInfo | None = None
    seeds: SeedSpread | None = None


def invalid(error: ValidationError) -> str:
    """Return which field of a document is wrong, and how, on one line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = f"`{'.'.join(map(str, first['loc']))}`: " * bool(first["loc"])
    return place + first["msg"][:1].lower() + first["msg"][1:]


def now() -> str:
    """Return the present time, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")
