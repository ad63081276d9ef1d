"""Records are compared by their error bars where samples are not known, and by samples where they are."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from making import run_here
from recorded import metric_of, record
from scipy import stats

from mpeval.leaderboard.reported import Reported, ReportedModel, Source, reported
from mpeval.leaderboard.store import append, read

SOURCE = Source(title="A paper", url="https://example.org/paper", locator="Table 1")


def published(name: str, value: str, n: int = 4934, **changes: object) -> Reported:
    """Return a number on RACE that a paper prints."""
    fields: dict[str, object] = {
        "created_at": "2026-01-01T00:00:00Z",
        "task": "race",
        "title": "RACE",
        "protocol": "race/megatron",
        "split": "test",
        "values": {"accuracy": value},
        "items": {"accuracy": n} if n else {},
        "unit": "proportion",
        "model": ReportedModel(name=name),
        "source": SOURCE,
    }
    return reported(**fields | changes)  # type: ignore[arg-type]


def store_of(folder: Path, *numbers: object) -> tuple[Path, list[str]]:
    """Write numbers; return the store and the ids in their order."""
    store = folder / "results.jsonl"
    append(store, numbers)  # type: ignore[arg-type]
    return store, [one.record_id.removeprefix("sha256:")[:12] for one in read(store)]


def test_published_numbers_are_compared_by_their_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, ids = store_of(tmp_path, published("a", "90.9"), published("b", "89.4"), published("c", "89.5"))
    assert run_here(f"leaderboard compare {' '.join(ids)} --store {store} --json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["first"][0], one["second"][0]) for one in found["comparisons"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    p_values = []
    for one, (x, y) in zip(found["comparisons"], ((0.909, 0.894), (0.909, 0.895), (0.894, 0.895)), strict=True):
        error = math.sqrt(x * (1 - x) / 4934 + y * (1 - y) / 4934)
        assert one["difference"] == pytest.approx(x - y)
        assert one["z"] == pytest.approx((x - y) / error)
        p_values.append(2 * stats.norm.sf(abs(x - y) / error))
        assert one["p_value"] == pytest.approx(p_values[-1])
        assert (one["low"], one["high"]) == pytest.approx(stats.norm.interval(0.95, x - y, error))
    assert [one["p_value_holm"] for one in found["comparisons"]] == pytest.approx(
        [3 * p_values[0], 2 * p_values[1], p_values[2]]
    )
    assert [one["verdict"] for one in found["comparisons"]] == ["first better", "first better", "no difference shown"]
    assert run_here(f"leaderboard compare {ids[0]} {ids[1]} --store {store}") == 0
    printed = capsys.readouterr().out
    assert "+1.50" in printed
    assert "first better" in printed
    assert "by their error bars alone" in printed


def test_perplexities_are_compared_by_their_ratio(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"name": "word_perplexity", "unit": "perplexity", "direction": "min"}
    low, high = (
        record(metric=metric_of(value, stderr=error, **shape), name=name, digest=f"sha256:{name}")
        for name, value, error in (("low", 20.0, 0.4), ("high", 22.0, 0.5))
    )
    store, ids = store_of(tmp_path, low, high)
    assert run_here(f"leaderboard compare {' '.join(ids)} --store {store} --json") == 0
    (one,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert one["difference"] == pytest.approx(20 / 22)
    error = math.hypot(0.4 / 20, 0.5 / 22)
    assert one["z"] == pytest.approx(math.log(20 / 22) / error)
    bounds = stats.norm.interval(0.95, math.log(20 / 22), error)
    assert (one["low"], one["high"]) == pytest.approx([math.exp(bound) for bound in bounds])
    assert one["verdict"] == "first better"


def test_records_with_samples_are_compared_item_by_item(capsys: pytest.CaptureFixture[str]) -> None:
    found = [one for one in read(Path("leaderboard/results.jsonl")) if one.protocol == "race/megatron"]
    ids = [one.record_id for one in found if one.part == "test"][:2]
    assert run_here(f"leaderboard compare {' '.join(ids)} --json") == 0
    (one,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert one["comparison"]["n"] == 4934
    assert one["comparison"]["clusters"] == 1407


@pytest.mark.parametrize(
    ("numbers", "arguments", "code", "said"),
    [
        ([published("a", "90.9"), published("b", "80", split="dev")], "{0} {1}", 1, "compare numbers of one protocol"),
        ([published("a", "90.9"), published("b", "80", n=0)], "{0} {1}", 1, "has no error bar"),
        ([published("a", "90.9")], "{0}", 2, "give two records or more"),
        ([published("a", "90.9")], "{0} {0}", 2, "give each record once"),
        ([published("a", "90.9")], "{0} ffffffffffff", 1, "no record has an id that begins"),
        ([published("a", "90.9"), published("b", "90")], "{0} {1} --protocol race", 2, "leave out `--protocol`"),
        ([published("a", "90.9")], "runs/a runs/b", 2, "`--store` is about ids of records"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    numbers: list[Reported],
    arguments: str,
    code: int,
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, ids = store_of(tmp_path, *numbers)
    assert run_here(f"leaderboard compare {arguments.format(*ids)} --store {store}") == code
    error = " ".join(capsys.readouterr().err.split())
    assert said in error
    assert "hint:" in error
