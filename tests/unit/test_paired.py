"""Two models on the same questions: joined or refused, and their difference against formulas and scipy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mpeval.errors import DataError
from mpeval.predictions.paired import compare, compare_all, holm, join

Lines = list[dict[str, Any]]


def lines_of(correct: list[bool], passages: list[str] | None = None) -> Lines:
    """Return sample lines, of questions that share passages or not."""
    made: Lines = [
        {"task": "race/megatron", "id": f"q{number}", "target": 1, "correct": right}
        for number, right in enumerate(correct)
    ]
    for line, passage in zip(made, passages or [], strict=False):
        line["passage"] = passage
    return made


def drawn(count: int, seed: int, share: float = 0.6) -> list[bool]:
    return [bool(value) for value in np.random.default_rng(seed).random(count) < share]


def passages_of(count: int, seed: int, most: int = 6) -> list[str]:
    """Return the passages of questions, 1 to `most` questions each, mixed."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, most + 1, count)
    made = [f"p{number}" for number, size in enumerate(sizes) for _ in range(size)][:count]
    return [str(passage) for passage in random.permutation(made)]


PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=50)


# ---- the difference ----


@given(pairs=PAIRS)
def test_unclustered_differences_have_the_error_of_a_mean(pairs: list[tuple[bool, bool]]) -> None:
    a, b = ([pair[side] for pair in pairs] for side in (0, 1))
    found = compare(lines_of(a), lines_of(b))
    differences = np.array(a, float) - np.array(b, float)
    assert found.difference == pytest.approx(differences.mean(), abs=1e-15)
    assert found.stderr == pytest.approx(stats.sem(differences), abs=1e-12)
    assert (found.n, found.clusters) == (len(pairs), len(pairs))


@given(pairs=PAIRS)
def test_the_error_is_that_of_equation_7(pairs: list[tuple[bool, bool]]) -> None:
    """Var(a) / n + Var(b) / n - 2 Cov(a, b) / n, each with n - 1."""
    a, b = (np.array([pair[side] for pair in pairs], float) for side in (0, 1))
    found = compare(lines_of([bool(value) for value in a]), lines_of([bool(value) for value in b]))
    covariance = np.cov(a, b)
    assert found.stderr is not None
    expected = (covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]) / len(pairs)
    assert found.stderr**2 == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_clustered_differences_have_the_error_of_equation_4(seed: int) -> None:
    a, b, passages = drawn(80, seed), drawn(80, seed + 50), passages_of(80, seed)
    found = compare(lines_of(a, passages), lines_of(b, passages))
    differences = np.array(a, float) - np.array(b, float)
    deviations = differences - differences.mean()
    total = sum(deviations[i] * deviations[j] for i in range(80) for j in range(80) if passages[i] == passages[j])
    clusters = len(set(passages))
    assert found.stderr == pytest.approx(math.sqrt(clusters / (clusters - 1) * total) / 80, rel=1e-10)
    assert found.clusters == clusters


def test_questions_that_go_together_make_the_error_larger() -> None:
    """Each passage four times over is no more evidence than once."""
    a, b = drawn(60, 1), drawn(60, 2)
    once = compare(lines_of(a), lines_of(b))
    four = [f"p{number}" for number in range(60) for _ in range(4)]
    repeated = compare(
        lines_of([value for value in a for _ in range(4)], four),
        lines_of([value for value in b for _ in range(4)], four),
    )
    assert repeated.stderr == pytest.approx(once.stderr, rel=1e-12)
    assert repeated.p_value == pytest.approx(once.p_value, rel=1e-9)
    assert repeated.mcnemar < once.mcnemar


