"""Runs of several tasks, as `mpeval evaluate` leaves their folders, whose models find the same items hard."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from evaluated import write_results

from mpeval.results import DataInfo, Metric, Result
from mpeval.statistics import accuracy_metric, mean_perplexity_metric, ratio_perplexity_metrics

Lines = list[dict[str, Any]]
LAMBADA, WIKITEXT = "lambada/megatron-strict", "wikitext103/disjoint"


def documents(seed: int, count: int = 40, gap: float = 0.0) -> tuple[list[float], list[float], list[int]]:
    """Draw the losses of two models on documents of very different sizes that both find hard or easy, and the sizes."""
    random = np.random.default_rng(seed)
    sizes = random.integers(50, 900, count)
    hard = random.normal(3.0, 0.5, count)
    own = random.normal(0.0, 0.03, (2, count))
    return [*((hard + own[side] + (gap if side == 0 else 0)) * sizes for side in (0, 1)), sizes.tolist()]  # type: ignore[return-value]


def windows(losses: Any, sizes: Any, tokens: int = 100) -> Lines:
    """Return lines of windows of `tokens` that run across documents, each token of one as likely as the others."""
    flat = [
        (number, loss / size)
        for number, (loss, size) in enumerate(zip(losses, sizes, strict=True))
        for _ in range(size)
    ]
    lines: Lines = []
    for begin in range(0, len(flat), tokens):
        shares: dict[int, list[float]] = {}
        for document, loss in flat[begin : begin + tokens]:
            share = shares.setdefault(document, [0.0, 0])
            share[0] += loss
            share[1] += 1
        held = [[document, *share] for document, share in shares.items()]
        lines.append({"task": WIKITEXT, "id": f"window-{begin:06d}", "documents": held, "log_probability": -1.0})
    return lines


def result(protocol: str, metrics: list[Metric], lines: Lines, **more: Any) -> Result:
    fields: dict[str, Any] = {
        "task": protocol.partition("/")[0],
        "protocol": protocol,
        "protocol_version": "1",
        "title": protocol,
        "metrics": metrics,
        "n": len(lines),
        "n_correct": None,
        "items": len(lines),
        "items_total": len(lines),
        "truncated": 0,
        "flags": [],
        "data": DataInfo(source="data", digest=f"sha256:{protocol}", rows_expected=len(lines)),
        "seconds": 1.0,
        "tokens_per_second": None,
        "items_resumed": 0,
        "split": "test",
    }
    return Result(**fields | more)


def lambada(seed: int, count: int = 300, skill: float = 0.0) -> tuple[Result, Lines]:
    """Draw what a model says of words that all models find hard or easy."""
    hard, random = np.random.default_rng(0).normal(2.0, 1.0, count), np.random.default_rng(seed)
    losses = np.exp(hard - skill + random.normal(0, 0.3, count)) / 4
    lines: Lines = [
        {
            "task": LAMBADA,
            "id": f"{number:05d}",
            "target": " word",
            "prediction": " word",
            "correct": bool(loss < 1.5),
            "log_probability": -float(loss),
            "greedy": bool(loss < 1.5),
            "tokens": 1,
        }
        for number, loss in enumerate(losses)
    ]
    correct = sum(line["correct"] for line in lines)
    metrics = [accuracy_metric(correct, count), mean_perplexity_metric("target_perplexity", losses.tolist())]
    return result(LAMBADA, metrics, lines), lines


def wikitext(seed: int, gap: float = 0.0) -> tuple[Result, Lines]:
    a, _, sizes = documents(21)
    losses = np.array(a) + gap * np.array(sizes) + np.random.default_rng(seed).normal(0, 0.002, 40) * np.array(sizes)
    metrics = ratio_perplexity_metrics(losses.tolist(), sizes, {"adjusted_perplexity": 1.15, "token_perplexity": 1.0})
    lines = windows(losses, sizes)
    return result(WIKITEXT, metrics, lines), lines


def write(folder: Path, *made: tuple[Result, Lines], **checkpoint: Any) -> Path:
    named = {"name": folder.name, "digest": f"sha256:{folder.name}", "path": f"checkpoints/{folder.name}"}
    lines = list(itertools.chain.from_iterable(lines for _, lines in made))
    return write_results(folder, [result for result, _ in made], lines, checkpoint=named | checkpoint)
