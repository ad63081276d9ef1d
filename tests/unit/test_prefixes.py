"""Rows of sequences that begin alike: what each token sees, against a plain trie, and when sharing a row pays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpeval import prefixes
from mpeval.prefixes import Bundle, Costs, bundles, join, preambles, shared

SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=8)
CHEAP = Costs(exchange=1e9, longest=10**9)


def arrays(sequences: list[list[int]]) -> list[np.ndarray]:
    return [np.array(sequence, np.int64) for sequence in sequences]


def all_prefixes(sequences: list[list[int]]) -> set[tuple[int, ...]]:
    return {tuple(sequence[: end + 1]) for sequence in sequences for end in range(len(sequence))}


def test_the_row_of_the_module_docstring() -> None:
    row = join(arrays([[5, 1, 2], [5, 1, 3], [5, 4]]))
    assert row.ids.tolist() == [5, 1, 2, 3, 4]
    assert row.positions.tolist() == [0, 1, 2, 2, 1]
    assert row.ends.tolist() == [5, 4, 3, 4, 5]
    assert [path.tolist() for path in row.paths] == [[0, 1, 2], [0, 1, 3], [0, 4]]


@given(SEQUENCES)
def test_every_token_sees_its_own_sequence_and_nothing_else(sequences: list[list[int]]) -> None:
    row = join(arrays(sequences))
    for sequence, path in zip(sequences, row.paths, strict=True):
        assert row.ids[path].tolist() == sequence
        assert row.positions[path].tolist() == list(range(len(sequence)))
        for depth, place in enumerate(path):
            seen = [key for key in range(len(row.ids)) if key <= place < row.ends[key]]
            assert seen == path[: depth + 1].tolist()
    assert (row.ends > np.arange(len(row.ids))).all()


@given(SEQUENCES)
def test_sorted_sequences_share_all_that_a_trie_shares(sequences: list[list[int]]) -> None:
    assert len(join(arrays(sorted(sequences))).ids) == len(all_prefixes(sequences))


@given(st.lists(SEQUENCES, max_size=6))
def test_bundles_hold_every_request_once_and_count_their_tokens(requests: list[list[list[int]]]) -> None:
    made = bundles([arrays(request) for request in requests], CHEAP)
    assert sorted(number for bundle in made for number in bundle.requests) == list(range(len(requests)))
    for bundle in made:
        sequences = [sequence for number in bundle.requests for sequence in requests[number]]
        assert sum(bundle.rows) == len(sequences)
        begin = 0
        for count, length in zip(bundle.rows, bundle.lengths, strict=True):
            assert len(join(arrays(sequences[begin : begin + count])).ids) == length
            begin += count


def test_requests_that_begin_alike_find_each_other() -> None:
    requests = [arrays([[1, 2, 3, 9]]), arrays([[7, 7, 7, 7]]), arrays([[1, 2, 3, 8], [1, 2, 3, 4]])]
    costs = Costs(exchange=20.0, longest=100)
    assert bundles(requests, costs) == [Bundle([2, 0], [3], [6]), Bundle([1], [1], [4])]


@pytest.mark.parametrize(
    ("begin", "own", "exchange", "joined"),
    [
        (50, 10, 4608.0, True),  # a question's options at GPT-2-small size
        (1, 100, 4608.0, False),  # an end-of-text token is all they share
        (50, 10, 10.0, False),  # attention is dear: pairs that are masked cost more than tokens
    ],
)
def test_sequences_join_where_that_is_cheaper(begin: int, own: int, exchange: float, joined: bool) -> None:
    head = [1] * begin
    requests = [arrays([head + [2] * own]), arrays([head + [3] * own])]
    assert (len(bundles(requests, Costs(exchange=exchange, longest=10**6))) == 1) is joined


def test_a_row_ends_at_its_longest() -> None:
    requests = [arrays([[1] * 20 + [number]]) for number in range(30)]
    made = bundles(requests, Costs(exchange=1e6, longest=25))
    assert [bundle.lengths for bundle in made] == [[25]] * 6


def test_what_two_sequences_share_is_counted_up_to_the_shorter() -> None:
    assert shared(np.array([1, 2, 3]), np.array([1, 2])) == 2
    assert shared(np.array([1, 2]), np.array([3])) == 0
    assert shared(np.array([1, 5, 3]), np.array([1, 2, 3])) == 1
    assert shared(np.zeros(0), np.array([1])) == 0


APART = Costs(exchange=1.0, longest=1)  # nothing shares a row


def found_preambles(sequences: list[list[int]], spare: int = 10**6) -> list[tuple[int, list[int]]]:
    requests = [arrays([sequence]) for sequence in sequences]
    groups = preambles(requests, bundles(requests, APART), [spare] * len(requests))
    return [(length, sorted(number for bundle in made for number in bundle.requests)) for length, made in groups]


def test_a_preamble_is_what_neighbours_begin_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "LEAST", 3)
    monkeypatch.setattr(prefixes, "WORTH", 8)
    long, other = [1, 2, 3, 4, 5], [7, 7, 7, 7]
    sequences = [[*long, 6], [*other, 1], [*long, 7, 7], [9, 9], [*other, 2], [*long, 8], [*other, 3]]
    assert found_preambles(sequences) == [(0, [3]), (5, [0, 2, 5]), (4, [1, 4, 6])]
    # a target stands at the fourth token already
    assert found_preambles(sequences, spare=4) == [(0, [3]), (4, [0, 2, 5]), (4, [1, 4, 6])]


def test_what_saves_too_little_is_no_preamble() -> None:
    head = [1] * 400
    few = [[*head, number] for number in range(2, 5)]
    assert found_preambles(few) == [(0, [0, 1, 2])]
    assert found_preambles([*few, [*head, 5]]) == [(400, [0, 1, 2, 3])]
    short = [[1] * 63 + [number] for number in range(2, 200)]
    assert found_preambles(short) == [(0, list(range(198)))]


@given(st.lists(SEQUENCES, max_size=8))
def test_preambles_hold_every_bundle_once_and_are_in_all_its_sequences(requests: list[list[list[int]]]) -> None:
    asked = [arrays(request) for request in requests]
    spare = [min(len(sequence) for sequence in request) - 1 for request in requests]
    made = bundles(asked, Costs(exchange=3.0, longest=8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes, "LEAST", 1)
        patch.setattr(prefixes, "WORTH", 2)
        groups = preambles(asked, made, spare)
    assert sorted(map(id, made)) == sorted(id(bundle) for _, group in groups for bundle in group)
    for length, group in groups:
        numbers = [number for bundle in group for number in bundle.requests]
        heads = {tuple(sequence[:length]) for number in numbers for sequence in requests[number]}
        assert len(heads) <= 1
        assert all(length <= spare[number] for number in numbers)
