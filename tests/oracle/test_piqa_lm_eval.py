"""PIQA by likelihood against lm-eval's own `piqa` and `hf` backend, offline, on the same weights and real rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpeval.config import ModelConfig
from mpeval.data import load_data
from mpeval.items import Likelihoods
from mpeval.models.gpt import GPT
from mpeval.models.weights import draw_weights
from mpeval.scoring import pack, score_any
from mpeval.tasks.build import build_task
from mpeval.tasks.cards import load_card
from mpeval.tokenizer import find_tokenizer

ROWS, CONTEXT = 40, 44
pytestmark = pytest.mark.filterwarnings("ignore")  # lm-eval and datasets warn about their own dependencies


def chosen_rows(folder: Path) -> list[dict[str, Any]]:
    """Return rows of the published validation set with their labels, longest first: the first ones are cut."""
    lines = (folder / "piqa/valid.jsonl").read_text(encoding="utf-8").splitlines()
    labels = (folder / "piqa/valid-labels.lst").read_text().split()
    rows = [{**json.loads(line), "label": int(label)} for line, label in zip(lines, labels, strict=True)]
    rows = [row for row in rows if max(len(row["sol1"]), len(row["sol2"])) < 110]  # options that fit the context
    rows.sort(key=lambda row: -len(row["goal"] + row["sol1"]))
    return [*rows[:8], *rows[8 :: len(rows) // (ROWS - 8)][: ROWS - 8]]


@pytest.fixture(scope="module")
def both(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Score the rows here and by `lm_eval.simple_evaluate`, with one set of random weights."""
    from transformers_weights import to_transformers

    config = ModelConfig(
        layers=2, hidden=64, heads=4, ffn=256, context=CONTEXT, vocab=50257, padded_vocab=50304, gelu="tanh",
        init_std=0.3,
    )  # fmt: skip
    model = GPT(config).eval().requires_grad_(False)
    draw_weights(model, 3)
    folder = tmp_path_factory.mktemp("rows")
    rows = chosen_rows(shared_data)
    plain = [{key: value for key, value in row.items() if key != "label"} for row in rows]
    (folder / "piqa").mkdir()
    (folder / "piqa/valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    (folder / "piqa/valid-labels.lst").write_text("".join(f"{row['label']}\n" for row in rows))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = load_card("piqa")
    data = load_data(card, folder, "valid", allow_modified=True)
    tokenizer = find_tokenizer(shared_data / "gpt2-bpe", [])
    task = build_task(card, card.protocol("piqa/lm-eval"), data, tokenizer, CONTEXT)
    requests = [item.request for item in task.items]
    scored: dict[int, Any] = {}
    for batch, _ in pack(model, requests, None)[0]:
        scored.update(zip(batch, score_any(model, [requests[place] for place in batch]), strict=True))
    samples = [task.judge(item, scored[place]) for place, item in enumerate(task.items)]
    theirs = run_harness(to_transformers(model), shared_data / "gpt2-bpe", folder / "rows.jsonl")
    return {"task": task, "samples": samples, "theirs": theirs, "rows": rows, "tokenizer": tokenizer}


def run_harness(model: Any, tokenizer_folder: Path, rows: Path) -> dict[str, Any]:
    """Run `simple_evaluate` on the stock `piqa` definition, its rows read from a local file."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    files = (str(tokenizer_folder / "encoder.json"), str(tokenizer_folder / "vocab.bpe"))
    backend = Tokenizer(models.BPE.from_file(*files))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<|endoftext|>")
    stock = Path(lm_eval.__file__).parent / "tasks/piqa/piqa.yaml"
    (rows.parent / "local.yaml").write_text(
        f"include: {stock}\ntask: piqa_local\ndataset_path: json\ndataset_name: null\n"
        f"dataset_kwargs:\n  data_files:\n    train: {rows}\n    validation: {rows}\n"
    )
    return lm_eval.simple_evaluate(  # type: ignore[no-any-return]
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=CONTEXT, device="cpu"),
        tasks=["piqa_local"],
        task_manager=TaskManager(include_path=str(rows.parent), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )


def harness_samples(both: dict[str, Any]) -> list[dict[str, Any]]:
    found = sorted(both["theirs"]["samples"]["piqa_local"], key=lambda sample: sample["doc_id"])
    assert len(found) == ROWS
    return found


def test_log_likelihoods_of_every_option_equal_the_harness(both: dict[str, Any]) -> None:
    cut = 0
    for theirs, ours in zip(harness_samples(both), both["samples"], strict=True):
        expected = [float(response[0][0]) for response in theirs["resps"]]
        assert ours["log_probabilities"] == pytest.approx(expected, abs=2e-4)
        assert ours["target"] == int(theirs["target"])
        assert float(ours["correct"]) == theirs["acc"]
        assert float(ours["correct_norm"]) == theirs["acc_norm"]
        cut += "cut" in ours
    assert 4 <= cut < ROWS


def test_prompts_and_options_equal_the_harness(both: dict[str, Any]) -> None:
    task, tokenizer = both["task"], both["tokenizer"]
    for theirs, item in zip(harness_samples(both), task.items, strict=True):
        assert isinstance(item.request, Likelihoods)
        for arguments, option in zip(theirs["arguments"], item.request.options, strict=True):
            assert tokenizer.decode(option.context.tolist()) == arguments[0]
            assert tokenizer.decode(option.target.tolist()) == arguments[1]


def test_accuracies_equal_the_harness(both: dict[str, Any]) -> None:
    metrics, n, _ = both["task"].summarise(both["samples"])
    found = {metric.name: metric.value for metric in metrics}
    theirs = both["theirs"]["results"]["piqa_local"]
    assert n == ROWS
    assert found == {"accuracy": theirs["acc,none"], "accuracy_norm": theirs["acc_norm,none"]}
    assert found["accuracy"] != found["accuracy_norm"]


def test_the_card_names_the_dataset_that_the_harness_uses() -> None:
    import lm_eval
    import yaml

    stock = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/piqa/piqa.yaml").read_text())
    hub = load_card("piqa").split_named("valid").hub
    assert hub is not None
    assert (hub.id, hub.split) == (stock["dataset_path"], stock["validation_split"])
