"""Values and error bars agree with scipy, scikit-learn, numpy, and with resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from mpeval.errors import DataError
from mpeval.report import show_metric
from mpeval.results import Metric
from mpeval.statistics import (
    accuracy_metric,
    bits_metric,
    clustered_accuracy_metric,
    clustered_error,
    exact_interval,
    f1_metric,
    mean_metric,
    mean_perplexity_metric,
    ratio_perplexity_metrics,
)
from mpeval.tasks.summary import summarise_choices

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


# ---- accuracy and means of items that share passages ----


def passages(count: int, seed: int) -> list[str]:
    """Return the passages of `count` items, up to six items each."""
    sizes = np.random.default_rng(seed).integers(1, 7, count)
    return [f"p{number}" for number, size in enumerate(sizes) for _ in range(size)][:count]


@given(answers=st.lists(st.booleans(), min_size=1, max_size=60))
def test_items_that_share_nothing_have_the_plain_accuracy(answers: list[bool]) -> None:
    alone = [str(number) for number in range(len(answers))]
    metric = clustered_accuracy_metric(answers, alone, "accuracy_high")
    assert metric == accuracy_metric(sum(answers), len(answers), "accuracy_high")
    assert metric.name == "accuracy_high"


@pytest.mark.parametrize("seed", range(4))
def test_the_clustered_error_is_that_of_equation_4(seed: int) -> None:
    random = np.random.default_rng(seed)
    values, clusters = random.random(70), passages(70, seed)
    deviations = values - values.mean()
    same = np.array([[one == other for one in clusters] for other in clusters])
    total = float((np.outer(deviations, deviations) * same).sum())
    count = len(set(clusters))
    expected = math.sqrt(count / (count - 1) * total) / 70
    assert clustered_error(values.tolist(), clusters) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_clustered_error_is_the_sandwich_estimators(seed: int) -> None:
    """A mean is a regression on a constant, whose cluster-robust variance (X'X)^-1 (sum of s s') (X'X)^-1 this is."""
    random = np.random.default_rng(seed)
    clusters = passages(120, seed)
    right = [bool(value) for value in random.random(120) < 0.7]
    design = np.ones((120, 1))
    residuals = np.array(right, float) - np.linalg.lstsq(design, np.array(right, float), rcond=None)[0]
    scores = {name: np.zeros((1, 1)) for name in clusters}
    for row, residual, name in zip(design, residuals, clusters, strict=True):
        scores[name] += row[:, None] * residual
    bread = np.linalg.inv(design.T @ design)
    meat = sum((score @ score.T for score in scores.values()), np.zeros((1, 1)))
    count = len(scores)
    robust = float((bread @ meat @ bread)[0, 0]) * count / (count - 1)
    metric = clustered_accuracy_metric(right, clusters)
    assert metric.stderr == pytest.approx(math.sqrt(robust), rel=1e-10)
    assert metric.value == pytest.approx(accuracy_score([True] * 120, right), abs=1e-15)
    reach = stats.t.ppf(0.975, count - 1) * math.sqrt(robust)
    assert (metric.low, metric.high) == pytest.approx((metric.value - reach, metric.value + reach), rel=1e-10)
    assert metric.interval == "student-t of passages"


@given(answers=st.lists(st.booleans(), min_size=2, max_size=40), size=st.integers(2, 5))
def test_a_passage_whose_questions_go_together_counts_once(answers: list[bool], size: int) -> None:
    repeated = [right for right in answers for _ in range(size)]
    clusters = [str(number) for number in range(len(answers)) for _ in range(size)]
    metric = clustered_accuracy_metric(repeated, clusters)
    assert metric.stderr == pytest.approx(stats.sem(np.asarray(answers, float)), abs=1e-12)
    assert metric.low is not None
    assert metric.high is not None
    assert 0 <= metric.low <= metric.value <= metric.high <= 1


def test_the_clustered_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(300):
        random = np.random.default_rng(seed)
        clusters = [str(number) for number in range(40) for _ in range(4)]
        chances = np.repeat(random.beta(3, 2, 40), 4)  # of mean 0.6
        metric = clustered_accuracy_metric([bool(one) for one in random.random(160) < chances], clusters)
        assert metric.low is not None
        assert metric.high is not None
        covered += metric.low <= 0.6 <= metric.high
    assert 0.91 <= covered / 300 <= 0.99


@pytest.mark.parametrize("right", [True, False])
def test_passages_that_do_not_differ_still_have_an_interval(right: bool) -> None:
    clusters = [f"p{number // 3}" for number in range(30)]
    metric = clustered_accuracy_metric([right] * 30, clusters)
    interval = stats.binomtest(10 * right, 10).proportion_ci(0.95, method="wilson")
    assert (metric.low, metric.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert (metric.value, metric.stderr, metric.interval) == (float(right), 0.0, "wilson of passages")


def test_one_passage_has_no_error_bar() -> None:
    metric = clustered_accuracy_metric([True, False, True], ["p"] * 3)
    assert metric.value == pytest.approx(2 / 3)
    assert (metric.stderr, metric.low, metric.high, metric.interval) == (None, None, None, None)


@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_a_mean_of_single_items_has_the_error_and_interval_of_a_mean(values: list[float]) -> None:
    metric = mean_metric("f1", values, [str(number) for number in range(len(values))])
    assert metric.value == pytest.approx(np.mean(values), abs=1e-12)
    assert metric.stderr == pytest.approx(stats.sem(values), abs=1e-12)
    assert metric.stderr is not None
    if metric.stderr > 1e-9:
        low, high = stats.t(len(values) - 1, metric.value, metric.stderr).interval(0.95)
        assert (metric.low, metric.high) == pytest.approx((max(0.0, low), min(1.0, high)), abs=1e-9)
        assert metric.interval == "student-t of items"
    assert (metric.name, metric.unit, metric.direction) == ("f1", "proportion", "max")


# ---- F1 ----


def labels(count: int, seed: int, share: float = 0.4) -> list[int]:
    return [int(value) for value in np.random.default_rng(seed).random(count) < share]


@given(pairs=st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
def test_f1_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    targets, predictions = ([pair[side] for pair in pairs] for side in (0, 1))
    metric = f1_metric(targets, predictions)
    assert metric.value == pytest.approx(f1_score(targets, predictions, zero_division=0.0), abs=1e-15)
    if metric.low is not None and metric.high is not None:
        assert 0 <= metric.low <= metric.high <= 1


@pytest.mark.parametrize(("n", "share"), [(60, 0.5), (300, 0.3)])
def test_f1_has_the_error_and_interval_of_resampled_items(n: int, share: float) -> None:
    targets = np.array(labels(n, 1, share))
    predictions = np.where(np.random.default_rng(2).random(n) < 0.8, targets, 1 - targets)
    metric = f1_metric(targets.tolist(), predictions.tolist())
    picks = np.random.default_rng(3).integers(0, n, (3000, n))
    both, either = (targets & predictions)[picks].sum(1), (targets + predictions)[picks].sum(1)
    resampled = 2 * both / either
    assert metric.stderr == pytest.approx(resampled.std(ddof=1), rel=0.06)
    assert (metric.low, metric.high) == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])), abs=0.015)
    assert metric.interval == "bootstrap of items, 10,000 draws"


