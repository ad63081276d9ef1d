"""GPT samples: the walk over tokens done by brute force, every token a target once per epoch, the last-epoch rule."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from corpora import random_documents, special_ids, write_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from mpeval.corpus.gpt_samples import (
    GptPlan,
    GptSamples,
    build_gpt_index,
    document_lengths,
    epochs_for,
    gpt_samples,
    last_epoch_apart,
)
from mpeval.corpus.indexed import IndexedDataset, IndexedWriter
from mpeval.corpus.samples import open_samples
from mpeval.errors import ConfigError, DataError, UsageError

LENGTHS = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(lambda lengths: sum(lengths) > 1)


def plan(documents: int, epochs: int, sequence: int, apart: bool = False, seed: int = 5) -> GptPlan:
    return GptPlan(first=0, stop=documents, epochs=epochs, apart=apart, sequence=sequence, seed=seed)


@given(LENGTHS, st.integers(1, 4), st.integers(1, 20))
def test_the_table_is_that_of_a_walk_token_by_token(lengths: list[int], epochs: int, sequence: int) -> None:
    arrays = build_gpt_index(np.array(lengths, np.int64), plan(len(lengths), epochs, sequence))
    order = arrays["order"].tolist()
    assert Counter(order) == dict.fromkeys(range(len(lengths)), epochs)
    walk = [(place, token) for place, document in enumerate(order) for token in range(lengths[document])]
    samples = (epochs * sum(lengths) - 1) // sequence
    assert arrays["table"].tolist() == [list(walk[sample * sequence]) for sample in range(samples + 1)]
    assert sorted(arrays["shuffle"].tolist()) == list(range(samples))


@given(st.integers(1, 500), st.integers(2, 3000), st.integers(1, 300))
def test_epochs_are_the_fewest_that_give_the_samples(samples: int, tokens: int, sequence: int) -> None:
    epochs = next(number for number in itertools.count(1) if (number * tokens - 1) // sequence >= samples)
    assert epochs_for(samples, tokens, sequence) == epochs


@pytest.mark.parametrize(
    ("samples", "apart"), [(100, False), (101, True), (179, True), (180, False), (200, False), (279, True)]
)
def test_a_last_epoch_used_for_less_than_four_fifths_is_apart(samples: int, apart: bool) -> None:
    assert last_epoch_apart(samples, 1001, 10) == apart  # 100 samples an epoch


def test_an_epoch_apart_comes_last_in_documents_and_samples() -> None:
    lengths = np.full(50, 20, np.int64)
    arrays = build_gpt_index(lengths, plan(50, 3, 10, apart=True))
    together = build_gpt_index(lengths, plan(50, 3, 10))
    assert sorted(arrays["order"][100:].tolist()) == list(range(50))
    assert sorted(together["order"][100:].tolist()) != list(range(50))
    whole = (2 * 1000 - 1) // 10
    assert sorted(arrays["shuffle"][:whole].tolist()) == list(range(whole))
    assert sorted(arrays["shuffle"][whole:].tolist()) == list(range(whole, (3 * 1000 - 1) // 10))
    assert arrays["shuffle"][:whole].tolist() != list(range(whole))


def numbered_corpus(prefix: Path, documents: list[list[int]]) -> IndexedDataset:
    """Write documents of sequences of given lengths; every token's id is its number in the corpus."""
    ids = itertools.count()
    return write_corpus(prefix, [[[next(ids) for _ in range(length)] for length in lengths] for lengths in documents])


@settings(max_examples=40)
@given(
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=4), min_size=1, max_size=8),
    st.integers(1, 3),
    st.integers(1, 9),
)
def test_every_token_is_a_target_once_an_epoch(documents: list[list[int]], epochs: int, sequence: int) -> None:
    tokens = sum(map(sum, documents))
    if tokens <= sequence:
        return
    with tempfile.TemporaryDirectory() as folder:
        dataset = numbered_corpus(Path(folder) / "corpus", documents)
        wanted = (epochs * tokens - 1) // sequence
        samples = gpt_samples(dataset, range(len(documents)), samples=wanted, sequence=sequence, seed=1, cache=None)
        assert len(samples) == wanted
        read = [samples[index]["ids"] for index in range(len(samples))]
        order = np.concatenate([np.concatenate(dataset[slice(*span)] or [[]]) for span in spans_of(samples)])
    ordered = dict(zip(samples.shuffle.tolist(), read, strict=True))
    targets = np.concatenate([ordered[row][1:] for row in range(wanted)])
    # laid end to end, targets are the whole reading order but its first token and a rest shorter than a sample
    np.testing.assert_array_equal(targets, order[1 : len(targets) + 1])
    assert len(order) - 1 - len(targets) == (epochs_for(wanted, tokens, sequence) * tokens - 1) % sequence
    for row in range(1, wanted):
        assert ordered[row][0] == ordered[row - 1][-1]
    assert all(ids.dtype == np.int64 and ids.shape == (sequence + 1,) for ids in read)


def spans_of(samples: GptSamples) -> list[tuple[int, int]]:
    """Return the sequences of each document in reading order."""
    bounds = samples.dataset.documents
    return [(int(bounds[document]), int(bounds[document + 1])) for document in samples.order]