@pytest.mark.parametrize("seed", [1, 2])
def test_the_clustered_error_agrees_with_resampled_passages(seed: int) -> None:
    a, b, passages = drawn(200, seed), drawn(200, seed + 50), passages_of(200, seed)
    found = compare(lines_of(a, passages), lines_of(b, passages))
    names = sorted(set(passages))
    differences = np.array(a, float) - np.array(b, float)
    sums = np.array([sum(differences[i] for i in range(200) if passages[i] == name) for name in names])
    sizes = np.array([passages.count(name) for name in names])
    picks = np.random.default_rng(seed).integers(0, len(names), (4000, len(names)))
    resampled = sums[picks].sum(1) / sizes[picks].sum(1)
    assert found.stderr == pytest.approx(resampled.std(ddof=1), rel=0.1)


@pytest.mark.parametrize("seed", range(4))
def test_interval_and_p_value_are_the_normal_distributions(seed: int) -> None:
    a, b, passages = drawn(90, seed, 0.7), drawn(90, seed + 9), passages_of(90, seed)
    found = compare(lines_of(a, passages), lines_of(b, passages))
    assert found.stderr is not None
    normal = stats.norm(found.difference, found.stderr)
    assert (found.low, found.high) == pytest.approx(normal.interval(0.95), abs=1e-12)
    assert found.p_value == pytest.approx(2 * stats.norm.cdf(-abs(found.difference / found.stderr)), rel=1e-9)
    assert found.low is not None
    assert found.high is not None
    assert found.p_value is not None
    assert (found.p_value < 0.05) == (not found.low <= 0 <= found.high)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (5, 5), (0, 7), (3, 12), (40, 61)])
def test_mcnemar_is_exact(b: int, c: int) -> None:
    a_right = [True] * b + [False] * c + [True, False] * 5
    b_right = [False] * b + [True] * c + [True, False] * 5
    found = compare(lines_of(a_right), lines_of(b_right))
    assert (found.only_first, found.only_second) == (b, c)
    counts = [math.comb(b + c, k) for k in range(b + c + 1)]
    tail = sum(count for count in counts if count <= counts[b])
    assert found.mcnemar == pytest.approx(tail / 2 ** (b + c), rel=1e-10)


def test_swapping_the_models_turns_the_sign_only() -> None:
    passages = passages_of(50, 3)
    a, b = lines_of(drawn(50, 1), passages), lines_of(drawn(50, 2), passages)
    one, other = compare(a, b, ("a", "b")), compare(b, a, ("b", "a"))
    assert one.difference == -other.difference
    assert (one.stderr, one.p_value, one.mcnemar) == (other.stderr, other.p_value, other.mcnemar)
    assert (one.only_first, one.only_second) == (other.only_second, other.only_first)
    assert (one.first, one.second) == ("a", "b")


def test_the_order_of_lines_does_not_matter() -> None:
    passages = passages_of(50, 3)
    a, b = lines_of(drawn(50, 1), passages), lines_of(drawn(50, 2), passages)
    assert compare(a, b) == compare(a[::-1], b)


def test_the_same_answers_are_no_difference() -> None:
    found = compare(lines_of(drawn(20, 1)), lines_of(drawn(20, 1)))
    assert (found.difference, found.stderr, found.p_value, found.mcnemar) == (0.0, 0.0, 1.0, 1.0)


def test_a_model_that_is_always_right_against_one_that_never_is_takes_the_sign_test() -> None:
    found = compare(lines_of([True] * 10), lines_of([False] * 10))
    assert (found.difference, found.stderr) == (1.0, 0.0)
    assert found.p_value == pytest.approx(stats.binomtest(10, 10).pvalue)
    passages = [f"p{number // 5}" for number in range(10)]
    clustered = compare(lines_of([True] * 10, passages), lines_of([False] * 10, passages))
    assert clustered.p_value == pytest.approx(stats.binomtest(2, 2).pvalue)


def test_one_passage_has_no_error() -> None:
    found = compare(lines_of([True, False], ["p", "p"]), lines_of([False, False], ["p", "p"]))
    assert (found.difference, found.clusters) == (0.5, 1)
    assert (found.stderr, found.low, found.high, found.p_value) == (None, None, None, None)


# ---- joining ----


