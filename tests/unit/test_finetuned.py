"""`finetune.json` and the rules on it: which epoch a run stands for, which of several runs is the median."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, Literal

import pytest

from mpeval.errors import DataError
from mpeval.finetuned import FILE, Epoch, Finetuned, median_place, read_finetuned, spread_of, write_finetuned
from mpeval.results import Metric, TrainingInfo


def described(
    *values: float, seed: int = 1234, direction: Literal["max", "min"] = "max", best: int | None = None
) -> Finetuned:
    """Return a run of epochs of 10 steps that reached these values."""
    training = TrainingInfo(
        seed=seed, questions=40, steps=10, epochs=1.0, recipe="race-small", learning_rate=1e-5, batch=4
    )
    epochs = [
        Epoch(
            epoch=number,
            step=10 * number,
            metric=Metric(name="accuracy", value=value, unit="proportion", direction=direction),
        )
        for number, value in enumerate(values, start=1)
    ]
    return Finetuned(
        task="race",
        protocol="race/megatron",
        protocol_version="1",
        train_split="train",
        dev_split="dev",
        pretrained="sha256:1",
        drawn=["multichoice_head.weight"],
        training=training,
        epochs=epochs,
        best=best,
    )


@pytest.mark.parametrize(
    ("values", "direction", "epoch"),
    [
        ((0.5,), "max", 1),
        ((0.5, 0.7, 0.6), "max", 2),
        ((0.5, 0.6, 0.7), "max", 3),
        ((0.7, 0.6, 0.7), "max", 1),
        ((0.5, 0.7, 0.7), "max", 2),
        ((3.0, 2.0, 2.5), "min", 2),
        ((2.0, 2.0), "min", 1),
    ],
)
def test_a_run_stands_for_its_best_epoch_the_earliest_of_equals(
    values: tuple[float, ...], direction: Literal["max", "min"], epoch: int
) -> None:
    assert described(*values, direction=direction).kept().epoch == epoch


@pytest.mark.parametrize(
    "values",
    [(3.0,), (1.0, 2.0), (2.0, 1.0), (3.0, 1.0, 2.0), (1.0, 3.0, 2.0, 4.0), (5.0, 5.0, 1.0), (9.0, 1.0, 5.0, 3.0, 7.0)],
)
def test_the_median_is_a_run_the_lower_of_the_two_in_the_middle(values: tuple[float, ...]) -> None:
    assert values[median_place(values)] == statistics.median_low(values)


def test_of_equal_runs_in_the_middle_the_place_is_certain() -> None:
    assert [median_place(values) for values in ((1.0, 1.0, 1.0), (2.0, 1.0, 1.0), (1.0, 2.0, 2.0))] == [1, 2, 1]


def test_the_spread_is_of_the_kept_epochs() -> None:
    runs = [described(0.2, 0.6, seed=7), described(0.9, 0.1, seed=8), described(0.5, 0.7, 0.3, seed=9)]
    found = spread_of(runs)
    assert found.values == [0.6, 0.9, 0.7]
    assert found.chosen == 9
    spread = found.spread
    assert (spread.seeds, spread.split, spread.metric) == ([7, 8, 9], "dev", "accuracy")
    assert (spread.lowest, spread.median, spread.highest) == (0.6, 0.7, 0.9)
    assert spread.deviation == pytest.approx(statistics.stdev([0.6, 0.9, 0.7]))
    assert spread_of(runs[:1]).spread.deviation is None


def test_a_description_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_finetuned(tmp_path) is None
    run = described(0.1, 0.3, best=20)
    write_finetuned(tmp_path, run)
    assert read_finetuned(tmp_path) == run
    assert json.loads((tmp_path / FILE).read_text())["schema"] == "mpeval.finetune/1"


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: raw[:-20],
        lambda raw: raw[:0] + "[]",
        lambda raw: raw[:0] + "3",
        lambda raw: raw.replace("mpeval.finetune/1", "mpeval.results/1"),
        lambda raw: raw.replace('"schema"', '"shema"'),
        lambda raw: raw.replace('"best"', '"worst"'),
        lambda raw: raw.replace('"step": 10', '"step": "ten"'),
        lambda raw: raw.replace('"seed": 1234,', ""),
    ],
    ids=range(8),
)
def test_a_damaged_description_is_named(change: Any, tmp_path: Path) -> None:
    write_finetuned(tmp_path, described(0.1, best=10))
    path = tmp_path / FILE
    raw = path.read_text()
    path.write_text(change(raw))
    assert path.read_text() != raw
    with pytest.raises(DataError, match="is damaged") as caught:
        read_finetuned(tmp_path)
    assert f"`{path}`" in str(caught.value)
    assert "\n" not in str(caught.value)
