"""Zero-shot scoring against lm-eval's `hf` backend, a transformers loop and CTranslate2: same weights, interleaved.

Run: `python benchmarks/score_vs_peers.py --data DIR --tokenizer DIR [--works lambada piqa ...] [--rounds 5]
[--dtype float32] [--tp] [--alone]`.

A GPT-2-small-size model (12 layers, hidden 768, 50,257 tokens) of random weights is written through the Megatron
layout, opened by mpeval, and the same tensors go to the others.  All score the same token ids of real rows, so
tokenization is not in it; contenders alternate, and medians are printed beside the share of what the machine's matrix
products of the model's own shapes would take for the tokens and targets that have to be computed.  lm-eval runs at the
batch size that was best in a trial.  CTranslate2 takes part in fp32 where its package is installed.  `--tp` adds two
ranks of one thread, `--alone` leaves out the peers.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from random_checkpoint import SEED, SMALL
from score_peers import Pair, ctranslate2, harness, transformers_loop
from transformers_weights import to_transformers

from mpeval.checkpoint.load import load_model
from mpeval.checkpoint.open import open_checkpoint
from mpeval.checkpoint.weights import MadeWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.data import load_data
from mpeval.items import Likelihoods, Request, Response
from mpeval.models.gpt import GPT
from mpeval.models.weights import draw_full
from mpeval.parallel.group import Group
from mpeval.prefixes import join
from mpeval.scoring import pack, score
from mpeval.tasks.build import build_task
from mpeval.tasks.cards import select
from mpeval.tokenizer import find_tokenizer

BATCH_SIZES = (1, 4, 8, 16)
TRIAL = 16
"""Requests, evenly spread, that lm-eval scores at each batch size to find its best."""


@dataclass(frozen=True)
class Work:
    """What is scored: a protocol, how many of its items, and whether lm-eval can be asked the same."""

    protocol: str
    items: int
    harness: bool = True
    questions_of_an_article: bool = False


WORKS = {
    "lambada": Work("lambada/lm-eval-openai", 64),
    "piqa": Work("piqa/lm-eval", 48),
    "race-high": Work("race/lm-eval", 6),
    "race-all": Work("race/all", 12, questions_of_an_article=True),
    "wikitext-disjoint": Work("wikitext103/disjoint", 3),
    "wikitext-overlap": Work("wikitext103/megatron", 6, harness=False),
}
"""`race-all`: all questions of a few articles of the high part, which is what lets them share."""


def requests_of(work: Work, data: Path, tokenizer: Path) -> list[Request]:
    """Return requests of evenly spread real items; each option of a question is one."""
    [(card, protocol)] = select([work.protocol])
    rows = load_data(card, data, card.split_for(protocol))
    task = build_task(card, protocol, rows, find_tokenizer(tokenizer, []), SMALL.context)
    if work.questions_of_an_article:
        high = [number for number, item in enumerate(task.items) if "/high/" in item.id]
        begin = high[len(high) // 2]
        first = next(n for n in range(begin, len(task.items)) if task.items[n].id.endswith("#1"))
        chosen = range(first, first + work.items)
    else:
        step = max(1, len(task.items) // work.items)
        chosen = range(step // 2, len(task.items), step)
    found: list[Request] = []
    for number in list(chosen)[: work.items]:
        request = task.items[number].request
        found += request.options if isinstance(request, Likelihoods) else [cast(Request, request)]
    return found


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Run `work` once; return seconds and what it returned."""
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def median_time(work: Callable[[], Any], times: int = 5) -> float:
    """Return the median of a few timings of `work`, after one that does not count."""
    work()
    return statistics.median(timed(work)[0] for _ in range(times))


def needed(model: GPT, requests: Sequence[Request]) -> tuple[int, int]:
    """Return tokens that must be computed, each shared one once, and targets that must be scored."""
    tokens, known = 0, set()
    for batch in pack(model, requests, None)[0]:
        rows = [
            [*requests[number].context, *requests[number].target][:-1][-SMALL.context :] for number in batch.requests
        ]
        preamble = tuple(rows[0][: batch.preamble])
        tokens += 0 if preamble in known else len(preamble)
        known.add(preamble)
        sequences = iter([np.array(row[batch.preamble :]) for row in rows])
        tokens += sum(len(join(list(islice(sequences, count))).ids) for count in batch.rows)
    return tokens, sum(len(request.target) for request in requests)


