"""lm-eval's own task definitions and `hf` backend on the weights of a model of ours, offline, rows from local files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpeval.config import ModelConfig
from mpeval.models.gpt import GPT
from mpeval.models.weights import draw_weights
from mpeval.scoring import pack, score_any
from mpeval.tasks.base import Sample, Task


@dataclass(frozen=True, kw_only=True)
class Stock:
    """A task that lm-eval ships: its YAML below lm-eval's `tasks`, rows in its schema, and changes to it."""

    yaml: str
    rows: Sequence[Mapping[str, Any]]
    splits: tuple[str, ...] = ("test",)
    changes: str = ""


def random_gpt(context: int) -> GPT:
    """Return a small model over GPT-2's vocabulary whose weights are drawn wide, so that options differ."""
    config = ModelConfig(
        layers=2, hidden=64, heads=4, ffn=256, context=context, vocab=50257, padded_vocab=50304, gelu="tanh",
        init_std=0.3,
    )  # fmt: skip
    model = GPT(config).eval().requires_grad_(False)
    draw_weights(model, 3)
    return model


def judged(model: GPT, task: Task) -> list[Sample]:
    """Score every item of a task here, in batches, and return its samples in order."""
    requests = [item.request for item in task.items]
    scored: dict[int, Any] = {}
    for batch in pack(model, requests, None)[0]:
        asked = [requests[place] for place in batch.requests]
        scored.update(zip(batch.requests, score_any(model, asked, rows=batch.rows), strict=True))
    return [task.judge(item, scored[place]) for place, item in enumerate(task.items)]


def stock_yaml(path: str) -> Path:
    """Return the file of a task definition that lm-eval ships."""
    import lm_eval

    return Path(lm_eval.__file__).parent / "tasks" / path


def harness_model(model: GPT, tokenizer_folder: Path) -> Any:
    """Return lm-eval's `hf` backend around the same weights and GPT-2's own tokenizer files."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    files = (str(tokenizer_folder / "encoder.json"), str(tokenizer_folder / "vocab.bpe"))
    backend = Tokenizer(models.BPE.from_file(*files))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return hf_backend(model, backend)


def hf_backend(model: GPT, text: Any, batch: int = 4) -> Any:
    """Return lm-eval's `hf` backend around the same weights and a tokenizer of the library `tokenizers`."""
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast
    from transformers_weights import to_transformers

    end = "<|endoftext|>"
    return HFLM(
        pretrained=to_transformers(model),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=text, eos_token=end, bos_token=end, pad_token=end),
        batch_size=batch,
        max_length=model.config.context,
        device="cpu",
    )


def run_harness(backend: Any, folder: Path, tasks: Mapping[str, Stock]) -> dict[str, Any]:
    """Run `simple_evaluate` on stock definitions under names of ours; files for it go into the empty `folder`.

    Returns its results, the samples of each task in the order of the rows.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    for name, stock in tasks.items():
        rows = folder / f"{name}.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in stock.rows), encoding="utf-8")
        files = "".join(f"    {split}: {rows}\n" for split in stock.splits)
        (folder / f"{name}.yaml").write_text(
            f"include: {stock_yaml(stock.yaml)}\ntask: {name}\ndataset_path: json\ndataset_name: null\n"
            f"dataset_kwargs:\n  data_files:\n{files}{stock.changes}"
        )
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=backend,
        tasks=list(tasks),
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )
    for name, stock in tasks.items():
        found["samples"][name].sort(key=lambda sample: sample["doc_id"])
        assert len(found["samples"][name]) == len(stock.rows)
    return found
