"""Values and error bars agree with scipy, scikit-learn, numpy, and with resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score

from mpeval.results import Metric
from mpeval.statistics import accuracy_metric, mean_perplexity_metric, ratio_perplexity_metrics

LOSSES = st.lists(st.floats(0, 30), min_size=2, max_size=40)


def log_se(metric: Metric) -> float:
    """Return the standard error of a perplexity's logarithm."""
    assert metric.stderr is not None
    return metric.stderr / metric.value


def documents(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw (summed loss, tokens) of documents of very different sizes, each with a difficulty of its own."""
    random = np.random.default_rng(seed)
    tokens = random.integers(20, 600, count)
    difficulty = random.normal(3.0, 0.4, count)
    noise = np.asarray([random.normal(0, 1.5, size).sum() for size in tokens])
    return difficulty * tokens + noise, tokens


# ---- accuracy ----


@given(answers=st.lists(st.booleans(), min_size=1, max_size=60))
def test_accuracy_agrees_with_scikit_learn(answers: list[bool]) -> None:
    metric = accuracy_metric(sum(answers), len(answers))
    assert metric.value == pytest.approx(accuracy_score([True] * len(answers), answers), abs=1e-15)
    assert (metric.name, metric.unit, metric.direction) == ("accuracy", "proportion", "max")


@given(answers=st.lists(st.booleans(), min_size=2, max_size=60))
def test_the_standard_error_of_accuracy_is_that_of_a_mean(answers: list[bool]) -> None:
    metric = accuracy_metric(sum(answers), len(answers))
    assert metric.stderr == pytest.approx(stats.sem(np.asarray(answers, float)), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 12), (12, 12), (1, 12), (2386, 5153), (5152, 5153)])
def test_the_interval_of_accuracy_is_wilsons(correct: int, n: int) -> None:
    metric = accuracy_metric(correct, n)
    z = stats.norm.ppf(0.975)
    share = correct / n
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    reach = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    assert metric.low == pytest.approx(max(0.0, middle - reach), abs=1e-12)
    assert metric.high == pytest.approx(min(1.0, middle + reach), abs=1e-12)
    interval = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert (metric.low, metric.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert metric.interval == "wilson"


def test_one_answer_has_no_standard_error() -> None:
    metric = accuracy_metric(1, 1)
    assert (metric.value, metric.stderr) == (1.0, None)


# ---- perplexity of independent items ----


@given(losses=LOSSES)
def test_mean_perplexity_agrees_with_numpy_and_scipy(losses: list[float]) -> None:
    metric = mean_perplexity_metric("p", losses)
    mean, error = np.mean(losses), stats.sem(losses)
    reach = stats.t.ppf(0.975, len(losses) - 1) * error
    assert metric.value == pytest.approx(np.exp(mean), rel=1e-9)
    assert metric.loss == pytest.approx(mean, rel=1e-9, abs=1e-12)
    assert log_se(metric) == pytest.approx(error, rel=1e-6, abs=1e-9)
    assert metric.low == pytest.approx(min(np.exp(mean - reach), 1e300), rel=1e-6)
    assert metric.high == pytest.approx(np.exp(min(mean + reach, np.log(1e300))), rel=1e-6)
    assert (metric.name, metric.unit, metric.direction) == ("p", "perplexity", "min")


def test_one_item_has_a_perplexity_but_no_error_bar() -> None:
    metric = mean_perplexity_metric("p", [2.0])
    assert metric.value == pytest.approx(math.exp(2.0))
    assert (metric.stderr, metric.low, metric.high, metric.interval) == (None, None, None, None)


@pytest.mark.parametrize("losses", [[1e4, 1e4], [0.0, 1e6], [690.0, 700.0, 710.0], [1e30, 1.0]])
def test_a_perplexity_beyond_any_float_stays_a_finite_number(losses: list[float]) -> None:
    metric = mean_perplexity_metric("p", losses)
    for value in (metric.value, metric.stderr, metric.low, metric.high):
        assert value is not None
        assert 0 <= value <= 1e300
    ratio = ratio_perplexity_metrics(losses, [1.0] * len(losses), {"a": 1.5})[0]
    assert 0 <= ratio.value <= 1e300


# ---- perplexity of documents ----


def test_ratio_perplexity_is_total_loss_over_total_tokens() -> None:
    losses, tokens = documents(25, seed=1)
    first, second = ratio_perplexity_metrics(losses.tolist(), tokens.tolist(), {"one": 1.0, "scaled": 1.1})
    ratio = losses.sum() / tokens.sum()
    assert (first.name, second.name) == ("one", "scaled")
    assert first.value == pytest.approx(np.exp(ratio), rel=1e-12)
    assert second.value == pytest.approx(np.exp(1.1 * ratio), rel=1e-12)
    assert second.loss == pytest.approx(1.1 * ratio, rel=1e-12)


def test_a_scale_stretches_the_error_of_the_logarithm() -> None:
    losses, tokens = documents(25, seed=2)
    first, second = ratio_perplexity_metrics(losses.tolist(), tokens.tolist(), {"one": 1.0, "scaled": 1.3})
    assert log_se(second) == pytest.approx(1.3 * log_se(first), rel=1e-12)
    assert second.low is not None
    assert second.high is not None
    assert math.log(second.value / second.low) == pytest.approx(math.log(second.high / second.value), rel=1e-9)


@given(losses=LOSSES, size=st.integers(1, 500))
def test_documents_of_equal_size_have_the_plain_standard_error(losses: list[float], size: int) -> None:
    ratio = ratio_perplexity_metrics([loss * size for loss in losses], [size] * len(losses), {"p": 1.0})[0]
    plain = mean_perplexity_metric("p", losses)
    assert ratio.value == pytest.approx(plain.value, rel=1e-9)
    assert log_se(ratio) == pytest.approx(log_se(plain), rel=1e-6, abs=1e-9)
    assert ratio.low == pytest.approx(plain.low, rel=1e-6)
    assert ratio.high == pytest.approx(plain.high, rel=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_standard_error_agrees_with_resampled_documents(seed: int) -> None:
    losses, tokens = documents(60, seed)
    metric = ratio_perplexity_metrics(losses.tolist(), tokens.tolist(), {"p": 1.0})[0]
    picks = np.random.default_rng(seed + 100).integers(0, 60, (4000, 60))
    resampled = losses[picks].sum(1) / tokens[picks].sum(1)
    assert log_se(metric) == pytest.approx(resampled.std(ddof=1), rel=0.12)


def test_tokens_taken_as_independent_would_claim_too_much() -> None:
    losses, tokens = documents(60, seed=4)
    by_document = ratio_perplexity_metrics(losses.tolist(), tokens.tolist(), {"p": 1.0})[0]
    assert log_se(by_document) > 2 * 1.55 / math.sqrt(tokens.sum())


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(300):
        metric = ratio_perplexity_metrics(*(part.tolist() for part in documents(20, seed + 1000)), {"p": 1.0})[0]
        assert metric.low is not None
        assert metric.high is not None
        covered += metric.low <= math.exp(3.0) <= metric.high
    assert 0.90 <= covered / 300 <= 0.99


def test_one_document_has_no_error_bar() -> None:
    metric = ratio_perplexity_metrics([30.0], [10.0], {"p": 2.0})[0]
    assert metric.value == pytest.approx(math.exp(6.0))
    assert (metric.stderr, metric.low, metric.high) == (None, None, None)


@given(losses=LOSSES)
def test_an_interval_holds_its_value(losses: list[float]) -> None:
    for metric in (
        mean_perplexity_metric("p", losses),
        *ratio_perplexity_metrics(losses, [1.0] * len(losses), {"p": 1.2}),
    ):
        assert metric.low is not None
        assert metric.high is not None
        assert metric.low <= metric.value * (1 + 1e-12)
        assert metric.value <= metric.high * (1 + 1e-12)
