"""Short and near-duplicate documents, against exact Jaccard similarities of all pairs and datasketch's own index."""

from __future__ import annotations

import itertools
import random
import re
import tempfile
from collections.abc import Sequence

import numpy as np
import pytest
from datasketch import MinHash, MinHashLSH

from mpeval.corpus.dedup import Filter, Verdicts, bands, jaccard, judge, proposals, shingles
from mpeval.errors import UsageError


def words_of(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.lower())


def set_of(text: str, length: int) -> set[tuple[str, ...]]:
    """Return the word n-grams of a text by Python's own sets; a shorter text is one."""
    words = words_of(text)
    return {tuple(words[start : start + length]) for start in range(len(words) - length + 1)} or {tuple(words)}


def similarity(left: str, right: str, length: int) -> float:
    ours, theirs = set_of(left, length), set_of(right, length)
    return len(ours & theirs) / len(ours | theirs)


def decide(texts: Sequence[str], **settings: object) -> Verdicts:
    with tempfile.TemporaryFile() as spool:
        return judge(texts, Filter(**({"minimum": 0} | settings)), spool)  # type: ignore[arg-type]


def make_corpus(seed: int, documents: int = 150, length: int = 60) -> list[str]:
    """Return documents many of which are others with some words exchanged, as near as far."""
    dice = random.Random(seed)
    texts: list[list[str]] = []
    for _ in range(documents):
        if texts and dice.random() < 0.7:
            words = list(dice.choice(texts))
            for place in dice.sample(range(len(words)), dice.randrange(0, 6)):
                words[place] = f"w{dice.randrange(5000)}"
        else:
            words = [f"w{dice.randrange(5000)}" for _ in range(length)]
        texts.append(words)
    return [" ".join(words) for words in texts]


def greedy(texts: Sequence[str], threshold: float, length: int) -> dict[int, int]:
    """Say for each document that goes which earlier one that stays is first above the threshold: all pairs compared."""
    staying: list[int] = []
    gone = {}
    for number, text in enumerate(texts):
        like = [other for other in staying if similarity(texts[other], text, length) > threshold]
        if like:
            gone[number] = like[0]
        else:
            staying.append(number)
    return gone


@pytest.mark.parametrize("length", [1, 3, 5])
def test_the_similarity_is_that_of_python_sets(length: int) -> None:
    texts = [*make_corpus(3, documents=20), "one, two; ONE two!", "One Two one two", "two words", "", "été À la", "..."]
    for left, right in itertools.product(texts, texts):
        assert jaccard(shingles(left, length), shingles(right, length)) == similarity(left, right, length)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_what_goes_is_what_comparing_all_pairs_finds(threshold: float) -> None:
    """A pair may be missed only where its chance of being proposed says so: none with a chance of 0.999."""
    texts = make_corpus(11)
    found = decide(texts, threshold=threshold, ngrams=3, permutations=512)
    count, rows = bands(threshold, 512)
    for item in found.duplicates:
        assert item.of < item.document
        assert found.kept[item.of]
        assert item.jaccard == similarity(texts[item.document], texts[item.of], 3) > threshold
    kept = np.flatnonzero(found.kept).tolist()
    assert len(kept) + len(found.duplicates) == len(texts)
    assert len(found.duplicates) > 10
    missed = [
        pair for pair in itertools.combinations(kept, 2) if similarity(texts[pair[0]], texts[pair[1]], 3) > threshold
    ]
    assert len(missed) <= 3
    for left, right in missed:
        assert 1 - (1 - similarity(texts[left], texts[right], 3) ** rows) ** count < 0.999


def test_the_first_of_the_earlier_ones_that_stay_is_named() -> None:
    texts = make_corpus(12)
    wanted = greedy(texts, 0.6, 3)
    found = decide(texts, threshold=0.6, ngrams=3, permutations=512)
    assert {item.document: item.of for item in found.duplicates} == wanted
    assert len(wanted) > 30


def test_nothing_at_or_below_the_threshold_goes() -> None:
    """Seven shared words of ten are a similarity of exactly 0.7, which is not above 0.7."""
    shared = " ".join("abcdefg")
    at, above = [f"{shared} x", f"{shared} y z"], [f"{shared} h x", f"{shared} h y"]
    assert similarity(*at, 1) == 0.7
    assert similarity(*above, 1) == 0.8
    assert decide(at, threshold=0.7, ngrams=1, permutations=512).kept.tolist() == [True, True]
    assert decide(above, threshold=0.7, ngrams=1, permutations=512).kept.tolist() == [True, False]


def test_a_chain_does_not_drop_its_far_end() -> None:
    """The second is like the first, the third like the second but not like the first: the third stays."""
    words = [f"w{number}" for number in range(40)]
    chain = [" ".join(words[start : start + 30]) for start in (0, 4, 8)]
    assert [round(similarity(chain[0], other, 1), 2) for other in chain] == [1.0, 0.76, 0.58]
    assert decide(chain, ngrams=1, permutations=512).kept.tolist() == [True, False, True]


def test_the_recall_is_what_the_bands_promise() -> None:
    """Pairs of known similarity are found as often as 1 - (1 - s^r)^b says, by the default of 128 permutations."""
    count, rows = bands(0.7, 128)
    assert (count, rows) == (25, 5)
    size = 200
    for shared, at_least in ((168, 0.95), (180, 0.99)):  # similarities 0.72 and 0.82
        texts = []
        for pair in range(300):
            common = [f"p{pair}c{number}" for number in range(shared)]
            texts += [" ".join(common + [f"p{pair}{side}{rest}" for rest in range(size - shared)]) for side in "xy"]
        exact = shared / (2 * size - shared)
        promised = 1 - (1 - exact**rows) ** count
        recall = len(decide(texts, ngrams=1).duplicates) / 300
        assert recall >= at_least
        assert abs(recall - promised) < 4 * (promised * (1 - promised) / 300) ** 0.5 + 1e-9


