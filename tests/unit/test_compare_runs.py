"""Runs against each other: losses by document against scipy, resampling and coverage; then whole folders of runs."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated import answers_to, change_line, race, write_evaluation, write_race, write_results
from scipy import stats

from mpeval.errors import DataError
from mpeval.leaderboard.versus import Options, compare_runs
from mpeval.predictions.paired import compare, compare_losses, holm
from mpeval.results import (
    Comparison,
    ComparisonResults,
    DataInfo,
    HarnessInfo,
    Metric,
    PerplexityComparison,
    Result,
)
from mpeval.statistics import accuracy_metric, mean_perplexity_metric, ratio_perplexity_metrics

Lines = list[dict[str, Any]]
LAMBADA, WIKITEXT = "lambada/megatron-strict", "wikitext103/disjoint"


def documents(seed: int, count: int = 40, gap: float = 0.0) -> tuple[list[float], list[float], list[int]]:
    """Draw the losses of two models on documents of very different sizes that both find hard or easy, and the sizes."""
    random = np.random.default_rng(seed)
    sizes = random.integers(50, 900, count)
    hard = random.normal(3.0, 0.5, count)
    own = random.normal(0.0, 0.03, (2, count))
    return [*((hard + own[side] + (gap if side == 0 else 0)) * sizes for side in (0, 1)), sizes.tolist()]  # type: ignore[return-value]


def loss_lines(losses: Any, sizes: Any) -> Lines:
    """Return a line for each document."""
    return [
        {"task": WIKITEXT, "id": f"w{number}", "documents": [[number, float(loss), int(size)]]}
        for number, (loss, size) in enumerate(zip(losses, sizes, strict=True))
    ]


def windows(losses: Any, sizes: Any, tokens: int = 100) -> Lines:
    """Return lines of windows of `tokens` that run across documents, each token of one as likely as the others."""
    flat = [
        (number, loss / size)
        for number, (loss, size) in enumerate(zip(losses, sizes, strict=True))
        for _ in range(size)
    ]
    lines: Lines = []
    for begin in range(0, len(flat), tokens):
        shares: dict[int, list[float]] = {}
        for document, loss in flat[begin : begin + tokens]:
            share = shares.setdefault(document, [0.0, 0])
            share[0] += loss
            share[1] += 1
        held = [[document, *share] for document, share in shares.items()]
        lines.append({"task": WIKITEXT, "id": f"window-{begin:06d}", "documents": held, "log_probability": -1.0})
    return lines


def ratio_of(a: Any, b: Any, sizes: Any, scale: float = 1.0) -> PerplexityComparison:
    return compare_losses(loss_lines(a, sizes), loss_lines(b, sizes), metric="perplexity", scale=scale)


# ---- ratios of perplexities ----


@pytest.mark.parametrize("seed", range(3))
def test_documents_of_one_size_are_students_paired_test(seed: int) -> None:
    a, b, _ = documents(seed, gap=0.01)
    found = ratio_of(a, b, [1] * len(a))
    expected = stats.ttest_rel(a, b)
    assert found.p_value == pytest.approx(expected.pvalue, rel=1e-9)
    interval = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)), rel=1e-9)
    assert found.ratio == pytest.approx(math.exp(np.mean(a) - np.mean(b)), rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1.17])
def test_the_ratio_is_that_of_the_two_perplexities_and_the_error_what_they_do_not_share(scale: float) -> None:
    a, b, sizes = documents(4, gap=0.02)
    found = ratio_of(a, b, sizes, scale)
    one, other = (ratio_perplexity_metrics(side, sizes, {"x": scale})[0] for side in (a, b))
    assert found.ratio == pytest.approx(one.value / other.value, rel=1e-12)
    assert one.stderr is not None
    assert other.stderr is not None
    assert found.stderr is not None
    assert found.correlation is not None
    errors = one.stderr / one.value, other.stderr / other.value
    expected = errors[0] ** 2 + errors[1] ** 2 - 2 * found.correlation * errors[0] * errors[1]
    assert found.stderr**2 == pytest.approx(expected, rel=1e-9)
    assert found.stderr < min(errors) / 5
    assert (found.n, found.clusters) == (sum(sizes), 40)


def test_a_scale_changes_no_p_value() -> None:
    a, b, sizes = documents(5, gap=0.01)
    assert ratio_of(a, b, sizes, 1.3).p_value == pytest.approx(ratio_of(a, b, sizes).p_value, rel=1e-9)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_error_agrees_with_resampled_documents(seed: int) -> None:
    a, b, sizes = documents(seed, gap=0.01)
    found = ratio_of(a, b, sizes)
    picks = np.random.default_rng(seed).integers(0, 40, (10_000, 40))
    differences, weights = np.array(a) - np.array(b), np.array(sizes)
    resampled = differences[picks].sum(1) / weights[picks].sum(1)
    assert found.stderr == pytest.approx(resampled.std(ddof=1), rel=0.06)
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(np.quantile(resampled, [0.025, 0.975]))), rel=3e-3)


def test_windows_across_documents_add_up_to_them() -> None:
    a, b, sizes = documents(6, gap=0.01)
    whole = ratio_of(a, b, sizes)
    cut = compare_losses(windows(a, sizes), windows(b, sizes), metric="perplexity", scale=1.0)
    numbers = ("n", "clusters", "ratio", "stderr", "low", "high", "p_value", "correlation")
    assert [getattr(cut, name) for name in numbers] == pytest.approx(
        [getattr(whole, name) for name in numbers], rel=1e-9
    )


def test_the_interval_of_a_ratio_covers_the_true_one() -> None:
    """With as many documents as WikiText-103's test set has."""
    inside = 0
    for seed in range(1000):
        a, b, sizes = documents(seed + 100, count=60, gap=0.01)
        found = ratio_of(a, b, sizes)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= math.exp(0.01) <= found.high
    assert 0.93 <= inside / 1000 <= 0.97


