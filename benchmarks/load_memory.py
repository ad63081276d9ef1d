"""Peak memory of loading one of N shards, above an interpreter that has torch and mpeval's model code imported.

Run: `python benchmarks/load_memory.py [--size medium]`.  The checkpoint (random weights) is written once at tp 2;
every case loads rank 0 or the last rank of another tensor-parallel size in a process of its own, whose peak resident
memory the operating system reports.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from random_checkpoint import SEED, SIZES

from mpeval.checkpoint.weights import MadeWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.models.weights import draw_full


def status(field: str) -> int:
    """Return a memory figure of this process from /proc, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def load_one(folder: Path, rank: int, ranks: int) -> None:
    """Load one shard in this process and print its size and the growth of peak memory, in bytes."""
    import torch

    from mpeval.checkpoint.load import load_model
    from mpeval.checkpoint.open import open_checkpoint
    from mpeval.parallel.group import Axis, Group

    torch.nn.Linear(8, 8)(torch.zeros(1, 8))  # the first call brings up torch's thread pool
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of starting up (Linux)
    before = status("VmRSS")
    axis = Axis(rank=rank, ranks=ranks)
    model = load_model(open_checkpoint(folder), Group(tp=axis, world=axis))
    size = sum(parameter.nbytes for parameter in model.parameters())
    print(size, status("VmHWM") - before)


def main() -> None:
    """Write the checkpoint and measure each case."""
    parser = argparse.ArgumentParser(description="peak memory of loading one of N shards")
    parser.add_argument("--size", choices=SIZES, default="medium")
    parser.add_argument("--one", nargs=3, metavar=("DIR", "RANK", "RANKS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        load_one(Path(options.one[0]), int(options.one[1]), int(options.one[2]))
        return
    config = SIZES[options.size]
    with tempfile.TemporaryDirectory() as folder:
        write_megatron(Path(folder), MadeWeights(config, lambda name: draw_full(config, name, SEED)), tp=2)
        print(f"{config.parameters():,} parameters, float32, stored as tp 2")
        print(f"{'rank':>4} {'of':>3} {'shard MB':>9} {'peak MB':>8} {'ratio':>6}")
        for ranks in (1, 2, 4, 8):
            for rank in dict.fromkeys((0, ranks - 1)):
                command = [sys.executable, __file__, "--one", folder, str(rank), str(ranks)]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                size, peak = map(int, printed.split())
                print(f"{rank:4} {ranks:3} {size / 1e6:9.1f} {peak / 1e6:8.1f} {peak / size:6.3f}")


if __name__ == "__main__":
    main()
