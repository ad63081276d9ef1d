"""Seconds to build the sample indices of 100 million tokens, and microseconds to make one sample.

Run: `python benchmarks/index_speed.py [--tokens 100_000_000]`.  The corpora are random ids in documents of about 500
tokens, one sequence each for GPT, sentences of about 22 tokens for BERT.  Every index is built three times, without a
cache, in one process, and the best time counts: compiling the loops, once on a machine, is not in it.  Where
megatron-core is installed its compiled helpers and its BERT dataset do the same work in the same process, and their
results are compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mpeval.corpus.blend import blend
from mpeval.corpus.indexed import IndexedDataset, IndexedWriter
from mpeval.corpus.samples import SpecialIds, open_samples

VOCAB = 30522
SEED = 1234
CONTINUATION = np.random.default_rng(0).random(VOCAB) < 0.2
SPECIAL = SpecialIds(cls=101, sep=102, mask=103, pad=0, vocab=VOCAB, continuation=CONTINUATION)


def write(prefix: Path, tokens: int, document: int, sentence: int) -> IndexedDataset:
    """Write a corpus of random lengths around the two that are given (`sentence` 0: documents of one sequence)."""
    random = np.random.default_rng(1)
    ids = random.integers(1000, VOCAB, 1 << 20).astype(np.uint16)
    written = 0
    with IndexedWriter(prefix, np.dtype(np.uint16)) as writer:
        while written < tokens:
            length = int(random.integers(document // 2, document * 3 // 2))
            sizes = random.integers(sentence // 2, sentence * 3 // 2 + 1, length // sentence) if sentence else [length]
            for size in map(int, sizes):
                start = (written * 7919) % (len(ids) - size)
                writer.add(ids[start : start + size])
                written += size
            writer.end_document()
    return IndexedDataset(prefix)


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the best of three times, and the result."""
    best, result = float("inf"), None
    for _ in range(3):
        start = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - start)
    return best, result


def each(samples: Any, count: int = 700) -> float:
    """Return microseconds per sample, the best of three runs over the same ones."""
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        for index in range(count):
            samples[index]
        best = min(best, time.perf_counter() - start)
    return best / count * 1e6


def line(what: str, ours: float, unit: str, theirs: float | None) -> None:
    """Print one row."""
    other = f"{theirs:9.3f} {theirs / ours:6.2f}" if theirs is not None else f"{'-':>9} {'-':>6}"
    print(f"{what:58} {ours:9.3f} {other}  {unit}", flush=True)


def gpt(folder: Path, tokens: int, megatron: bool) -> None:
    """Measure a GPT corpus at sequence 1024: a bit less than three epochs."""
    dataset = write(folder / "gpt", tokens, 500, 0)
    wanted = int(2.5 * tokens / 1024)
    arguments: Any = {"split": "1,0,0", "part": "train", "samples": wanted, "sequence": 1024, "seed": SEED}
    took, samples = seconds(lambda: open_samples("gpt", [(1, dataset)], cache=None, **arguments))
    theirs = None
    if megatron:
        from megatron.core.datasets import helpers
        from megatron.core.datasets.gpt_dataset import _build_document_index, _build_shuffle_index

        lengths = np.array(dataset.lengths)
        documents = np.arange(len(lengths), dtype=np.int32)

        def build() -> Any:
            random = np.random.RandomState(SEED)
            order = _build_document_index(documents, 3, random, True)
            table = helpers.build_sample_idx(lengths, order, 1024, 3, int(lengths.sum()))
            whole = (2 * int(lengths.sum()) - 1) // 1024
            return order, table, _build_shuffle_index(whole, len(table) - 1, random)

        theirs, expected = seconds(build)
        for ours, array in zip((samples.order, samples.table, samples.shuffle), expected, strict=True):
            np.testing.assert_array_equal(ours, array)
    line(f"GPT index, 3 epochs, {len(dataset):,} documents, {len(samples):,} samples", took, "s", theirs)
    open_samples("gpt", [(1, dataset)], cache=folder / "cache", **arguments)
    took, samples = seconds(lambda: open_samples("gpt", [(1, dataset)], cache=folder / "cache", **arguments))
    line("  the same from the cache, checksums compared", took, "s", None)
    line("  one sample of 1024 tokens", each(samples), "us", None)


