"""What each format of a published leaderboard holds, and that publishing does as it is told."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import yaml
from boarding import measured, megatron, published, the_boards

from mpeval.errors import DataError, MpevalError, OutputError, UsageError
from mpeval.leaderboard.boards import boards
from mpeval.leaderboard.exports import delimited, eee, harness, hub, latex, papers, table_json
from mpeval.leaderboard.exports.export import seconds
from mpeval.leaderboard.exports.latex import best_group
from mpeval.leaderboard.markdown import BEGIN, END, replace_between_markers, with_boards
from mpeval.leaderboard.pages import FORMATS, check, of_models, publish
from mpeval.leaderboard.reported import ReportedModel
from mpeval.leaderboard.store import append
from mpeval.results import Metric
from mpeval.statistics import accuracy_metric, exact_interval

# ---- what each format makes of them ----


def test_siunitx_columns_have_the_standard_error_in_units_of_the_last_digit() -> None:
    text = latex.export(boards([*megatron(), measured(0.45)]), siunitx=True).files["leaderboard.tex"]
    assert r"\usepackage{siunitx}" in text
    for said in ("66.51(66)", "90.9(4) & 93.1(7) & 90.0(5)", "45.00(70)", " & 10.81 & ", "{value}", "rllSSSrll"):
        assert said in text


def test_csv_numbers_come_back_exactly() -> None:
    line = measured(0.1 + 0.2)
    (first, second) = csv.DictReader(io.StringIO(delimited.export(boards([line])).files["leaderboard.csv"], newline=""))
    assert float(first["value"]) == 0.1 + 0.2
    assert (first["n"], first["n_correct"], first["rank"], first["primary"]) == ("5153", "2319", "1", "yes")
    assert (second["metric"], second["primary"], second["value"]) == ("target_perplexity", "no", "12.3456789")
    assert (second["n"], second["rank"]) == ("", "")
    assert first["parameters"] == "354871296"


def test_csv_has_exact_intervals_and_ranges_of_ranks() -> None:
    numbers = [measured(metric=accuracy_metric(correct, 5153), n_correct=correct) for correct in (2319, 2330, 100)]
    found = csv.DictReader(io.StringIO(delimited.export(boards(numbers)).files["leaderboard.csv"], newline=""))
    rows = [row for row in found if row["primary"] == "yes"]
    assert [(row["rank_best"], row["rank_worst"]) for row in rows] == [("1", "2"), ("1", "2"), ("3", "3")]
    for row in rows:
        exact = exact_interval(int(row["n_correct"]), 5153)
        assert (float(row["exact_low"]), float(row["exact_high"])) == exact
        assert exact[0] < float(row["low"]) < float(row["high"]) < exact[1]


def test_negative_numbers_are_no_formulas() -> None:
    metric = Metric(name="score", value=-1.5, unit="number", direction="max")
    (row,) = csv.DictReader(
        io.StringIO(delimited.export(boards([measured(metric=metric, other_metrics=[])])).files["leaderboard.csv"])
    )
    assert row["value"] == "-1.5"


def test_the_json_document_holds_the_whole_lines() -> None:
    lines = [*megatron(), measured(0.4)]
    document = json.loads(table_json.export(boards(lines)).files["leaderboard.json"])
    assert document["schema"] == "mpeval.leaderboard/1"
    found = [row["record"] for board in document["boards"] for row in board["rows"]]
    by_id = {record["record_id"]: record for record in found}
    assert by_id == {line.identity(): json.loads(line.line()) for line in lines}
    assert len(found) == len(lines)
    assert {row["rank"] for board in document["boards"] for row in board["rows"]} == {1}


def test_the_sidecar_has_what_the_tables_cannot_hold() -> None:
    files = papers.export(boards([*megatron(), measured(0.45)])).files
    tables, beside = (json.loads(files[name]) for name in ("evaluation-tables.json", "evaluation-tables.sidecar.json"))
    named = {
        (item["task"], table["dataset"], place): row["model_name"]
        for item in tables
        for table in item["datasets"]
        for place, row in enumerate(table["sota"]["rows"])
    }
    assert {(row["task"], row["dataset"], row["row"]): row["model_name"] for row in beside["rows"]} == named
    (mine,) = (row for row in beside["rows"] if row["model_name"] == "gpt-345m")
    (record,) = mine["records"]
    assert (record["kind"], record["protocol"], record["n"]) == ("measured", "lambada/megatron-strict", 5153)
    assert record["metrics"]["Accuracy"]["stderr"] == 0.007
    assert record["metrics"]["Perplexity"]["value"] == 12.3456789


def test_names_in_a_papers_table_are_told_apart() -> None:
    lines = [
        measured(0.5, protocol="lambada/megatron-last-token"),
        measured(0.4),
        measured(0.3, digest="sha256:bb"),
        measured(0.2, name="other"),
    ]
    document = json.loads(papers.export(boards(lines)).files["evaluation-tables.json"])
    assert [row["model_name"] for row in document[0]["datasets"][0]["sota"]["rows"]] == [
        "gpt-345m (lambada/megatron-last-token)",
        "gpt-345m (lambada/megatron-strict)",
        "gpt-345m (lambada/megatron-strict) #2",
        "other",
    ]


def test_scores_of_one_model_that_come_line_by_line_share_a_papers_row() -> None:
    model = ReportedModel(name="m", shots="finetuned")
    lines = [
        published("race", "RACE", {name: "80.0"}, model) for name in ("accuracy_high", "accuracy", "accuracy_middle")
    ]
    document = json.loads(papers.export(boards(lines)).files["evaluation-tables.json"])
    (row,) = document[0]["datasets"][0]["sota"]["rows"]
    assert set(row["metrics"]) == {"Accuracy", "Accuracy (Middle)", "Accuracy (High)"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"flags": ["partial"]}, "1 flagged"),
        ({"task": "race", "protocol": "race/lm-eval"}, "1 flagged, or of other questions"),
        ({"split": "train"}, "1 of a task, set or metric"),
        ({"task": "nothing"}, "1 of a task, set or metric"),
    ],
)
def test_what_papers_with_code_cannot_hold_is_left_out_and_said(changes: dict[str, str], said: str) -> None:
    made = papers.export(boards([measured(0.5, **changes)]))
    assert json.loads(made.files["evaluation-tables.json"]) == []
    (note,) = made.notes
    assert note.startswith(f"left out of evaluation-tables.json: {said}")


def test_results_of_a_model_index_are_grouped_by_arguments_and_source_too() -> None:
    model = ReportedModel(name="gpt-345m", shots="0")
    lines = [
        measured(0.45),
        published("lambada", "LAMBADA", {"accuracy": "45.0"}, model, protocol="lambada/megatron-strict"),
        published(
            *("lambada", "LAMBADA", {"accuracy": "46.0"}, ReportedModel(name="gpt-345m", shots="15")),
            protocol="lambada/megatron-strict",
        ),
        measured(0.46, protocol="lambada/megatron-last-token"),
    ]
    (document,) = yaml.safe_load_all(hub.export_model_index(boards(lines)).files["model-index.yaml"])
    (entry,) = document["model-index"]
    assert entry["name"] == "gpt-345m"
    found = [(r["dataset"]["args"]["kind"], len(r["metrics"]), "source" in r) for r in entry["results"]]
    assert sorted(found) == [("measured", 2, False)] * 2 + [("reported", 1, True)] * 2
    assert [r["metrics"][0]["value"] for r in entry["results"] if r["dataset"]["args"].get("num_few_shot") == 15] == [
        46
    ]


def test_eval_results_hold_accuracies_only_and_say_what_they_leave_out() -> None:
    made = hub.export_eval_results(the_boards())
    entries = yaml.safe_load(made.files["eval-results.yaml"])
    assert [(entry["dataset"]["id"], entry["dataset"]["task_id"], entry["value"]) for entry in entries] == [
        ("EleutherAI/lambada_openai", "default", 66.51),
        ("ehovy/race", "all", 90.9),
        ("ehovy/race", "middle", 93.1),
        ("ehovy/race", "high", 90.0),
    ]
    assert all(entry["date"] == "2019-09-17" for entry in entries)
    assert made.notes == ("left out of eval-results.yaml: 1 of perplexity: the format cannot say that lower is better",)
    assert "Megatron-LM 8.3B; reported; 0-shot; protocol lambada/megatron" in entries[0]["notes"]


def test_lm_evals_files_are_of_measured_numbers_only() -> None:
    lines = [
        *megatron(),
        measured(0.45),
        measured(0.5, protocol="lambada/megatron-last-token"),
        measured(digest="sha256:b"),
    ]
    made = harness.export(boards(lines))
    assert sorted(made.files) == [
        f"lm-eval/gpt-345m/results_2026-01-02T03-04-05{more}.json" for more in (".000001", "")
    ]
    assert sorted(len(json.loads(text)["results"]) for text in made.files.values()) == [1, 2]
    assert made.notes == ("left out of lm-eval: 3 reported: not measured here",)


# ---- Every Eval Ever 0.3.0, by the table of its required fields ----

REQUIRED = {
    "schema_version": str,
    "evaluation_id": str,
    "retrieved_timestamp": str,
    "source_metadata": {
        "source_type": {"documentation", "evaluation_run"},
        "source_organization_name": str,
        "evaluator_relationship": {"first_party", "third_party", "collaborative", "other"},
    },
    "eval_library": {"name": str, "version": str},
    "model_info": {"name": str, "id": str, "additional_details": {"deployment_type": str, "model_availability": str}},
    "evaluation_results": [
        {
            "evaluation_name": str,
            "source_data": {"dataset_name": str, "source_type": str},
            "metric_config": {"lower_is_better": bool},
            "score_details": {"score": float},
        }
    ],
}


def missing(value: object, wanted: object, where: str = "") -> list[str]:
    """Name what of the required fields is not there, or is something else."""
    if isinstance(wanted, dict):
        if not isinstance(value, dict):
            return [where]
        return [text for key, part in wanted.items() for text in missing(value.get(key), part, f"{where}.{key}")]
    if isinstance(wanted, list):
        if not isinstance(value, list) or not value:
            return [where]
        return [text for part in value for text in missing(part, wanted[0], where)]
    good = value in wanted if isinstance(wanted, set) else isinstance(value, wanted)  # type: ignore[arg-type]
    return [] if good else [where]


def test_the_check_of_required_fields_finds_what_is_missing() -> None:
    whole = eee.document(measured())
    assert missing(whole, REQUIRED) == []
    assert missing({**whole, "schema_version": 3}, REQUIRED) == [".schema_version"]
    assert missing({**whole, "evaluation_results": [{}]}, REQUIRED)
    assert missing({**whole, "source_metadata": {**whole["source_metadata"], "source_type": "x"}}, REQUIRED)


def test_every_eval_ever_gets_what_it_requires() -> None:
    files = eee.export(boards([*megatron(), measured()])).files
    assert len(files) == 4
    documents = [json.loads(text) for text in files.values()]
    assert [missing(document, REQUIRED) for document in documents] == [[]] * 4
    assert {document["schema_version"] for document in documents} == {"0.3.0"}
    (race,) = (document for document in documents if document["model_info"]["name"].startswith("Megatron-BERT"))
    assert [result["score_details"]["score"] for result in race["evaluation_results"]] == [90.9, 93.1, 90.0]
    assert race["evaluation_results"][0]["score_details"]["uncertainty"]["num_samples"] == 4934
    assert race["evaluation_timestamp"] == "1568678400"
    (mine,) = (document for document in documents if document["source_metadata"]["source_type"] == "evaluation_run")
    assert [result["metric_config"]["lower_is_better"] for result in mine["evaluation_results"]] == [False, True]


def test_an_evaluation_has_one_id_whenever_it_is_published() -> None:
    early, late = measured(), measured(created_at="2027-01-02T03:04:05Z")
    assert eee.document(early)["evaluation_id"] == eee.document(late)["evaluation_id"]
    assert list(eee.export(boards([early])).files) == list(eee.export(boards([late])).files)
    assert eee.document(early)["evaluation_id"] != eee.document(measured(0.46))["evaluation_id"]


def test_a_moment_without_a_zone_is_one_of_utc_everywhere() -> None:
    assert seconds("2026-01-02T03:04:05") == seconds("2026-01-02T03:04:05Z") == seconds("2026-01-02T04:04:05+01:00")


def test_very_large_numbers_have_a_power_of_ten_in_latex() -> None:
    huge = Metric(name="word_perplexity", value=1.5e300, unit="perplexity", direction="min", stderr=2.5e298)
    (board,) = boards([measured(metric=huge, other_metrics=[])])
    text = latex.export([board], siunitx=True).files["leaderboard.tex"]
    assert "& 1.50(2)e300 &" in text
    assert max(map(len, text.splitlines())) < 300


def test_a_time_that_is_none_is_an_error_and_not_a_crash() -> None:
    with pytest.raises(DataError, match="a record has the time `yesterday`"):
        eee.export(boards([measured(created_at="yesterday")]))


# ---- bold ----


@pytest.mark.parametrize(
    ("values", "bold"),
    [((0.50, 0.49, 0.40), ["0", "1"]), ((0.5, 0.45), ["0"]), ((0.5, 0.5), ["0", "1"]), ((), [])],
)
def test_the_best_and_all_that_cannot_be_told_from_it_are_bold(values: tuple[float, ...], bold: list[str]) -> None:
    made = boards([measured(value, name=str(place), digest=f"sha256:{place}") for place, value in enumerate(values)])
    assert [row.entry.model.name for board in made for row in best_group(board)] == bold
    text = latex.export(made).files["leaderboard.tex"]
    assert [name for name in "012" if rf"\textbf{{{name}}}" in text] == bold


def test_the_rows_of_one_model_are_bold_only_where_it_may_be_the_best() -> None:
    made = boards([measured(value, name=name, digest=name) for value, name in ((0.5, "a"), (0.49, "b"), (0.4, "c"))])
    assert [row.entry.model.name for board in of_models(made, ["b"]) for row in best_group(board)] == ["b"]
    assert not [row for board in of_models(made, ["c"]) for row in best_group(board)]


def test_without_intervals_only_the_best_value_is_bold() -> None:
    lines = [
        published(
            *("wikitext103", "W", {"adjusted_perplexity": printed}, ReportedModel(name=printed)), unit="perplexity"
        )
        for printed in ("10.81", "10.82")
    ]
    (board,) = boards(lines)
    assert [row.entry.model.name for row in best_group(board)] == ["10.81"]


# ---- publish ----


def test_every_format_is_of_the_same_bytes_twice_and_whatever_the_order_of_lines(tmp_path: Path) -> None:
    lines = [*megatron(), measured(0.45), measured(0.44, name="b", digest="sha256:bb", flags=["partial"])]
    found = []
    for name, order in (("a", lines), ("b", lines[::-1]), ("a", lines)):
        append(tmp_path / f"{name}.jsonl", order)
        paths = publish([tmp_path / f"{name}.jsonl"], tmp_path / name, list(FORMATS))
        found.append({path.relative_to(tmp_path / name).as_posix(): path.read_bytes() for path in paths})
    assert found[0] == found[1] == found[2]
    assert {path.split("/")[0] for path in found[0]} == {
        *("README.md", "index.html", "leaderboard.csv", "leaderboard.tex", "leaderboard.json", "eee", "lm-eval"),
        *("evaluation-tables.json", "evaluation-tables.sidecar.json", "model-index.yaml", "eval-results.yaml"),
    }


def test_every_format_that_was_just_published_is_up_to_date(tmp_path: Path) -> None:
    append(tmp_path / "s.jsonl", [*megatron(), measured(0.45, name="two\nlines")])
    paths = publish([tmp_path / "s.jsonl"], tmp_path / "out", list(FORMATS))
    assert check([tmp_path / "s.jsonl"], tmp_path / "out", list(FORMATS)) == paths
    path = tmp_path / "out" / "leaderboard.csv"
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n"))
    with pytest.raises(DataError, match=r"leaderboard\.csv` is not made of the records"):
        check([tmp_path / "s.jsonl"], tmp_path / "out", ["csv"])


def test_files_of_records_that_are_gone_go_too_and_nobody_elses(tmp_path: Path) -> None:
    append(
        tmp_path / "both.jsonl", [measured(0.4), measured(0.5, digest="sha256:b", created_at="2026-02-02T00:00:00Z")]
    )
    append(tmp_path / "one.jsonl", [measured(0.4)])
    publish([tmp_path / "both.jsonl"], tmp_path / "out", ["eee", "lm-eval"])
    strange = [tmp_path / "out" / "eee" / "mine.json", tmp_path / "out" / "lm-eval" / "x" / "results_1.json"]
    for path in strange:
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"model_source": "hf"}')
    publish([tmp_path / "one.jsonl"], tmp_path / "out", ["eee", "lm-eval"])
    publish([tmp_path / "one.jsonl"], tmp_path / "new", ["eee", "lm-eval"])
    left = {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*.json")}
    made = {path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*.json")}
    assert left == made | {path.relative_to(tmp_path / "out") for path in strange}


def test_only_rows_of_the_chosen_models_with_their_ranks_among_all(tmp_path: Path) -> None:
    append(tmp_path / "s.jsonl", [*megatron(), measured(0.45), measured(0.5, name="better", digest="sha256:b")])
    publish([tmp_path / "s.jsonl"], tmp_path, ["json"], models=["gpt-345m"])
    (board,) = json.loads((tmp_path / "leaderboard.json").read_text())["boards"]
    assert [(row["rank"], row["record"]["model"]["name"]) for row in board["rows"]] == [(2, "gpt-345m")]


@pytest.mark.parametrize(
    ("options", "error", "said", "hint"),
    [
        ({"formats": ["cvs"]}, UsageError, "`--format cvs` is unknown", "did you mean `csv`? (there are `md`, `html`"),
        ({"formats": []}, UsageError, "`--format` names no format", "`lm-eval`"),
        ({"siunitx": True}, UsageError, "`--siunitx` is about LaTeX tables", "add `tex` to `--format`"),
        ({"models": ["gtp-345m"]}, DataError, "no record of the model `gtp-345m`", "did you mean `gpt-345m`?"),
    ],
)
def test_what_cannot_be_published_is_refused_before_a_file_is_written(
    options: dict[str, list[str]], error: type[MpevalError], said: str, hint: str, tmp_path: Path
) -> None:
    append(tmp_path / "s.jsonl", [measured()])
    with pytest.raises(error, match=said) as raised:
        publish([tmp_path / "s.jsonl"], tmp_path / "out", **options)  # type: ignore[arg-type]
    assert hint in raised.value.hint
    assert not (tmp_path / "out").exists()


# ---- between markers ----


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_only_what_stands_between_the_markers_is_replaced(newline: str, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    around = [f"# Mine  {newline}{newline}text{newline}", f"{newline}more, no end of line"]
    path.write_bytes(f"{around[0]}{BEGIN}{newline}old{newline}{END}{around[1]}".encode())
    for _ in range(2):
        replace_between_markers(path, the_boards())
        text = path.read_bytes().decode()
        assert text.startswith(f"{around[0]}{BEGIN}{newline}")
        assert text.endswith(f"{END}{around[1]}")
        assert "old" not in text
        assert text.count("| Megatron-LM 8.3B |") == 2
        assert ("\r" in text) == (newline == "\r\n")
        assert text.count("\n") == text.count(newline)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nothing", f"`x.md` has no line `{BEGIN}`"),
        (f"{BEGIN}\n", f"`x.md` has no line `{END}`"),
        (f"{END}\n{BEGIN}\n", f"`x.md` has the marker `{END}` in line 1, before `{BEGIN}` in line 2"),
        (f"{BEGIN}\n{BEGIN}\n{END}\n", f"`x.md` has the line `{BEGIN}` more than once: lines 1, 2"),
        (f"see {BEGIN}\n{END}\n", f"`x.md` has no line `{BEGIN}`"),
    ],
)
def test_a_file_without_its_markers_is_refused(text: str, said: str) -> None:
    with pytest.raises(DataError) as raised:
        with_boards(text, the_boards(), "x.md")
    assert raised.value.message == said
    assert raised.value.hint


def test_a_file_that_is_not_there_or_is_no_text_is_refused_and_left_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no file") as raised:
        replace_between_markers(tmp_path / "none.md", the_boards())
    assert BEGIN in raised.value.hint
    assert END in raised.value.hint
    (tmp_path / "x.md").write_bytes(b"\xff")
    with pytest.raises(DataError, match="no UTF-8 text"):
        replace_between_markers(tmp_path / "x.md", the_boards())
    assert (tmp_path / "x.md").read_bytes() == b"\xff"


def test_a_folder_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    append(tmp_path / "s.jsonl", [measured()])
    with pytest.raises(OutputError, match="cannot write"):
        publish([tmp_path / "s.jsonl"], tmp_path / "s.jsonl", ["csv"])
