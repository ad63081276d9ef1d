"""RACE and WikiText by likelihood against lm-eval's own `race`, `wikitext` and `hf` backend, on real rows, offline."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval_runs import Stock, harness_model, judged, random_gpt, run_harness, stock_yaml

from mpeval.data import load_data
from mpeval.items import Likelihoods, Request
from mpeval.tasks.build import build_task
from mpeval.tasks.cards import load_card
from mpeval.tasks.perplexity import pages_of
from mpeval.tokenizer import Tokenizer, find_tokenizer

CONTEXT = 256
RACE = ("race/lm-eval", "race/all", "race/gpt3")
pytestmark = pytest.mark.filterwarnings("ignore")  # lm-eval and datasets warn about their own dependencies


def chosen_articles(folder: Path) -> list[Path]:
    """Return short articles of the published test set: four of the high part, three with blanks, and one middle one."""
    high = sorted((folder / "race/RACE/test/high").iterdir(), key=lambda path: (path.stat().st_size, path.name))
    blanks = [path for path in high if path.read_text(encoding="utf-8").count("  _  .") >= 2]
    last = [path for path in blanks if json.loads(path.read_text(encoding="utf-8"))["questions"][-1].endswith("_  .")]
    middle = sorted((folder / "race/RACE/test/middle").iterdir(), key=lambda path: (path.stat().st_size, path.name))
    return [high[2], last[0], last[40], next(path for path in blanks if path not in last), middle[0]]


def problems_of(article: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the questions of an article as lm-eval's copy of RACE spells them."""
    columns = (article["questions"], article["answers"], article["options"])
    return [
        {"question": question, "answer": answer, "options": options}
        for question, answer, options in zip(*columns, strict=True)
    ]


def race_stocks(articles: dict[str, Any]) -> dict[str, Stock]:
    """Return lm-eval's `race` of whole articles of the high part, and of every question as an article of its own."""
    whole, alone = [], []
    for path, article in articles.items():
        problems = problems_of(article)
        if "/high/" in path:
            whole.append({"article": article["article"], "problems": str(problems)})
        alone += [{"article": article["article"], "problems": str([problem])} for problem in problems]
    return {name: Stock(yaml="race/race.yaml", rows=rows) for name, rows in (("whole", whole), ("alone", alone))}


@pytest.fixture(scope="module")
def tokenizer(shared_data: Path) -> Tokenizer:
    return find_tokenizer(shared_data / "gpt2-bpe", [])


