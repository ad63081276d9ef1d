"""Resharding a classic checkpoint of 1 GB from tp 2 to tp 4, against `cp -r` of the same files on the same disk.

Run: `python benchmarks/convert_speed.py [--rounds N] [--folder DIR]`.  Each round times, in turning order: `cp -r`;
the same with a sync of what it wrote, as a conversion syncs its files before it renames them; the rewriting alone, also
with and without a sync; one digest of every tensor; and the whole command `mpeval convert` as a process of its own,
which starts Python and torch, compares copies, digests every tensor before and after, rewrites and syncs.  The page
cache is warm for all of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mpeval.checkpoint.examine import digests
from mpeval.checkpoint.open import open_checkpoint
from mpeval.checkpoint.weights import MadeWeights, StoredWeights
from mpeval.checkpoint.write import fill_megatron, write_megatron
from mpeval.config import ModelConfig

CONFIG = ModelConfig(
    layers=16, hidden=1024, heads=16, ffn=4096, context=1024, vocab=50257, padded_vocab=50688, gelu="tanh"
)


def made(name: str) -> torch.Tensor:
    """Return values that differ from tensor to tensor and are quick to make."""
    shape = CONFIG.shapes()[name]
    count = int(torch.Size(shape).numel())
    return (torch.arange(count, dtype=torch.float32).mul_(1e-9).add_(len(name))).view(shape)


def timed(work: Callable[[], object], target: Path) -> float:
    """Return the seconds of `work`, which writes to `target`; what it wrote is removed."""
    begin = time.perf_counter()
    work()
    seconds = time.perf_counter() - begin
    shutil.rmtree(target)
    return seconds


def synced(folder: Path) -> None:
    """Force a folder's files to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def contenders(source: Path, target: Path) -> dict[str, Callable[[], object]]:
    """Return what is compared, by name."""
    command = [sys.executable, "-m", "mpeval", "convert", str(source), str(target), "--format", "megatron-core"]

    def copied(sync: bool) -> None:
        subprocess.run(["cp", "-r", str(source), str(target)], check=True)
        if sync:
            synced(target)

    def rewritten(sync: bool) -> None:
        opened = open_checkpoint(source)
        target.mkdir()
        fill_megatron(target, StoredWeights(opened, opened.config), tp=4)
        if sync:
            synced(target)

    def hashed() -> None:
        target.mkdir()
        digests(open_checkpoint(source))

    return {
        "cp -r": lambda: copied(sync=False),
        "cp -r, synced": lambda: copied(sync=True),
        "reshard": lambda: rewritten(sync=False),
        "reshard, synced": lambda: rewritten(sync=True),
        "digests, once": hashed,
        "mpeval convert --tp 4": lambda: subprocess.run([*command, "--tp", "4", "--quiet"], check=True),
    }


def main() -> None:
    """Write the checkpoint, time all contenders in turn, print medians."""
    parser = argparse.ArgumentParser(description="resharding against cp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work (default: the system's temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        write_megatron(source, MadeWeights(CONFIG, made), tp=2)
        size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
        seconds: dict[str, list[float]] = {name: [] for name in contenders(source, target)}
        for number in range(options.rounds):
            work = list(contenders(source, target).items())
            for name, run in work[number % len(work) :] + work[: number % len(work)]:
                seconds[name].append(timed(run, target))
    print(f"{size / 1e9:.2f} GB, tp 2, medians of {options.rounds} rounds")
    plain, durable = (statistics.median(seconds[name]) for name in ("cp -r", "cp -r, synced"))
    print(f"{'':24} {'':8} {'':12} of cp  of cp, synced")
    for name, found in seconds.items():
        median = statistics.median(found)
        print(
            f"{name:24} {median:6.2f} s {size / median / 1e6:7.0f} MB/s {plain / median:6.2f} {durable / median:6.2f}"
        )


if __name__ == "__main__":
    main()
