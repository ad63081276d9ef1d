"""Small corpora to train on, and ways to run training on real ranks inside a test."""

from __future__ import annotations

import functools
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from making import ROWS, VOCAB, tokenizer_json
from ranks import run_ranks
from tokenizers import Tokenizer

from mpeval.corpus.indexed import IndexedWriter
from mpeval.parallel.group import Group
from mpeval.pretrain import Options, plan, pretrain

SMALL = ("layers=2", "hidden=32", "heads=4", "context=32", "batch=4", "warmup_steps=3", "lr=1e-3", "save_every=0")
"""Settings of a model that trains in milliseconds a step; heads and widths divide by 4."""


def make_gpt_corpus(folder: Path, *, documents: int = 60, seed: int = 1) -> tuple[str, Path]:
    """Write an indexed corpus of shuffled sentences and its tokenizer; return the prefix and the tokenizer's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(VOCAB), encoding="utf-8")
    tokenizer = Tokenizer.from_str(tokenizer_json(VOCAB))
    end = tokenizer.token_to_id("<|endoftext|>")
    chosen = random.Random(seed)
    with IndexedWriter(folder / "corpus", "uint16") as writer:
        for _ in range(documents):
            rows = chosen.sample(ROWS, 4)
            writer.add([*tokenizer.encode(" ".join(rows)).ids, end])
            writer.end_document()
    return str(folder / "corpus"), folder


def make_bert_corpus(folder: Path, *, documents: int = 60, seed: int = 1) -> tuple[str, Path]:
    """Write an indexed corpus of sentences and a WordPiece vocabulary of their words; return both places."""
    folder.mkdir(parents=True, exist_ok=True)
    words = sorted({word.strip('.,"').lower() for row in ROWS for word in row.split()})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, "##s", "##ed", "##ing"]
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces), encoding="utf-8")
    chosen = random.Random(seed)
    with IndexedWriter(folder / "corpus", "uint16") as writer:
        for _ in range(documents):
            for row in chosen.sample(ROWS, 5):
                ids = [pieces.index(word.strip('.,"').lower()) for word in row.split()]
                writer.add(ids + ([len(pieces) - 1] if chosen.random() < 0.3 else []))
            writer.end_document()
    return str(folder / "corpus"), folder


def options_for(
    corpus: tuple[str, Path], output: Path, *settings: str, recipe: str = "gpt-tiny", **more: Any
) -> Options:
    """Return the options of a quiet run of a small model."""
    prefix, tokenizer = corpus  # settings given later win
    values = {"data": (prefix,), "tokenizer": tokenizer, "output": output, "settings": (*SMALL, *settings)}
    return Options(recipe=recipe, quiet=True, draw=False, device="cpu", **{**values, **more})


def train(options: Options, *, tp: int = 1, dp: int = 1, timeout: float = 120.0) -> list[dict[str, Any]]:
    """Run training on `tp * dp` forked ranks and return the lines of its metrics."""
    _warm(options.recipe)
    run_ranks(_train, tp * dp, options, tp, dp, tp=tp, timeout=timeout)
    assert options.output is not None
    return metrics(options.output)


@functools.cache
def _warm(recipe: str) -> None:
    """Import and compile here, once, what every forked rank would have to."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = (make_bert_corpus if "bert" in recipe else make_gpt_corpus)(folder / "corpus", documents=20)
        options = options_for(made, folder / "run", "steps=1", recipe=recipe, data=("0.5", made[0], "0.5", made[0]))
        with torch.random.fork_rng():
            fit_here(options)


def fit_here(options: Options) -> None:
    """Run training in this process, alone."""
    pretrain(plan(options, 1, 1), options, Group.single())


def _train(group: Group, options: Options, tp: int, dp: int) -> None:
    pretrain(plan(options, tp, dp), options, group)


def metrics(output: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics."""
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(lines: Sequence[dict[str, Any]]) -> list[float]:
    """Return the loss of each step; steps are counted from 1 without a gap."""
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]
