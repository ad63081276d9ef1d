"""Training throughput against `transformers.Trainer`: same weights, same batches, same two cores, interleaved.

Run: `python benchmarks/train_vs_transformers.py [--models gpt bert] [--dtype float32 bfloat16] [--rounds 3]`.

GPT-2 small (12 layers, hidden 768, 1,024 tokens) and BERT base (512 tokens), two sequences per step, dropout 0.1,
AdamW, gradients clipped to norm 1.  Every contender is a process that lives through all rounds and takes one whole
optimizer step when it is its turn: `transformers.Trainer` with its defaults (sdpa attention, fused AdamW, autocast for
bfloat16), mpeval's training loop on one rank with two threads, and the same on two tensor-parallel ranks with one
thread each.  Printed are medians, ratios of steps of the same round, and shares of the rate that the machine's best
matrix product reached in between, of the operations that the model needs (BERT: the output layer at 15 % of positions).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpeval import launch
from mpeval.checkpoint.open import open_checkpoint
from mpeval.checkpoint.weights import StoredWeights
from mpeval.estimate import flops_per_sequence
from mpeval.models.weights import fill_weights
from mpeval.parallel.group import Group
from mpeval.recipe import MODEL_NAMES, Recipe, Training
from mpeval.train.build import build
from mpeval.train.loop import Run, step
from mpeval.train.memory import keep_memory
from mpeval.train.roof import matmul_roof

BATCH = 2
LENGTHS = {"gpt": 1024, "bert": 512}
MASKED = 0.15
CORES = 2


@dataclass(frozen=True, kw_only=True)
class Study:
    """One model in one dtype, its weights in a folder that transformers wrote."""

    family: str
    dtype: str
    steps: int
    folder: str


class RandomSamples:
    """Samples of random tokens, the same for every contender."""

    def __init__(self, family: str, vocab: int, steps: int) -> None:
        """Remember what to draw."""
        self.family, self.vocab, self.length = family, vocab, steps * BATCH

    def __len__(self) -> int:
        """Return how many samples the steps take."""
        return self.length

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        """Draw sample `number`, with the fields of `mpeval.corpus.samples.Samples`."""
        draw, tokens = np.random.default_rng(number), LENGTHS[self.family]
        if self.family == "gpt":
            return {"ids": draw.integers(0, self.vocab, tokens + 1)}
        ids = draw.integers(0, self.vocab, tokens)
        return {
            "ids": ids,
            "tokentypes": (np.arange(tokens) >= tokens // 2).astype(np.int64),
            "padding_mask": np.ones(tokens, dtype=bool),
            "labels": np.where(draw.random(tokens) < MASKED, draw.integers(0, self.vocab, tokens), -1),
            "order": np.array(number % 2),
        }

    def documents(self, number: int) -> list[str]:
        """Name the sample."""
        return [f"random:{number}"]


def hugging_face(family: str) -> Any:
    """Make the model of transformers, with its own random weights."""
    from transformers import BertConfig, BertForPreTraining, GPT2Config, GPT2LMHeadModel, logging

    logging.disable_progress_bar()
    torch.manual_seed(1)
    return GPT2LMHeadModel(GPT2Config()) if family == "gpt" else BertForPreTraining(BertConfig())


def trainer(study: Study, pipe: Connection) -> None:
    """Train with `transformers.Trainer`; each optimizer step waits for its turn and reports seconds and loss."""
    from transformers import logging

    logging.set_verbosity_error()
    model = hugging_face(study.family)
    samples = RandomSamples(study.family, model.config.vocab_size, study.steps)
    train_in_turns(
        pipe,
        model,
        [_for_transformers(study.family, samples[number]) for number in range(len(samples))],
        max_steps=study.steps,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        bf16=study.dtype == "bfloat16",
    )


def train_in_turns(
    pipe: Connection, model: Any, samples: Sequence[Any], *, collate: Any = None, **settings: Any
) -> None:
    """Train by `transformers.Trainer` with `settings` of its own; each optimizer step waits for its turn."""
    from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

    begin = 0.0

    class Turns(TrainerCallback):  # type: ignore[misc]
        def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
            """End a step: the loss is logged after each, whatever else there is to do in it is done."""
            nonlocal begin
            if "loss" in logs:
                pipe.send((time.perf_counter() - begin, logs["loss"], None))
                pipe.recv()
                begin = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            **settings,
            use_cpu=True,
            dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
            save_strategy="no",
            report_to=[],
            logging_steps=1,
            disable_tqdm=True,
        )
        one = Trainer(model=model, args=arguments, train_dataset=samples, data_collator=collate, callbacks=[Turns()])
        one.remove_callback(PrinterCallback)
        pipe.recv()
        begin = time.perf_counter()
        one.train()


def _for_transformers(family: str, sample: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Rename the fields of a sample; of a GPT, transformers shifts the labels itself and scores one token less."""
    if family == "gpt":
        return {"input_ids": sample["ids"][:-1], "labels": sample["ids"][:-1]}
    return {
        "input_ids": sample["ids"],
        "token_type_ids": sample["tokentypes"],
        "attention_mask": sample["padding_mask"].astype(np.int64),
        "labels": np.where(sample["labels"] == -1, -100, sample["labels"]),
        "next_sentence_label": int(sample["order"]),
    }


