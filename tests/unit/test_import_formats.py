"""Results of lm-eval, metadata of Hugging Face, files of Every Eval Ever and CSV, entry by entry."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from imports import SOURCE, bring, codes_of, numbers_of, paper_row, papers_file

from mpeval.errors import DataError
from mpeval.leaderboard.importing.pipeline import Imported
from mpeval.leaderboard.reported import Reported


def brought(text: str, form: str, folder: Path, **given: str) -> tuple[Imported, list[Reported]]:
    """Import a text into a new store; return what became of it, and the numbers."""
    file, store = folder / "file", folder / "store.jsonl"
    file.write_text(text, encoding="utf-8")
    imported = bring(file, form, store, **given)
    return imported, numbers_of(store)


# ---- lm-eval ----


def harness_file(**changes: Any) -> str:
    """Return a results file of today's form."""
    document = {
        "results": {
            "lambada_openai": {
                "alias": "lambada_openai",
                "sample_len": 5153,
                "perplexity,none": 9.87,
                "perplexity_stderr,none": 0.31,
                "acc,none": 0.5123229186881428,
                "acc_stderr,none": 0.00696386170815697,
            }
        },
        "versions": {"lambada_openai": 1.0},
        "n-shot": {"lambada_openai": 0},
        "n-samples": {"lambada_openai": {"original": 5153, "effective": 5153}},
        "config": {"model": "hf", "model_args": "pretrained=gpt2,dtype=float16", "limit": None},
        "model_name": "gpt2",
    }
    return json.dumps(document | changes)


def test_todays_form_of_lm_eval_is_read(tmp_path: Path) -> None:
    imported, (accuracy, perplexity) = brought(harness_file(), "lm-eval", tmp_path, url=SOURCE, date="2026-01-02")
    assert imported.findings == ()
    assert (accuracy.protocol, accuracy.part, accuracy.n) == ("lambada/lm-eval-openai", "test", 5153)
    assert (accuracy.printed, accuracy.model.name, accuracy.model.shots) == ("51.23", "gpt2", "0")
    assert (accuracy.source.url, accuracy.date, accuracy.flags) == (SOURCE, "2026-01-02", [])
    assert accuracy.metric.stderr == 0.00696386170815697
    assert (perplexity.metric.name, perplexity.metric.value, perplexity.metric.stderr) == ("perplexity", 9.87, 0.31)
    assert perplexity.metric.low == pytest.approx(9.87 - 1.96 * 0.31, abs=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {"limit": 100}, "n-samples": {}},
        {"n-samples": {"lambada_openai": {"original": 5153, "effective": 100}}},
    ],
)
def test_a_partial_run_is_flagged_and_never_ranked(changes: Any, tmp_path: Path) -> None:
    imported, numbers = brought(harness_file(**changes), "lm-eval", tmp_path, url=SOURCE)
    assert "partial" in codes_of(imported)["lambada_openai"]
    assert all("partial" in one.flags and not one.ranked for one in numbers)
    assert numbers[0].n in {0, 100}


def test_a_limit_beyond_all_items_is_no_partial_run(tmp_path: Path) -> None:
    text = harness_file(config={"limit": 100000})
    assert brought(text, "lm-eval", tmp_path, url=SOURCE)[0].findings == ()


@pytest.mark.parametrize(
    ("version", "protocol"),
    [(3.0, "race/lm-eval"), (2.0, "race/lm-eval-before-3"), (None, "race/lm-eval-before-3")],
)
def test_another_version_of_a_task_is_another_protocol(version: Any, protocol: str, tmp_path: Path) -> None:
    changes = {
        "results": {"race": {"acc,none": 0.4, "acc_stderr,none": "N/A"}},
        "versions": {"race": version} if version else {},
        "n-samples": {},
        "n-shot": {},
    }
    imported, (one,) = brought(harness_file(**changes), "lm-eval", tmp_path, url=SOURCE)
    assert (one.protocol, one.n, one.model.shots) == (protocol, 1045, "")
    assert bool(imported.findings) == (version != 3.0)


