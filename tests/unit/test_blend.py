"""Blends: the corpus furthest behind its share comes next, each in its own order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpeval.corpus.blend import Blend, asked_of, blend, normalised
from mpeval.corpus.compiled import compiled
from mpeval.errors import UsageError


class Numbers:
    """Samples that are their own numbers."""

    def __init__(self, name: str, size: int) -> None:
        self.name, self.size = name, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"ids": np.array([index])}

    def documents(self, index: int) -> list[str]:
        return [f"{self.name}:{index}"]


def mixed(weights: Sequence[float], samples: int, cache: Path | None = None) -> Blend:
    shares = normalised(weights)
    parts = [Numbers(f"c{number}", asked_of(share, samples)) for number, share in enumerate(shares)]
    return blend(parts, shares, samples, cache)


def test_a_blend_takes_from_the_corpus_furthest_behind() -> None:
    # 1/2, 1/3 and 1/6 of the samples so far, less what each has given: worked out by hand
    assert mixed([3, 2, 1], 6).corpus.tolist() == [0, 1, 2, 0, 1, 0]


@settings(max_examples=60)
@given(st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=6), st.integers(1, 400))
def test_every_choice_is_the_greedy_one_and_shares_are_kept(weights: list[float], samples: int) -> None:
    made, shares = mixed(weights, samples), normalised(weights)
    counts = [0] * len(weights)
    for sample in range(samples):
        behind = [share * max(sample, 1) - count for share, count in zip(shares, counts, strict=True)]
        chosen = int(np.argmax(behind))
        assert (made.corpus[sample], made.number[sample]) == (chosen, counts[chosen])
        counts[chosen] += 1
    for part, share, count in zip(made.parts, shares, counts, strict=True):
        assert count <= len(part)
        # a corpus is never a whole sample ahead; among more than two it can fall further behind for a while
        assert -1 - (len(weights) > 2) < count - share * samples < 1


def test_a_blend_passes_on_samples_and_documents(tmp_path: Path) -> None:
    made = mixed([3, 2, 1], 6, tmp_path)
    assert len(made) == 6
    assert [int(made[index]["ids"][0]) for index in range(6)] == [0, 0, 0, 1, 1, 2]
    assert [made.documents(index) for index in range(3)] == [["c0:0"], ["c1:0"], ["c2:0"]]
    assert mixed([3, 2, 1], 6, tmp_path).corpus.tolist() == made.corpus.tolist()
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(IndexError):
        made[6]


@pytest.mark.parametrize(("weight", "samples", "asked"), [(1.0, 1000, 1005), (0.3, 10, 4), (0.5, 2001, 1007)])
def test_each_corpus_is_asked_for_half_a_per_cent_more(weight: float, samples: int, asked: int) -> None:
    assert asked_of(weight, samples) == asked


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(UsageError, match=f"weight {weight:g}"):
        normalised([1.0, weight])


def twice(number: int) -> int:
    return 2 * number


def test_where_machine_code_cannot_be_kept_it_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    # numba looks for a folder to keep it in: beside the source, then in the home folder
    monkeypatch.setattr("numba.core.caching.CacheImpl._locator_classes", [])
    assert compiled.__wrapped__(twice)(21) == 42
