"""Small RACE sets in their published layout, and folders of evaluations on them, as `mpeval evaluate` leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mpeval.data import Data, load_data
from mpeval.journal import Journal
from mpeval.results import CheckpointInfo, DataInfo, Layout, Result, RunResults
from mpeval.tasks.cards import load_card
from mpeval.tasks.summary import summarise_choices

Sample = dict[str, Any]
PROTOCOL = "race/megatron"
CHECKPOINT: dict[str, Any] = {
    "name": "seed-1",
    "path": "runs/seed-1",
    "digest": "sha256:1",
    "format": "megatron-core",
    "version": 3.0,
    "iteration": 40,
    "grid": (2, 1),
    "parameters": 1_000_000,
    "gelu": "tanh",
    "vocab": 1000,
    "padded_vocab": 1024,
}


def write_race(folder: Path, passages: Sequence[tuple[str, int, int]], split: str = "test", seed: int = 0) -> Path:
    """Write articles (group, number, questions) of a split below `folder`; return `folder`."""
    random = np.random.default_rng(seed)
    for group, number, questions in passages:
        content = {
            "article": f"Article {number} of {group}.",
            "questions": [f"What is _ in {question}?" for question in range(questions)],
            "options": [[f"{letter} {question}" for letter in "wxyz"] for question in range(questions)],
            "answers": [str(letter) for letter in random.choice(list("ABCD"), questions)],
            "id": f"{group}{number}.txt",
        }
        path = folder / "RACE" / split / group / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def race(folder: Path) -> Data:
    """Read a RACE test set that is not the published one."""
    return load_data(load_card("race"), folder, allow_modified=True)


def line_of(uid: str, target: int, probabilities: Sequence[float], **more: Any) -> Sample:
    """Return a sample line whose prediction is that of its probabilities."""
    prediction = int(np.argmax(probabilities))
    return {
        "task": PROTOCOL,
        "id": uid,
        **more,
        "target": target,
        "prediction": prediction,
        "probabilities": [float(value) for value in probabilities],
        "correct": prediction == target,
        "tokens": 100,
    }


def answers_to(data: Data, seed: int, skill: float = 1.0) -> list[Sample]:
    """Answer every question of a set with the softmax of noise, and of `skill` for the right option."""
    random = np.random.default_rng(seed)
    lines = []
    for question in data.questions:
        logits = random.normal(0, 1, len(question.options))
        logits[question.answer] += skill
        powers = np.exp(logits - logits.max())
        more = {"passage": question.passage, "group": question.group}
        lines.append(line_of(question.uid, question.answer, powers / powers.sum(), **more))
    return lines


def write_evaluation(
    folder: Path,
    lines: Sequence[Sample],
    data: str = "sha256:data",
    *,
    checkpoint: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    **result: Any,
) -> Path:
    """Write what an evaluation of RACE leaves in its folder; `result`, `run`, `checkpoint` change what results say."""
    metrics, n, correct = summarise_choices(lines)
    fields: dict[str, Any] = {
        "task": "race",
        "protocol": PROTOCOL,
        "protocol_version": "1",
        "title": "RACE",
        "metrics": metrics,
        "n": n,
        "n_correct": correct,
        "items": len(lines),
        "items_total": len(lines),
        "truncated": 0,
        "flags": [],
        "data": DataInfo(source="data", digest=data, rows_expected=len(lines)),
        "seconds": 2.5,
        "tokens_per_second": 1000.0,
        "items_resumed": 0,
        "split": "test",
    }
    return write_results(folder, [Result(**fields | result)], lines, checkpoint=checkpoint, run=run)


def write_results(
    folder: Path,
    made: Sequence[Result],
    lines: Sequence[Sample],
    *,
    checkpoint: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
) -> Path:
    """Write results, of any tasks, and sample lines as an evaluation leaves them; return `folder`."""
    results: dict[str, Any] = {
        "created_at": "2026-01-02T03:04:05Z",
        "checkpoint": CheckpointInfo(**CHECKPOINT | dict(checkpoint or {})),
        "tokenizer_digest": "sha256:tt",
        "layout": Layout(tp=1, dp=1),
        "dtype": "float32",
        "device": "cpu",
        "megatron_exact": False,
        "results": list(made),
        "command": "mpeval evaluate",
        "mpeval_version": "0.1.0",
        "torch_version": "2.13.0",
    }
    content = RunResults(**results | dict(run or {}))
    identity: dict[str, Any] = {"checkpoint": content.checkpoint.digest}
    for result in made:
        identity[f"data of {result.protocol}"] = result.data.digest
        identity[f"version of {result.protocol}"] = result.protocol_version
        if result.harness:
            identity[f"configuration of {result.protocol}"] = result.harness.config
    journal = Journal(folder, identity)
    journal.append([dict(line) for line in lines])
    journal.finish([(line["task"], line["id"]) for line in lines], content.to_json())
    return folder


def change_line(folder: Path, number: int, **changes: Any) -> None:
    """Change values of one line (from 1) of a folder's samples; None removes the key."""
    path = folder / "samples.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    sample = json.loads(lines[number - 1]) | changes
    lines[number - 1] = json.dumps({key: value for key, value in sample.items() if value is not None})
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
