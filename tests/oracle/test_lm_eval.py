"""lm-eval's own task code and `hf` backend as the oracle of scores and prompts, offline, on the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval_runs import Stock, harness_model, random_gpt, run_harness, stock_yaml

from mpeval.data import load_data
from mpeval.items import Request
from mpeval.scoring import score, score_batch
from mpeval.tasks.build import build_task
from mpeval.tasks.cards import read_card, select
from mpeval.tasks.perplexity import detokenize
from mpeval.tokenizer import find_tokenizer

ROWS = 24


@pytest.fixture(scope="module")
def lambada(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Score real rows through `lm_eval.simple_evaluate` and through mpeval, with one set of random weights."""
    model = random_gpt(256)
    tokenizer = find_tokenizer(shared_data / "gpt2-bpe", [])
    [(card, protocol)] = select(["lambada/lm-eval-openai"])
    rows = (shared_data / card.split_named().files[0]).read_text().splitlines()[:ROWS]
    subset = tmp_path_factory.mktemp("rows") / "lambada_test.jsonl"
    subset.write_text("\n".join(rows) + "\n")
    task = build_task(card, protocol, load_data(card, subset.parent, allow_modified=True), tokenizer, 256)
    ours = score_batch(model, [item.request for item in task.items])
    stock = Stock(yaml="lambada/lambada_openai.yaml", rows=[json.loads(row) for row in rows])
    backend = harness_model(model, shared_data / "gpt2-bpe")
    theirs = run_harness(backend, tmp_path_factory.mktemp("run"), {"lambada_local": stock})
    return {"model": model, "task": task, "ours": ours, "theirs": theirs}


pytestmark = pytest.mark.filterwarnings("ignore")  # lm-eval and datasets warn about their own dependencies


def test_log_probabilities_and_greedy_flags_equal_the_harness(lambada: dict[str, Any]) -> None:
    for sample, scored in zip(lambada["theirs"]["samples"]["lambada_local"], lambada["ours"], strict=True):
        log_probability, greedy = sample["resps"][0][0]
        assert scored.log_probability == pytest.approx(float(log_probability), abs=1e-4)
        assert scored.greedy == (str(greedy) == "True")


def test_accuracy_and_perplexity_equal_the_harness(lambada: dict[str, Any]) -> None:
    task = lambada["task"]
    samples = [task.judge(item, scored) for item, scored in zip(task.items, lambada["ours"], strict=True)]
    metrics, n, _ = task.summarise(samples)
    found = {metric.name: metric.value for metric in metrics}
    theirs = lambada["theirs"]["results"]["lambada_local"]
    assert n == ROWS
    assert found["accuracy"] == theirs["acc,none"]
    assert found["target_perplexity"] == pytest.approx(theirs["perplexity,none"], rel=1e-4)


def test_contexts_and_targets_equal_the_harness_token_for_token(shared_data: Path) -> None:
    from lm_eval.api.model import TemplateLM

    tokenizer = find_tokenizer(shared_data / "gpt2-bpe", [])

    class Pairs(TemplateLM):
        """Only the harness's own splitting of a pair, around our encoder."""

        eot_token_id = tokenizer.end_of_text

        def __init__(self) -> None: ...

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return tokenizer.encode(string)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> Any: ...
        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any: ...
        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any: ...

    [(card, protocol)] = select(["lambada/lm-eval-openai"])
    data = load_data(card, shared_data)
    task = build_task(card, protocol, data, tokenizer, 1024)
    pairs = Pairs()
    for item, row in list(zip(task.items, data.rows, strict=True))[::7]:
        *words, last = row.split(" ")
        context, target = pairs._encode_pair(" ".join(words), " " + last)
        assert (list(item.request.context), list(item.request.target)) == (context, target)


def test_the_detokenizer_equals_the_harness_rule_for_rule(shared_data: Path) -> None:
    from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

    text = (shared_data / "wikitext-103/wiki.test.tokens").read_text(encoding="utf-8")
    assert detokenize(text) == wikitext_detokenizer({"page": text})
    odd = "a s ' b @-@ c ( d ) [ e ] { f } \" g \" ' h ' = = = = i = = = j = = k 5 ° C N x 's /' 3/ \n . ! ? , : ; \n"
    assert detokenize(odd) == wikitext_detokenizer({"page": odd})


def test_the_card_names_the_dataset_that_the_harness_uses() -> None:
    import yaml

    stock = yaml.safe_load(stock_yaml("lambada/lambada_openai.yaml").read_text())
    [(card, _)] = select(["lambada/lm-eval-openai"])
    hub = card.split_named().hub
    assert hub is not None
    assert hub.id == stock["dataset_path"]


def test_rows_from_the_datasets_library_equal_the_published_file(shared_data: Path, tmp_path: Path) -> None:
    [(card, _)] = select(["lambada"])
    published = load_data(card, shared_data)
    (tmp_path / "hub").mkdir()
    lines = [json.dumps({"text": row}, ensure_ascii=False) for row in published.rows]
    (tmp_path / "hub/test.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = (Path("tasks") / "lambada.toml").read_text().replace("EleutherAI/lambada_openai", str(tmp_path / "hub"))
    (tmp_path / "lambada.toml").write_text(text)
    from_hub = load_data(read_card(tmp_path / "lambada.toml"), None)
    assert from_hub.digest == published.digest
    assert from_hub.rows == published.rows


def test_a_score_is_the_same_alone_and_in_company(lambada: dict[str, Any]) -> None:
    task, together, model = lambada["task"], lambada["ours"], lambada["model"]
    requests: list[Request] = [item.request for item in task.items]
    for budget in (1, 100, 4096):
        for alone, scored in zip(score(model, requests, batch_tokens=budget), together, strict=True):
            assert alone.log_probability == pytest.approx(scored.log_probability, abs=1e-4)
            assert alone.greedy == scored.greedy
    assert torch.is_inference_mode_enabled() is False
