"""PIQA by likelihood against lm-eval's own `piqa` and `hf` backend, offline, on the same weights and real rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lm_eval_runs import Stock, harness_model, judged, random_gpt, run_harness, stock_yaml

from mpeval.data import load_data
from mpeval.items import Likelihoods
from mpeval.tasks.build import build_task
from mpeval.tasks.cards import load_card
from mpeval.tokenizer import find_tokenizer

ROWS, CONTEXT = 40, 44
METRICS = "metric_list:\n  - metric: acc\n  - metric: acc_norm\n  - metric: acc_bytes\n"
pytestmark = pytest.mark.filterwarnings("ignore")  # lm-eval and datasets warn about their own dependencies


def chosen_rows(folder: Path) -> list[dict[str, Any]]:
    """Return rows of the published validation set with their labels, longest first: the first ones are cut.

    Of some a solution is made dashes, which have three times as many bytes as characters.
    """
    lines = (folder / "piqa/valid.jsonl").read_text(encoding="utf-8").splitlines()
    labels = (folder / "piqa/valid-labels.lst").read_text().split()
    rows = [{**json.loads(line), "label": int(label)} for line, label in zip(lines, labels, strict=True)]
    rows = [row for row in rows if max(len(row["sol1"]), len(row["sol2"])) < 110]  # options that fit the context
    rows.sort(key=lambda row: -len(row["goal"] + row["sol1"]))
    rows = [*rows[:8], *rows[8 :: len(rows) // (ROWS - 8)][: ROWS - 8]]
    for number, row in enumerate(rows[-8:]):
        row["sol2" if number % 2 else "sol1"] = " ".join("\u2014\u2013"[at % 2] for at in range(3 + number))
    return rows


@pytest.fixture(scope="module")
def both(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Score the rows here and by `lm_eval.simple_evaluate`, with one set of random weights."""
    model = random_gpt(CONTEXT)
    folder = tmp_path_factory.mktemp("rows")
    rows = chosen_rows(shared_data)
    plain = [{key: value for key, value in row.items() if key != "label"} for row in rows]
    (folder / "piqa").mkdir()
    (folder / "piqa/valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain))
    (folder / "piqa/valid-labels.lst").write_text("".join(f"{row['label']}\n" for row in rows))
    card = load_card("piqa")
    data = load_data(card, folder, "valid", allow_modified=True)
    tokenizer = find_tokenizer(shared_data / "gpt2-bpe", [])
    tasks = {name: build_task(card, card.protocol(name), data, tokenizer, CONTEXT) for name in ("lm-eval", "byte-norm")}
    stock = Stock(yaml="piqa/piqa.yaml", rows=rows, splits=("train", "validation"), changes=METRICS)
    theirs = run_harness(
        harness_model(model, shared_data / "gpt2-bpe"), tmp_path_factory.mktemp("run"), {"piqa_local": stock}
    )
    return {
        "tasks": tasks,
        "samples": {name: judged(model, task) for name, task in tasks.items()},
        "theirs": theirs["samples"]["piqa_local"],
        "results": theirs["results"]["piqa_local"],
        "tokenizer": tokenizer,
    }


@pytest.mark.parametrize(("name", "metric"), [("lm-eval", "acc"), ("byte-norm", "acc_bytes")])
def test_log_likelihoods_of_every_option_equal_the_harness(name: str, metric: str, both: dict[str, Any]) -> None:
    cut = 0
    for theirs, ours in zip(both["theirs"], both["samples"][name], strict=True):
        expected = [float(response[0][0]) for response in theirs["resps"]]
        assert ours["log_probabilities"] == pytest.approx(expected, abs=2e-4)
        assert ours["target"] == int(theirs["target"])
        assert float(ours["correct"]) == theirs[metric]
        assert float(ours["correct_norm"]) == theirs["acc_norm"]
        cut += "cut" in ours
    assert 4 <= cut < ROWS


@pytest.mark.parametrize("name", ["lm-eval", "byte-norm"])
def test_prompts_and_options_equal_the_harness(name: str, both: dict[str, Any]) -> None:
    task, tokenizer = both["tasks"][name], both["tokenizer"]
    for theirs, item in zip(both["theirs"], task.items, strict=True):
        assert isinstance(item.request, Likelihoods)
        for arguments, option in zip(theirs["arguments"], item.request.options, strict=True):
            assert tokenizer.decode(option.context.tolist()) == arguments[0]
            assert tokenizer.decode(option.target.tolist()) == arguments[1]


@pytest.mark.parametrize(("name", "metric"), [("lm-eval", "acc"), ("byte-norm", "acc_bytes")])
def test_accuracies_equal_the_harness(name: str, metric: str, both: dict[str, Any]) -> None:
    metrics, n, _ = both["tasks"][name].summarise(both["samples"][name])
    found = {metric.name: metric.value for metric in metrics}
    theirs = both["results"]
    assert n == ROWS
    assert found == {"accuracy": theirs[f"{metric},none"], "accuracy_norm": theirs["acc_norm,none"]}


def test_the_three_ways_to_choose_differ_on_these_rows(both: dict[str, Any]) -> None:
    for one, other in (("acc", "acc_norm"), ("acc", "acc_bytes"), ("acc_norm", "acc_bytes")):
        assert [sample[one] for sample in both["theirs"]] != [sample[other] for sample in both["theirs"]]


def test_the_card_names_the_dataset_that_the_harness_uses() -> None:
    import yaml

    stock = yaml.safe_load(stock_yaml("piqa/piqa.yaml").read_text())
    hub = load_card("piqa").split_named("valid").hub
    assert hub is not None
    assert (hub.id, hub.split) == (stock["dataset_path"], stock["validation_split"])
