"""Charts: axes that can be read, and nothing on them that misleads."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from boarding import measured, paper, published

from mpeval.errors import DataError
from mpeval.leaderboard.boards import boards
from mpeval.leaderboard.charts import MOST_POINTS, Chart, charts
from mpeval.leaderboard.points import over_time, point_of, swept
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.reported import Reported, ReportedModel
from mpeval.results import Metric


def perplexities(*values: float, **changes: Any) -> list[Record]:
    """Return measured perplexities of models of a thousand parameters and more."""
    return [
        measured(
            name=f"m{place}",
            digest=f"sha256:{place}",
            parameters=1000 * 10**place,
            created_at=f"202{place}-01-02T03:04:05Z",
            metric=Metric(name="word_perplexity", value=value, unit="perplexity", direction="min"),
            other_metrics=[],
            n_correct=None,
            **changes,
        )
        for place, value in enumerate(values)
    ]


def told(value: str, name: str, date: str, parameters: float | None = 1e9) -> Reported:
    """Return a published accuracy."""
    model = ReportedModel(name=name, parameters=parameters)
    return published(
        "lambada", "LAMBADA", {"accuracy": value}, model, items={"accuracy": 5153}, source=paper("Table 1", date=date)
    )


def drawn(*numbers: Record | Reported) -> list[Chart]:
    """Return the charts of numbers that make one board."""
    ((_, found),) = charts(boards(numbers))
    return found


def words(chart: Chart) -> list[str]:
    """Return the texts in a picture."""
    return ["".join(element.itertext()) for element in ElementTree.fromstring(chart.svg).iter("text")]


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    for values, marks in (((142.0, 38.0, 3.9), {"5", "10", "50", "100"}), ((5.0, 80.0, 2e5), {"10", "1,000"})):
        for chart in drawn(*perplexities(*values)):
            assert marks <= set(words(chart))
            assert not [text for text in words(chart) if re.search(r"[$\\^{}]", text)]


@pytest.mark.parametrize("value", [1e300, 1.79e308])
def test_a_number_that_no_axis_holds_is_drawn_at_its_end(value: float) -> None:
    assert len(drawn(*perplexities(value, 5.0, 7.0))) == 2
    sizes = [told("50.0", f"m{place}", "", size) for place, size in enumerate((1e6, 1e7, 1e8, value, 1e-9, -5.0))]
    assert "4 models" not in drawn(*sizes)[0].svg
    assert "3 models" in drawn(*sizes)[0].svg


def test_the_first_and_the_last_day_are_on_the_axis_of_time() -> None:
    days = ("0001-01-01", "2020-01-01", "9999-12-31")
    assert drawn(*(told(f"5{place}.0", day, day) for place, day in enumerate(days)))


def test_a_day_that_is_none_is_an_error_and_no_crash() -> None:
    with pytest.raises(DataError, match="the date `2019-13-45`"):
        charts(boards([measured(created_at="2019-13-45T00:00:00Z")]))
    with pytest.raises(DataError, match="the date `yesterday`"):
        charts(boards([measured(created_at="yesterday")]))


def test_only_a_chart_with_intervals_says_so() -> None:
    assert drawn(*perplexities(9.0, 8.0, 7.0))[0].caption == "Score over parameters"
    found = drawn(*(told(f"5{place}.0", str(place), "", 10.0 ** (6 + place)) for place in range(3)))
    assert [chart.caption for chart in found] == [
        "Score over parameters, with 95 % intervals",
        "95 % intervals by rank; the band is that of the first",
    ]
    many = drawn(*(told(f"{place}.0", str(place), "") for place in range(10, 60)))
    assert [chart.caption for chart in many] == ["95 % intervals by rank of the best 25; the band is that of the first"]


def test_what_was_the_best_of_its_time_stays_on_the_line_of_a_large_board() -> None:
    later = [told(f"{60 + place / 100:.2f}", f"m{place}", "2022-01-01") for place in range(MOST_POINTS + 20)]
    early = [
        told("10.00", "first", "2018-01-01"),
        told("9.00", "never", "2018-06-01"),
        told("20.00", "b", "2019-01-01"),
    ]
    (board,) = boards([*later, *early])
    points = [point_of(row) for row in board.rows]
    kept = over_time(points, board.direction, MOST_POINTS)
    assert [point.name for point in kept[:2]] == ["first", "b"]
    assert len(kept) == MOST_POINTS + 2
    assert kept[2].value == pytest.approx(61.19)
    lower = over_time([*reversed(points)], "min", 1)
    assert [point.name for point in lower] == ["first", "never"]


def test_of_several_numbers_of_a_checkpoint_the_newest_is_on_the_learning_curve() -> None:
    lucky = measured(0.9, iteration=2, digest="sha256:2", created_at="2026-01-01T00:00:00Z")
    last = measured(0.4, iteration=2, digest="sha256:2", dtype="bfloat16", created_at="2026-02-01T00:00:00Z")
    others = [measured(0.3, iteration=step, digest=f"sha256:{step}") for step in (1, 3)]
    (board,) = boards([lucky, last, *others])
    assert [point.value for point in swept(board, 3)] == pytest.approx([30, 40, 30])
