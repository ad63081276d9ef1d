"""Sequences that begin alike, as one row in which what they share stands once: a trie, laid out depth first.

::
    the cat sat          places      0    1    2    3    4
    the cat ran    ->    tokens    the  cat  sat  ran  dog
    the dog              positions   0    1    2    2    1       where each token stands in its own sequence
                         ends        5    4    3    4    5       the place from which on nothing continues it

A token sees those at or before its place that have not ended there: its own sequence, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Row:
    """Sequences joined into one row of ids."""

    ids: np.ndarray
    """[time] int64."""
    positions: np.ndarray
    """[time] int64."""
    ends: np.ndarray
    """[time] int64."""
    paths: tuple[np.ndarray, ...]
    """For each sequence the places of its tokens in the row, [its length] int64."""


def shared(first: np.ndarray, second: np.ndarray) -> int:
    """Count the tokens that two sequences begin with alike."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def join(sequences: Sequence[np.ndarray]) -> Row:
    """Lay sequences of ids out as one row; each shares with the one before it, so neighbours should begin alike."""
    places, ids, positions, paths = np.zeros(0, np.int64), [], [], []
    ends: list[tuple[np.ndarray, int]] = []
    time, previous = 0, np.zeros(0, np.int64)
    for sequence in sequences:
        common = shared(previous, sequence)
        ends.append((places[common:], time))
        ids.append(sequence[common:])
        positions.append(np.arange(common, len(sequence)))
        places = np.concatenate([places[:common], np.arange(time, time + len(sequence) - common)])
        paths.append(places)
        time, previous = time + len(sequence) - common, sequence
    row = Row(
        ids=np.concatenate(ids).astype(np.int64),
        positions=np.concatenate(positions),
        ends=np.full(time, time, np.int64),
        paths=tuple(paths),
    )
    for left, end in ends:
        row.ends[left] = end
    return row


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What decides whether a sequence joins a row."""

    exchange: float
    """How many scores of a query with a key take as long as all else that is computed for one token."""
    longest: int
    """Tokens of a row of several sequences at most."""


@dataclass
class _Open:
    """The row that grows."""

    time: int
    sequences: int
    last: np.ndarray

    def takes(self, sequence: np.ndarray, costs: Costs) -> bool:
        """Add a sequence if that is cheaper than a row of its own.

        A row of several sequences computes the scores of all pairs of its tokens, masked or not; a row of one only
        those with earlier tokens.
        """
        new = len(sequence) - shared(self.last, sequence)
        before = self.time**2 / (2 if self.sequences == 1 else 1)
        together = new * costs.exchange + (self.time + new) ** 2 - before
        if self.time + new > costs.longest or together >= len(sequence) * (costs.exchange + len(sequence) / 2):
            return False
        self.time, self.sequences, self.last = self.time + new, self.sequences + 1, sequence
        return True


@dataclass(frozen=True)
class Bundle:
    """Requests that are scored in the same forward pass because some of their sequences share a row."""

    requests: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    """How many of the requests' sequences, in order, stand in each row."""
    lengths: list[int] = field(default_factory=list)
    """Tokens of each row."""


def bundles(requests: Sequence[Sequence[np.ndarray]], costs: Costs) -> list[Bundle]:
    """Join the sequences of requests, those that begin alike side by side, wherever that is cheaper than apart.

    Every request is in exactly one bundle; the order of a request's own sequences is kept.
    """
    made: list[Bundle] = []
    row: _Open | None = None
    for number in sorted(range(len(requests)), key=lambda number: _sort_key(requests[number])):
        for place, sequence in enumerate(requests[number]):
            joined = row is not None and row.takes(sequence, costs)
            if not joined:
                row = _Open(len(sequence), 1, sequence)
            if place == 0 and not joined:
                made.append(Bundle())
            if place == 0:
                made[-1].requests.append(number)
            if not joined:
                made[-1].rows.append(0)
                made[-1].lengths.append(0)
            assert row is not None
            made[-1].rows[-1] += 1
            made[-1].lengths[-1] = row.time
    return made


LEAST = 64
"""Tokens of a preamble at least: it is read by itself, and so few at a time are slow."""
WORTH = 1024
"""Tokens that a preamble must save in all."""


def preambles(
    requests: Sequence[Sequence[np.ndarray]], made: Sequence[Bundle], spare: Sequence[int]
) -> list[tuple[int, list[Bundle]]]:
    """Find what neighbouring bundles all begin with, such as the examples before every question of a task.

    Rows are not longer than they may be, so what many sequences share stands once in each of many rows; keys and
    values of a preamble can be computed once for all of them.

    Args:
        requests: the sequences of each.
        made: what `bundles` made of them, in its order.
        spare: how many tokens at the start of each request's sequences nothing is scored at.

    Returns:
        Pairs of a number of tokens, that all sequences of the bundles beside it begin with, and these bundles; 0 for
        those that share too little.
    """
    found: list[tuple[int, list[Bundle]]] = [(0, [])]
    run: list[Bundle] = []
    length, first = 0, np.zeros(0, np.int64)
    for bundle in [*made, None]:
        if bundle is not None:
            common = min(shared(first, _first(requests, bundle)), _common(requests, bundle, spare))
            joint = min(length, common)
            if run and joint >= LEAST and joint * len(run) >= length * (len(run) - 1):
                run.append(bundle)
                length = joint
                continue
        if length * (len(run) - 1) >= WORTH:
            found.append((length, run))
        else:
            found[0][1].extend(run)
        if bundle is not None:
            run, first = [bundle], _first(requests, bundle)
            length = _common(requests, bundle, spare)
    return [(length, group) for length, group in found if group]


def _first(requests: Sequence[Sequence[np.ndarray]], bundle: Bundle) -> np.ndarray:
    sequences = requests[bundle.requests[0]]
    return sequences[0] if sequences else np.zeros(0, np.int64)


def _common(requests: Sequence[Sequence[np.ndarray]], bundle: Bundle, spare: Sequence[int]) -> int:
    """Count the tokens that all sequences of a bundle begin with and at which nothing is scored."""
    first = _first(requests, bundle)
    alike = [shared(first, sequence) for number in bundle.requests for sequence in requests[number]]
    return min([*alike, *(spare[number] for number in bundle.requests)], default=0)


def _sort_key(sequences: Sequence[np.ndarray]) -> bytes:
    """Big-endian ids sort as the sequences do."""
    return sequences[0].astype(">u4").tobytes() if sequences else b""
