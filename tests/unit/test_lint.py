"""Whatever is wrong with a line is found, named by its number, and nothing else is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated import answers_to, race, write_race
from recorded import metric_of, published, record

from mpeval.errors import DataError
from mpeval.leaderboard.entries import Line, Retraction
from mpeval.leaderboard.lint import Finding, lint
from mpeval.leaderboard.metrics import KNOWN
from mpeval.leaderboard.published import RACE_TEST
from mpeval.leaderboard.records import Record
from mpeval.leaderboard.store import append, default_stores, read
from mpeval.results import DataInfo, HarnessInfo, Layout, Metric
from mpeval.statistics import accuracy_metric, f1_metric, mean_perplexity_metric
from mpeval.tasks.cards import card_names, load_card
from mpeval.tasks.spans import summarise_spans
from mpeval.tasks.summary import summarise_choices


def good(correct: int = 2319, **changes: Any) -> Record:
    """Return a record of LAMBADA in which everything goes together."""
    fields = {"metric": accuracy_metric(correct, 5153), "n_correct": correct}
    return record(**fields | changes)


def perplexity(loss: float, /, **changes: Any) -> Metric:
    return mean_perplexity_metric("target_perplexity", [loss - 0.1, loss, loss + 0.1]).model_copy(update=changes)


def findings(folder: Path, *lines: Line) -> list[Finding]:
    """Write lines past the checks of `append`, and lint them."""
    path = folder / "results.jsonl"
    path.write_text("".join(line.line() + "\n" for line in lines), encoding="utf-8")
    return lint([path])


def said(found: list[Finding]) -> list[tuple[int, str, str]]:
    return [(item.line, item.code, item.severity) for item in found]


# ---- damage ----


def test_a_good_store_has_no_findings(tmp_path: Path) -> None:
    lines = [
        good(),
        good(digest="sha256:b", other_metrics=[perplexity(2.0)]),
        good(digest="sha256:c", n=10, metric=accuracy_metric(4, 10), n_correct=4, flags=["partial"]),
        published({"accuracy": "63.24"}),
    ]
    assert findings(tmp_path, *lines) == []


def test_the_projects_own_stores_have_no_errors() -> None:
    assert [item for item in lint(default_stores()) if item.severity == "error"] == []


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda line: line[: len(line) // 2], "torn"),
        (lambda line: line[:-1], "torn"),
        (lambda line: line.replace('"n":', '"n",'), "json"),
        (lambda line: line.replace('"n":5153', '"n":NaN'), "record"),
        (lambda line: line.replace('"n":5153', '"n":5153,"unknown":1'), "record"),
        (lambda line: line.replace("mpeval.result/1", "mpeval.result/9"), "schema"),
        (lambda line: line.replace('"kind":"measured"', '"kind":"guessed"'), "record"),
        (lambda line: line.replace('"n":5153', '"n":5154'), "changed"),
        (lambda _: "7", "torn"),
        (lambda _: "{}", "record"),
        (lambda _: "[" * 100_000 + "}", "json"),
    ],
    ids=["half", "last-letter", "comma", "nan", "extra", "schema", "kind", "value", "number", "empty", "deep"],
)
def test_a_damaged_line_is_named_with_its_number_and_what_it_is(
    spoil: Callable[[str], str], code: str, tmp_path: Path
) -> None:
    path = tmp_path / "results.jsonl"
    path.write_text(f"{good().line()}\n{spoil(good(digest='sha256:b').line())}\n{good(digest='sha256:c').line()}\n")
    (found,) = lint([path])
    assert (found.line, found.code, found.severity) == (2, code, "error")
    assert "line 2" in found.message


def test_no_byte_of_a_store_can_change_unseen(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    # the id covers everything but itself, which is compared, and the time at which the line was made
    append(path, [good(), published({"accuracy": "63.24"})])
    whole = path.read_bytes()
    times = {at for found in re.finditer(b"2026-01-02T03:04:05Z", whole) for at in range(*found.span())}
    numbers = read(path)
    unseen = 0
    for at in sorted(set(range(len(whole))) - times):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        if not any(item.severity == "error" for item in lint([path])):
            assert read(path) == numbers  # the last of 17 digits may stand for the same number
            unseen += 1
    assert unseen < 10


def test_a_store_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no leaderboard at"):
        lint([tmp_path / "none.jsonl"])


# ---- one line ----


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"metric": metric_of(45.0, low=44.0, high=46.0), "n_correct": None}, "unit"),
        ({"metric": metric_of(-0.1, low=None, high=None), "n_correct": None}, "bounds"),
        ({"metric": metric_of(145.0, low=None, high=None), "n_correct": None}, "bounds"),
        ({"metric": metric_of(0.45, low=0.5, high=0.6), "n_correct": None}, "interval"),
        ({"metric": metric_of(0.45, stderr=-0.1), "n_correct": None}, "interval"),
        ({"metric": metric_of(0.45, direction="min"), "n_correct": None}, "direction"),
        ({"metric": metric_of(0.45, unit="bits"), "n_correct": None}, "unit"),
        ({"other_metrics": [perplexity(2.0, value=0.5, loss=None, low=None, high=None)]}, "bounds"),
        ({"other_metrics": [perplexity(2.0, value=7.4)]}, "loss"),
        ({"other_metrics": [perplexity(2.0, direction="max")]}, "direction"),
        ({"n_correct": 2320}, "count"),
        ({"n_correct": 6000}, "count"),
        ({"n_correct": -1}, "count"),
        ({"n": 5136, "metric": accuracy_metric(2319, 5136)}, "items"),
        ({"n": 5154, "metric": accuracy_metric(2319, 5154)}, "items"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_number_that_cannot_be_is_an_error(changes: dict[str, Any], code: str, tmp_path: Path) -> None:
    assert said(findings(tmp_path, good(digest="sha256:a"), good(**changes))) == [(2, code, "error")]


def test_an_accuracy_above_one_is_asked_whether_it_is_percent(tmp_path: Path) -> None:
    (found,) = findings(tmp_path, good(metric=metric_of(66.51, low=None, high=None), n_correct=None))
    assert "did you mean percent? 66.51 % is 0.6651" in found.message


@pytest.mark.parametrize("flag", ["partial", "sample-rows", "modified-data"])
def test_a_flagged_result_may_be_of_other_items(flag: str, tmp_path: Path) -> None:
    assert findings(tmp_path, good(n=5136, metric=accuracy_metric(2319, 5136), flags=[flag])) == []


def test_a_split_that_the_card_has_not_is_odd(tmp_path: Path) -> None:
    assert said(findings(tmp_path, good(split="dev"))) == [(1, "split", "warning")]


def test_a_metric_that_nobody_knows_is_odd_but_for_those_of_lm_eval(tmp_path: Path) -> None:
    strange = metric_of(0.3, name="strange")
    harness = HarnessInfo(version="0.4", task_version="1", config="sha256:c", shots=0)
    lines = [good(other_metrics=[strange]), good(task="x", digest="sha256:b", metric=strange, harness=harness)]
    assert said(findings(tmp_path, lines[0], lines[1].model_copy(update={"n_correct": None}))) == [
        (1, "metric", "warning")
    ]


def test_every_metric_of_mpevals_tasks_is_known_as_what_it_is(tmp_path: Path) -> None:
    write_race(tmp_path, [("middle", 1, 3), ("high", 1, 3)])
    choices = [{**line, "correct_norm": True} for line in answers_to(race(tmp_path), 1)]
    spans = [
        {"id": str(n), "passage": f"p{n}", "target": ["a"] * (n % 2), "exact": 1, "f1": 1.0, "correct": True}
        for n in range(4)
    ]
    made = [*summarise_choices(choices)[0], *summarise_spans(spans)[0], f1_metric([0, 1, 1], [0, 1, 0])]
    made.append(mean_perplexity_metric("target_perplexity", [1.0, 2.0]))
    assert {metric.name: (metric.unit, metric.direction) for metric in made}.items() <= KNOWN.items()
    assert {protocol.metric for name in card_names() for protocol in load_card(name).protocols} <= KNOWN.keys()


# ---- RACE ----


def race_record(middle: int, high: int, **changes: Any) -> Record:
    """Return a record of RACE's test set with so many right answers in each group."""
    groups = {"middle": middle, "high": high}
    n = sum(RACE_TEST.values())
    fields: dict[str, Any] = {
        "task": "race",
        "title": "RACE",
        "protocol": "race/megatron",
        "n": n,
        "n_correct": middle + high,
        "metric": accuracy_metric(middle + high, n),
        "other_metrics": [
            accuracy_metric(correct, RACE_TEST[f"accuracy_{group}"], f"accuracy_{group}")
            for group, correct in groups.items()
        ],
        "data": DataInfo(source="RACE", digest="sha256:r", rows_expected=n),
    }
    return record(**fields | changes)