def test_f1_is_the_same_every_time() -> None:
    targets, predictions = labels(50, 1), labels(50, 2)
    assert f1_metric(targets, predictions) == f1_metric(targets, predictions)


@pytest.mark.parametrize(("targets", "predictions"), [([1], [1]), ([0, 0, 0], [0, 0, 0]), ([1, 1], [1, 1])])
def test_f1_of_items_of_one_kind_has_no_error_bar(targets: list[int], predictions: list[int]) -> None:
    metric = f1_metric(targets, predictions, "f1_duplicate")
    assert (metric.name, metric.value) == ("f1_duplicate", float(targets[0]))
    assert (metric.stderr, metric.low, metric.high, metric.interval) == (None, None, None, None)


# ---- scores of choices ----


def choice(uid: str, correct: bool, **more: object) -> dict[str, object]:
    return {"task": "race/megatron", "id": uid, "target": 0, "correct": correct, **more}


def test_all_questions_are_pooled_and_groups_follow_middle_first() -> None:
    samples = [
        *(choice(f"h{n}", n < 9, group="high", passage=f"h{n // 3}") for n in range(12)),
        *(choice(f"m{n}", n < 2, group="middle", passage=f"m{n // 2}") for n in range(4)),
    ]
    metrics, n, correct = summarise_choices(samples)
    assert (n, correct) == (16, 11)
    assert [metric.name for metric in metrics] == ["accuracy", "accuracy_middle", "accuracy_high"]
    assert [metric.value for metric in metrics] == [11 / 16, 2 / 4, 9 / 12]
    parts = {"accuracy": samples, "accuracy_middle": samples[12:], "accuracy_high": samples[:12]}
    for metric in metrics:
        right = [bool(sample["correct"]) for sample in parts[metric.name]]
        by_passage = [str(sample["passage"]) for sample in parts[metric.name]]
        assert metric == clustered_accuracy_metric(right, by_passage, metric.name)


