"""Micro-batches of questions: fewest tokens with padding, against every way to cut."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpeval.train.questions import Packed


def padded(lengths: list[list[int]], group: list[int]) -> int:
    return sum(len(lengths[place]) for place in group) * max(max(lengths[place]) for place in group)


def cut(lengths: list[list[int]], budget: int) -> list[list[int]]:
    return Packed(budget).cut([{"lengths": np.array(rows)} for rows in lengths])


@given(
    st.lists(st.lists(st.integers(1, 300), min_size=1, max_size=4), min_size=1, max_size=9),
    st.integers(100, 5000),
)
@settings(max_examples=100, deadline=None)
def test_no_way_to_cut_questions_sorted_by_length_costs_less(lengths: list[list[int]], budget: int) -> None:
    overhead = Packed(budget).overhead
    order = sorted(range(len(lengths)), key=lambda place: (-max(lengths[place]), place))

    def cost(groups: list[list[int]]) -> float:
        over = any(len(group) > 1 and padded(lengths, group) > budget for group in groups)
        return float("inf") if over else sum(padded(lengths, group) + overhead for group in groups)

    ways = [
        [order[begin:end] for begin, end in zip((0, *places), (*places, len(order)), strict=True)]
        for count in range(len(order))
        for places in combinations(range(1, len(order)), count)
    ]
    found = cut(lengths, budget)
    assert [place for group in found for place in group] == order
    assert cost(found) == min(map(cost, ways))


@pytest.mark.parametrize(
    ("lengths", "budget", "expected"),
    [
        ([[40, 40]] * 4, 2048, [[0, 1, 2, 3]]),  # alike: all at once
        ([[40, 40], [200, 200], [40, 40]], 2048, [[1], [0, 2]]),  # 640 more tokens of padding are worth a group
        ([[40, 40], [50, 50], [40, 40]], 2048, [[1, 0, 2]]),  # 40 more are not
        ([[512] * 4, [512] * 4], 2048, [[0], [1]]),
    ],
)
def test_a_group_more_is_made_where_it_saves_more_padding_than_it_costs(
    lengths: list[list[int]], budget: int, expected: list[list[int]]
) -> None:
    assert cut(lengths, budget) == expected
