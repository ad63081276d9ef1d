"""BERT samples: which sentences belong together, pairs in either order, and how words are masked."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpora import VOCAB, random_documents, special_ids, write_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from mpeval.corpus.bert_index import BertPlan, _shuffle, build_bert_index, usable_documents
from mpeval.corpus.bert_samples import BertSamples, bert_samples, trim
from mpeval.corpus.compiled import compiled
from mpeval.corpus.indexed import IndexedDataset
from mpeval.corpus.masking import SpecialIds, mask_words, ngram_chances, whole_words
from mpeval.corpus.samples import open_samples
from mpeval.errors import ConfigError, DataError

SEQUENCE = 64
SPECIAL = special_ids()


def twister(seed: int) -> Iterator[int]:
    """Yield the numbers of MT19937-64, one plain step after the other."""
    words = 2**64 - 1
    state = [seed]
    for index in range(1, 312):
        state.append((6364136223846793005 * (state[-1] ^ (state[-1] >> 62)) + index) & words)
    while True:
        mixed = (state[0] & ~0x7FFFFFFF) | (state[1] & 0x7FFFFFFF)
        word = state[156] ^ (mixed >> 1) ^ (0xB5026F5AA96619E9 if mixed & 1 else 0)
        state = [*state[1:], word]
        word ^= (word >> 29) & 0x5555555555555555
        word ^= (word << 17) & 0x71D67FFFEDA60000
        word ^= (word << 37) & 0xFFF7EEE000000000
        yield word ^ (word >> 43)


def test_rows_are_shuffled_by_the_standard_64_bit_twister() -> None:
    # the C++ standard gives the 10000th number of std::mt19937_64 as it is made by default (seed 5489)
    numbers = twister(5489)
    assert [next(numbers) for _ in range(10000)][-1] == 9981545732273789042
    for size in (1, 2, 1000):
        expected, numbers = list(range(size)), twister(99)
        for last in range(size - 1, 0, -1):
            other = next(numbers) % (last + 1)
            expected[last], expected[other] = expected[other], expected[last]
        rows = np.repeat(np.arange(size, dtype=np.int32)[:, None], 3, axis=1)
        compiled(_shuffle)(rows, 99)
        assert rows.tolist() == [[number] * 3 for number in expected]


def bert_plan(**changes: Any) -> BertPlan:
    settled = {"first": 0, "stop": 1, "samples": 1, "sequence": SEQUENCE, "seed": 11, "short_share": 0.1, "least": 2}
    return BertPlan(**settled | changes)


def spans(documents: list[list[int]], least: int) -> tuple[Any, Any, int, int]:
    bounds = np.cumsum([0, *map(len, documents)])
    lengths = np.array([length for document in documents for length in document], np.int32)
    return lengths, *usable_documents(lengths, bounds, least)


def test_documents_with_few_or_long_sentences_are_left_out_and_counted() -> None:
    documents = [[5, 6], [7], [512, 3], [513, 3], [], [600], [1, 1, 900], [2, 2]]
    for least, left, few, long in ((2, [0, 2, 7], 3, 2), (1, [0, 1, 2, 5, 7], 1, 2)):
        _, found, too_few, too_long = spans(documents, least)
        firsts = np.cumsum([0, *map(len, documents)])
        assert found.tolist() == [[firsts[number], firsts[number + 1]] for number in left]
        assert (too_few, too_long) == (few, long)


@settings(max_examples=60)
@given(
    st.lists(st.lists(st.integers(1, 60), min_size=2, max_size=25), min_size=1, max_size=6),
    st.integers(1, 60),
    st.sampled_from([0.0, 0.1, 0.34, 1.0]),
    st.sampled_from([1, 2]),
)
def test_rows_are_those_of_a_plain_walk(
    documents: list[list[int]], wanted: int, short_share: float, least: int
) -> None:
    lengths, found, _, _ = spans(documents, least)
    rows = build_bert_index(lengths, found, bert_plan(samples=wanted, short_share=short_share, least=least))["rows"]
    random, longest = np.random.RandomState(11), SEQUENCE - 3

    def target() -> int:
        if not short_share:
            return longest
        number = int(random.randint(0, 2**32, dtype=np.uint32))
        return 2 + number % (longest - 1) if number % round(1 / short_share) == 0 else longest

    expected: list[list[int]] = []
    while len(expected) < wanted:
        for first, stop in found.tolist():
            begin, aim = first, target()
            for end in range(first + 1, stop + 1):
                full = sum(lengths[begin:end]) >= aim and stop - end > 1 and end - begin >= least
                if full or end == stop:
                    expected.append([begin, end, aim])
                    begin, aim = end, target()
    assert Counter(map(tuple, rows.tolist())) == Counter(map(tuple, expected))


def test_a_tenth_of_the_samples_is_short() -> None:
    lengths = np.full(200_000, 20, np.int32)
    bounds = np.arange(0, 200_001, 20)
    found, _, _ = usable_documents(lengths, bounds, 2)
    # 67 - 4 = 63 and 10 have no common divisor, so that every length occurs
    rows = build_bert_index(lengths, found, bert_plan(samples=100_000, sequence=67))["rows"]
    short = rows[rows[:, 2] < 64][:, 2]
    chance = 0.1 * 62 / 63
    assert abs(len(short) / len(rows) - chance) < 4 * math.sqrt(chance / len(rows))
    assert set(short.tolist()) == set(range(2, 64))
    assert abs(short.mean() - 32.5) < 4 * 18 / math.sqrt(len(short))


def numbered(prefix: Path, documents: int = 60, sentence: tuple[int, int] = (2, 18)) -> IndexedDataset:
    """Write a corpus in which neighbouring tokens of a document have neighbouring ids, from 100 on."""
    made, random = [], np.random.default_rng(1)
    for _ in range(documents):
        ends = np.cumsum(random.integers(*sentence, size=random.integers(2, 14))).tolist()
        made.append([list(range(100 + low, 100 + high)) for low, high in itertools.pairwise([0, *ends])])
    return write_corpus(prefix, made)


def opened(dataset: IndexedDataset, **changes: Any) -> BertSamples:
    plain = SpecialIds(cls=1, sep=2, mask=3, pad=0, vocab=VOCAB, continuation=np.zeros(VOCAB, np.bool_))
    settled = {"samples": 400, "sequence": SEQUENCE, "seed": 11, "special": plain, "short_share": 0.1}
    settled |= {"mask_share": 0.15, "ngrams": 3, "binary_head": True, "cache": None}
    return bert_samples(dataset, range(len(dataset.documents) - 1), **settled | changes)  # type: ignore[arg-type]


def unmasked(sample: dict[str, Any]) -> list[int]:
    """Return the tokens of a sample as they were, without padding."""
    ids = np.where(sample["labels"] >= 0, sample["labels"], sample["ids"])
    return [int(token) for token in ids[sample["padding_mask"]]]


def test_a_pair_is_two_runs_of_one_document_in_either_order(tmp_path: Path) -> None:
    samples = opened(numbered(tmp_path / "corpus"))
    swapped = 0
    for index in range(len(samples)):
        sample, (begin, end, target) = samples[index], samples.rows[index].tolist()
        tokens = unmasked(sample)
        first_sep = tokens.index(2)
        a, b = tokens[1:first_sep], tokens[first_sep + 1 : -1]
        assert (tokens[0], tokens[-1], tokens.count(2)) == (1, 2, 2)
        before, after = (b, a) if sample["order"] else (a, b)
        for run in (before, after):
            assert run == list(range(run[0], run[-1] + 1))
        sentences = samples.dataset[begin:end]
        assert sentences[0][0] <= before[0] <= before[-1] < after[0] <= after[-1] <= sentences[-1][-1]
        assert len(a) + len(b) == min(target, sum(map(len, sentences)))
        length = len(tokens)
        np.testing.assert_array_equal(
            sample["tokentypes"], [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * (64 - length)
        )
        np.testing.assert_array_equal(sample["padding_mask"], np.arange(64) < length)
        assert not sample["ids"][length:].any()
        assert (sample["labels"][length:] == -1).all()
        swapped += int(sample["order"])
    assert abs(swapped / len(samples) - 0.5) < 4 * 0.5 / math.sqrt(len(samples))


def test_the_first_segment_ends_after_any_sentence_but_the_last(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "corpus", [[[10], [11], [12], [13], [14]]] * 400)
    samples = opened(dataset, short_share=0.0)
    counts = Counter(
        len(tokens[1 : tokens.index(2)]) if not sample["order"] else 5 - len(tokens[1 : tokens.index(2)])
        for sample in map(samples.__getitem__, range(400))
        for tokens in [unmasked(sample)]
    )
    assert counts.keys() == {1, 2, 3, 4}
    assert all(abs(count - 100) < 4 * math.sqrt(400 * 3 / 16) for count in counts.values())


@given(st.integers(0, 30), st.integers(0, 30), st.integers(2, 50), st.integers(0, 1000))
def test_trimming_evens_the_segments_from_both_ends(first: int, second: int, target: int, seed: int) -> None:
    a, b = trim(np.arange(first), np.arange(second), target, np.random.RandomState(seed))
    assert len(a) + len(b) == min(target, first + second)
    if len(a) < first and len(b) < second:
        assert abs(len(a) - len(b)) <= 1
    elif len(a) < first:
        assert len(a) >= second
    elif len(b) < second:
        assert len(b) >= first - 1
    for run in (a, b):
        assert run.tolist() == list(range(run[0], run[0] + len(run))) if len(run) else True


def test_trimming_takes_front_and_back_alike() -> None:
    fronts = [int(trim(np.arange(100), np.arange(0), 60, np.random.RandomState(seed))[0][0]) for seed in range(300)]
    assert abs(np.mean(fronts) - 20) < 4 * math.sqrt(40 / 4 / 300)


def test_without_the_order_task_a_sample_is_one_segment(tmp_path: Path) -> None:
    samples = opened(numbered(tmp_path / "corpus"), binary_head=False)
    for index in range(len(samples)):
        sample = samples[index]
        tokens = unmasked(sample)
        assert (tokens[0], tokens[-1], tokens.count(2), int(sample["order"])) == (1, 2, 1, 0)
        assert tokens[1:-1] == list(range(tokens[1], tokens[-2] + 1))
        assert not sample["tokentypes"].any()


def test_the_document_of_a_sample_is_named(tmp_path: Path) -> None:
    dataset = numbered(tmp_path / "corpus")
    samples = opened(dataset)
    for index in range(50):
        begin, end, _ = samples.rows[index].tolist()
        (number,) = [int(name.rpartition(":")[2]) for name in samples.documents(index)]
        assert dataset.documents[number] <= begin < end <= dataset.documents[number + 1]
    assert samples[-1]["ids"].tolist() == samples[len(samples) - 1]["ids"].tolist()


def masked_samples(tokens: int, number: int, special: SpecialIds, **changes: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yield ids, masked ids and labels of samples of one random text after the other."""
    settled = {"target": tokens, "share": 0.15, "chances": ngram_chances(3)} | changes
    for seed in range(number):
        random = np.random.RandomState(seed)
        ids = np.concatenate([[1], random.randint(5, VOCAB, tokens // 2), [2], random.randint(5, VOCAB, tokens // 2)])
        ids = np.append(ids, 2)
        yield ids, *mask_words(ids, special, **settled, random=random)


def test_fifteen_per_cent_are_chosen_and_four_fifths_of_them_masked() -> None:
    counts, tokens = Counter[str](), 0
    for ids, masked, labels in masked_samples(124, 1500, SPECIAL):
        chosen = labels >= 0
        tokens += len(ids)
        assert chosen.sum() <= min(0.15 * 124, round(0.15 * len(ids)))
        np.testing.assert_array_equal(labels[chosen], ids[chosen])
        np.testing.assert_array_equal(masked[~chosen], ids[~chosen])
        assert not chosen[(ids == 1) | (ids == 2)].any()
        counts["chosen"] += int(chosen.sum())
        counts["mask"] += int((masked[chosen] == 3).sum())
        counts["kept"] += int((masked[chosen] == ids[chosen]).sum())
    # the largest whole number below 0.15 x 124 is 18 of 127; a last word that does not fit leaves a token now and then
    assert 0.995 * 18 / 127 < counts["chosen"] / tokens <= 18 / 127
    expected = {"mask": 0.8 + 0.1 / VOCAB, "kept": 0.1 + 0.1 / VOCAB}
    for name, share in expected.items():
        spread = math.sqrt(share * (1 - share) / counts["chosen"])
        assert abs(counts[name] / counts["chosen"] - share) < 4 * spread


def test_random_replacements_come_from_the_whole_vocabulary() -> None:
    drawn = Counter[int]()
    for ids, masked, labels in masked_samples(400, 1500, SPECIAL):
        changed = (labels >= 0) & (masked != ids) & (masked != 3)
        drawn.update(masked[changed].tolist())
    assert set(drawn) == set(range(VOCAB)) - {3}
    mean = drawn.total() / (VOCAB - 1)
    statistic = sum((drawn[token] - mean) ** 2 / mean for token in range(VOCAB) if token != 3)
    assert abs(statistic - (VOCAB - 2)) < 4 * math.sqrt(2 * (VOCAB - 2))  # chi squared with 398 degrees of freedom


def test_runs_of_n_words_are_chosen_in_proportion_to_one_over_n() -> None:
    assert ngram_chances(3) == pytest.approx([6 / 11, 9 / 11, 1])
    plain = SpecialIds(cls=1, sep=2, mask=3, pad=0, vocab=VOCAB, continuation=np.zeros(VOCAB, np.bool_))
    number, found = 2000, Counter[tuple[int, ...]]()
    # room for three tokens among 2000: runs hardly ever touch, and what is left decides about the second and third
    for _, _, labels in masked_samples(2000, number, plain, share=0.0015):
        places = np.flatnonzero(labels >= 0)
        found[tuple(sorted(len(run) for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)))] += 1
    one, two, three = 6 / 11, 3 / 11, 2 / 11
    expected = {(3,): three, (1, 2): two + one * (two + three), (1, 1, 1): one * one}
    assert found.keys() == expected.keys()
    for runs, chance in expected.items():
        assert abs(found[runs] / number - chance) < 4 * math.sqrt(chance * (1 - chance) / number) + 0.005


@given(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=60), st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_words_are_masked_whole(tokens: list[int], seed: int, ngrams: int) -> None:
    ids = np.array(tokens)
    positions, starts = whole_words(ids, SPECIAL)
    words = [positions[low:high] for low, high in itertools.pairwise(starts)]
    assert [place for word in words for place in word] == [n for n, token in enumerate(tokens) if token not in (1, 2)]
    for number, word in enumerate(words):
        assert number == 0 or not SPECIAL.continuation[ids[word[0]]]
        assert SPECIAL.continuation[ids[word[1:]]].all()
    random = np.random.RandomState(seed)
    _, labels = mask_words(ids, SPECIAL, target=60, share=0.3, chances=ngram_chances(ngrams), random=random)
    for word in words:
        assert len(set((labels[word] >= 0).tolist())) == 1
    assert (labels >= 0).sum() <= max(1, round(0.3 * len(ids)))


def test_text_without_words_has_nothing_to_predict() -> None:
    ids = np.array([1, 2, 2])
    masked, labels = mask_words(ids, SPECIAL, target=9, share=0.15, chances=[1.0], random=np.random.RandomState(0))
    assert masked.tolist() == [1, 2, 2]
    assert labels.tolist() == [-1, -1, -1]


def test_a_corpus_without_sentences_is_refused(tmp_path: Path) -> None:
    whole = write_corpus(tmp_path / "whole", random_documents(9, (1, 1), (20, 600)))
    for binary_head in (True, False):
        with pytest.raises(DataError, match="none of its 9 documents has two sequences") as raised:
            opened(whole, binary_head=binary_head)
        assert raised.value.hint.endswith("`mpeval preprocess --split-sentences`")
    sentences = write_corpus(tmp_path / "sentences", random_documents(9, (1, 1), (20, 40)))
    assert len(opened(sentences, binary_head=False, samples=5)) == 9
    beside_an_empty_one = write_corpus(tmp_path / "few", [[], *random_documents(1, (2, 2), (9, 9))])
    assert len(opened(beside_an_empty_one, samples=1)) == 1


def test_a_part_that_gives_no_sample_is_refused_with_the_reasons(tmp_path: Path) -> None:
    documents = [*random_documents(7, (1, 1), (5, 5)), *random_documents(3, (3, 3), (513, 520))]
    dataset = write_corpus(tmp_path / "corpus", documents)
    with pytest.raises(DataError, match="7 have fewer than 2 sentences, 3 have one of more than 512 tokens"):
        opened(dataset)
    samples = opened(dataset, binary_head=False)
    assert (samples.short_documents, samples.long_documents) == (0, 3)


def test_an_id_outside_the_vocabulary_is_refused_with_its_document(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "corpus", [[[10, VOCAB], [11]]])
    with pytest.raises(DataError, match=rf"corpus:0` has token id {VOCAB}, the vocabulary has {VOCAB}"):
        opened(dataset, short_share=0.0)[0]


@pytest.mark.parametrize(
    ("name", "value"), [("sequence", 4), ("short_share", 1.5), ("mask_share", 0.0), ("mask_share", 1.0), ("ngrams", 0)]
)
def test_impossible_settings_are_refused(tmp_path: Path, name: str, value: float) -> None:
    dataset = numbered(tmp_path / "corpus", documents=3)
    with pytest.raises(ConfigError, match=f"{value:g} of BERT samples"):
        opened(dataset, **{name: value})


def test_the_shortest_sequence_has_a_token_for_each_segment(tmp_path: Path) -> None:
    samples = opened(numbered(tmp_path / "corpus"), sequence=5)
    assert {len(unmasked(samples[index])) for index in range(100)} == {5}


def test_masking_settings_need_no_other_index(tmp_path: Path) -> None:
    dataset = numbered(tmp_path / "corpus")
    arguments: dict[str, Any] = {"part": "train", "samples": 50, "sequence": 64, "special": SPECIAL, "seed": 3}
    for share in (0.15, 0.3):
        open_samples("bert", [(1, dataset)], mask_share=share, cache=tmp_path / "cache", **arguments)
    assert len(list((tmp_path / "cache").iterdir())) == 1
