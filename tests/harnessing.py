"""A small GPT with a real tokenizer, the same weights for lm-eval's `hf` backend, and what lm-eval makes of that."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

from lm_eval_runs import hf_backend
from making import MadeWeights

from mpeval.checkpoint.load import load_model
from mpeval.checkpoint.open import open_checkpoint
from mpeval.checkpoint.write import write_megatron
from mpeval.config import ModelConfig
from mpeval.folders import data_folder
from mpeval.models.gpt import GPT
from mpeval.models.weights import draw_full

TASKS = data_folder("tasks") / "harness"
DEMO = data_folder("checkpoints") / "demo-gpt"
CONFIG = ModelConfig(
    layers=2, hidden=64, heads=4, ffn=256, context=320, vocab=4096, padded_vocab=4224, gelu="tanh", init_std=0.3
)


def make_gpt(root: Path) -> Path:
    """Write a checkpoint of random weights in two shards with demo-gpt's tokenizer; return `root`."""
    root.mkdir(parents=True)
    shutil.copy(DEMO / "tokenizer.json", root)
    weights = MadeWeights(CONFIG, lambda name: draw_full(CONFIG, name, 3))
    write_megatron(root, weights, tp=2, pp=1, iteration=1, naming="megatron-core")
    return root


def loaded(root: Path) -> GPT:
    """Return the model of a checkpoint."""
    model = load_model(open_checkpoint(root))
    assert isinstance(model, GPT)
    return model


def hf_of(root: Path, batch: int = 4) -> Any:
    """Return lm-eval's `hf` backend with a checkpoint's weights and tokenizer."""
    from tokenizers import Tokenizer

    return hf_backend(loaded(root), Tokenizer.from_file(str(root / "tokenizer.json")), batch)


def ask_hf(root: Path, tasks: list[str], data: Path | None, limit: int) -> Any:
    """Return what lm-eval says of tasks in `tasks/harness` with its own backend."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return lm_eval.simple_evaluate(
            model=hf_of(root),
            tasks=tasks,
            task_manager=TaskManager(
                include_path=str(TASKS), include_defaults=False, metadata={"data": str(data)} if data else None
            ),
            bootstrap_iters=0,
            limit=limit,
            log_samples=True,
        )