def ours(study: Study, pipe: Connection, rank: int, ranks: int, meeting: str) -> None:
    """Train with mpeval's loop as one of `ranks` tensor-parallel ranks, a step whenever it is its turn."""
    keep_memory()
    world = launch.World(rank=rank, ranks=ranks, local_rank=rank, local_ranks=ranks, address=meeting)
    with launch.joined(world, tp=ranks, dp=1, device="cpu") as group, tempfile.TemporaryDirectory() as output:
        made, progress = _built(study, group, Path(output))
        made.model.train()
        for number in range(study.steps):
            pipe.recv()
            begin = time.perf_counter()
            record = step(made, progress, made.feeder.fetch(number * BATCH))
            seconds = time.perf_counter() - begin
            pipe.send((seconds, record["loss"], matmul_roof(study.dtype, group)))
        pipe.recv()


def _built(study: Study, group: Group, output: Path) -> tuple[Run, Any]:
    """Build a run of the weights that transformers wrote."""
    opened = open_checkpoint(study.folder)
    training = Training(
        steps=study.steps, batch=BATCH, lr=1e-4, schedule="constant", weight_decay=0.01, dtype=study.dtype
    )
    model = {name: getattr(opened.config, name) for name in MODEL_NAMES}
    recipe = Recipe(name="benchmark", training=training, model=model)
    config = recipe.config(opened.config.vocab, group.tp.ranks)
    samples = RandomSamples(study.family, config.vocab, study.steps)
    made, progress = build(recipe, config, group, train=samples, valid=None, state=None, output=output)
    fill_weights(made.model, StoredWeights(opened, config, "float32").read, into=made.optimizer.masters)
    made.optimizer.publish()
    return made, progress


class Contender:
    """Processes that take their steps together, whenever they are told to."""

    def __init__(self, work: Any, study: Any, *arguments: tuple[Any, ...], threads: int) -> None:
        """Start one process of `work(study, pipe, *more)` per tuple of further arguments."""
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []
        for more in arguments:
            mine, its = context.Pipe()
            process = context.Process(target=_with_threads, args=(threads, work, study, its, *more), daemon=True)
            process.start()
            its.close()
            self.pipes.append(mine)
            self.processes.append(process)

    def step(self) -> tuple[float, float, float | None]:
        """Let it take a step; return seconds of the slowest process, and the first one's loss and matmul roof."""
        for pipe in self.pipes:
            pipe.send("go")
        found = [pipe.recv() for pipe in self.pipes]
        return max(item[0] for item in found), found[0][1], found[0][2]

    def end(self) -> None:
        """End its processes."""
        for process in self.processes:
            process.kill()
            process.join()


def _with_threads(threads: int, work: Any, *arguments: Any) -> None:
    torch.set_num_threads(threads)
    work(*arguments)


def contenders(study: Study, meeting: str) -> Iterator[tuple[str, Contender]]:
    """Start the three."""
    yield "transformers", Contender(trainer, study, (), threads=CORES)
    yield "mpeval", Contender(ours, study, (0, 1, meeting), threads=CORES)
    yield "mpeval, tp 2", Contender(ours, study, (0, 2, meeting), (1, 2, meeting), threads=1)


def measure(study: Study) -> None:
    """Interleave the contenders' steps, the first of which is not counted, and print medians."""
    with tempfile.TemporaryDirectory() as meeting:
        started = dict(contenders(study, meeting))
        try:
            rounds = [{name: one.step() for name, one in started.items()} for _ in range(study.steps)]
        finally:
            for one in started.values():
                one.end()
    report(study, rounds[0], rounds[1:])


def report(study: Study, first: Mapping[str, Any], rounds: list[dict[str, Any]]) -> None:
    """Print a table of the counted rounds."""
    config = open_checkpoint(study.folder).config
    tokens = BATCH * LENGTHS[study.family]
    flops = BATCH * flops_per_sequence(config, LENGTHS[study.family], scored=1.0 if study.family == "gpt" else MASKED)
    roof = max(item["mpeval"][2] for item in rounds)
    print(f"\n{study.family}, {study.dtype}, {BATCH} x {LENGTHS[study.family]} tokens, roof {roof / 1e9:.0f} GFLOP/s")
    print(f"{'':14} {'median s':>9} {'min':>7} {'max':>7} {'tokens/s':>9} {'of roof':>8} {'losses'}")
    for name in first:
        seconds = [item[name][0] for item in rounds]
        middle = statistics.median(seconds)
        print(
            f"{name:14} {middle:9.2f} {min(seconds):7.2f} {max(seconds):7.2f} {tokens / middle:9.0f} "
            f"{flops / middle / roof:8.0%} {' '.join(f'{item[name][1]:.3f}' for item in (first, *rounds))}"
        )
    for one, other in (("mpeval", "transformers"), ("mpeval, tp 2", "mpeval")):
        ratios = [item[other][0] / item[one][0] for item in rounds]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        print(f"{one} against {other}: {statistics.median(ratios):.2f} times (round by round {spread})", flush=True)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=("gpt", "bert"), default=["gpt", "bert"])
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}, {options.rounds} rounds")
    for family in options.models:
        with tempfile.TemporaryDirectory() as folder:
            hugging_face(family).save_pretrained(folder)
            for dtype in options.dtype:
                measure(Study(family=family, dtype=dtype, steps=options.rounds + 1, folder=folder))


if __name__ == "__main__":
    main()
