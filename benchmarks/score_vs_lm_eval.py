"""LAMBADA throughput against lm-eval's `hf` backend: same weights, same rows, same process, interleaved.

Run: `python benchmarks/score_vs_lm_eval.py --data DIR --tokenizer DIR [--rows 64] [--rounds 5] [--dtype float32]`.

A GPT-2-small-size model (12 layers, hidden 768, 50,257 tokens) of random weights is written through the Megatron
layout, opened by mpeval, and the same tensors are put into `transformers.GPT2LMHeadModel` for lm-eval.  Both score
the same (context, target) token pairs; A and B alternate and medians are printed, beside the share of what the
machine's matrix multiplication of the model's own shapes could do.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from random_checkpoint import SEED, SMALL
from transformers_weights import to_transformers

from mpeval.checkpoint.load import load_model
from mpeval.checkpoint.open import open_checkpoint
from mpeval.checkpoint.weights import MadeWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.data import load_data
from mpeval.items import Request
from mpeval.models.weights import draw_full
from mpeval.scoring import score
from mpeval.tasks.build import build_task
from mpeval.tasks.cards import select
from mpeval.tokenizer import find_tokenizer

BATCH_SIZES = (1, 8, 16, 32)


def harness(model: Any, batch: int) -> Any:
    """Return lm-eval's `hf` backend around a transformers model; tokens are passed in, so any tokenizer does."""
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=1024, device="cpu")


def roof(requests: list[Request], dtype: torch.dtype) -> float:
    """Return the seconds that the needed matrix products alone take: the model's shapes, 768 tokens at a time."""
    h, f = SMALL.hidden, SMALL.ffn
    x, wide = torch.randn(768, h, dtype=dtype), torch.randn(768, f, dtype=dtype)
    weights = [torch.randn(n, m, dtype=dtype) for n, m in ((3 * h, h), (h, h), (f, h), (h, f))]
    table, rows = torch.randn(SMALL.vocab, h, dtype=dtype), torch.randn(12, h, dtype=dtype)

    def layer() -> None:
        for weight in weights:
            torch.mm(wide if weight.shape[1] == f else x, weight.T)

    per_token = median_time(layer) * SMALL.layers / 768
    per_target = median_time(lambda: torch.mm(rows, table.T)) / 12
    return sum(per_token * r.inputs + per_target * len(r.target) for r in requests)


def median_time(work: Callable[[], Any], times: int = 7) -> float:
    """Return the median of a few timings of `work`."""
    work()
    return statistics.median(timed(work)[0] for _ in range(times))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Run `work` once; return seconds and what it returned."""
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def lambada_requests(data: Path, tokenizer: Path, rows: int) -> list[Request]:
    """Return evenly spread rows of the real test set under lm-eval's protocol."""
    [(card, protocol)] = select(["lambada/lm-eval-openai"])
    task = build_task(card, protocol, load_data(card, data), find_tokenizer(tokenizer, []), SMALL.context)
    step = max(1, len(task.items) // rows)
    return [item.request for item in task.items[::step]][:rows]


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    requests = lambada_requests(options.data, options.tokenizer, options.rows)
    with tempfile.TemporaryDirectory() as folder:
        write_megatron(Path(folder), MadeWeights(SMALL, lambda name: draw_full(SMALL, name, SEED)), tp=2)
        model = load_model(open_checkpoint(folder), dtype=options.dtype)
    theirs = to_transformers(model)
    pairs = [(("", ""), list(request.context), list(request.target)) for request in requests]
    backends = {size: harness(theirs, size) for size in BATCH_SIZES}
    contenders: dict[str, Callable[[], Any]] = {"mpeval": lambda: score(model, requests)}
    for size, backend in backends.items():
        contenders[f"lm-eval hf, batch {size}"] = lambda b=backend: b._loglikelihood_tokens(pairs, disable_tqdm=True)
    report(options, requests, contenders)


def report(options: argparse.Namespace, requests: list[Request], contenders: dict[str, Callable[[], Any]]) -> None:
    """Interleave the contenders, check that they agree, print medians."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    roofs: list[float] = []
    answers: dict[str, Any] = {name: work() for name, work in contenders.items()}
    for _ in range(options.rounds):
        for name, work in contenders.items():
            seconds[name].append(timed(work)[0])
        roofs.append(roof(requests, getattr(torch, options.dtype)))
    ours = answers["mpeval"]
    tokens = sum(request.inputs for request in requests)
    print(f"LAMBADA, {len(requests)} rows, {tokens} input tokens, {options.dtype}, GPT-2 small size, random weights")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores, {platform.machine()}")
    print(f"{'':24} {'median s':>9} {'min':>7} {'max':>7} {'items/s':>8} {'of roof':>8} {'greedy':>7} {'max diff':>9}")
    limit = statistics.median(roofs)
    for name, found in seconds.items():
        middle = statistics.median(found)
        same = sum(bool(a[1]) == b.greedy for a, b in zip(answers[name], ours, strict=True))
        gap = max(abs(a[0] - b.log_probability) for a, b in zip(answers[name], ours, strict=True))
        print(
            f"{name:24} {middle:9.2f} {min(found):7.2f} {max(found):7.2f} {len(requests) / middle:8.2f} "
            f"{limit / middle:8.0%} {same:>3}/{len(requests):<3} {gap:9.1e}"
        )
    best = min((name for name in seconds if name != "mpeval"), key=lambda name: statistics.median(seconds[name]))
    ratios = [b / a for a, b in zip(seconds["mpeval"], seconds[best], strict=True)]
    spread = f"pairwise {min(ratios):.2f} to {max(ratios):.2f}"
    print(f"mpeval against {best}: {statistics.median(ratios):.2f} times ({spread})")


if __name__ == "__main__":
    main()
