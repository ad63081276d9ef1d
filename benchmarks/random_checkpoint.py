"""Write a GPT-2 of random weights through the Megatron layout, for timing and memory studies.

Run: `python benchmarks/random_checkpoint.py DIR [--size small|medium] [--tp N] [--pp N]`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mpeval.checkpoint.weights import MadeWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.config import ModelConfig
from mpeval.models.weights import draw_full

SMALL = ModelConfig(
    layers=12, hidden=768, heads=12, ffn=3072, context=1024, vocab=50257, padded_vocab=50688, gelu="tanh"
)
MEDIUM = ModelConfig(
    layers=24, hidden=1024, heads=16, ffn=4096, context=1024, vocab=50257, padded_vocab=50688, gelu="tanh"
)
SIZES = {"small": SMALL, "medium": MEDIUM}
SEED = 1


def main() -> None:
    """Write the checkpoint and say what it is."""
    parser = argparse.ArgumentParser(description="write a GPT-2 of random weights as Megatron shards")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--tp", type=int, default=2)
    parser.add_argument("--pp", type=int, default=1)
    options = parser.parse_args()
    config = SIZES[options.size]
    folder = write_megatron(
        options.folder, MadeWeights(config, lambda name: draw_full(config, name, SEED)), tp=options.tp, pp=options.pp
    )
    print(f"{folder}: {config.parameters():,} random parameters in {options.tp} x {options.pp} shards")


if __name__ == "__main__":
    main()