def test_shots_filters_and_other_tasks_have_protocols_of_their_own(tmp_path: Path) -> None:
    changes = {
        "results": {
            "piqa": {"acc,none": 0.8, "acc_norm,none": 0.81},
            "gsm8k": {"exact_match,strict-match": 0.5, "exact_match,flexible-extract": 0.6},
        },
        "n-shot": {"piqa": 5, "gsm8k": 8},
        "n-samples": {},
    }
    _, (piqa, gsm8k) = brought(harness_file(**changes), "lm-eval", tmp_path, url=SOURCE)
    assert (piqa.protocol, piqa.model.shots, piqa.printed_others) == (
        "piqa/lm-eval-5-shot",
        "5",
        {"accuracy_norm": "81.00"},
    )
    assert (gsm8k.protocol, gsm8k.metric.name) == ("lm-eval/gsm8k/8-shot", "exact_match/strict-match")
    assert gsm8k.printed_others == {"exact_match/flexible-extract": "60.00"}


@pytest.mark.parametrize(
    ("scores", "code"),
    [
        ({"acc,none": math.nan}, "not-finite"),
        ({"acc,none": "high"}, "not-a-number"),
        ({"acc,none": 10**400}, "not-a-number"),
        ({"acc,none": 51.2}, "out-of-range"),
        ({"acc,none": -0.1}, "out-of-range"),
        ({"mcc,none": 0.1}, "unknown-metric"),
        ({"perplexity,none": 0.5}, "out-of-range"),
    ],
)
def test_a_score_that_cannot_be_is_left_out(scores: Any, code: str, tmp_path: Path) -> None:
    changes = {"results": {"lambada_openai": scores, "piqa": {"acc,none": 0.5}}, "n-samples": {}}
    imported, (one,) = brought(harness_file(**changes), "lm-eval", tmp_path, url=SOURCE)
    assert [(finding.code, finding.kept) for finding in imported.findings] == [(code, False)]
    assert one.task == "piqa"


def test_a_standard_error_below_zero_is_none(tmp_path: Path) -> None:
    changes = {"results": {"lambada_openai": {"perplexity": 9.87, "perplexity_stderr": -0.31}}, "n-samples": {}}
    _, (one,) = brought(harness_file(**changes), "lm-eval", tmp_path, url=SOURCE)
    assert (one.metric.stderr, one.metric.low) == (None, None)


def test_a_perplexity_of_any_size_is_read(tmp_path: Path) -> None:
    changes = {"results": {"lambada_openai": {"ppl": 3594272.663948744, "ppl_stderr": 348190.6}}, "n-samples": {}}
    imported, (one,) = brought(harness_file(**changes), "lm-eval", tmp_path, url=SOURCE)
    assert (one.printed, one.metric.stderr) == ("3594272.6639", 348190.6)
    assert codes_of(imported) == {"lambada_openai": {"outlier"}}
    changes["results"] = {"lambada_openai": {"ppl": 1e40}}
    (tmp_path / "store.jsonl").unlink()
    assert brought(harness_file(**changes), "lm-eval", tmp_path, url=SOURCE)[1][0].metric.value == 1e40


# ---- Hugging Face ----

INDEX = """\
model-index:
- name: example-gpt2-345m
  results:
  - task: {type: text-generation, name: Language Modelling}
    dataset:
      type: EleutherAI/lambada_openai
      name: LAMBADA
      split: test
      args: {protocol: lambada/megatron-strict, num_few_shot: 0, flags: [ensemble]}
    metrics:
    - {type: accuracy, name: accuracy, value: 51.23, args: {unit: percent, n: 5153}}
    - {type: perplexity, name: target perplexity, value: 9.87}
    source: {name: "A paper, Table 1", url: "https://example.org/paper"}
  - task: {type: multiple-choice}
    dataset: {type: ehovy/race, name: RACE, config: high, split: validation}
    metrics:
    - {type: accuracy, value: "90.0 ± 0.5"}
    - {type: accuracy, name: accuracy middle, value: 0.9}
    - {type: bleu, value: 3}
  - task: {type: multiple-choice}
    dataset: {type: glue, name: CoLA}
    metrics:
    - {type: accuracy, value: 80}
"""