@pytest.fixture(scope="module")
def both(shared_data: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Score articles and pages here and by one `simple_evaluate`, with one set of random weights."""
    folder = tmp_path_factory.mktemp("data")
    articles = {}
    for path in chosen_articles(shared_data):
        copy = folder / "RACE/test" / path.parent.name / path.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
        articles[str(copy)] = json.loads(path.read_text(encoding="utf-8"))
    pages = pages_of((shared_data / "wikitext-103/wiki.test.tokens").read_text(encoding="utf-8"))
    pages = sorted(pages, key=len)[:5]
    (folder / "wikitext-103").mkdir()
    (folder / "wikitext-103/wiki.test.tokens").write_text(" \n" + "\n".join(pages), encoding="utf-8")
    tasks = {}
    for name in (*RACE, "wikitext103/lm-eval"):
        card = load_card(name.split("/")[0])
        data = load_data(card, folder, allow_modified=True)
        tasks[name] = build_task(card, card.protocol(name), data, tokenizer, CONTEXT)
    model = random_gpt(CONTEXT)
    backend = harness_model(model, shared_data / "gpt2-bpe")
    # rows by file name, as the questions here come by number
    ordered = dict(sorted(articles.items(), key=lambda item: (Path(item[0]).parent.name, int(Path(item[0]).stem))))
    splits = ("train", "validation", "test")
    stocks = {
        **race_stocks(ordered),
        "pages": Stock(yaml="wikitext/wikitext.yaml", rows=[{"page": page} for page in pages], splits=splits),
    }
    theirs = run_harness(backend, tmp_path_factory.mktemp("run"), stocks)
    return {
        "tasks": tasks,
        "samples": {name: judged(model, task) for name, task in tasks.items()},
        "theirs": theirs["samples"],
        "results": theirs["results"],
        "backend": backend,
        "pages": pages,
    }


# ---- RACE ----


@pytest.mark.parametrize(("name", "rows"), [("race/lm-eval", "whole"), ("race/all", "alone"), ("race/gpt3", "alone")])
def test_prompts_and_options_equal_the_harness(
    name: str, rows: str, both: dict[str, Any], tokenizer: Tokenizer
) -> None:
    task = both["tasks"][name]
    assert len(task.items) == len(both["theirs"][rows])
    blanks = 0
    for theirs, item in zip(both["theirs"][rows], task.items, strict=True):
        assert isinstance(item.request, Likelihoods)
        assert len(theirs["arguments"]) == len(item.request.options) == 4
        for (context, continuation), option in zip(theirs["arguments"], item.request.options, strict=True):
            assert tokenizer.decode(option.context.tolist()) == context
            assert tokenizer.decode(option.target.tolist()) == continuation
            split = both["backend"]._encode_pair(context, continuation)
            assert (option.context.tolist(), option.target.tolist()) == split
        blanks += theirs["arguments"][0][0].endswith("  _  .")
    assert 2 <= blanks < len(task.items)


@pytest.mark.parametrize(("name", "rows"), [("race/lm-eval", "whole"), ("race/all", "alone")])
def test_log_likelihoods_and_accuracy_equal_the_harness(name: str, rows: str, both: dict[str, Any]) -> None:
    samples = both["samples"][name]
    for theirs, ours in zip(both["theirs"][rows], samples, strict=True):
        expected = [float(response[0][0]) for response in theirs["resps"]]
        assert ours["log_probabilities"] == pytest.approx(expected, abs=3e-4)
        assert ours["target"] == int(theirs["target"])
        assert float(ours["correct"]) == theirs["acc"]
    assert 0 < sum("cut" in sample for sample in samples) < len(samples)
    metrics, n, _ = both["tasks"][name].summarise(samples)
    assert n == len(both["theirs"][rows])
    assert metrics[0].value == both["results"][rows]["acc,none"]


def test_gpt3_divides_the_harness_log_likelihoods_by_their_tokens(both: dict[str, Any]) -> None:
    chosen = []
    for theirs, ours in zip(both["theirs"]["alone"], both["samples"]["race/gpt3"], strict=True):
        logs = [float(response[0][0]) for response in theirs["resps"]]
        tokens = [len(both["backend"]._encode_pair(*arguments)[1]) for arguments in theirs["arguments"]]
        means = np.array(logs) / tokens
        assert ours["prediction"] == int(means.argmax())
        assert ours["probabilities"] == pytest.approx(np.exp(means) / np.exp(means).sum(), rel=1e-3)
        assert ours["log_probabilities"] == pytest.approx(logs, abs=3e-4)
        chosen.append(ours["prediction"])
    assert chosen != [sample["prediction"] for sample in both["samples"]["race/all"]]


def test_every_high_article_of_the_published_set_is_asked_its_last_question(
    shared_data: Path, tokenizer: Tokenizer
) -> None:
    card = load_card("race")
    data = load_data(card, shared_data)
    task = build_task(card, card.protocol("lm-eval"), data, tokenizer, 1024)
    assert len(task.items) == card.items_of(task.protocol) == 1045
    assert sum(question.question[-6:] == "  _  ." for question in task.questions) == 364
    asked = Counter(question.passage for question in data.questions)
    for item, question in zip(task.items, task.questions, strict=True):
        assert item.id == question.uid == f"{question.passage}#{asked[question.passage]}"
        assert question.passage.startswith("RACE/test/high/")
    lengths = [option for item in task.items for option in item.request.lengths]
    assert len(lengths) == 4180
    assert sum(length > 1024 for length in lengths) == 24
    assert task.constants()["cut_prompts"] == 24


# ---- WikiText ----


def test_pages_log_likelihoods_equal_the_harness(both: dict[str, Any]) -> None:
    task, samples = both["tasks"]["wikitext103/lm-eval"], both["samples"]["wikitext103/lm-eval"]
    assert pages_of(task_text(both)) == both["pages"]
    found = [0.0] * len(both["pages"])
    for sample in samples:
        [[page, loss, _]] = sample["documents"]
        found[page] -= loss
    expected = [float(np.ravel(sample["resps"])[0]) for sample in both["theirs"]["pages"]]
    assert found == pytest.approx(expected, rel=2e-5)
    assert len(samples) > len(task.rows) + 5  # some pages take several windows, some one


def task_text(both: dict[str, Any]) -> str:
    return " \n" + "\n".join(both["pages"])


def test_pages_texts_and_windows_equal_the_harness(both: dict[str, Any], tokenizer: Tokenizer) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    task = both["tasks"]["wikitext103/lm-eval"]
    expected = []
    for page, sample in enumerate(both["theirs"]["pages"]):
        [[text]] = sample["arguments"]
        assert tokenizer.decode(task.rows[page].tolist()) == text
        tokens = tokenizer.encode(text)
        windows = get_rolling_token_windows(tokens, tokenizer.end_of_text, CONTEXT, 1)
        expected += [make_disjoint_window(window) for window in windows]
    for item, window in zip(task.items, expected, strict=True):
        assert isinstance(item.request, Request)
        assert (list(item.request.context), list(item.request.target)) == window


def test_perplexities_equal_the_harness(both: dict[str, Any]) -> None:
    metrics, _, _ = both["tasks"]["wikitext103/lm-eval"].summarise(both["samples"]["wikitext103/lm-eval"])
    theirs = both["results"]["pages"]
    assert [metric.name for metric in metrics] == ["word_perplexity", "byte_perplexity", "bits_per_byte"]
    for metric in metrics:
        assert metric.value == pytest.approx(theirs[f"{metric.name},none"], rel=2e-4)


@pytest.mark.parametrize("file", ["wikitext-2-raw/wiki.test.raw", "wikitext-103/wiki.test.tokens"])
def test_the_test_set_has_as_many_pages_and_words_as_the_harness_counts(
    file: str, shared_data: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """62 pages of 241,335 words are what lm-eval 0.4.13 makes of its own data set, the raw text."""
    raw = (shared_data / file).read_bytes()
    (tmp_path / "wikitext-103").mkdir()
    (tmp_path / "wikitext-103/wiki.test.tokens").write_bytes(raw)
    card = load_card("wikitext103")
    data = load_data(card, tmp_path, allow_modified=True)
    found = build_task(card, card.protocol("lm-eval"), data, tokenizer, 1024).constants()
    assert (found["pages"], found["words"]) == (62, 241_335)
    # the first line is blank, and between pages a line break is lost
    assert found["bytes"] == len(raw) - len(" \n") - (62 - 1)


# ---- cards ----


def test_cards_name_the_versions_of_the_harness() -> None:
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads the YAML, function names and all."""

    Loader.add_constructor("!function", lambda _, node: str(node.value))
    for name, path in (("race/lm-eval", "race/race.yaml"), ("wikitext103/lm-eval", "wikitext/wikitext.yaml")):
        stock = yaml.load(stock_yaml(path).read_text(), Loader)
        described = load_card(name.split("/")[0]).protocol(name).description
        assert f"(version {stock['metadata']['version']})" in described