def test_documents_are_those_that_the_tokens_come_from(tmp_path: Path) -> None:
    dataset = numbered_corpus(tmp_path / "corpus", [[30], [0], [4, 5], [1], [17], [2, 0, 3]])
    bounds = np.concatenate([[0], np.cumsum(document_lengths(dataset))])
    samples = gpt_samples(dataset, range(6), samples=30, sequence=7, seed=2, cache=None)
    for index in range(len(samples)):
        tokens = samples[index]["ids"]
        numbers = np.searchsorted(bounds, tokens, side="right") - 1
        assert samples.documents(index) == [f"{dataset.prefix}:{number}" for number in dict.fromkeys(numbers.tolist())]


def test_a_part_reads_its_own_documents_only(tmp_path: Path) -> None:
    dataset = numbered_corpus(tmp_path / "corpus", [[10]] * 100)
    for part, tokens in (("train", range(900)), ("valid", range(900, 1000))):
        samples = open_samples(
            "gpt", [(1, dataset)], split="9,1,0", part=part, samples=50, sequence=8, seed=3, cache=None
        )
        seen = set(np.concatenate([samples[index]["ids"] for index in range(len(samples))]).tolist())
        assert seen <= set(tokens)
        assert len(seen) > 50


@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_the_order_of_asking_and_the_seed(tmp_path: Path, family: str) -> None:
    dataset = write_corpus(tmp_path / "corpus", random_documents(40, (3, 9), (4, 30)))
    digests = {seed: digest_of(dataset, family, seed, None) for seed in (1, 2)}
    assert digests[1] == digest_of(dataset, family, 1, None, backwards=True)
    assert digests[1] != digests[2]


def digest_of(dataset: IndexedDataset, family: str, seed: int, cache: Path | None, backwards: bool = False) -> str:
    samples = open_samples(
        family,  # type: ignore[arg-type]
        [(0.75, dataset), (0.25, dataset)],
        part="train",
        samples=60,
        sequence=48,
        seed=seed,
        cache=cache,
        special=special_ids(),
    )
    order = range(60)[::-1] if backwards else range(60)
    read = {index: {name: array.tolist() for name, array in samples[index].items()} for index in order}
    return hashlib.sha256(str(sorted(read.items())).encode()).hexdigest()


@pytest.mark.parametrize("family", ["gpt", "bert"])
def test_another_process_gives_the_same_samples(tmp_path: Path, family: str) -> None:
    dataset = write_corpus(tmp_path / "corpus", random_documents(40, (3, 9), (4, 30)))
    program = (
        "import sys; from pathlib import Path; from test_gpt_samples import digest_of, IndexedDataset\n"
        "print(digest_of(IndexedDataset(sys.argv[1]), sys.argv[2], 7, Path(sys.argv[3])))"
    )
    command = [sys.executable, "-c", program, str(dataset.prefix), family, str(tmp_path / "cache")]
    here = Path(__file__).resolve().parent
    environment = {"PYTHONPATH": f"{here}:{here.parent}", "PYTHONHASHSEED": "99", "OMP_NUM_THREADS": "1"}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert printed == digest_of(dataset, family, 7, None) == digest_of(dataset, family, 7, tmp_path / "cache")


def test_an_index_is_built_once_for_all_sample_counts_of_its_epochs(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "corpus", random_documents(40, (1, 1), (50, 90)))
    arguments = {"part": "train", "sequence": 16, "seed": 3, "cache": tmp_path / "cache"}
    for samples in (10, 11):
        open_samples("gpt", [(1, dataset)], samples=samples, **arguments)  # type: ignore[arg-type]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    open_samples("gpt", [(1, dataset)], samples=1000, **arguments)  # type: ignore[arg-type]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_another_corpus_under_the_same_name_is_another_index(tmp_path: Path) -> None:
    for seed in (1, 2):
        dataset = write_corpus(tmp_path / "corpus", random_documents(40, (1, 1), (50, 90), seed))
        open_samples("gpt", [(1, dataset)], part="train", samples=9, sequence=16, seed=3, cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_too_few_tokens_for_one_sample_are_refused(tmp_path: Path) -> None:
    dataset = write_corpus(tmp_path / "corpus", [[[1] * 16]] * 10)
    arguments = {"split": "1,0,0", "part": "train", "samples": 1, "seed": 3, "cache": None}
    assert len(open_samples("gpt", [(1, dataset)], sequence=159, **arguments)) == 1  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"have 160 tokens, a sample of sequence 160 needs 161") as raised:
        open_samples("gpt", [(1, dataset)], sequence=160, **arguments)  # type: ignore[arg-type]
    assert "--set sequence" in raised.value.hint


def test_an_empty_corpus_none_at_all_and_impossible_numbers_are_refused(tmp_path: Path) -> None:
    arguments = {"part": "train", "samples": 1, "sequence": 8, "seed": 3, "cache": None}
    with pytest.raises(DataError, match="corpus` is empty"):
        open_samples("gpt", [(1, write_corpus(tmp_path / "corpus", []))], **arguments)  # type: ignore[arg-type]
    with IndexedWriter(tmp_path / "speech", np.dtype(np.float32)) as writer:
        writer.add(np.zeros(30, np.float32))
        writer.end_document()
    with pytest.raises(DataError, match="speech` holds float32, not token ids"):
        open_samples("gpt", [(1, IndexedDataset(tmp_path / "speech"))], **arguments)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no corpus"):
        open_samples("gpt", [], **arguments)  # type: ignore[arg-type]
    for name, value in (("samples", 0), ("sequence", 0), ("seed", -1), ("seed", 2**32)):
        with pytest.raises(ConfigError):
            open_samples("gpt", [], **arguments | {name: value})  # type: ignore[arg-type]
