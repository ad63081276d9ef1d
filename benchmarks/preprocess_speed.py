"""Tokens per second of `mpeval preprocess` with two workers, against document by document and against `datasets.map`.

Run: `python benchmarks/preprocess_speed.py --data DIR [--megabytes N] [--rounds N]`, DIR holding `gpt2-bpe`, `race` and
`wikitext-2`.  The text is the articles of WikiText-2's and RACE's training sets, the tokenizer GPT-2's.  Each round
times, in turning order:

* `mpeval preprocess` from a JSONL file to the synced `.bin` and `.idx`, the start of its processes included;
* the same with one worker;
* one process that parses the file and encodes document by document, and writes nothing;
* `datasets.map(batched=True, num_proc=2)` with the library's fastest call on a set that is loaded already, one thread a
  process, so that the same two cores do the work.

All ids are compared first.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import re
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mpeval.corpus.encoding import Settings
from mpeval.corpus.indexed import IndexedDataset
from mpeval.corpus.preprocess import Options, preprocess
from mpeval.tokenizer import find_tokenizer

WORKERS = 2


def articles(data: Path) -> Iterator[str]:
    """Give the articles of WikiText-2 (a heading of the first level begins one) and of RACE."""
    text = lzma.decompress((data / "wikitext-2" / "wiki.train.tokens.xz").read_bytes()).decode()
    yield from (article for article in re.split(r"\n(?= = [^=])", text) if article.strip())
    for name in ("race_train_high.tar.xz", "race_train_middle.tar.xz"):
        with tarfile.open(data / "race" / name) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None:
                    yield json.loads(file.read())["article"]


def write(path: Path, texts: Iterator[str], megabytes: float) -> tuple[int, int]:
    """Write articles as JSONL until it is long enough; return how many, and how long it became."""
    count = 0
    with path.open("w") as file:
        for text in texts:
            file.write(json.dumps({"text": text}) + "\n")
            count += 1
            if file.tell() >= megabytes * 1e6:
                break
    return count, path.stat().st_size


class Contest:
    """The same text and tokenizer for each of the ways."""

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        """Load what is not measured."""
        import datasets

        datasets.disable_progress_bars()
        self.folder, self.path = folder, folder / "text.jsonl"
        self.tokenizer = tokenizer
        self.backend = find_tokenizer(tokenizer, []).backend
        self.rows = datasets.load_dataset("json", data_files=str(self.path), cache_dir=str(folder), split="train")
        self.turn = 0

    def ours(self, workers: int) -> Callable[[], list[list[int]]]:
        """Return `mpeval preprocess` with some workers."""

        def work() -> Any:
            settings = Settings(tokenizer=self.tokenizer)
            output = self.folder / "corpus"
            preprocess(
                Options(
                    inputs=(str(self.path),), output=output, settings=settings, workers=workers, force=True, quiet=True
                )
            )
            return IndexedDataset(output)

        return work

    def one_by_one(self) -> Any:
        """Encode document by document."""
        with self.path.open() as file:
            return [self.backend.encode(json.loads(line)["text"], add_special_tokens=False).ids for line in file]

    def mapped(self) -> Any:
        """Encode by `datasets.map`."""
        backend, self.turn = self.backend, self.turn + 1

        def encode(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
            return {"ids": [made.ids for made in backend.encode_batch_fast(batch["text"], add_special_tokens=False)]}

        return self.rows.map(
            encode,
            batched=True,
            num_proc=WORKERS,
            remove_columns=["text"],
            new_fingerprint=f"turn{self.turn}",  # never from the cache
        )


def main() -> None:
    """Compare, measure and print."""
    parser = argparse.ArgumentParser(description="tokens per second of preprocess")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--megabytes", type=float, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        count, size = write(Path(folder) / "text.jsonl", articles(given.data), given.megabytes)
        contest = Contest(Path(folder), given.data / "gpt2-bpe")
        ways: dict[str, Callable[[], Any]] = {
            f"mpeval preprocess, {WORKERS} workers": contest.ours(WORKERS),
            "mpeval preprocess, 1 worker": contest.ours(1),
            "document by document, 1 process": contest.one_by_one,
            f"datasets.map, {WORKERS} processes": contest.mapped,
        }
        expected = contest.one_by_one()
        tokens = sum(map(len, expected))
        for name in list(ways)[:2]:
            assert all(np.array_equal(a, b) for a, b in zip(ways[name](), expected, strict=True)), name
        assert contest.mapped()["ids"] == expected
        del expected
        times: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(given.rounds):
            order = list(ways)
            for name in order[turn % len(order) :] + order[: turn % len(order)]:
                began = time.perf_counter()
                ways[name]()
                times[name].append(time.perf_counter() - began)
    cores = len(os.sched_getaffinity(0))
    print(f"{count:,} documents, {size / 1e6:.1f} MB of JSONL, {tokens:,} tokens; medians of {given.rounds} rounds")
    print(f"{cores} cores of a shared machine; load while measuring {os.getloadavg()[0]:.1f}")
    medians = {name: statistics.median(found) for name, found in times.items()}
    ours = next(iter(medians.values()))
    print(f"{'':34} {'seconds':>8} {'tokens/s':>11} {'ours is':>9}")
    for name, median in medians.items():
        print(f"{name:34} {median:8.2f} {tokens / median:11,.0f} {median / ours:8.2f}x")


if __name__ == "__main__":
    main()
