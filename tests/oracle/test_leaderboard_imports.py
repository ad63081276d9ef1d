"""Files that others published are imported whole, and the dirt that is known to be in such tables is found."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from imports import SOURCE, bring, codes_of, numbers_of, paper_row, papers_file

from mpeval.leaderboard.boards import boards
from mpeval.leaderboard.importing.benchmarks import table_of
from mpeval.leaderboard.reported import Reported

RACE = {"middle": "Accuracy (Middle)", "high": "Accuracy (High)"}
MEGATRON = "https://arxiv.org/abs/1909.08053v4"


@pytest.fixture(scope="module")
def tables(shared_data: Path) -> Path:
    """Return the folder of published tables."""
    return shared_data / "leaderboards"


def tables_in(value: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return every table of a file of Papers with Code, found without the importer's own walk."""
    if isinstance(value, list):
        return [table for item in value for table in tables_in(item)]
    if not isinstance(value, dict):
        return []
    own = [(value.get("subdataset") or value["dataset"], value["sota"]["rows"])] if value.get("sota") else []
    return own + [table for key in ("datasets", "subdatasets", "subtasks") for table in tables_in(value.get(key))]


def plain_numbers(rows: list[dict[str, Any]]) -> Counter[float]:
    """Return every value of named rows that Python reads as a number, sizes apart; one row is of a model `test`."""
    found: Counter[float] = Counter()
    for row in rows:
        for column, value in row["metrics"].items():
            if row["model_name"] not in {"", "test"} and column != "Number of params":
                try:
                    found[float(value)] += 1
                except ValueError:
                    continue
    return found


def printed_numbers(numbers: list[Reported]) -> Counter[float]:
    return Counter(float(text) for one in numbers for text in (one.printed, *one.printed_others.values()))


# ---- real files ----


@pytest.mark.parametrize("name", ["nlp-progress.json", "squad.json", "eff_lambada_subset.json"])
def test_no_value_of_a_known_benchmark_is_lost(name: str, tables: Path, tmp_path: Path) -> None:
    file = tables / "sota-extractor" / name
    known = [(title, rows) for title, rows in tables_in(json.loads(file.read_text())) if table_of(title)]
    assert known
    store = tmp_path / "store.jsonl"
    first = bring(file, "pwc", store)
    expected = plain_numbers([row for _, rows in known for row in rows])
    lost = expected - printed_numbers(numbers_of(store))
    assert lost == Counter()
    assert first.added == first.numbers == len(numbers_of(store))
    again = bring(file, "pwc", store)
    assert (again.added, again.known) == (0, first.numbers)


