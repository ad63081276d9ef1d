"""A published number stands for a value, with the error bars that its items allow, or is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from boarding import megatron
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import binomtest

from mpeval.errors import DataError
from mpeval.leaderboard.entries import canonical
from mpeval.leaderboard.reported import Reported, ReportedModel, Source, attainable, reported, reported_metric
from mpeval.leaderboard.store import read


def number(printed: str = "61.73", **changes: Any) -> Reported:
    """Return a number of LAMBADA; `name`, `shots` and `url` are of its model and source."""
    model = ReportedModel(name=changes.pop("name", "Megatron GPT-2 2.5B"), shots=changes.pop("shots", "0"))
    url = changes.pop("url", "https://arxiv.org/abs/1909.08053v4")
    fields: dict[str, Any] = {
        "created_at": "2026-01-02T03:04:05Z",
        "task": "lambada",
        "title": "LAMBADA",
        "protocol": "lambada/megatron-strict",
        "split": "test",
        "values": {"accuracy": printed},
        "items": {"accuracy": 5153},
        "unit": "proportion",
        "model": model,
        "source": Source(title="Megatron-LM", url=url, locator="Table 3"),
    }
    return reported(**fields | changes)


@given(st.integers(1, 400), st.integers(0, 2), st.data())
def test_attainable_is_what_counting_finds(n: int, decimals: int, data: st.DataObject) -> None:
    printed = f"{data.draw(st.integers(0, 100 * 10**decimals)) / 10**decimals:.{decimals}f}"
    counted = {f"{round(100 * correct / n, decimals):.{decimals}f}" for correct in range(n + 1)}
    assert attainable(printed, n) == (printed in counted)


@pytest.mark.parametrize(
    ("printed", "n", "whether"),
    [
        ("66.51", 5153, False),
        ("61.73", 5153, True),
        ("45.18", 5153, True),
        ("82.33", 5153, False),
        ("82.0", 1838, True),
    ],
)
def test_attainable_of_published_values(printed: str, n: int, whether: bool) -> None:
    assert attainable(printed, n) is whether


def test_whether_a_share_of_very_many_items_is_attainable_is_told_at_once() -> None:
    assert attainable("61.73", 10**12)
    assert attainable("0." + "0" * 400, 5153)


def test_an_accuracy_has_wilsons_interval_of_its_items() -> None:
    metric = reported_metric("accuracy", "90.0", "proportion", 3500)
    expected = binomtest(3150, 3500).proportion_ci(0.95, method="wilson")
    assert metric.value == 0.9
    assert metric.direction == "max"
    assert (metric.low, metric.high) == pytest.approx((expected.low, expected.high))
    assert metric.stderr == pytest.approx(math.sqrt(0.9 * 0.1 / 3500))


def test_an_accuracy_of_unknown_items_and_a_perplexity_have_no_error_bar() -> None:
    assert reported_metric("accuracy", "90.0", "proportion", None).low is None
    perplexity = reported_metric("word_perplexity", "10.81", "perplexity", 5153)
    assert (perplexity.low, perplexity.direction) == (None, "min")
    assert perplexity.loss == pytest.approx(math.log(10.81))


@pytest.mark.parametrize(
    ("printed", "unit", "said"),
    [
        ("82.0%", "proportion", "no plain number"),
        ("nan", "proportion", "no plain number"),
        ("٣٤", "proportion", "no plain number"),
        ("0." + "0" * 400, "proportion", "no plain number"),
        ("9" * 400, "perplexity", "no plain number"),
        ("-1", "proportion", "no plain number"),
        ("100.1", "proportion", "above 100"),
        ("0.9", "perplexity", "below 1"),
    ],
)
def test_a_value_that_the_unit_does_not_allow_is_refused(printed: str, unit: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        reported_metric("metric", printed, unit, 100)


def test_a_value_that_no_count_gives_is_flagged_once() -> None:
    assert number("66.51").flags == ["unattainable"]
    assert number("66.51", flags=["unattainable", "ensemble"]).flags == ["unattainable", "ensemble"]
    assert number().flags == []
    values = {"accuracy": "90.9", "accuracy_high": "66.51"}
    assert number(values=values, items={"accuracy_high": 5153}).flags == ["unattainable"]


def test_a_slot_is_what_a_number_is_of_and_who_says_it() -> None:
    first = number()
    assert first.slot == number("61.74", note="other").slot
    assert not first.repeats(number("61.74"))
    assert first.repeats(number("61.730"))
    others: list[dict[str, Any]] = [
        {"name": "GPT-2"},
        {"shots": "1"},
        {"url": "https://example.org"},
        {"split": "valid"},
        {"protocol": "lambada/other"},
    ]
    for changes in others:
        assert first.slot != number(**changes).slot


def test_further_metrics_keep_their_own_items_and_print() -> None:
    made = number(
        values={"accuracy": "89.5", "accuracy_middle": "91.8", "accuracy_high": "88.6"},
        items={"accuracy": 4934, "accuracy_middle": 1436},
    )
    assert (made.n, made.printed, made.metric.value) == (4934, "89.5", 0.895)
    assert made.printed_others == {"accuracy_middle": "91.8", "accuracy_high": "88.6"}
    middle, high = made.other_metrics
    assert middle.stderr == pytest.approx(math.sqrt(0.918 * 0.082 / 1436))
    assert high.stderr is None


def test_a_source_has_a_date_of_the_calendar_or_none() -> None:
    assert Source(title="A paper", url="https://example.org", locator="Table 1").date == ""
    with pytest.raises(ValidationError, match="no day of the calendar"):
        Source(title="A paper", url="https://example.org", locator="Table 1", date="2020-02-30")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"printed": r"\\input{x}"}, "which is no plain number"),
        ({"printed": "66.51 %"}, "which is no plain number"),
        ({"printed": "\u0666"}, "which is no plain number"),
        ({"printed_others": {"accuracy_high": "$90$"}}, "which is no plain number"),
        ({"printed_others": {}}, "it is not said how accuracy_high is printed"),
    ],
)
def test_a_line_of_what_is_no_printed_number_is_damaged(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    (line,) = [one for one in megatron() if one.other_metrics]
    line = line.model_copy(update={"other_metrics": line.other_metrics[1:]} | changes)
    path = tmp_path / "store.jsonl"
    path.write_text(canonical({**line.document(), "record_id": line.identity()}) + "\n")
    with pytest.raises(DataError, match="line 1 is no record") as raised:
        read(path)
    assert said in str(raised.value.__cause__)
