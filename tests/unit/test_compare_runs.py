"""Folders of runs against each other, under every protocol that they share."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compared import LAMBADA, WIKITEXT, Lines, lambada, result, wikitext, write
from evaluated import answers_to, change_line, race, write_evaluation, write_race
from scipy import stats

from mpeval.errors import DataError
from mpeval.leaderboard.versus import Options, compare_runs
from mpeval.predictions.paired import compare, holm
from mpeval.results import Comparison, ComparisonResults, HarnessInfo, Metric, PerplexityComparison, Result
from mpeval.statistics import accuracy_metric


def versus(*runs: Path, protocols: tuple[str, ...] = ()) -> ComparisonResults:
    return compare_runs(Options(runs=runs, protocols=protocols, command="mpeval leaderboard compare"))


def metrics_of(results: ComparisonResults) -> list[str]:
    return [f"{item.protocol} {item.comparison.metric}" for item in results.comparisons]


def test_two_runs_are_compared_under_every_protocol_that_both_have(tmp_path: Path) -> None:
    one = write(tmp_path / "one", lambada(1, skill=0.5), wikitext(1))
    other = write(tmp_path / "other", wikitext(2, gap=0.01), lambada(2))
    found = versus(one, other)
    assert metrics_of(found) == [
        f"{LAMBADA} accuracy",
        f"{LAMBADA} target_perplexity",
        f"{WIKITEXT} adjusted_perplexity",
    ]
    assert [item.better for item in found.comparisons] == ["one", "one", "one"]
    assert [(run.name, run.checkpoint) for run in found.runs] == [("one", "sha256:one"), ("other", "sha256:other")]
    assert {item.split for item in found.comparisons} == {"test"}
    p_values = [item.comparison.p_value for item in found.comparisons]
    assert [item.comparison.p_value_holm for item in found.comparisons] == holm([p for p in p_values if p is not None])
    assert ComparisonResults(schema_="mpeval.comparison/1", **_without_schema(found)) == found
    assert versus(one, other, protocols=(WIKITEXT,)).comparisons[0].comparison.p_value == p_values[2]
    assert metrics_of(versus(one, other, protocols=("lambada",))) == metrics_of(found)[:2]


def _without_schema(found: ComparisonResults) -> dict[str, Any]:
    content = json.loads(found.to_json())
    assert content.pop("schema") == "mpeval.comparison/1"
    return dict(content)


def test_lambada_is_compared_by_answers_and_by_losses(tmp_path: Path) -> None:
    (first, mine), (second, theirs) = lambada(1, skill=0.1), lambada(2)
    found = versus(write(tmp_path / "a", (first, mine)), write(tmp_path / "b", (second, theirs[::-1])))
    accuracy, perplexity = (item.comparison for item in found.comparisons)
    assert isinstance(accuracy, Comparison)
    assert isinstance(perplexity, PerplexityComparison)
    right = [[line["correct"] for line in lines] for lines in (mine, theirs)]
    assert accuracy.only_first == sum(one and not other for one, other in zip(*right, strict=True))
    assert accuracy.only_second == sum(other and not one for one, other in zip(*right, strict=True))
    assert (
        accuracy.mcnemar == stats.binomtest(accuracy.only_first, accuracy.only_first + accuracy.only_second, 0.5).pvalue
    )
    assert accuracy.correlation == pytest.approx(np.corrcoef(*right)[0, 1], rel=1e-9)
    losses = [[-line["log_probability"] for line in lines] for lines in (mine, theirs)]
    assert perplexity.p_value == pytest.approx(stats.ttest_rel(*losses).pvalue, rel=1e-9)
    assert perplexity.ratio == pytest.approx(first.metrics[1].value / second.metrics[1].value, rel=1e-12)
    assert perplexity.correlation == pytest.approx(np.corrcoef(*losses)[0, 1], rel=1e-9)
    assert (perplexity.n, perplexity.clusters) == (300, 300)


def test_a_ratio_is_of_the_perplexities_that_the_results_give(tmp_path: Path) -> None:
    (first, mine), (second, theirs) = wikitext(1), wikitext(2, gap=0.01)
    folders = write(tmp_path / "a", (first, mine)), write(tmp_path / "b", (second, theirs))
    [scaled] = (item.comparison for item in versus(*folders).comparisons)
    assert isinstance(scaled, PerplexityComparison)
    assert scaled.ratio == pytest.approx(first.metrics[0].value / second.metrics[0].value, rel=1e-9)
    (tmp_path / "alone.jsonl").write_bytes((folders[1] / "samples.jsonl").read_bytes())
    found = versus(folders[0], tmp_path / "alone.jsonl")
    [bare] = (item.comparison for item in found.comparisons)
    assert isinstance(bare, PerplexityComparison)
    assert bare.metric == "token_perplexity"
    assert bare.ratio == pytest.approx(first.metrics[1].value / second.metrics[1].value, rel=1e-9)
    assert bare.p_value == pytest.approx(scaled.p_value, rel=1e-6)
    assert [run.checkpoint for run in found.runs] == ["sha256:a", None]


def test_questions_of_a_passage_are_one_cluster(tmp_path: Path) -> None:
    data = race(write_race(tmp_path / "data", [("high", number, 4) for number in range(30)]))
    answers = [answers_to(data, seed, skill) for seed, skill in ((1, 2.0), (2, 0.5))]
    runs = [
        write_evaluation(tmp_path / name, lines, data.digest, checkpoint={"name": name, "digest": f"sha256:{name}"})
        for name, lines in zip("ab", answers, strict=True)
    ]
    [verdict] = versus(*runs).comparisons
    expected = compare(*answers, ("a", "b"))
    assert verdict.comparison == expected.model_copy(update={"p_value_holm": expected.p_value})
    assert (verdict.comparison.n, verdict.comparison.clusters) == (120, 30)
    assert verdict.better == "a"
    [swapped] = versus(*runs[::-1]).comparisons
    assert swapped.better == "a"
    assert (swapped.comparison.difference, swapped.comparison.p_value) == (-expected.difference, expected.p_value)


def test_every_pair_of_three_is_tested_and_ties_are_groups(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / name, lambada(seed, skill=skill), wikitext(seed, gap=gap))
        for name, seed, skill, gap in (("low", 1, 0.0, 0.02), ("high", 2, 0.6, 0.0), ("same", 2, 0.6, 0.0))
    ]
    found = versus(*runs)
    assert len(found.comparisons) == 9
    pairs = [(item.comparison.first, item.comparison.second) for item in found.comparisons[:6:2]]
    assert pairs == [("low", "high"), ("low", "same"), ("high", "same")]
    p_values = [item.comparison.p_value for item in found.comparisons]
    assert [item.comparison.p_value_holm for item in found.comparisons] == holm([p for p in p_values if p is not None])
    assert [(tied.protocol, tied.metric) for tied in found.groups] == [
        (LAMBADA, "accuracy"),
        (LAMBADA, "target_perplexity"),
        (WIKITEXT, "adjusted_perplexity"),
    ]
    assert all(tied.groups == [["high", "same"], ["low"]] for tied in found.groups)


def test_a_protocol_of_two_among_three_runs_is_compared_without_groups(tmp_path: Path) -> None:
    runs = [
        write(tmp_path / "a", lambada(1), wikitext(1)),
        write(tmp_path / "b", lambada(2)),
        write(tmp_path / "c", lambada(3), wikitext(3)),
    ]
    found = versus(*runs)
    assert [item.comparison.second for item in found.comparisons if item.protocol == WIKITEXT] == ["c"]
    assert {tied.protocol for tied in found.groups} == {LAMBADA}


def test_runs_whose_models_are_called_alike_go_by_their_paths(tmp_path: Path) -> None:
    runs = [write(tmp_path / name, lambada(1), name="model") for name in "ab"]
    found = versus(*runs)
    assert [run.name for run in found.runs] == [str(run) for run in runs]
    assert all(item.better is None and item.comparison.p_value == 1.0 for item in found.comparisons)


def test_flags_of_both_runs_are_told(tmp_path: Path) -> None:
    (first, mine), (second, theirs) = lambada(1), lambada(2)
    flagged = first.model_copy(update={"flags": ["sample-rows"]}), second.model_copy(update={"flags": ["truncated"]})
    found = versus(write(tmp_path / "a", (flagged[0], mine)), write(tmp_path / "b", (flagged[1], theirs)))
    assert found.comparisons[0].flags == ["sample-rows", "truncated"]


def test_spans_are_compared_by_f1_and_by_exact_match(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scores = [[(1.0 if value > 0.5 else round(float(value), 3)) for value in random.random(90)] for _ in range(2)]
    paths = []
    for name, side in zip("ab", scores, strict=True):
        lines = [
            {
                "task": "squad/v1",
                "id": f"q{n}",
                "passage": f"p{n // 3}",
                "target": ["x"],
                "f1": value,
                "exact": value == 1,
            }
            | {"correct": value == 1}
            for n, value in enumerate(side)
        ]
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    f1, exact = (item.comparison for item in versus(*paths).comparisons)
    assert (f1.metric, exact.metric) == ("f1", "exact")
    assert f1.difference == pytest.approx(np.mean(scores[0]) - np.mean(scores[1]), abs=1e-12)
    differences = np.subtract(*scores)
    sums = np.add.reduceat(differences - differences.mean(), range(0, 90, 3))
    assert f1.stderr == pytest.approx(math.sqrt(30 / 29 * (sums**2).sum()) / 90, rel=1e-9)
    assert isinstance(f1, Comparison)
    assert (f1.only_first, f1.only_second) == (int((differences > 0).sum()), int((differences < 0).sum()))
    assert f1.clusters == exact.clusters == 30


# ---- tasks of lm-eval ----


def harness(seed: int, **more: Any) -> tuple[Result, Lines]:
    random = np.random.default_rng(seed)
    lines: Lines = [
        {
            "task": "lm-eval/x",
            "id": f"{number:05d}" + filtered,
            "target": "t",
            "doc_hash": f"d{number}",
            "prompt_hash": f"p{number}",
            "metrics": metrics,
        }
        for number in range(60)
        for filtered, metrics in (
            ("", {"acc": float(random.random() < 0.5), "word_perplexity": [-float(random.normal(50, 3)), 10 + number]}),
            ("/strict", {"exact_match": int(random.random() < 0.5), "byte_perplexity": -float(random.normal(2, 1))}),
        )
    ]
    info = HarnessInfo(version="0.4.13", task_version="1", config="sha256:c", shots=0)
    metric = accuracy_metric(30, 60, "acc")
    return result("lm-eval/x", [metric], lines, **{"items": 60, "harness": info} | more), lines


def test_tasks_of_lm_eval_are_compared_by_filter(tmp_path: Path) -> None:
    (first, mine), (second, theirs) = harness(1), harness(2)
    group = result("lm-eval/g", first.metrics, [], harness=first.harness.model_copy(update={"tasks": ["x"]}))  # type: ignore[union-attr]
    found = versus(write(tmp_path / "a", (first, mine), (group, [])), write(tmp_path / "b", (second, theirs)))
    expected = ["acc", "word_perplexity", "exact_match/strict", "byte_perplexity/strict"]
    assert [item.comparison.metric for item in found.comparisons] == expected
    losses = [[line["metrics"]["word_perplexity"] for line in lines[::2]] for lines in (mine, theirs)]
    sums = [[-sum(column) for column in zip(*side, strict=True)] for side in losses]
    assert found.comparisons[1].comparison.difference == pytest.approx(
        (sums[0][0] - sums[1][0]) / -sums[0][1], rel=1e-9
    )
    assert found.comparisons[0].comparison.n == 60


def test_another_configuration_or_prompt_of_a_task_is_refused(tmp_path: Path) -> None:
    (first, mine), (second, theirs) = harness(1), harness(2)
    other = second.harness.model_copy(update={"config": "sha256:other"})  # type: ignore[union-attr]
    one = write(tmp_path / "a", (first, mine))
    with pytest.raises(DataError, match="the configuration is `sha256:c` in"):
        versus(one, write(tmp_path / "b", (second.model_copy(update={"harness": other}), theirs)))
    theirs[4]["prompt_hash"] = "other"
    with pytest.raises(DataError, match="`00002` has the prompt_hash `p2` in"):
        versus(one, write(tmp_path / "c", (second, theirs)))


def test_a_metric_that_is_lower_for_the_better_turns_the_verdict(tmp_path: Path) -> None:
    runs = []
    for name, value in (("a", 0.0), ("b", 1.0)):
        made, lines = harness(1)
        for number, line in enumerate(lines):
            line["metrics"] = {"wer": value if number % 4 else 0.0}
        wer = Metric(name="wer", value=value, unit="number", direction="min")
        runs.append(write(tmp_path / name, (made.model_copy(update={"metrics": [wer]}), lines)))
    assert versus(*runs).comparisons[0].better == "a"


# ---- an ensemble's folder, which has results of another kind ----


def test_lines_without_results_of_a_run_stand_for_themselves(tmp_path: Path) -> None:
    one, (_, lines) = write(tmp_path / "one", lambada(1)), lambada(2)
    folder = tmp_path / "ensemble"
    folder.mkdir()
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "results.json").write_text('{"schema": "mpeval.ensemble/1"}')
    found = versus(one, folder)
    assert [run.checkpoint for run in found.runs] == ["sha256:one", None]
    assert len(found.comparisons) == 2
    change_line(folder, 3, target=" other")
    with pytest.raises(DataError, match="`00002` has the target ` word` in"):
        versus(one, folder)