def bert(folder: Path, tokens: int, megatron: bool) -> None:
    """Measure a BERT corpus at sequence 128 and 512: an epoch."""
    dataset = write(folder / "bert", tokens, 500, 22)
    arguments: Any = {"split": "1,0,0", "part": "train", "samples": 1000, "seed": SEED, "special": SPECIAL}
    for sequence in (128, 512):
        took, samples = seconds(
            lambda sequence=sequence: open_samples("bert", [(1, dataset)], cache=None, sequence=sequence, **arguments)
        )
        theirs = None
        if megatron:
            from megatron.core.datasets import helpers

            given = (np.array(dataset.documents), np.array(dataset.lengths), 2**31 - 2, 1000, sequence - 3)
            theirs, expected = seconds(lambda given=given: helpers.build_mapping(*given, 0.1, SEED, False, 2))
            np.testing.assert_array_equal(samples.rows, expected)
        line(f"BERT index, {len(dataset):,} sentences, {len(samples):,} samples of {sequence}", took, "s", theirs)
        line(f"  one sample of {sequence} tokens", each(samples), "us", bert_each(samples) if megatron else None)
    options: Any = {"cache": folder / "cache", "sequence": 128, **arguments}
    open_samples("bert", [(1, dataset)], **options)
    line(
        "  the index of 128 from the cache",
        seconds(lambda: open_samples("bert", [(1, dataset)], **options))[0],
        "s",
        None,
    )


def bert_each(samples: Any) -> float:
    """Return the microseconds that Megatron-core's dataset takes for one of the same samples."""
    from types import SimpleNamespace

    from megatron.core.datasets.bert_dataset import BERTMaskedWordPieceDataset

    pieces = {id: "##" if CONTINUATION[id] else "" for id in range(VOCAB)}
    tokenizer = SimpleNamespace(cls=101, sep=102, mask=103, pad=0, inv_vocab=pieces)
    theirs = object.__new__(BERTMaskedWordPieceDataset)
    theirs.config = SimpleNamespace(
        random_seed=SEED,
        sequence_length=samples.sequence,
        classification_head=True,
        tokenizer=tokenizer,
        masking_probability=0.15,
        masking_max_ngram=3,
        masking_do_full_word=True,
        masking_do_permutation=False,
        masking_use_longer_ngrams=False,
        masking_use_geometric_distribution=False,
    )
    theirs.dataset, theirs.sample_index, theirs._pad_token_id = samples.dataset, samples.rows, 0
    theirs.token_lookup = list(pieces)
    for index in range(50):
        np.testing.assert_array_equal(theirs[index]["labels"], samples[index]["labels"])
    return each(theirs)


def blending(megatron: bool) -> None:
    """Measure the choice among corpora."""
    weights, samples = [0.5, 0.2, 0.1, 0.1, 0.05, 0.05], 1_000_000
    parts: Any = [None] * len(weights)
    took, made = seconds(lambda: blend(parts, weights, samples, None))
    theirs = None
    if megatron:
        from megatron.core.datasets import helpers

        corpus, number = np.zeros(samples, np.int16), np.zeros(samples, np.int64)
        given = (corpus, number, np.array(weights), len(weights), samples, False)
        theirs, _ = seconds(lambda: helpers.build_blending_indices(*given))
        np.testing.assert_array_equal(made.corpus, corpus)
    line(f"blend of {len(weights)} corpora, {samples:,} samples", took, "s", theirs)


def main() -> None:
    """Write the corpora and measure."""
    parser = argparse.ArgumentParser(description="time to build sample indices")
    parser.add_argument("--tokens", type=int, default=100_000_000)
    tokens = parser.parse_args().tokens
    megatron = importlib.util.find_spec("megatron") is not None
    print(f"{tokens:,} tokens")
    print(f"{'':58} {'mpeval':>9} {'megatron':>9} {'ratio':>6}")
    with tempfile.TemporaryDirectory() as folder:
        gpt(Path(folder), tokens, megatron)
        bert(Path(folder), tokens, megatron)
    blending(megatron)


if __name__ == "__main__":
    main()
