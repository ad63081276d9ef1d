"""Megatron-core's own datasets give the same samples from the same files and seed, bit for bit.

It needs the extra `megatron` (megatron-core, with its compiled helpers) and is skipped without it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from corpora import VOCAB, random_documents, special_ids, write_corpus

from mpeval.corpus.blend import asked_of, blend, normalised
from mpeval.corpus.indexed import IndexedDataset
from mpeval.corpus.samples import Part, open_samples
from mpeval.corpus.splits import PARTS, split_bounds

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("megatron") is None,
        reason="install the extra `megatron`: pip install -e '.[megatron]'",
    ),
    pytest.mark.filterwarnings("ignore"),
]


class Tokenizer(SimpleNamespace):
    """What Megatron-core's datasets ask of a tokenizer."""

    unique_identifiers: dict[str, str]


def tokenizer() -> Tokenizer:
    special = special_ids()
    pieces = {id: f"##{id}" if special.continuation[id] else str(id) for id in range(VOCAB)}
    return Tokenizer(
        cls=special.cls,
        sep=special.sep,
        mask=special.mask,
        pad=special.pad,
        eod=4,
        vocab_size=VOCAB,
        inv_vocab=pieces,
        unique_identifiers={"class": "Tokenizer"},
    )


@pytest.mark.parametrize("split", ["969,30,1", "99,1,0", "1,1,1", "8,1", "0.5,0.25,0.25", "100", "0,0,3", "1,0,1"])
def test_the_split_is_megatrons(split: str) -> None:
    from megatron.core.datasets import blended_megatron_dataset_config as theirs

    matrix = theirs.convert_split_vector_to_split_matrix(theirs.parse_and_normalize_split(split))
    for documents in [*range(1, 120), 999, 1000, 12345, 10**7 + 1]:
        bounds = split_bounds(split, documents)
        for part, ends in enumerate(matrix):
            expected = [round(end * documents) for end in ends] if ends else []
            found = bounds[part : part + 2]
            assert found == expected or (not expected and found[0] == found[1])


@pytest.mark.parametrize("weights", [[1.0], [0.3, 0.7], [3, 2, 2], [1e-3, 1, 5, 0.25], [0.1] * 10])
def test_a_blend_chooses_as_megatron_does(weights: list[float]) -> None:
    from megatron.core.datasets import helpers
    from megatron.core.datasets.blended_megatron_dataset_builder import _get_size_per_split_per_dataset

    samples, shares = 5000, normalised(weights)
    corpus, number = np.zeros(samples, np.int16), np.zeros(samples, np.int64)
    helpers.build_blending_indices(corpus, number, np.array(shares), len(shares), samples, False)
    ours = blend([[]] * len(shares), shares, samples, None)  # type: ignore[list-item]
    np.testing.assert_array_equal(ours.corpus, corpus)
    np.testing.assert_array_equal(ours.number, number)
    asked = _get_size_per_split_per_dataset(shares, [samples], surplus=0.005)
    assert [[asked_of(share, samples)] for share in shares] == asked


