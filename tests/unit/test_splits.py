"""The parts of a corpus: every document in one of them, boundaries where Megatron puts them, clear refusals."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpeval.corpus.splits import PARTS, documents_of, split_bounds, split_shares
from mpeval.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("split", "documents", "bounds"),
    [
        ("969,30,1", 1000, [0, 969, 999, 1000]),
        ("969,30,1", 20, [0, 19, 20, 20]),
        ("90,10", 15, [0, 14, 15, 15]),  # 13.5 is rounded to the even 14
        ("90,10", 25, [0, 22, 25, 25]),  # and 22.5 to 22
        ("1,1,1", 8, [0, 3, 5, 8]),
        ("1", 3, [0, 3, 3, 3]),
        (" 0.5, 0.25 ,0.25", 8, [0, 4, 6, 8]),
        ("0,0,7", 4, [0, 0, 0, 4]),
    ],
)
def test_boundaries_are_rounded_sums_of_the_shares(split: str, documents: int, bounds: list[int]) -> None:
    assert split_bounds(split, documents) == bounds


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=3).filter(any), st.integers(0, 10**9))
def test_the_parts_hold_every_document_once(shares: list[int], documents: int) -> None:
    split = ",".join(map(str, shares))
    bounds = split_bounds(split, documents)
    assert (bounds[0], bounds[-1]) == (0, documents)
    for share, (low, high) in zip(split_shares(split), itertools.pairwise(bounds), strict=True):
        assert abs((high - low) - share * documents) <= 1 + 1e-6


def test_a_part_is_a_range_of_documents() -> None:
    parts = [documents_of(part, "969,30,1", 1000, "c") for part in PARTS]
    assert parts == [range(969), range(969, 999), range(999, 1000)]


@pytest.mark.parametrize("split", ["", "a,b", "1,2,3,4", "1,,2", "-1,2", "0,0,0", "nan,1", "inf,1"])
def test_what_is_no_split_is_refused(split: str) -> None:
    with pytest.raises(ConfigError, match=f"split `{split}`") as raised:
        split_bounds(split, 10)
    assert "--set split=" in raised.value.hint


def test_a_part_without_documents_is_refused_with_what_each_part_has() -> None:
    with pytest.raises(DataError, match=r"no document of `c` is in part `test`: .* of 20 documents gives 19, 1 and 0"):
        documents_of("test", "969,30,1", 20, "c")