def test_joined_samples_are_in_the_order_of_the_first() -> None:
    a = lines_of([True, False, True])
    b = [{**line, "correct": False} for line in a[::-1]]
    joined = join([a, b, a], ["a", "b", "c"])
    assert [[sample["id"] for sample in samples] for samples in joined] == [[f"q{number}"] * 3 for number in range(3)]
    assert [samples[0]["correct"] for samples in joined] == [True, False, True]
    assert not any(samples[1]["correct"] for samples in joined)


def test_ids_that_only_one_has_are_refused_with_both_sides_and_counts() -> None:
    a = lines_of([True] * 6)
    b = [*a[:1], *({**line, "id": f"other{number}"} for number, line in enumerate(a[:2]))]
    with pytest.raises(DataError) as raised:
        compare(a, b, ("runs/a/samples.jsonl", "runs/b/samples.jsonl"))
    said = raised.value.message
    assert "`runs/b/samples.jsonl` lacks 5 questions (`q1`, `q2`, `q3`, ...) of `runs/a/samples.jsonl`" in said
    assert "`runs/a/samples.jsonl` lacks 2 questions (`other0`, `other1`) of `runs/b/samples.jsonl`" in said
    assert raised.value.hint


@pytest.mark.parametrize("side", [0, 1])
def test_one_absent_question_is_enough(side: int) -> None:
    both = [lines_of([True] * 5), lines_of([True] * 5)]
    del both[side][2]
    with pytest.raises(DataError, match=rf"`{'ab'[side]}` lacks 1 question \(`q2`\) of `{'ab'[1 - side]}`"):
        compare(*both, ("a", "b"))


@pytest.mark.parametrize("side", [0, 1])
def test_a_question_twice_is_refused(side: int) -> None:
    both = [lines_of([True] * 5), lines_of([True] * 5)]
    both[side].append(both[side][3])
    with pytest.raises(DataError, match=rf"`{'ab'[side]}` has 1 question \(`q3`\) more than once"):
        compare(*both, ("a", "b"))


@pytest.mark.parametrize(
    ("key", "value"), [("task", "race/longest-context"), ("target", 2), ("passage", "other"), ("group", "high")]
)
def test_the_same_id_with_something_else_is_refused(key: str, value: object) -> None:
    a, b = lines_of([True] * 3, list("xyz")), lines_of([True] * 3, list("xyz"))
    b[1][key] = value
    with pytest.raises(DataError, match=f"`q1` has the {key} .* in `a`, `{value}` in `b`"):
        compare(a, b, ("a", "b"))


def test_no_lines_are_refused() -> None:
    with pytest.raises(DataError, match="`b` holds no predictions"):
        compare(lines_of([True]), [], ("a", "b"))


# ---- many tests ----


@given(p_values=st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferronis(p_values: list[float]) -> None:
    """A hypothesis is rejected when every set that holds it is, each by Bonferroni; that defines the correction."""
    everything = range(len(p_values))
    sets = [chosen for size in range(1, len(p_values) + 1) for chosen in itertools.combinations(everything, size)]
    expected = [
        max(min(1.0, len(chosen) * min(p_values[place] for place in chosen)) for chosen in sets if index in chosen)
        for index in everything
    ]
    assert holm(p_values) == pytest.approx(expected, abs=1e-15)


def test_holm_of_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_comparisons_made_together_are_corrected_together() -> None:
    one = lines_of(drawn(100, 1, 0.8))
    others = [lines_of(drawn(100, seed, 0.5)) for seed in (2, 3, 4)]
    found = compare_all(one, others, "one", ["b", "c", "d"])
    p_values = [item.p_value for item in found if item.p_value is not None]
    assert [item.p_value_holm for item in found] == holm(p_values)
    assert [(item.first, item.second) for item in found] == [("one", name) for name in "bcd"]
    for item, other in zip(found, others, strict=True):
        assert item.model_copy(update={"p_value_holm": None}) == compare(one, other, (item.first, item.second))