def test_questions_without_group_or_passage_have_one_accuracy() -> None:
    metrics, n, correct = summarise_choices([choice(str(number), number % 3 == 0) for number in range(9)])
    assert metrics == [accuracy_metric(3, 9)]
    assert (n, correct) == (9, 3)


def test_other_groups_are_in_the_order_they_appear() -> None:
    samples = [choice(str(number), True, group=group) for number, group in enumerate(["b", "a", "b", "high"])]
    assert [metric.name for metric in summarise_choices(samples)[0]] == [
        *("accuracy", "accuracy_high", "accuracy_b", "accuracy_a")
    ]


def test_choices_by_likelihood_per_character_have_an_accuracy_of_their_own() -> None:
    samples = [choice(str(number), number < 3, correct_norm=number < 5) for number in range(10)]
    assert summarise_choices(samples)[0] == [accuracy_metric(3, 10), accuracy_metric(5, 10, "accuracy_norm")]


def test_questions_without_a_known_answer_have_no_accuracy() -> None:
    samples = [choice("a", True), {**choice("b", False), "target": -1}]
    with pytest.raises(DataError, match="1 of 2 questions have no published answer, the first is `b`"):
        summarise_choices(samples)
    with pytest.raises(DataError, match="no question"):
        summarise_choices([])


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


def test_bits_are_the_logarithm_of_the_perplexity_to_base_two() -> None:
    losses, sizes = documents(25, seed=5)
    perplexity = ratio_perplexity_metrics(losses.tolist(), sizes.tolist(), {"p": 1.0})[0]
    bits = bits_metric("bits_per_byte", losses.tolist(), sizes.tolist())
    assert (bits.name, bits.unit, bits.direction) == ("bits_per_byte", "bits", "min")
    assert bits.interval == perplexity.interval
    assert perplexity.low is not None
    assert perplexity.high is not None
    found = (bits.value, bits.low, bits.high)
    assert found == pytest.approx(np.log2([perplexity.value, perplexity.low, perplexity.high]).tolist())
    assert bits.stderr == pytest.approx(log_se(perplexity) / math.log(2))
    alone = bits_metric("b", [30.0], [10.0])
    assert (alone.value, alone.stderr, alone.low) == (pytest.approx(3 / math.log(2)), None, None)
    assert show_metric(alone) == "4.3281"


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


@pytest.mark.parametrize(("correct", "n"), [(0, 1), (1, 1), (0, 50), (50, 50), (1, 7), (2319, 5153), (33, 1838)])
def test_the_exact_interval_is_that_of_clopper_and_pearson(correct: int, n: int) -> None:
    expected = stats.binomtest(correct, n).proportion_ci(0.95, method="exact")
    assert exact_interval(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("n", [5, 30, 100])
def test_the_exact_interval_covers_at_least_as_often_as_it_says(share: float, n: int) -> None:
    held = [low <= share <= high for low, high in (exact_interval(correct, n) for correct in range(n + 1))]
    assert float(stats.binom.pmf(np.arange(n + 1), n, share)[np.array(held)].sum()) >= 0.95
