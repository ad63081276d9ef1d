"""The ratio of two perplexities against scipy, resampled documents, and how often its interval holds the true one."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from compared import WIKITEXT, Lines, documents, windows
from scipy import stats

from mpeval.errors import DataError
from mpeval.predictions.paired import compare, compare_losses
from mpeval.results import PerplexityComparison
from mpeval.statistics import ratio_perplexity_metrics


def loss_lines(losses: Any, sizes: Any) -> Lines:
    """Return a line for each document."""
    return [
        {"task": WIKITEXT, "id": f"w{number}", "documents": [[number, float(loss), int(size)]]}
        for number, (loss, size) in enumerate(zip(losses, sizes, strict=True))
    ]


def ratio_of(a: Any, b: Any, sizes: Any, scale: float = 1.0) -> PerplexityComparison:
    return compare_losses(loss_lines(a, sizes), loss_lines(b, sizes), metric="perplexity", scale=scale)


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


def test_other_tokens_of_the_same_lines_are_refused_with_both_counts() -> None:
    a, b, sizes = documents(3)
    lines = loss_lines(b, sizes)
    lines[7]["documents"][0][2] += 5
    with pytest.raises(DataError, match=f"`w7` is of other tokens in `x` than in `y`: {sizes[7]} of 1 doc") as raised:
        compare_losses(loss_lines(a, sizes), lines, ("x", "y"), metric="perplexity", scale=1.0)
    assert "one tokenizer" in raised.value.hint
