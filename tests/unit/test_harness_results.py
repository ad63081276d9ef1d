"""lm-eval's dictionary of results as mpeval's records: which error bars a number gets, what flags say."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import sem, t

from mpeval.errors import DataError
from mpeval.harness_results import Measured, config_digest, protocol_of, results_of
from mpeval.report import show_metric
from mpeval.results import Metric
from mpeval.statistics import number_metric

ACC = [1, 0, 1, 1]


def sample(number: int, chosen: str = "none", **scores: Any) -> dict[str, Any]:
    """Return what lm-eval keeps of a document."""
    hashes = {f"{what}_hash": f"{what} {number}" for what in ("doc", "prompt", "target")}
    answers = {
        "resps": [[(-1.0 - number, True)], [(-2.0, False)]],
        "filtered_resps": [(-1.0 - number, True), (-2.0, False)],
    }
    return {"doc_id": number, "target": 0, "filter": chosen, "metrics": list(scores), **answers, **hashes, **scores}


def measured(
    scores: dict[str, Any],
    samples: list[dict[str, Any]],
    higher: dict[str, Any] | None = None,
    total: int = 4,
    **more: Any,
) -> Measured:
    """Return the measurement of one task, `made`."""
    found = {
        "results": {"made": {"name": "made", "alias": "made", "sample_len": len(samples), **scores}},
        "samples": {"made": samples},
        "configs": {"made": {"task": "made", "validation_split": "dev", "dataset_path": "somebody/made"}},
        "versions": {"made": 2.5},
        "n-shot": {"made": 0},
        "higher_is_better": {"made": higher or {}},
        "n-samples": {"made": {"original": total, "effective": len(samples)}},
        "group_subtasks": {},
    }
    plain: dict[str, Any] = {"cut": {}, "tokens": {"made": 40}, "asked": set(), "seconds": 2.0, "flags": {"made": ()}}
    return Measured(found=found, version="9.9", **(plain | more))


def metrics_of(scores: dict[str, Any], samples: list[dict[str, Any]], **higher: Any) -> list[Metric]:
    [result] = results_of(measured(scores, samples, higher))[0]
    return result.metrics


def test_shares_of_right_answers_have_wilsons_interval() -> None:
    [metric] = metrics_of({"acc,none": 0.75, "acc_stderr,none": "N/A"}, [sample(i, acc=a) for i, a in enumerate(ACC)])
    assert (metric.value, metric.unit, metric.direction, metric.interval) == (0.75, "proportion", "max", "wilson")


def test_shares_between_have_students() -> None:
    values = [0.5, 0.25, 1.0, 0.75]
    [metric] = metrics_of({"f1,none": np.float64(0.625)}, [sample(i, f1=v) for i, v in enumerate(values)])
    assert (metric.unit, metric.interval) == ("proportion", "student-t of items")
    assert metric.stderr == pytest.approx(sem(values))


def test_what_is_better_lower_is_a_number() -> None:
    [metric] = metrics_of({"ter,none": 0.5}, [sample(0, ter=0.25), sample(1, ter=0.75)], ter=False)
    assert (metric.unit, metric.direction) == ("number", "min")
    assert show_metric(metric) == "0.5000"


def test_perplexities_are_known_by_their_arithmetic() -> None:
    logs = [-1.0, -2.0, -4.5]
    [metric] = metrics_of(
        {"perplexity,none": math.exp(2.5)}, [sample(i, perplexity=v) for i, v in enumerate(logs)], perplexity=False
    )
    assert (metric.unit, metric.direction, metric.loss) == ("perplexity", "min", pytest.approx(2.5))
    pairs = [(-30.0, 10), (-20.0, 15)]
    [metric] = metrics_of(
        {"word_perplexity,none": math.exp(2.0)}, [sample(i, word_perplexity=v) for i, v in enumerate(pairs)]
    )
    assert (metric.unit, metric.interval) == ("perplexity", "student-t of articles")


@pytest.mark.parametrize("kept", [("reference", "text"), (1, 0), (-3.0, 2)], ids=repr)
def test_numbers_that_are_no_means_have_no_interval(kept: tuple[Any, ...]) -> None:
    rows = [sample(i, bleu=kept) for i in range(3)]
    [metric] = metrics_of({"bleu,none": 31.5}, rows)
    assert (metric.value, metric.unit, metric.low, metric.stderr) == (31.5, "number", None, None)


def test_the_interval_of_a_mean_is_scipys() -> None:
    values = [3.0, 5.5, 4.0, 9.0]
    metric = number_metric("length", values, "max")
    low, high = t.interval(0.95, 3, loc=np.mean(values), scale=sem(values))
    assert (metric.value, metric.stderr) == (pytest.approx(5.375), pytest.approx(sem(values)))
    assert (metric.low, metric.high) == (pytest.approx(low), pytest.approx(high))
    assert number_metric("length", [2.0], "max").stderr is None


def test_undefined_numbers_are_flagged_and_left_out() -> None:
    rows = [sample(i, acc=a, mcc=(0, 0)) for i, a in enumerate(ACC)]
    [result] = results_of(measured({"acc,none": 0.75, "mcc,none": float("nan")}, rows))[0]
    assert [metric.name for metric in result.metrics] == ["acc"]
    assert "undefined-mcc" in result.flags
    with pytest.raises(DataError, match="no number for `made`"):
        results_of(measured({"mcc,none": float("nan")}, rows))


def test_a_task_with_two_filters_has_both_numbers_and_both_lines() -> None:
    rows = [sample(0, "strict", match=0.0), sample(0, "loose", match=1.0), sample(1, "strict", match=1.0)]
    rows.append(sample(1, "loose", match=1.0))
    [result], lines = results_of(measured({"match,strict": 0.5, "match,loose": 1.0}, rows, total=2))
    assert [(metric.name, metric.value) for metric in result.metrics] == [("match/strict", 0.5), ("match/loose", 1.0)]
    assert (result.n, result.n_correct, result.items_total) == (2, 1, 2)
    assert [line["id"] for line in lines] == ["00000/strict", "00000/loose", "00001/strict", "00001/loose"]
    assert [line["correct"] for line in lines] == [False, True, True, True]
    assert lines[0]["log_probabilities"] == [-1.0, -2.0]
    assert lines[0]["greedy"] == [True, False]
    json.dumps(lines, allow_nan=False)


def test_documents_come_in_order_whatever_the_ranks() -> None:
    rows = [sample(i, acc=a) for i, a in enumerate(ACC)]
    mixed = [rows[0], rows[2], rows[1], rows[3]]
    one, two = (results_of(measured({"acc,none": 0.75}, order)) for order in (rows, mixed))
    assert one == two


def test_flags_say_what_a_reader_must_know() -> None:
    rows = [sample(i, acc=a) for i, a in enumerate(ACC)]
    of_run = measured(
        {"acc,none": 0.75},
        rows,
        total=9,
        cut={("made", 2): 7, ("other", 1): 3},
        asked={("made", 3), ("other", 0)},
        tokens={"made": 30, "other": 90},
        flags={"made": ("sample-rows",)},
    )
    [result], lines = results_of(of_run)
    assert result.flags[0] == "lm-eval-9.9"
    assert result.flags[1].startswith("config-")
    assert result.flags[2:] == ["sample-rows", "partial", "truncated"]
    assert (result.truncated, result.items_resumed) == (1, 3)
    assert (result.seconds, result.tokens_per_second) == (0.5, 60.0)
    assert (result.split, result.data.source, result.protocol_version) == ("dev", "somebody/made", "2.5")
    assert [line.get("cut") for line in lines] == [None, None, 7, None]


def test_a_configurations_digest_is_of_what_is_asked_not_of_where_it_lies() -> None:
    config = {
        "task": "made",
        "doc_to_text": "{{text}}",
        "dataset_kwargs": {"data_files": "/here"},
        "metadata": {"a": 1},
    }
    moved = config | {"dataset_kwargs": {"data_files": "/there"}, "metadata": {}, "num_fewshot": 3}
    assert config_digest(config) == config_digest(moved)
    assert config_digest(config) != config_digest(config | {"doc_to_text": "{{text}} "})
    called = [config_digest(config | {"process": f"<function f at 0x7f{number}>"}) for number in "ab"]
    assert called[0] == called[1]


def test_other_numbers_of_examples_are_other_protocols() -> None:
    assert protocol_of("made", 0) == "lm-eval/made"
    assert protocol_of("made", 5) == "lm-eval/made/5-shot"
