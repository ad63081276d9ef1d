"""`finetune.json`: what a finetuned run was trained on, how each epoch did, and which one it stands for.  No torch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from mpeval.errors import DataError
from mpeval.folders import write_atomically
from mpeval.results import Document, Metric, RunResults, SeedSpread, Strict, TrainingInfo

D = TypeVar("D", bound=Document)
FILE = "finetune.json"
SEEDS_FILE = "seeds.json"
EVALUATIONS = "evaluations"
"""Where a run keeps its evaluations, each in a folder of its split's name."""


class Epoch(Strict):
    """The evaluation at the end of an epoch."""

    epoch: int
    step: int
    metric: Metric


class Finetuned(Document):
    """One finetuning run."""

    schema_: Literal["mpeval.finetune/1"] = "mpeval.finetune/1"
    task: str
    protocol: str
    protocol_version: str
    train_split: str
    dev_split: str
    pretrained: str
    """Digest of the checkpoint that it began with."""
    drawn: list[str]
    """Parameters that the checkpoint lacked, drawn new."""
    training: TrainingInfo
    """What it did up to the epoch that was kept."""
    epochs: list[Epoch]
    best: int | None = None
    """The step whose weights the run stands for, once it is finished."""

    def kept(self) -> Epoch:
        """Return the epoch that did best on the dev set, the earlier of two that did equally well."""
        sign = 1 if self.epochs[0].metric.direction == "max" else -1
        return max(self.epochs, key=lambda epoch: (sign * epoch.metric.value, -epoch.step))


class Seeds(Document):
    """Several runs that differ in their seeds, and the one that the paper's rule reports."""

    schema_: Literal["mpeval.seeds/1"] = "mpeval.seeds/1"
    spread: SeedSpread
    values: list[float]
    """What each seed reached on the dev set, in the order of the seeds."""
    chosen: int
    """The seed whose run is the median."""


def write_finetuned(folder: Path, run: Finetuned) -> None:
    """Write a run's `finetune.json`."""
    write_atomically(folder / FILE, run.to_json())


def read_finetuned(folder: Path) -> Finetuned | None:
    """Read a run's `finetune.json`; None where there is none.

    Raises:
        DataError: it is damaged.
    """
    return _read(folder / FILE, Finetuned)


def read_seeds(folder: Path) -> Seeds | None:
    """Read the `seeds.json` of several runs; None where there is none.

    Raises:
        DataError: it is damaged.
    """
    return _read(folder / SEEDS_FILE, Seeds)


def _read(path: Path, kind: type[D]) -> D | None:
    if not path.is_file():
        return None
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        return kind(schema_=raw.pop("schema"), **raw)
    except (ValueError, ValidationError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"`{path}` is damaged: {str(error).splitlines()[0]}", "restore the file; the run's weights are not affected"
        ) from error


def median_place(values: Sequence[float]) -> int:
    """Return which value is the median; of an even number, the lower of the two in the middle."""
    order = sorted(range(len(values)), key=lambda place: (values[place], place))
    return order[(len(order) - 1) // 2]


def spread_of(runs: Sequence[Finetuned]) -> Seeds:
    """Sum up runs that differ in their seeds by how their kept epochs did on the dev set."""
    metrics = [run.kept().metric for run in runs]
    values = [metric.value for metric in metrics]
    chosen = median_place(values)
    spread = SeedSpread(
        seeds=[run.training.seed for run in runs],
        split=runs[0].dev_split,
        metric=metrics[0].name,
        median=values[chosen],
        deviation=statistics.stdev(values) if len(values) > 1 else None,
        lowest=min(values),
        highest=max(values),
    )
    return Seeds(spread=spread, values=values, chosen=runs[chosen].training.seed)


def selected(results: RunResults, spread: SeedSpread) -> RunResults:
    """Return results with the rule by which their run was chosen among seeds."""
    assert results.training is not None
    rule = f"{spread.split} median of {len(spread.seeds)} seeds"
    training = results.training.model_copy(update={"selection": rule})
    return results.model_copy(update={"training": training, "seeds": spread})
