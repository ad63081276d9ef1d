"""Small checkpoints, tokenizers and data files that fit together, and ways to run the command line on them."""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mpeval import cli
from mpeval.checkpoint.names import Naming
from mpeval.checkpoint.weights import MadeWeights
from mpeval.checkpoint.write import write_megatron
from mpeval.config import ModelConfig
from mpeval.models.weights import draw_full

torch.set_num_threads(1)  # models this small only wait for a second thread, long when the machine is busy

VOCAB = 400
TODAY: dict[str, Any] = {
    "rope": True,
    "norm": "rmsnorm",
    "swiglu": True,
    "gelu": None,
    "kv_heads": 2,
    "linear_bias": False,
    "qkv_bias": False,
    "tied": False,
}
"""How a GPT of today differs from `small_config`'s GPT-2."""
BERT: dict[str, Any] = {
    "family": "bert",
    "tokentypes": 2,
    "lm_head": True,
    "pooler": True,
    "binary_head": True,
    "gelu": "erf",
}
"""How Megatron's BERT does."""
PASSAGES = (
    "The old sailor sat by the harbour and mended his nets. Every boat that came in he knew by its",
    "She opened the window and let in the cold air of the morning. Far below a dog began to",
    "He had promised to write every week, and for a year he kept his word. Then she got no more",
    'They followed the river for two days. "We should have crossed at the bridge," she said, pointing at the',
    "The baker lit the oven long before dawn. By six the whole street smelled of fresh",
    "Nobody remembered who had planted the tree. It was older than the house and older than the",
    "The children counted the stars until they fell asleep. In the morning not one was left in the",
    "There was a knock. He put down the letter, walked across the room and slowly opened the",
    "The train was late again and the platform was full. At last a light appeared far down the",
    "She tuned the violin with great care. When she lifted her bow the whole hall fell",
    "Rain ran down the glass and the street was empty. He took his umbrella and went out into the",
    "For years the clock in the square had shown the wrong time. Nobody ever thought to mend the",
)
WORDS = (
    *("name", "bark", "letters", "river", "bread", "street"),
    *("morning", "letter", "street", "silent", "street", "clock"),
)
ROWS = tuple(f"{passage} {word}" for passage, word in zip(PASSAGES, WORDS, strict=True))


@functools.cache
def tokenizer_json(vocab: int = VOCAB) -> str:
    """Return the tokenizer.json of a byte-level BPE trained on `ROWS`, with exactly `vocab` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(ROWS, trainer)
    assert tokenizer.get_vocab_size() == vocab
    return str(tokenizer.to_str())


def small_config(**changes: Any) -> ModelConfig:
    """Return a model of two layers whose heads, feed-forward width and table divide by 4.

    Its weights are drawn wide, so that it is sure of its (wrong) answers and a mistake shows in the scores.
    """
    sizes: dict[str, Any] = {
        "layers": 2,
        "hidden": 32,
        "heads": 4,
        "ffn": 64,
        "context": 64,
        "vocab": VOCAB,
        "padded_vocab": 512,
        "gelu": "tanh",
        "init_std": 0.3,
    }
    return ModelConfig(**(sizes | changes))


def make_checkpoint(
    root: Path,
    *,
    config: ModelConfig | None = None,
    tp: int = 1,
    pp: int = 1,
    iteration: int = 1,
    naming: Naming = "megatron-core",
    seed: int = 12,
    dtype: torch.dtype = torch.float32,
    tokenizer: bool = True,
) -> Path:
    """Write a checkpoint of random weights, leaning to some words of `ROWS`, and its tokenizer; return `root`."""
    made = config or small_config()
    token_table = draw_full(made, "embedding.word.weight", seed)

    def weight(name: str) -> torch.Tensor:
        full = draw_full(made, name, seed)
        return (full + _leaning(token_table, made.vocab) if name == "final_norm.bias" else full).to(dtype)

    root.mkdir(parents=True, exist_ok=True)
    if tokenizer:
        (root / "tokenizer.json").write_text(tokenizer_json(made.vocab), encoding="utf-8")
    write_megatron(
        root,
        MadeWeights(made, weight),
        tp=tp,
        pp=pp,
        iteration=iteration,
        naming=naming,
    )
    return root


def _leaning(token_table: torch.Tensor, vocab: int) -> torch.Tensor:
    """Return a final bias that makes some of the true last words likely, so that not every answer is wrong."""
    tokenizer = Tokenizer.from_str(tokenizer_json(vocab))
    known = {tokenizer.token_to_id(f"\u0120{word}") for word in WORDS} - {None}
    return torch.linalg.pinv(token_table[sorted(known)]) @ torch.full((len(known),), 9.0)


def shard_file(root: Path, name: str = "mp_rank_00", iteration: int = 1) -> Path:
    """Return the path of one shard."""
    return root / f"iter_{iteration:07d}" / name / "model_optim_rng.pt"


def edit_shard(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Load a shard that a test made, let `change` alter it, and save it again."""
    content = torch.load(path, weights_only=False)
    change(content)
    torch.save(content, path)


def make_data(folder: Path, rows: Sequence[str] = ROWS) -> Path:
    """Write rows as the LAMBADA file in its published layout; return `folder`."""
    lines = [json.dumps({"text": row}) for row in rows]
    return make_data_lines(folder, lines)


def make_data_lines(folder: Path, lines: Sequence[str]) -> Path:
    """Write lines, whatever they are, as the LAMBADA file; return `folder`."""
    path = folder / "lambada" / "lambada_test.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return folder


def run_here(command: str) -> int:
    """Run `mpeval COMMAND` in this process and return its exit code."""
    before = sys.argv
    sys.argv = ["mpeval", *shlex.split(command)]
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
    return 0


def run_apart(command: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `python -m mpeval COMMAND` in a process of its own, in `folder` (default: the working folder)."""
    line = [sys.executable, "-m", "mpeval", *shlex.split(command)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=False, cwd=folder, env=environment)