@pytest.mark.parametrize("text", [INDEX, f"---\n{INDEX}---\n# A card\n\n---\nmore\n", f"---\n{INDEX}"])
def test_a_model_index_is_read_wherever_it_stands(text: str, tmp_path: Path) -> None:
    imported, numbers = brought(text, "model-index", tmp_path, url=SOURCE)
    accuracy, perplexity, race, fraction = numbers
    assert (accuracy.protocol, accuracy.printed, accuracy.n) == ("lambada/megatron-strict", "51.23", 5153)
    assert (accuracy.flags, accuracy.source.title) == (["ensemble"], "A paper, Table 1")
    assert perplexity.metric.name == "target_perplexity"
    assert (race.metric.name, race.part, race.source.url) == ("accuracy_high", "valid", SOURCE)
    assert (race.protocol, race.printed) == ("race/model-index", "90.0")
    assert (fraction.metric.name, fraction.printed) == ("accuracy_middle", "90")
    assert not race.ranked
    codes = [code for place, found in sorted(codes_of(imported).items()) for code in sorted(found)]
    assert codes == ["spread", "read-as-fraction", "unknown-metric", "unknown-benchmark"]


def test_several_models_of_one_file_are_all_read(tmp_path: Path) -> None:
    text = f"---\n{INDEX}---\n{INDEX.replace('345m', '774m')}"
    _, numbers = brought(text, "model-index", tmp_path, url=SOURCE)
    assert {one.model.name for one in numbers} == {"example-gpt2-345m", "example-gpt2-774m"}


def test_a_model_index_entry_without_a_source_is_left_out(tmp_path: Path) -> None:
    imported, numbers = brought(INDEX, "model-index", tmp_path)
    assert {one.source.url for one in numbers} == {"https://example.org/paper"}
    assert "no-source" in {finding.code for finding in imported.findings}


def test_a_broken_result_of_a_model_index_costs_no_other(tmp_path: Path) -> None:
    imported, numbers = brought(INDEX.replace("type: EleutherAI/lambada_openai", "kind: 1"), "model-index", tmp_path)
    assert codes_of(imported)["example-gpt2-345m, result 1"] == {"entry"}
    assert numbers == []
    with pytest.raises(DataError, match="model 1 of the `model-index` has no `name`"):
        brought("model-index: [{results: []}]", "model-index", tmp_path)


def test_eval_results_are_accuracies_of_known_benchmarks(tmp_path: Path) -> None:
    text = """\
- dataset: {id: ehovy/race, task_id: high}
  value: 90.0
  date: "2026-01-31"
  source: {url: "https://arxiv.org/abs/1909.08053", name: "Megatron-LM, Table 5"}
  notes: "reported; ensemble; protocol race/megatron; accuracy in percent; n=3498"
- dataset: {id: baber/piqa, task_id: default}
  value: 0.82
- dataset: {id: other/task, task_id: default}
  value: 82
- dataset: {id: Salesforce/wikitext, task_id: default}
  value: 10.8
- dataset: {id: baber/piqa, task_id: default}
  value: .nan
- {value: 3}
"""
    imported, (race, piqa) = brought(text, "eval-results", tmp_path, model="Megatron-BERT", url=SOURCE)
    assert (race.protocol, race.metric.name, race.printed, race.n) == ("race/megatron", "accuracy_high", "90.0", 3498)
    assert (race.flags, race.date, race.ranked) == (["ensemble"], "2026-01-31", True)
    assert (piqa.protocol, piqa.part, piqa.printed, piqa.ranked) == ("piqa/eval-results", "valid", "82", False)
    assert codes_of(imported) == {
        "entry 1": {"date-differs"},
        "entry 2": {"read-as-fraction"},
        "entry 3": {"unknown-benchmark"},
        "entry 4": {"unknown-benchmark"},
        "entry 5": {"not-finite"},
        "entry 6": {"entry"},
    }


def test_eval_results_need_a_model(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="of which model"):
        brought("- dataset: {id: baber/piqa, task_id: default}\n  value: 82", "eval-results", tmp_path)


# ---- Every Eval Ever ----


def ever_file(score: Any = 90.0, **changes: Any) -> str:
    """Return a file with one result; `config`, `details` and `dataset` are of the metric and its data."""
    config = {"lower_is_better": False, "metric_id": "accuracy", "metric_unit": "percent"}
    result = {
        "evaluation_name": changes.pop("name", "RACE high"),
        "source_data": {
            "dataset_name": changes.pop("dataset", "RACE"),
            "source_type": "other",
            "additional_details": changes.pop("details", {}),
        },
        "metric_config": config | changes.pop("config", {}),
        "score_details": {
            "score": score,
            "uncertainty": {"standard_error": {"value": 0.51, "method": "analytic"}, "num_samples": 3498},
        },
    }
    document = {
        "schema_version": "0.3.0",
        "evaluation_timestamp": "1568678400",
        "source_metadata": {
            "source_type": "documentation",
            "source_name": "Megatron-LM, Table 5",
            "additional_details": {"url": "https://arxiv.org/abs/1909.08053v4", "locator": "Table 5"},
        },
        "model_info": {"name": "Megatron-BERT 3.9B", "additional_details": {"parameters": "3900000000"}},
        "evaluation_results": [result],
    }
    return json.dumps(document | changes)