def test_the_dirt_of_nlp_progress_is_named(tables: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.jsonl"
    codes = codes_of(bring(tables / "sota-extractor" / "nlp-progress.json", "pwc", store))
    assert codes["WikiText-103, row 3"] == {"remark", "approximate"}
    assert codes["WikiText-103, row 1"] == {"missing"}
    assert codes["RACE, row 5"] == {"race-identity"}
    assert codes["RACE, row 1"] == {"race-identity", "unattainable"}
    assert {"protocol-unknown", "mixed-splits"} <= codes["Quora Question Pairs"]
    assert codes["TACRED"] == {"unknown-benchmark"}
    numbers = {(one.task, one.model.name, one.part): one for one in numbers_of(store)}
    compressive = numbers["wikitext103", "Compressive Transformer (2019)", "test"]
    assert (compressive.printed, compressive.model.parameters) == ("17.1", 257e6)
    assert "16.1 with basic dynamic evaluation" in compressive.note
    assert numbers["wikitext103", "Compressive Transformer (2019)", "valid"].printed == "16.0"
    xlnet = numbers["race", "XLNet (2019)", "test"]
    assert xlnet.printed_others == {"accuracy_middle": "85.45", "accuracy_high": "80.21"}
    assert numbers["mnli", "RoBERTa (2019)", "test-mismatched"].printed == "90.2"
    assert all(board.rows and not any(row.rank for row in board.rows) for board in boards(list(numbers.values())))


def test_rows_without_a_paper_have_the_source_of_their_table(tables: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.jsonl"
    imported = bring(tables / "sota-extractor" / "squad.json", "pwc", store)
    assert {one.source.url for one in numbers_of(store) if one.model.name == "FPNet (ensemble)"} == {
        "https://rajpurkar.github.io/SQuAD-explorer/"
    }
    left_out = [finding for finding in imported.findings if not finding.kept]
    assert {finding.code for finding in left_out} == {"placeholder-name"}
    conflicting = {one.model.name for one in numbers_of(store) if "conflict" in one.flags}
    assert "FPNet (ensemble)" in conflicting


def test_pythias_results_are_whole_numbers_of_right_answers(tables: Path, tmp_path: Path) -> None:
    """The rows of the old form of lm-eval's files are put back into that form, one file a model."""
    models: dict[str, dict[str, Any]] = defaultdict(dict)
    for line in (tables / "pythia_v1_zero_shot_lambada_piqa.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row.pop("step") == 143000:
            models[row.pop("model")][row.pop("task")] = row
    store = tmp_path / "store.jsonl"
    for name, results in models.items():
        config = {"model_args": f"pretrained=EleutherAI/{name},revision=step143000", "num_fewshot": 0, "limit": None}
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({"results": results, "versions": dict.fromkeys(results, 0), "config": config}))
        imported = bring(file, "lm-eval", store, url="https://github.com/EleutherAI/pythia")
        assert (imported.numbers, imported.added, imported.findings) == (3, 3, ())
    numbers = numbers_of(store)
    assert len(models) == 16
    assert len(numbers) == 48
    for one in numbers:
        raw = models[one.model.name.removeprefix("EleutherAI/")]["piqa" if one.task == "piqa" else "lambada_openai"]
        assert one.flags == []
        assert one.model.shots == "0"
        if one.metric.name == "accuracy":
            assert round(one.metric.value * one.n) == pytest.approx(raw["acc"] * one.n, abs=1e-6)
            assert one.metric.stderr == raw["acc_stderr"]
        else:
            assert one.metric.value == pytest.approx(raw["ppl"], abs=1e-4)
            assert one.metric.stderr == raw["ppl_stderr"]
    assert {one.protocol for one in numbers} == {"lambada/lm-eval-openai", "piqa/lm-eval"}


def test_a_results_file_without_a_model_is_imported_with_the_name_it_is_given(tables: Path, tmp_path: Path) -> None:
    store = tmp_path / "store.jsonl"
    file = tables / "bigscience" / "Tr1-13B-harness-eval.json"
    imported = bring(file, "lm-eval", store, url=SOURCE, model="tr1 13B")
    assert {(finding.code, finding.kept) for finding in imported.findings} == {
        ("task-version", True),
        ("unknown-metric", False),
    }
    numbers = {(one.protocol, one.metric.name): one for one in numbers_of(store)}
    assert len(numbers) == imported.numbers
    race = numbers["race/lm-eval-before-3", "accuracy"]
    assert (race.n, race.printed, round(race.metric.value * 1045)) == (1045, "37.42", 391)
    assert numbers["lambada/lm-eval-openai", "perplexity"].printed == "5.0201"
    assert numbers["lm-eval/hellaswag", "acc"].printed_others == {"acc_norm": "71.63"}
    raw = json.loads(file.read_text())["results"]
    shares = [value for scores in raw.values() for key, value in scores.items() if re.fullmatch("acc|acc_norm|f1", key)]
    printed = [text for one in numbers.values() for text in (one.printed, *one.printed_others.values())]
    assert not Counter(f"{100 * value:.2f}" for value in shares) - Counter(printed)


# ---- dirt that the mirrored pages had, in a file made for it ----


def race(
    name: str, url: str, whole: str | None = None, middle: str | None = None, high: str | None = None
) -> dict[str, Any]:
    """Return a row of RACE's table."""
    cells = {"Accuracy": whole, RACE["middle"]: middle, RACE["high"]: high}
    return paper_row(name, url, **{column: value for column, value in cells.items() if value is not None})


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Import a file with every kind of dirt; give findings by model as (codes, kept), and the numbers."""
    folder = tmp_path_factory.mktemp("dirty")
    path = papers_file(
        folder / "tables.json",
        LAMBADA=[
            paper_row("Megatron-Turing NLG 530B (Few-Shot)", Accuracy="Megatron-Turing NLG 530B (Few-Shot)"),
            paper_row("test", Accuracy="0.01"),
            paper_row("Cohere  Large", "", Accuracy="82.33"),
            paper_row("Cohere  XL", Accuracy="82.33"),
            paper_row("Pythia 12B (0-shot)", "https://arxiv.org/abs/2304.01373", Accuracy="70.46"),
            paper_row("Pythia 12B(Zero-Shot)", "https://arxiv.org/abs/2304.01373", Perplexity="3.92"),
            paper_row("Chinchilla (Zero-Shot)", "https://arxiv.org/abs/2203.15556", Accuracy="77.7"),
            paper_row("OPT-175B (50% Sparsity)", "https://arxiv.org/abs/2301.00774", Accuracy="0.02"),
        ],
        RACE=[
            race("GPT-3 175B (0-shot)", "https://arxiv.org/abs/2005.14165", middle="58.4"),
            race("GPT-3 175B (zero-shot)", "https://arxiv.org/abs/2005.14165", high="45.5"),
            race("DUMA", "https://arxiv.org/abs/2001.09415", "89.8", "88.7", "92.6"),
            race("RoBERTa", "https://arxiv.org/abs/1907.11692", "83.2", "86.5", "81.3"),
            race("Megatron-BERT", MEGATRON, "89.5", "91.8", "88.6"),
        ],
        PIQA=[
            paper_row("MT-NLG 530B (0-shot)", MEGATRON, "2019-09-17", Accuracy="81.99"),
            paper_row("Mistral 7B", "https://arxiv.org/abs/2310.06825", Accuracy="83.0"),
            paper_row("Mistral 7B", "https://arxiv.org/abs/2401.00001", Accuracy="82.2"),
            paper_row("RoBERTa-large 355M", "https://arxiv.org/abs/1907.11692", Accuracy="79.4"),
            paper_row("RoBERTa-large 355M", "https://arxiv.org/abs/1911.11641", Accuracy="77.1"),
            paper_row("GPT-2-small 124M (fine-tuned)", "https://arxiv.org/abs/1911.11641", Accuracy="69.2"),
        ],
        WikiText_103=[
            paper_row("∞-former", "https://arxiv.org/abs/2109.00301", Test_perplexity="16.61"),
            paper_row("[?]-former", "https://arxiv.org/abs/2109.00301", Test_perplexity="16.61"),
            paper_row("-former", "https://arxiv.org/abs/2109.00301", Test_perplexity="16.61"),
            paper_row("GCNN-8", "https://arxiv.org/abs/1612.08083", Test_perplexity="37.2"),
            paper_row("GCNN-8", "https://arxiv.org/abs/1612.08083", Test_perplexity="44.9"),
            paper_row("Sized", Test_perplexity="144.4M", Validation_perplexity="-"),
            paper_row("GPT-2 Large 774M", Test_perplexity="22.05", Number_of_params="~774M"),
        ],
    )
    store = folder / "store.jsonl"
    imported = bring(path, "pwc", store)
    return codes_of(imported), imported, {one.model.name: one for one in numbers_of(store)}, (path, store)


@pytest.mark.parametrize(
    ("place", "codes"),
    [
        ("LAMBADA, row 1", {"shots-in-name", "value-is-name"}),
        ("LAMBADA, row 2", {"placeholder-name"}),
        ("LAMBADA, row 3", {"spaces", "no-source"}),
        ("LAMBADA, row 4", {"spaces", "unattainable"}),
        ("LAMBADA, row 5", {"shots-in-name"}),
        ("LAMBADA, row 6", {"shots-in-name", "split-row"}),
        ("LAMBADA, row 7", {"shots-in-name", "known-error"}),
        ("LAMBADA, row 8", {"outlier"}),
        ("RACE, row 2", {"shots-in-name", "split-row"}),
        ("RACE, row 3", {"race-swapped"}),
        ("RACE, row 4", {"race-identity", "known-error"}),
        ("PIQA, row 1", {"shots-in-name", "older-than-model"}),
        ("PIQA, row 2", {"several-values"}),
        ("PIQA, row 3", {"several-values"}),
        ("PIQA, row 4", {"several-values"}),
        ("PIQA, row 5", {"several-values"}),
        ("PIQA, row 6", {"shots-in-name", "alias", "known-error"}),
        ("PIQA", {"mixed-splits", "protocol-unknown"}),
        ("WikiText-103, row 1", {"same-number"}),
        ("WikiText-103, row 2", {"same-number", "odd-name"}),
        ("WikiText-103, row 3", {"same-number", "odd-name"}),
        ("WikiText-103, row 4", {"conflict"}),
        ("WikiText-103, row 5", {"conflict"}),
        ("WikiText-103, row 6", {"size-not-score", "missing"}),
        ("WikiText-103, row 7", {"approximate", "alias"}),
        ("WikiText-103", {"protocol-unknown"}),
    ],
)
def test_each_kind_of_dirt_has_its_reason(place: str, codes: set[str], dirty: Any) -> None:
    assert dirty[0][place] == codes


def test_only_what_is_no_number_is_left_out(dirty: Any) -> None:
    _, imported, numbers, (path, store) = dirty
    assert {finding.code for finding in imported.findings if not finding.kept} == {
        *("value-is-name", "placeholder-name", "no-source", "size-not-score", "missing"),
    }
    assert "RACE, row 5" not in dirty[0]
    # of 26 rows 4 have no number with a model and a source; Pythia's and GPT-3's two are two numbers each
    assert imported.rows == 26
    assert imported.numbers == imported.added == 22
    again = bring(path, "pwc", store)
    assert (again.added, again.known) == (0, 22)
    assert numbers["MT-NLG 530B"].date == ""
    assert "source-doubtful" in numbers["MT-NLG 530B"].flags
    assert numbers["DUMA"].printed_others["accuracy_middle"] == "88.7"
    assert "race-identity" in numbers["DUMA"].flags


def test_a_source_that_the_user_names_saves_rows_without_one(dirty: Any) -> None:
    path, _ = dirty[3]
    assert bring(path, "pwc", None, url=SOURCE).numbers == 23