@pytest.mark.parametrize("counts", [(1300, 3000), (0, 0), (1436, 3498), (359, 3498 // 2)])
def test_race_pooled_of_its_groups_is_right(counts: tuple[int, int], tmp_path: Path) -> None:
    assert findings(tmp_path, race_record(*counts)) == []


@pytest.mark.parametrize("split", ["test", "dev"])
def test_race_that_is_not_pooled_is_an_error(split: str, tmp_path: Path) -> None:
    flags = [] if split == "test" else ["partial"]
    right = race_record(1300, 3000, split=split, flags=flags)
    assert findings(tmp_path, right) == []
    mean = sum(metric.value for metric in right.other_metrics) / 2
    wrong = race_record(1300, 3000, split=split, flags=flags, metric=metric_of(mean), n_correct=None)
    assert said(findings(tmp_path, wrong)) == [(1, "race", "error")]


@pytest.mark.parametrize(
    ("whole", "middle", "high", "agrees"),
    [
        ("89.5", "91.8", "88.6", True),
        ("90.9", "93.1", "90.0", True),
        ("86.5", "89.0", "85.5", True),
        ("83.2", "86.5", "81.8", True),
        ("83.2", "86.5", "81.3", False),
        ("81.75", "85.45", "80.21", False),
    ],
)
def test_what_sources_print_of_race_goes_together_within_rounding(
    whole: str, middle: str, high: str, agrees: bool, tmp_path: Path
) -> None:
    more = {"task": "race", "title": "RACE"}
    values = {"accuracy": whole, "accuracy_middle": middle, "accuracy_high": high}
    together = findings(tmp_path, published(values, 4934, **more))
    apart = findings(tmp_path, *(published({name: text}, 0, **more) for name, text in values.items()))
    for found in (together, apart):
        assert [item.severity for item in found if item.code == "race"] == ["warning"] * (not agrees)
    pooled = np.average([float(middle), float(high)], weights=[1436, 3498])
    assert agrees == (round(pooled, 1) == float(whole)) or whole == "81.75"


# ---- reported ----


@pytest.mark.parametrize(("printed", "odd"), [("66.51", True), ("63.24", False), ("76.2", False), ("52.66", True)])
def test_a_printed_share_that_no_count_gives_is_a_warning(printed: str, odd: bool, tmp_path: Path) -> None:
    found = findings(tmp_path, published({"accuracy": printed}))
    assert said(found) == [(1, "unattainable", "warning")] * odd
    places = len(printed.partition(".")[2])
    assert odd == (not any(round(100 * right / 5153, places) == float(printed) for right in range(5154)))


def test_a_reported_value_is_what_is_printed(tmp_path: Path) -> None:
    made = published({"accuracy": "63.24"})
    changed = made.model_copy(update={"metric": made.metric.model_copy(update={"value": 0.633})})
    assert said(findings(tmp_path, changed)) == [(1, "printed", "error")]


def test_a_reported_number_of_other_items_is_odd(tmp_path: Path) -> None:
    assert said(findings(tmp_path, published({"accuracy": "50.0"}, 5000))) == [(1, "items", "warning")]
    assert findings(tmp_path, published({"accuracy": "50.0"}, 5000, flags=["partial"])) == []


# ---- several lines ----


def test_the_same_number_twice_is_a_duplicate_within_and_across_stores(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for path in paths:
        append(path, [good()])
    found = lint(paths)
    assert [(item.store, item.line, item.code, item.severity) for item in found] == [
        (paths[1], 1, "duplicate", "warning")
    ]
    assert said(findings(tmp_path, good(), good(command="again"))) == [(2, "duplicate", "warning")]


def test_other_values_of_the_same_thing_are_a_conflict(tmp_path: Path) -> None:
    assert said(findings(tmp_path, good(), good(2320))) == [(2, "conflict", "error")]
    assert said(findings(tmp_path, published({"accuracy": "63.24"}), published({"accuracy": "63.2"}))) == [
        (2, "conflict", "error")
    ]


def test_layouts_must_agree(tmp_path: Path) -> None:
    (found,) = findings(tmp_path, good(), good(2325, layout=Layout(tp=1, dp=4)))
    assert (found.line, found.code, found.severity) == (2, "layout", "error")
    assert "tp 1 x dp 4 and tp 2 x dp 1" in found.message
    assert "6 items or more" in found.message


@pytest.mark.parametrize(
    ("dtype", "gap", "codes"),
    [
        ("float32", 5e-6, ["layout"]),
        ("bfloat16", 5e-4, []),
        ("bfloat16", 5e-3, ["layout"]),
    ],
)
def test_perplexities_of_layouts_agree_within_what_the_dtype_allows(
    dtype: str, gap: float, codes: list[str], tmp_path: Path
) -> None:
    lines = [
        good(metric=perplexity(2.0 + more), n_correct=None, dtype=dtype, layout=Layout(tp=tp, dp=1))
        for more, tp in ((0.0, 1), (gap, 2))
    ]
    assert math.isclose(lines[0].metric.value, math.exp(2.0))
    assert [item.code for item in findings(tmp_path, *lines)] == codes


def test_what_was_taken_back_contradicts_nothing(tmp_path: Path) -> None:
    taken = Retraction(created_at="2026-01-03T00:00:00Z", retracts=good(2320).identity(), reason="a mistake")
    assert findings(tmp_path, good(2320), taken, good()) == []
    assert said(findings(tmp_path, taken, good(2320))) == [(1, "retraction", "error")]