def test_a_file_of_every_eval_ever_is_read(tmp_path: Path) -> None:
    details = {"protocol": "race/megatron", "split": "test", "shots": "finetuned", "flags": "ensemble, odd"}
    imported, (one,) = brought(ever_file(details=details), "eee", tmp_path)
    assert imported.findings == ()
    assert (one.protocol, one.part, one.metric.name, one.n) == ("race/megatron", "test", "accuracy_high", 3498)
    assert (one.printed, one.model.parameters, one.model.shots) == ("90.0", 3.9e9, "finetuned")
    assert (one.source.title, one.source.locator, one.date) == ("Megatron-LM", "Table 5", "2019-09-17")
    assert one.flags == ["ensemble", "odd"]
    assert one.metric.stderr == pytest.approx(0.0051)


def test_a_fraction_of_every_eval_ever_is_read_by_its_unit(tmp_path: Path) -> None:
    _, (one,) = brought(ever_file(0.9, config={"metric_unit": "proportion"}), "eee", tmp_path)
    assert (one.printed, one.protocol, one.ranked) == ("90", "race/every-eval-ever", False)


@pytest.mark.parametrize(
    ("score", "unit", "stderr"),
    [(90.0, "Percent", 0.0051), (90.0, "%", 0.0051), (90.0, None, 0.0051), (0.9, None, 0.51), (0.9, "fraction", 0.51)],
)
def test_an_error_has_the_unit_of_its_score(score: float, unit: str | None, stderr: float, tmp_path: Path) -> None:
    _, (one,) = brought(ever_file(score, config={"metric_unit": unit}), "eee", tmp_path)
    assert one.metric.value == pytest.approx(0.9)
    assert one.metric.stderr == pytest.approx(stderr)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"config": {"lower_is_better": True}}, "direction"),
        ({"config": {"metric_id": "bleu"}}, "unknown-metric"),
        ({"dataset": "CoLA"}, "unknown-benchmark"),
        ({"source_metadata": {}}, "no-source"),
        ({"score": "Infinity"}, "not-finite"),
        ({"score": 190.0}, "out-of-range"),
        ({"score": 10**400}, "not-a-number"),
    ],
)
def test_what_every_eval_ever_may_say_and_cannot_be_is_left_out(changes: Any, code: str, tmp_path: Path) -> None:
    imported, numbers = brought(ever_file(**changes), "eee", tmp_path)
    assert numbers == []
    assert [(finding.code, finding.kept) for finding in imported.findings] == [(code, False)]


# ---- CSV and what holds for all ----

HEADER = "task,protocol,split,metric,value,n,others,model,url,locator,date,parameters,shots"


@pytest.mark.parametrize(
    ("line", "code", "kept"),
    [
        ("race,race/x,test,accuracy,89.5,4934,accuracy_high=88.6/3498,A", "cells", False),
        ("race,race/x,test,accuracy,89.5,4934,accuracy_high=88.6/0,A,https://e.org,T,,,", "items", True),
        ("race,race/x,test,accuracy,89.5,4934,perplexity=3,A,https://e.org,T,,,", "others", False),
        ("race,race/x,test,accuracy,89.5,many,,A,https://e.org,T,,,", "items", True),
        ("race,race/x,test,bleu,89.5,,,A,https://e.org,T,,,", "unknown-metric", False),
        ("race,x,test,accuracy,89.5,,,A,https://e.org,T,,,", "protocol", False),
        ("race,race/x,,accuracy,89.5,,,A,https://e.org,T,,,", "missing", False),
        ("race,race/x,test,accuracy,89.5,,,A,,T,,,", "no-source", False),
        ("race,race/x,test,accuracy,89.5,,,A,https://e.org,T,2019,,", "date", False),
        ("race,race/x,test,accuracy,89.5,,,A,https://e.org,T,,big,", "size", True),
        ("race,race/x,test,accuracy,189.5,,,A,https://e.org,T,,,", "out-of-range", False),
        ("race,race/x,test,accuracy,89.5,,,test,https://e.org,T,,,", "placeholder-name", False),
    ],
)
def test_a_line_of_csv_that_is_odd_has_a_reason(line: str, code: str, kept: bool, tmp_path: Path) -> None:
    good = "piqa,piqa/x,valid,accuracy,82.0,1838,,B,https://e.org,T,2020-01-01,8.3B,5"
    imported, numbers = brought(f"{HEADER}\n{line}\n{good}\n", "csv", tmp_path)
    assert [(finding.code, finding.kept) for finding in imported.findings] == [(code, kept)]
    assert numbers[-1].model.parameters == 8.3e9
    assert len(numbers) == 1 + (kept or code == "others")


