"""Small pretrained checkpoints and benchmarks to finetune on, and ways to run finetuning on real ranks in a test."""

from __future__ import annotations

import functools
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import torch
from making import BERT, VOCAB, small_config, tokenizer_json
from ranks import run_ranks
from training import metrics

from mpeval.checkpoint.open import open_checkpoint
from mpeval.checkpoint.sharded import ShardedCheckpoint
from mpeval.checkpoint.weights import MadeWeights, StoredWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.config import ModelConfig
from mpeval.finetune import Options, finetune_seeds, plan
from mpeval.folders import data_folder
from mpeval.models.weights import draw_full
from mpeval.parallel.group import Group

SAMPLES = data_folder("tasks") / "samples"
"""The self-written rows of RACE and PIQA."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FAST = ("batch=4", "lr=1e-3", "warmup_share=0.1", "micro_tokens=1024")
"""Settings of runs of a few milliseconds a step, with several micro-batches in each."""
STILL = ("dropout=0", "attention_dropout=0")
PREMISES = ("The baker lit the oven", "A dog began to bark", "Rain ran down the glass", "The train was late")
ENDINGS = ((" before dawn.", "entailment"), (" not at all.", "contradiction"), (" in the town.", "neutral"))


@functools.cache
def sample_words() -> list[str]:
    """Return every word and sign of the sample rows, lowered, sorted."""
    paths = [*(SAMPLES / "RACE").rglob("*.txt"), *(SAMPLES / "piqa").glob("*.jsonl")]
    text = " ".join(path.read_text(encoding="utf-8") for path in sorted(paths))
    return sorted(set(re.findall(r"\w+|[^\w\s]", text.lower())) - {"_"})


@functools.cache
def pieces() -> list[str]:
    """Return a WordPiece vocabulary in which long words of the sample rows take two tokens."""
    words = sample_words()
    short = [word if len(word) < 9 else word[:6] for word in words]
    tails = [f"##{word[6:]}" for word in words if len(word) >= 9]
    return [*SPECIAL, *sorted(set(short)), *sorted(set(tails)), "_"]


def bert_config(**changes: Any) -> ModelConfig:
    """Return a pretrained BERT of two layers for `pieces`."""
    vocab = len(pieces())
    sizes = {"context": 128, "vocab": vocab, "padded_vocab": -(-vocab // 128) * 128, "init_std": 0.05}
    return small_config(**BERT | sizes | changes)


def gpt_config(**changes: Any) -> ModelConfig:
    """Return a pretrained GPT of two layers for `tokenizer_json`, unsure of everything."""
    return small_config(**{"context": 128, "init_std": 0.05} | changes)


def make_pretrained(root: Path, config: ModelConfig | None = None, *, tp: int = 1, seed: int = 7) -> Path:
    """Write a checkpoint of random weights with its tokenizer; return `root`."""
    made = config or bert_config()
    root.mkdir(parents=True, exist_ok=True)
    if made.family == "bert":
        (root / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces()), encoding="utf-8")
    else:
        (root / "tokenizer.json").write_text(tokenizer_json(VOCAB), encoding="utf-8")
    weights = MadeWeights(made, lambda name: draw_full(made, name, seed))
    write_megatron(root, weights, tp=tp, pp=1, iteration=3, naming="megatron-core")
    return root


def make_mnli(folder: Path, rows: int = 36) -> Path:
    """Write MNLI's training and matched dev set in the layout of GLUE; return `folder`."""
    lines = ["index\tsentence1\tsentence2\tgold_label"]
    for number in range(rows):
        premise = PREMISES[number % len(PREMISES)]
        ending, label = ENDINGS[number % len(ENDINGS)]
        lines.append(f"{number}\t{premise} {number}.\t{premise}{ending}\t{label}")
    (folder / "MNLI").mkdir(parents=True, exist_ok=True)
    for name, chosen in (("train", lines), ("dev_matched", [lines[0], *lines[-9:]])):
        (folder / "MNLI" / f"{name}.tsv").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return folder


def make_squad(folder: Path) -> Path:
    """Write SQuAD 1.1 with the sample articles as paragraphs: who did what is asked, a word of it the answer."""
    for name, split in (("train", "train"), ("dev", "dev")):
        paragraphs = []
        for path in sorted((SAMPLES / "RACE" / split).rglob("*.txt")):
            text = json.loads(path.read_text(encoding="utf-8"))["article"]
            found = list(re.finditer(r"\w{5,}", text))[3:40:9]
            asked = [
                {
                    "id": f"{split}-{path.parent.name}-{path.stem}-{number}",
                    "question": f"What stands after {text[: match.start()].split()[-1]}?",
                    "answers": [{"answer_start": match.start(), "text": match.group()}],
                }
                for number, match in enumerate(found)
            ]
            paragraphs.append({"context": text, "qas": asked})
        (folder / "squad").mkdir(parents=True, exist_ok=True)
        content = {"version": "1.1", "data": [{"title": "Samples", "paragraphs": paragraphs}]}
        (folder / "squad" / f"{name}-v1.1.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def options_for(checkpoint: Path, output: Path, *settings: str, task: str = "race", **more: Any) -> Options:
    """Return the options of a quiet run on the sample rows; settings given later win."""
    values: dict[str, Any] = {"data": SAMPLES, "settings": (*FAST, *settings), "quiet": True, "draw": False}
    command = ("mpeval", "finetune", str(checkpoint))
    return Options(checkpoint=checkpoint, task=task, output=output, device="cpu", command=command, **values | more)


def finetune_ranks(options: Options, *, tp: int = 1, dp: int = 1, timeout: float = 120.0) -> list[dict[str, Any]]:
    """Finetune on `tp * dp` forked ranks and return the lines of the run's metrics (none of several seeds)."""
    warm()
    run_ranks(finetune_rank, tp * dp, options, tp=tp, timeout=timeout)
    return metrics(options.output) if options.seeds == 1 else []


def finetune_rank(group: Group, options: Options) -> None:
    """Be one rank of a finetuning run."""
    finetune_seeds(plan(options, group.tp.ranks, group.dp.ranks), options, group)


@functools.cache
def warm() -> None:
    """Import and compile here, once, what every forked rank would have to."""
    with tempfile.TemporaryDirectory() as name, torch.random.fork_rng():
        root = make_pretrained(Path(name) / "bert")
        finetune_rank(Group.single(), options_for(root, Path(name) / "run", "steps=1"))


def weights_of(checkpoint: ShardedCheckpoint | Path) -> dict[str, torch.Tensor]:
    """Return the full tensors of a checkpoint by canonical name."""
    found = open_checkpoint(checkpoint) if isinstance(checkpoint, Path) else checkpoint
    stored = StoredWeights(found, found.config, "float32")
    return {name: stored.read(name) for name in found.config.shapes()}


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def untimed(run: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics without what depends on the clock."""
    timed = {"seconds", "tokens_per_second", "flops_per_second", "roof_share"}
    return [{key: value for key, value in line.items() if key not in timed} for line in metrics(run)]
