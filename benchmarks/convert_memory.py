"""Peak memory of converting a model of 1.3 billion parameters, to every format.

Run: `python benchmarks/convert_memory.py [--layers N]`.  The bound is one layer plus the token table plus 300 MB,
whatever the number of layers; it is the peak resident memory of the whole process, interpreter and torch included.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from math import prod
from pathlib import Path

import torch

from mpeval.checkpoint.weights import MadeWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.config import ModelConfig

TARGETS = (
    "--format megatron --tp 4",
    "--format megatron-core --tp 2 --pp 4",
    "--format torch_dist",
    "--format huggingface",
)
PROGRAM = (
    "import sys; from pathlib import Path; from mpeval.cli import main\n"
    "try: main()\n"
    "except SystemExit as ended: assert not ended.code, ended.code\n"
    "lines = Path('/proc/self/status').read_text().splitlines()\n"
    "print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith('VmHWM:')))"
)


def main() -> None:
    """Write the checkpoint, convert it in processes of their own, print each peak against the bound."""
    parser = argparse.ArgumentParser(description="peak memory of conversions")
    parser.add_argument("--layers", type=int, default=24)
    options = parser.parse_args()
    sizes = {"hidden": 2048, "heads": 16, "ffn": 8192, "context": 1024, "vocab": 50257, "padded_vocab": 50432}
    config = ModelConfig(layers=options.layers, gelu="tanh", **sizes)
    shapes = config.shapes()
    layer = 4 * sum(prod(shape) for name, shape in shapes.items() if name.startswith("layers.0."))
    table = 4 * prod(shapes["embedding.word.weight"])
    bound = layer + table + 300e6

    def made(name: str) -> torch.Tensor:
        return torch.arange(prod(shapes[name]), dtype=torch.float32).mul_(1e-9).view(shapes[name])

    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        write_megatron(source, MadeWeights(config, made), tp=2)
        print(f"{config.parameters():,} parameters, float32, stored as tp 2")
        print(f"bound {bound / 1e6:.0f} MB: layer {layer / 1e6:.0f} MB, table {table / 1e6:.0f} MB, 300 MB")
        for options_of_target in TARGETS:
            line = ["convert", str(source), str(target), *options_of_target.split(), "--quiet"]
            done = subprocess.run([sys.executable, "-c", PROGRAM, *line], check=True, capture_output=True, text=True)
            peak = int(done.stdout)
            print(f"{options_of_target:38} peak {peak / 1e6:6.0f} MB, {peak / bound:.2f} of the bound")
            shutil.rmtree(target)


if __name__ == "__main__":
    main()