def test_a_later_file_that_contradicts_the_store_is_kept_and_flagged(tmp_path: Path) -> None:
    line = "piqa,piqa/x,valid,accuracy,82.0,1838,,B,https://e.org,T,,,"
    brought(f"{HEADER}\n{line}\n", "csv", tmp_path)
    imported, numbers = brought(f"{HEADER}\n{line}\n{line}\n{line.replace('82.0', '82.5')}\n", "csv", tmp_path)
    assert (imported.added, imported.known) == (1, 2)
    assert [(one.printed, one.flags) for one in numbers] == [("82.0", []), ("82.5", ["conflict"])]


@pytest.mark.parametrize("date", ["2020-02-30", "2020-13-01", "0000-00-00", "２０２０-01-01"])
def test_a_day_that_no_calendar_has_is_no_date(date: str, tmp_path: Path) -> None:
    file = papers_file(tmp_path / "papers.json", LAMBADA=[paper_row("A model", date=date, Accuracy="70.0")])
    imported = bring(file, "pwc", tmp_path / "store.jsonl")
    assert "date" in codes_of(imported)["LAMBADA, row 1"]
    (number,) = numbers_of(tmp_path / "store.jsonl")
    assert number.date == ""


def test_a_number_that_stands_twice_in_a_file_is_added_once(tmp_path: Path) -> None:
    line = "piqa,piqa/x,valid,accuracy,82.0,1838,,B,https://e.org,T,,,"
    imported, numbers = brought(f"{HEADER}\n{line}\n{line}\n", "csv", tmp_path)
    assert [(finding.code, finding.place) for finding in imported.findings] == [("duplicate", "line 3")]
    assert len(numbers) == 1


def test_dates_of_papers_are_compared_with_their_numbers(tmp_path: Path) -> None:
    rows = [
        paper_row("A", "https://arxiv.org/abs/2001.09694", "2020-02-25", Accuracy="80.0"),
        paper_row("B", "https://arxiv.org/pdf/2001.09694.pdf", "2020-06-25", Accuracy="81.0"),
        paper_row("C", "https://example.org", "25 June", Accuracy="82.0"),
        paper_row("GPT-3", "https://example.org", "2019-06-25", Accuracy="83.0"),
    ]
    store = tmp_path / "store.jsonl"
    imported = bring(papers_file(tmp_path / "tables.json", RACE=rows), "pwc", store)
    found = {finding.model: finding.code for finding in imported.findings if finding.model}
    assert found == {"B": "date-differs", "C": "date", "GPT-3": "older-than-model"}
    assert [one.date for one in numbers_of(store)] == ["2020-02-25", "2020-06-25", "", ""]


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a|b", "=cmd()", "\u202eevil", "x" * 300])
def test_hostile_names_are_kept_as_text(name: str, tmp_path: Path) -> None:
    store = tmp_path / "store.jsonl"
    bring(papers_file(tmp_path / "tables.json", RACE=[paper_row(name, Accuracy="80.0")]), "pwc", store)
    assert [one.model.name for one in numbers_of(store)] == [name]


@pytest.mark.parametrize(("said", "name"), [(r"\ud800b", "?b"), (r"\ud83d\ude00b", "\U0001f600b")])
def test_half_a_letter_is_no_text_but_a_pair_of_halves_is(said: str, name: str, tmp_path: Path) -> None:
    file = papers_file(tmp_path / "papers.json", LAMBADA=[paper_row("A model", Accuracy="70.0")])
    file.write_text(file.read_text(encoding="utf-8").replace("A model", said), encoding="utf-8")
    bring(file, "pwc", tmp_path / "store.jsonl")
    assert [one.model.name for one in numbers_of(tmp_path / "store.jsonl")] == [name]