def gpt_datasets(prefixes: list[Path], weights: list[float] | None, sizes: list[int], sequence: int, seed: int) -> Any:
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    config = GPTDatasetConfig(
        random_seed=seed,
        sequence_length=sequence,
        blend=([str(prefix) for prefix in prefixes], weights),
        split="80,15,5",
        tokenizer=tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        path_to_cache=str(prefixes[0].parent / "theirs"),
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Megatron-core build on the only rank there is."""
    import torch

    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: 0)


@pytest.mark.parametrize("weights", [None, [0.3, 0.7], [5.0, 1.0, 2.0]])
@pytest.mark.parametrize(("samples", "sequence"), [(30, 32), (600, 17), (400, 64)])
def test_gpt_samples_are_megatrons(
    tmp_path: Path, one_process: None, weights: list[float] | None, samples: int, sequence: int
) -> None:
    prefixes = [tmp_path / f"corpus{number}" for number in range(len(weights or [1]))]
    for number, prefix in enumerate(prefixes):
        write_corpus(prefix, random_documents(90 + 40 * number, (1, 1), (1, 150), seed=number))
    sizes = [samples, samples // 10, samples // 20]
    theirs = gpt_datasets(prefixes, weights, sizes, sequence, 1234)
    corpora = [(weight, IndexedDataset(prefix)) for weight, prefix in zip(weights or [1.0], prefixes, strict=True)]
    for part, size, expected in zip(PARTS, sizes, theirs, strict=True):
        ours = open_samples(
            "gpt", corpora, split="80,15,5", part=part, samples=size, sequence=sequence, seed=1234, cache=None
        )
        # Megatron's blend has the sum of the rounded-up shares, ours what was asked for
        assert len(ours) == (size if weights else len(expected))
        assert size <= len(ours) <= len(expected)
        for index in range(len(ours)):
            ids, sample = ours[index]["ids"], expected[index]
            np.testing.assert_array_equal(ids[:-1], sample["tokens"])
            np.testing.assert_array_equal(ids[1:], sample["labels"])


def bert_dataset(
    prefix: Path, part: Part, samples: int, sequence: int, seed: int, binary_head: bool, ngrams: int, short: float
) -> Any:
    from megatron.core.datasets.bert_dataset import BERTMaskedWordPieceDataset, BERTMaskedWordPieceDatasetConfig
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder

    config = BERTMaskedWordPieceDatasetConfig(
        random_seed=seed,
        sequence_length=sequence,
        blend=([str(prefix)], None),
        split="80,15,5",
        tokenizer=tokenizer(),
        classification_head=binary_head,
        masking_probability=0.15,
        short_sequence_probability=short,
        masking_max_ngram=ngrams,
        masking_do_full_word=True,
        masking_do_permutation=False,
        masking_use_longer_ngrams=False,
        masking_use_geometric_distribution=False,
        path_to_cache=str(prefix.parent / "theirs"),
    )
    sizes = [samples if name == part else 1 for name in PARTS]
    return BlendedMegatronDatasetBuilder(BERTMaskedWordPieceDataset, sizes, lambda: True, config).build()[
        PARTS.index(part)
    ]


@pytest.mark.parametrize("binary_head", [True, False])
@pytest.mark.parametrize(
    ("part", "samples", "sequence", "ngrams", "short"),
    [("train", 500, 128, 3, 0.1), ("train", 200, 64, 1, 0.0), ("valid", 150, 40, 2, 0.3), ("test", 60, 512, 3, 0.1)],
)
def test_bert_samples_are_megatrons(
    tmp_path: Path,
    one_process: None,
    part: Part,
    samples: int,
    sequence: int,
    ngrams: int,
    short: float,
    binary_head: bool,
) -> None:
    documents = random_documents(120, (1, 25), (1, 40), seed=3)
    documents[5] = random_documents(1, (3, 3), (513, 513), seed=4)[0]
    documents[6] = random_documents(1, (1, 1), (600, 600), seed=5)[0]
    dataset = write_corpus(tmp_path / "corpus", documents)
    theirs = bert_dataset(tmp_path / "corpus", part, samples, sequence, 77, binary_head, ngrams, short)
    ours = open_samples(
        "bert",
        [(1.0, dataset)],
        split="80,15,5",
        part=part,
        samples=samples,
        sequence=sequence,
        seed=77,
        cache=tmp_path / "ours",
        special=special_ids(),
        short_share=short,
        ngrams=ngrams,
        binary_head=binary_head,
    )
    assert len(ours) == len(theirs) >= samples
    for index in range(len(ours)):
        mine, expected = ours[index], theirs[index]
        np.testing.assert_array_equal(mine["ids"], expected["text"])
        np.testing.assert_array_equal(mine["tokentypes"], expected["types"])
        np.testing.assert_array_equal(mine["labels"], expected["labels"])
        # a random replacement may be [PAD], which Megatron then takes for padding
        told_apart = mine["padding_mask"] & (mine["ids"] != 0)
        np.testing.assert_array_equal(told_apart, expected["padding_mask"].astype(bool))
        np.testing.assert_array_equal(mine["labels"] >= 0, expected["loss_mask"].astype(bool))
        assert mine["order"] == expected["is_random"]