def test_bands_propose_the_pairs_of_datasketchs_own_index() -> None:
    """The library's index, given the same bands, finds for each document the same others."""
    dice = np.random.default_rng(5)
    minhashes = []
    for _ in range(60):
        centre = dice.integers(0, 40, size=30)
        for _ in range(3):
            made = MinHash(num_perm=24, hashfunc=int)
            made.update_batch([*centre.tolist(), *dice.integers(0, 10**6, size=4).tolist()])
            minhashes.append(made)
    index = MinHashLSH(num_perm=24, params=(6, 4))
    for number, made in enumerate(minhashes):
        index.insert(number, made)
    theirs = {
        (number, other) for number, made in enumerate(minhashes) for other in index.query(made) if other != number
    }
    members: dict[int, list[int]] = {}
    for number, buckets in proposals(np.stack([made.hashvalues for made in minhashes]), 6, 4):
        for bucket in buckets:
            members.setdefault(bucket, []).append(number)
    ours = {pair for numbers in members.values() for pair in itertools.permutations(numbers, 2)}
    assert ours == theirs
    assert len(theirs) > 100


def test_the_spool_holds_the_sorted_sets_of_the_long_documents() -> None:
    texts = [" ".join(f"word{number}" for number in range(300)), "short", "other words than those that came before"]
    with tempfile.TemporaryFile() as spool:
        judge(texts, Filter(minimum=5, ngrams=5), spool)
        spool.seek(0)
        spooled = np.frombuffer(spool.read(), dtype=np.uint64)
    assert np.array_equal(spooled, np.concatenate([shingles(texts[0], 5), shingles(texts[2], 5)]))
    assert len(spooled) == 296 + 3


def test_short_documents_go_first_and_never_count_as_the_first_of_a_pair() -> None:
    long = " ".join(f"w{number}" for number in range(12))
    texts = ["a b c", long, "a b c", f"{long} more", ""]
    found = decide(texts, minimum=4)
    assert found.short.tolist() == [True, False, True, False, True]
    assert found.tokens.tolist() == [3, 12, 3, 13, 0]
    assert [(item.document, item.of) for item in found.duplicates] == [(3, 1)]
    assert found.kept.tolist() == [False, True, False, False, False]


def test_no_minimum_keeps_short_documents_but_not_twice() -> None:
    texts = ["a b", "A, b!", "", "...", "b a"]
    assert decide(texts).kept.tolist() == [True, False, True, False, True]


def test_without_a_threshold_only_short_documents_go() -> None:
    texts = ["one two three", "one two three", "one"]
    found = decide(texts, minimum=2, threshold=None)
    assert found.kept.tolist() == [True, True, False]
    assert not found.duplicates
    assert found.compared == 0


def test_lengths_come_from_the_tokenizer_when_there_is_one() -> None:
    texts = ["one two three four five six", "a"]
    with tempfile.TemporaryFile() as spool:
        found = judge(texts, Filter(minimum=10), spool, count=lambda batch: [len(text) for text in batch])
    assert found.tokens.tolist() == [27, 1]
    assert found.kept.tolist() == [True, False]


def test_the_same_seed_decides_the_same_and_the_order_of_equals_decides_who_stays() -> None:
    texts = make_corpus(7, documents=80)
    first, second = decide(texts, seed=3), decide(texts, seed=3)
    assert first.duplicates == second.duplicates
    assert first.kept.tolist() == second.kept.tolist()
    twice = decide([*texts, *texts], seed=3)
    assert not twice.kept[len(texts) :].any()
    assert twice.kept[: len(texts)].tolist() == first.kept.tolist()


def test_many_equal_documents_cost_one_comparison_each() -> None:
    text = " ".join(f"w{number}" for number in range(50))
    found = decide([text] * 400)
    assert found.kept.sum() == 1
    assert found.compared == 399


def test_an_empty_corpus_has_no_verdicts() -> None:
    found = decide([])
    assert found.kept.tolist() == []
    assert not found.duplicates


def test_a_document_longer_than_a_slice_is_signed_whole() -> None:
    """A text of 100,000 different words and the same with its last tenth new: similar, found by late values too."""
    first = [f"w{number}" for number in range(100_000)]
    second = first[:90_000] + [f"v{number}" for number in range(10_000)]
    found = decide([" ".join(first), " ".join(second), " ".join(reversed(first))], ngrams=2)
    assert [(item.document, item.of) for item in found.duplicates] == [(1, 0)]
    assert found.duplicates[0].jaccard == pytest.approx(89_999 / 109_999)


@pytest.mark.parametrize(("threshold", "permutations"), [(0.1, 16), (0.02, 128)])
def test_too_few_permutations_are_refused(threshold: float, permutations: int) -> None:
    with pytest.raises(UsageError, match="permutations cannot find pairs"):
        bands(threshold, permutations)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 0.99])
def test_bands_keep_their_promise_and_are_the_longest_that_do(threshold: float) -> None:
    count, rows = bands(threshold, 128)
    assert count * rows <= 128
    assert 1 - (1 - threshold**rows) ** count >= 0.95
    assert 1 - (1 - threshold ** (rows + 1)) ** (128 // (rows + 1)) < 0.95
