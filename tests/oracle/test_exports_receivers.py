"""What is exported is accepted by the receivers' own code, or by a check that accepts the receivers' own files."""

from __future__ import annotations

import datetime
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from boarding import measured, megatron, published

from mpeval.leaderboard.boards import Board, boards
from mpeval.leaderboard.exports import harness, hub, papers
from mpeval.leaderboard.reported import ReportedModel

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
FOLDER = SHARED / "data" / "leaderboards" / "sota-extractor"
TABLES = [FOLDER / name for name in ("nlp-progress.json", "squad.json") if (FOLDER / name).is_file()]


def many() -> list[Board]:
    """Return boards of the paper, of measured lines, and of one model from two sources."""
    twice = [
        published("lambada", "LAMBADA", {"accuracy": printed}, ReportedModel(name="gpt-345m", shots=shots))
        for printed, shots in (("45.1", "0"), ("55.0", "15"))
    ]
    flagged = measured(0.3, flags=["partial"], digest="sha256:b")
    return boards([*megatron(), *twice, measured(0.45), measured(0.5, protocol="lambada/lm-eval-openai"), flagged])


# ---- Papers With Code: its field tables, unknown fields refused ----

LINK = {"title": str, "url": str}
ROW: dict[str, Any] = {
    "model_name": str,
    "paper_title": str,
    "paper_url": str,
    "paper_date": "date",
    "code_links": [LINK],
    "model_links": [LINK],
    "metrics": "metrics",
    "uses_additional_data": bool,
}
DATASET: dict[str, Any] = {
    "description": str,
    "dataset_links": [LINK],
    "dataset_citations": [LINK],
    "sota": {"metrics": [str], "rows": [ROW]},
}
TASK: dict[str, Any] = {
    "task": str,
    "description": str,
    "categories": [str],
    "synonyms": [str],
    "source_link": "link or null",
}
SUBSET = DATASET | {"subdataset": str}
DATASET["subdatasets"] = SUBSET["subdatasets"] = [SUBSET]
TASK["datasets"] = [DATASET | {"dataset": str}]
TASK["subtasks"] = [TASK]
REQUIRED = {"task", "model_name", "dataset", "subdataset"}


def faults(value: Any, wanted: Any, where: str = "") -> list[str]:
    """Name every field that is unknown, not there although required, or of another type."""
    if isinstance(wanted, list):
        if not isinstance(value, list):
            return [where]
        return [text for place, one in enumerate(value) for text in faults(one, wanted[0], f"{where}[{place}]")]
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            return [where]
        unknown = [f"{where}.{key}?" for key in value.keys() - wanted.keys()]
        lacking = [f"{where}.{key}!" for key in REQUIRED & wanted.keys() - value.keys()]
        return (
            unknown
            + lacking
            + [text for key in value.keys() & wanted for text in faults(value[key], wanted[key], f"{where}.{key}")]
        )
    if wanted == "date":
        try:
            return [] if value is None or datetime.date.fromisoformat(value) else [where]
        except (TypeError, ValueError):
            return [where]
    if wanted == "metrics":
        good = isinstance(value, dict) and all(isinstance(one, str | float) for one in value.values())
        return [] if good else [where]
    if wanted == "link or null":
        return [] if value is None else faults(value, LINK, where)
    return [] if isinstance(value, wanted) else [where]


@pytest.mark.skipif(not TABLES, reason="the evaluation tables of the site are not in ../shared")
def test_the_check_accepts_the_sites_own_tables() -> None:
    assert {path.name: faults(json.loads(path.read_text(encoding="utf-8")), [TASK])[:5] for path in TABLES} == {
        path.name: [] for path in TABLES
    }


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"paper_date": ""}, "paper_date"),
        ({"paper_date": "2019-13-01"}, "paper_date"),
        ({"stderr": "0.5"}, "stderr?"),
        ({"uses_additional_data": "no"}, "uses_additional_data"),
        ({"metrics": {"Accuracy": None}}, "metrics"),
        ({"code_links": [{"href": "x"}]}, "code_links[0].href?"),
    ],
)
def test_the_check_refuses_what_the_site_refused(change: dict[str, Any], fault: str) -> None:
    document = json.loads(papers.export(many()).files["evaluation-tables.json"])
    document[0]["datasets"][0]["sota"]["rows"][0] |= change
    assert faults(document, [TASK]) == [f"[0].datasets[0].sota.rows[0].{fault}"]


def test_our_tables_pass_and_are_dumped_to_the_same_bytes() -> None:
    text = papers.export(many()).files["evaluation-tables.json"]
    document = json.loads(text)
    assert faults(document, [TASK]) == []
    assert json.dumps(document, indent=2, sort_keys=True) == text
    assert [(task["task"], [one["dataset"] for one in task["datasets"]]) for task in document] == [
        ("Language Modelling", ["LAMBADA", "WikiText-103"]),
        ("Reading Comprehension", ["RACE"]),
    ]


# ---- Hugging Face ----


def test_the_hubs_library_reads_every_result_of_a_model_index() -> None:
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

    text = hub.export_model_index(many()).files["model-index.yaml"]
    documents = list(yaml.safe_load_all(text))
    assert {document["model-index"][0]["name"] for document in documents} == {
        *("gpt-345m", "Megatron-LM 8.3B", "Megatron-BERT (ensemble)")
    }
    for document in documents:
        index = document["model-index"]
        name, results = model_index_to_eval_results(index)
        card = ModelCard(f"---\n{hub.to_yaml(document)}---\n# x\n")
        assert card.data.model_name == name == index[0]["name"]
        assert card.data.eval_results == results
        assert len(results) == sum(len(result["metrics"]) for result in index[0]["results"])
        # the library's own grouping merges results that differ in arguments or source, so each is given back alone
        for result in index[0]["results"]:
            alone = [{"name": name, "results": [result]}]
            assert eval_results_to_model_index(*model_index_to_eval_results(alone)) == alone


def test_the_hubs_library_reads_eval_results() -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")
    if not hasattr(huggingface_hub, "parse_eval_result_entries"):
        pytest.skip("this huggingface_hub is older than `.eval_results`")
    data = yaml.safe_load(hub.export_eval_results(many()).files["eval-results.yaml"])
    entries = huggingface_hub.parse_eval_result_entries(data)
    assert huggingface_hub.eval_result_entries_to_yaml(entries) == data
    assert [(entry.dataset_id, entry.value) for entry in entries if entry.source_url and "BERT" in entry.notes] == [
        ("ehovy/race", 90.9),
        ("ehovy/race", 93.1),
        ("ehovy/race", 90.0),
    ]


# ---- lm-eval ----


def test_lm_evals_own_table_shows_our_results() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval.utils import make_table, sanitize_model_name

    files = harness.export(many()).files
    tables = {name: make_table(json.loads(text)) for name, text in files.items()}
    (whole,) = (text for text in tables.values() if "lambada/lm-eval-openai" in text)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in whole.splitlines()[2:]]
    assert rows == [
        ["lambada/lm-eval-openai", "1", "none", "0", "acc", "↑", "0.5000", "±", "0.007"],
        ["", "", "none", "0", "perplexity", "↓", "12.3457", "±", "0.500"],
        ["lambada/megatron-strict", "1", "none", "0", "acc", "↑", "0.4500", "±", "0.007"],
        ["", "", "none", "0", "perplexity", "↓", "12.3457", "±", "0.500"],
    ]
    assert all(name.split("/")[1] == sanitize_model_name("gpt-345m") for name in files)
    limits = sorted(str(json.loads(text)["config"]["limit"]) for text in files.values())
    assert limits == ["5153", "None"]