def roof(tokens: int, targets: int, dtype: torch.dtype) -> float:
    """Return the seconds that torch.mm takes for the needed products, 768 tokens and up to 256 targets at a time."""
    h, f = SMALL.hidden, SMALL.ffn
    x, wide = torch.randn(768, h, dtype=dtype), torch.randn(768, f, dtype=dtype)
    weights = [torch.randn(n, m, dtype=dtype) for n, m in ((3 * h, h), (h, h), (f, h), (h, f))]
    rows = torch.randn(min(256, max(12, targets // 8)), h, dtype=dtype)
    table = torch.randn(SMALL.vocab, h, dtype=dtype)

    def layer() -> None:
        for weight in weights:
            torch.mm(wide if weight.shape[1] == f else x, weight.T)

    per_token = median_time(layer) * SMALL.layers / len(x)
    per_target = median_time(lambda: torch.mm(rows, table.T)) / len(rows)
    return tokens * per_token + targets * per_target


class Ranks:
    """Two ranks of one thread that hold the model and score when told to."""

    def __init__(self, folder: Path, dtype: str, requests: Sequence[Request]) -> None:
        """Fork them; each loads its shard of the checkpoint."""
        import torch.multiprocessing as processes

        context = processes.get_context("fork")
        self.here, there = context.Pipe()
        self.store = tempfile.TemporaryDirectory()
        arguments = (folder, dtype, requests, self.store.name, there)
        self.ranks = [context.Process(target=_rank, args=(rank, *arguments), daemon=True) for rank in range(2)]
        for rank in self.ranks:
            rank.start()
        self.here.recv()

    def __call__(self) -> list[Response]:
        """Score once and wait for it."""
        self.here.send(True)
        return cast(list[Response], self.here.recv())

    def end(self) -> None:
        """Stop the ranks."""
        for rank in self.ranks:
            rank.kill()
            rank.join()
        self.store.cleanup()


def _rank(rank: int, folder: Path, dtype: str, requests: Sequence[Request], store: str, told: Any) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(f"{store}/store", 2), rank=rank, world_size=2)
    model = load_model(open_checkpoint(folder), Group.create(tp=2, dp=1), dtype)
    assert isinstance(model, GPT)
    model.prepack()
    answers: Any = None
    while True:
        if rank == 0:
            told.send(answers)
            told.recv()
        dist.barrier()
        answers = score(model, requests)


def contenders(
    options: argparse.Namespace, work: Work, requests: list[Request], theirs: Any
) -> dict[str, Callable[[], Any]]:
    """Return the peers that score the requests, lm-eval at the batch size that is best in one trial each."""
    pairs: list[Pair] = [(list(request.context), list(request.target)) for request in requests]
    found: dict[str, Callable[[], Any]] = {}
    if work.harness:
        some = pairs[:: max(1, len(pairs) // TRIAL)]
        trial = {size: timed(harness(theirs, some, size, SMALL.context))[0] for size in BATCH_SIZES}
        best = min(trial, key=lambda size: trial[size])
        found[f"lm-eval hf, batch {best}"] = harness(theirs, pairs, best, SMALL.context)
    else:
        found["transformers loop"] = transformers_loop(theirs, pairs)
    other = ctranslate2(theirs, pairs, SMALL.context) if options.dtype == "float32" else None
    if other is not None:
        found["CTranslate2"] = other
    return found


def report(title: str, options: argparse.Namespace, runs: dict[str, Callable[[], Any]], limit: tuple[int, int]) -> None:
    """Interleave the contenders, check that they agree, print medians."""
    answers = {name: run() for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    roofs: list[float] = []
    for _ in range(options.rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run)[0])
        roofs.append(roof(*limit, getattr(torch, options.dtype)))
    ours, mine = answers["mpeval"], seconds["mpeval"]
    print(f"\n{title}, {options.dtype}; {limit[0]:,} tokens to compute, {limit[1]:,} targets")
    print(f"{'':22}{'median s':>9}{'min':>8}{'max':>8}{'of roof':>9}{'greedy':>11}{'max diff':>10}{'mpeval is':>20}")
    for name, found in seconds.items():
        ratios = sorted(b / a for a, b in zip(mine, found, strict=True))
        same = sum(bool(a[1]) == b.greedy for a, b in zip(answers[name], ours, strict=True))
        gap = max(abs(a[0] - b.log_probability) for a, b in zip(answers[name], ours, strict=True))
        times = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})" if name != "mpeval" else ""
        print(
            f"{name:22}{statistics.median(found):9.2f}{min(found):8.2f}{max(found):8.2f}"
            f"{statistics.median(roofs) / statistics.median(found):9.0%}{same:>6}/{len(ours):<4}{gap:10.1e}{times:>20}",
            flush=True,
        )


def main() -> None:
    """Measure and print one table per work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--tp", action="store_true", help="also two ranks of one thread each")
    parser.add_argument("--alone", action="store_true", help="no peers: mpeval against itself, with --tp")
    options = parser.parse_args()
    print(f"GPT-2-small size, random weights; torch {torch.__version__}, {torch.get_num_threads()} threads,")
    print(f"{os.cpu_count()} cores, {platform.machine()}; medians of {options.rounds} interleaved rounds")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_megatron(folder, MadeWeights(SMALL, lambda name: draw_full(SMALL, name, SEED)), tp=2)
        model = load_model(open_checkpoint(folder), dtype=options.dtype)
        assert isinstance(model, GPT)
        theirs = to_transformers(model)
        model.prepack()
        for name in options.works:
            work = WORKS[name]
            requests = requests_of(work, options.data, options.tokenizer)
            runs = {"mpeval": partial(score, model, requests)}
            if not options.alone:
                runs |= contenders(options, work, requests, theirs)
            ranks = Ranks(folder, options.dtype, requests) if options.tp else None
            if ranks is not None:
                runs["mpeval, tp 2"] = ranks
            report(f"{name}: {work.items} items of {work.protocol}", options, runs, needed(model, requests))
            if ranks is not None:
                ranks.end()
    print(f"\npeak memory of the whole process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main()
