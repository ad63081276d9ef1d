"""Make `checkpoints/demo-gpt-random`: a tokenizer trained on the sample rows, and weights drawn from a fixed seed.

The weights are random on purpose: the checkpoint shows that the whole path works, not that a model is good.
Run it from the project's folder: `.venv/bin/python scripts/make_demo_checkpoint.py`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mpeval.checkpoint.weights import MadeWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.config import ModelConfig
from mpeval.folders import data_folder
from mpeval.models.weights import draw_full

SEED = 1234
VOCAB = 512


def train_tokenizer(root: Path) -> int:
    """Train a byte-level BPE on the sample rows; return its size."""
    samples = data_folder("tasks") / "samples"
    rows = (samples / "lambada/lambada_test.jsonl").read_text().splitlines()
    texts = [json.loads(row)["text"] for row in rows] + [(samples / "wikitext-103/wiki.test.tokens").read_text()]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(root / "tokenizer.json"))
    return tokenizer.get_vocab_size()


def main() -> None:
    """Write tokenizer and shards."""
    root = data_folder("checkpoints") / "demo-gpt-random"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    vocab = train_tokenizer(root)
    config = ModelConfig(
        layers=2, hidden=64, heads=4, ffn=256, context=256, vocab=vocab, padded_vocab=vocab + -vocab % 256, gelu="tanh"
    )
    folder = write_megatron(root, MadeWeights(config, lambda name: draw_full(config, name, SEED)), tp=2, iteration=1)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    print(f"wrote {folder}: {config.parameters():,} random parameters, {size / 1024:.0f} KiB with tokenizer")


if __name__ == "__main__":
    main()