def test_swapped_models_have_the_inverse_ratio_and_the_same_p_value() -> None:
    a, b, sizes = documents(8, gap=0.01)
    one, other = ratio_of(a, b, sizes), ratio_of(b, a, sizes)
    assert one.low is not None
    assert one.high is not None
    assert (other.ratio, other.low, other.high) == pytest.approx((1 / one.ratio, 1 / one.high, 1 / one.low), rel=1e-12)
    assert (other.p_value, other.correlation) == pytest.approx((one.p_value, one.correlation), rel=1e-9)


def test_the_same_losses_have_ratio_1_and_one_document_no_error() -> None:
    a, b, sizes = documents(9)
    same = ratio_of(a, a, sizes)
    assert (same.ratio, same.low, same.high, same.p_value) == (1.0, 1.0, 1.0, 1.0)
    assert same.correlation == pytest.approx(1.0)
    alone = ratio_of(a[:1], b[:1], sizes[:1])
    assert (alone.stderr, alone.low, alone.high, alone.p_value, alone.correlation) == (None,) * 5


def test_losses_beyond_every_number_stay_numbers() -> None:
    found = ratio_of([1e6, 1e6, 2e6], [1.0, 2.0, 3.0], [1, 1, 1])
    assert math.isfinite(found.ratio)
    json.dumps(found.model_dump(), allow_nan=False)


def test_the_paired_interval_of_clustered_answers_covers() -> None:
    """Both models find the same passages hard, and the first is better by 4 points."""
    random = np.random.default_rng(11)
    inside = 0
    for _ in range(200):
        hard = random.beta(2, 1, 60).repeat(4)
        both = random.random(240)
        sides = [both < hard, np.where(random.random(240) < 0.06, False, both < hard)]
        lines: list[Lines] = [
            [
                {"task": "t", "id": str(number), "target": 0, "passage": str(number // 4), "correct": bool(right)}
                for number, right in enumerate(side)
            ]
            for side in sides
        ]
        found = compare(*lines)
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= 0.06 * 2 / 3 <= found.high
    assert 0.89 <= inside / 200 <= 0.99


# ---- folders of runs ----


def result(protocol: str, metrics: list[Metric], lines: Lines, **more: Any) -> Result:
    fields: dict[str, Any] = {
        "task": protocol.partition("/")[0],
        "protocol": protocol,
        "protocol_version": "1",
        "title": protocol,
        "metrics": metrics,
        "n": len(lines),
        "n_correct": None,
        "items": len(lines),
        "items_total": len(lines),
        "truncated": 0,
        "flags": [],
        "data": DataInfo(source="data", digest=f"sha256:{protocol}", rows_expected=len(lines)),
        "seconds": 1.0,
        "tokens_per_second": None,
        "items_resumed": 0,
        "split": "test",
    }
    return Result(**fields | more)


def lambada(seed: int, count: int = 300, skill: float = 0.0) -> tuple[Result, Lines]:
    """Draw what a model says of words that all models find hard or easy."""
    hard, random = np.random.default_rng(0).normal(2.0, 1.0, count), np.random.default_rng(seed)
    losses = np.exp(hard - skill + random.normal(0, 0.3, count)) / 4
    lines: Lines = [
        {
            "task": LAMBADA,
            "id": f"{number:05d}",
            "target": " word",
            "prediction": " word",
            "correct": bool(loss < 1.5),
            "log_probability": -float(loss),
            "greedy": bool(loss < 1.5),
            "tokens": 1,
        }
        for number, loss in enumerate(losses)
    ]
    correct = sum(line["correct"] for line in lines)
    metrics = [accuracy_metric(correct, count), mean_perplexity_metric("target_perplexity", losses.tolist())]
    return result(LAMBADA, metrics, lines), lines


def wikitext(seed: int, gap: float = 0.0) -> tuple[Result, Lines]:
    a, _, sizes = documents(21)
    losses = np.array(a) + gap * np.array(sizes) + np.random.default_rng(seed).normal(0, 0.002, 40) * np.array(sizes)
    metrics = ratio_perplexity_metrics(losses.tolist(), sizes, {"adjusted_perplexity": 1.15, "token_perplexity": 1.0})
    lines = windows(losses, sizes)
    return result(WIKITEXT, metrics, lines), lines


def write(folder: Path, *made: tuple[Result, Lines], **checkpoint: Any) -> Path:
    named = {"name": folder.name, "digest": f"sha256:{folder.name}", "path": f"checkpoints/{folder.name}"}
    lines = list(itertools.chain.from_iterable(lines for _, lines in made))
    return write_results(folder, [result for result, _ in made], lines, checkpoint=named | checkpoint)


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
