"""`mpeval leaderboard report` and `import`: what they add, say and refuse, and the numbers that they made."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from imports import numbers_of, paper_row, papers_file
from making import run_here

from mpeval import cli_reported
from mpeval.folders import data_folder
from mpeval.leaderboard.importing import papers, pipeline
from mpeval.leaderboard.importing.checks import checked
from mpeval.leaderboard.importing.delimited import COLUMNS, read
from mpeval.leaderboard.importing.drafts import Given
from mpeval.leaderboard.reported import Reported
from mpeval.tasks.cards import card_names, load_card

REPORT = (
    "leaderboard report --task lambada --protocol lambada/megatron-strict --split test --metric accuracy --value 61.73 "
    "--n 5153 --model 'Megatron GPT-2 2.5B' --parameters 2.5B --family GPT-2 --shots 0 --source-title Megatron-LM "
    "--source-url https://arxiv.org/abs/1909.08053v4 --locator 'Table 3' --date 2019-09-17 --note 'raw text'"
)
HEADER = "task,protocol,split,metric,value,n,others,model,url,locator"
LINE = "race,race/megatron,test,accuracy,89.5,4934,accuracy_high=88.6/3498,Megatron-BERT,https://example.org,Table 5"


def reported_with(changes: dict[str, str | None]) -> str:
    """Return the command with other options; None leaves one out."""
    words = shlex.split(REPORT)
    for option, value in changes.items():
        place = words.index(option) if option in words else len(words)
        words[place : place + 2] = [] if value is None else [option, value]
    return shlex.join(words)


def content(number: Reported) -> Any:
    """Return a number's content without the time, its floats to twelve digits."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items() if key not in {"created_at", "record_id"}}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return float(f"{value:.12g}") if isinstance(value, float) else value

    return plain(number.document())


# ---- one number ----


def test_report_adds_one_number_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store.jsonl"
    assert run_here(f"{REPORT} --store {store}") == 0
    assert "1 record added" in capsys.readouterr().out
    assert run_here(f"{REPORT} --store {store}") == 0
    assert "0 records added" in capsys.readouterr().out
    (one,) = numbers_of(store)
    assert (one.title, one.printed, one.n, one.model.parameters) == ("LAMBADA", "61.73", 5153, 2.5e9)
    assert (one.source.locator, one.date, one.note, one.flags) == ("Table 3", "2019-09-17", "raw text", [])
    assert one.metric.low == pytest.approx(0.6039, abs=1e-4)


def test_report_takes_further_metrics_and_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store.jsonl"
    changes: dict[str, str | None] = {"--task": "race", "--protocol": "race/megatron", "--value": "90.9", "--n": "4934"}
    command = reported_with(changes)
    assert (
        run_here(
            f"{command} --value accuracy_middle=93.1/1436 --value accuracy_high=90.0 --flag ensemble --store {store}"
        )
        == 0
    )
    (one,) = numbers_of(store)
    assert one.printed_others == {"accuracy_middle": "93.1", "accuracy_high": "90.0"}
    assert [metric.stderr is None for metric in one.other_metrics] == [False, True]
    assert one.flags == ["ensemble"]
    assert "flags: ensemble" in capsys.readouterr().out


def test_report_refuses_another_value_of_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store.jsonl"
    assert run_here(f"{REPORT} --store {store}") == 0
    before = store.read_bytes()
    assert run_here(f"{reported_with({'--value': '61.74'})} --store {store}") == 1
    said = capsys.readouterr().err
    assert numbers_of(store)[0].record_id in said
    assert "leaderboard retract" in said
    assert store.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        ({"--source-url": "arxiv.org/abs/1"}, 2, "is no address"),
        ({"--source-url": None}, 2, "--source-url"),
        ({"--source-title": " "}, 2, "`--source-title` is empty"),
        ({"--locator": ""}, 2, "`--locator` is empty"),
        ({"--model": ""}, 2, "`--model` is empty"),
        ({"--task": "lambda"}, 2, "did you mean `lambada`?"),
        ({"--split": "validation"}, 2, "has no split `validation`"),
        ({"--protocol": "megatron-strict"}, 2, "is no TASK/PROTOCOL"),
        ({"--protocol": "race/megatron"}, 2, "is not of LAMBADA"),
        ({"--metric": "bleu"}, 2, "which way `bleu` goes"),
        ({"--n": None}, 2, "give `--n`"),
        ({"--n": "0"}, 2, "give `--n`"),
        ({"--n": "9" * 400}, 2, "`--n a number of many digits` is no number of items"),
        ({"--metric": "perplexity", "--n": "-5"}, 2, "`--n -5` is no number of items"),
        ({"--source-url": "HTTP://example.org"}, 2, "is no address"),
        ({"--model": "\udcff"}, 2, "no record can be made of that"),
        ({"--parameters": "9" * 400}, 2, "is no number of parameters"),
        ({"--date": "2019-02-30"}, 2, "is no date"),
        ({"--date": "20190217"}, 2, "is no date"),
        ({"--parameters": "large"}, 2, "`large` is no number of parameters"),
        ({"--value": "61.73%"}, 1, "is no plain number"),
        ({"--value": "161.73"}, 1, "above 100"),
        ({"--value": "accuracy_high=3"}, 2, "there are 0 values of `accuracy`"),
    ],
)
def test_report_refuses_what_a_record_cannot_be(
    changes: dict[str, str | None], code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store.jsonl"
    assert run_here(f"{reported_with(changes)} --store {store}") == code
    assert said in " ".join(capsys.readouterr().err.split())
    assert not store.exists()


def test_report_refuses_what_the_line_that_is_there_does_not_say(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store.jsonl"
    assert run_here(f"{REPORT} --value accuracy_norm=70.0/5153 --store {store}") == 0
    assert run_here(f"{REPORT} --store {store}") == 0
    assert run_here(f"{REPORT} --value accuracy_norm=70.1/5153 --store {store}") == 1
    assert "the store has 61.73, accuracy_norm 70.0 for the same" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("value", ["accuracy=3", "perplexity=3.0", "bleu=3"])
def test_report_refuses_a_further_metric_of_another_kind(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(f"{REPORT} --value {value} --store {tmp_path / 'store.jsonl'}") == 2
    assert "no further metric like `accuracy`" in capsys.readouterr().err


# ---- a file ----


def test_import_says_what_it_left_out_and_adds_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, file = tmp_path / "store.jsonl", tmp_path / "numbers.csv"
    file.write_text(f"{HEADER}\n{LINE}\n{LINE.replace('89.5', '-')}\n", encoding="utf-8")
    assert run_here(f"leaderboard import {file} --format csv --store {store}") == 0
    out = capsys.readouterr().out
    assert "missing" in out
    assert "line 3" in out
    assert "1 record added" in out
    assert [one.printed_others for one in numbers_of(store)] == [{"accuracy_high": "88.6"}]


def test_a_dry_run_adds_nothing_and_json_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = papers_file(tmp_path / "tables.json", RACE=[paper_row("A", Accuracy="89.5%"), paper_row("A", Accuracy="?")])
    assert run_here(f"leaderboard import {file} --format pwc --dry-run --json") == 0
    said = json.loads(capsys.readouterr().out)
    assert {key: said[key] for key in ("rows", "numbers", "added", "known")} == {
        "rows": 2,
        "numbers": 1,
        "added": 1,
        "known": 0,
    }
    assert [(one["code"], one["kept"]) for one in said["findings"]] == [
        ("protocol-unknown", True),
        ("percent-sign", True),
        ("missing", False),
    ]
    assert list(tmp_path.iterdir()) == [file]
    assert run_here(f"leaderboard import {file} --format pwc --dry-run") == 0
    assert "1 would be added: a dry run" in capsys.readouterr().out


def test_an_import_that_yields_nothing_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = papers_file(tmp_path / "tables.json", TACRED=[paper_row("A", F1="70")])
    assert run_here(f"leaderboard import {file} --format pwc --store {tmp_path / 's.jsonl'}") == 1
    assert "unknown-benchmark" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text", "code", "said"),
    [
        ("--format csv", "", 2, "`--store` is missing"),
        ("--format json --dry-run", "", 2, "`--format json` is unknown"),
        ("--format csv --dry-run", "", 1, "no column `task`"),
        ("--format csv --dry-run", HEADER.replace("model", "modle"), 1, "did you mean `model`?"),
        ("--format csv --dry-run", f"{HEADER},date,date", 1, "more than one column `date`"),
        ("--format csv --dry-run", f'{HEADER}\n"x', 1, "is no CSV"),
        ("--format csv --dry-run", "\udcff", 1, "no UTF-8"),
        ("--format pwc --dry-run", "{", 1, "is no JSON"),
        ("--format pwc --dry-run", "[1]", 1, "no task with tables"),
        ("--format lm-eval --dry-run", "{}", 1, "has no `results`"),
        ("--format lm-eval --dry-run", '{"results": {"piqa": {"acc": 0.5}}}', 1, "of which model it is"),
        ("--format lm-eval --dry-run --model x", '{"results": {"piqa": {"acc": 0.5}}}', 1, "give `--source-url`"),
        ("--format csv --dry-run --source-url x", "", 2, "is no address"),
        ("--format csv --dry-run --source-title x", "", 2, "there is no `--source-url`"),
        ("--format model-index --dry-run", "a: [", 1, "is no YAML"),
        ("--format model-index --dry-run", '!!int ""', 1, "is no YAML"),
        ("--format model-index --dry-run", "!!timestamp x", 1, "is no YAML"),
        ("--format model-index --dry-run", "!!bool x", 1, "is no YAML"),
        ("--format model-index --dry-run", 'a: "\\ud800"', 1, "has no `model-index`"),
        ("--format model-index --dry-run", "a: 1", 1, "has no `model-index`"),
        ("--format eval-results --dry-run", "a: 1", 1, "is no list of results"),
        ("--format eee --dry-run", "{}", 1, "has no `schema_version`"),
    ],
)
def test_import_refuses_what_is_not_of_its_format(
    options: str, text: str, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(text.encode(errors="surrogateescape"))
    assert run_here(f"leaderboard import {file} {options}") == code
    assert said in " ".join(capsys.readouterr().err.split())


def test_import_refuses_what_is_nested_deeper_than_it_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task: dict[str, Any] = {"task": "any"}
    for _ in range(5000):
        task = {"task": "any", "subtasks": [task]}
    monkeypatch.setattr(papers, "json_of", lambda *_: task)  # how deep JSON itself may be is the interpreter's
    (tmp_path / "file").write_text("{}", encoding="utf-8")
    assert run_here(f"leaderboard import {tmp_path / 'file'} --format pwc --dry-run") == 1
    assert "is nested too deep" in capsys.readouterr().err


def test_import_refuses_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(f"leaderboard import {tmp_path / 'none'} --format csv --dry-run") == 1
    assert "cannot be read" in capsys.readouterr().err


def test_every_format_that_is_offered_has_a_reader() -> None:
    assert set(cli_reported.FORMATS) == set(pipeline.FORMATS)


def test_the_commands_load_no_torch(tmp_path: Path) -> None:
    file = tmp_path / "numbers.csv"
    file.write_text(f"{HEADER}\n{LINE}\n", encoding="utf-8")
    program = (
        "import sys\nfrom mpeval.cli import main\n"
        f"sys.argv[1:] = ['leaderboard', 'import', {str(file)!r}, '--format', 'csv', '--dry-run']\n"
        "main()\n"
    )
    check = "import atexit\natexit.register(lambda: print('torch' in sys.modules))\n"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{check}{program}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == "False"


# ---- published.csv and published.jsonl ----


@pytest.fixture(scope="module")
def published() -> list[Reported]:
    """Return the committed numbers."""
    return numbers_of(data_folder("leaderboard") / "published.jsonl")


def test_published_jsonl_is_what_importing_published_csv_makes(published: list[Reported], tmp_path: Path) -> None:
    store = tmp_path / "published.jsonl"
    file = data_folder("leaderboard") / "published.csv"
    assert run_here(f"leaderboard import {file} --format csv --store {store}") == 0
    assert [content(one) for one in numbers_of(store)] == [content(one) for one in published]


def test_published_numbers_are_many_and_have_sources(published: list[Reported]) -> None:
    assert len(published) >= 120
    assert {one.task for one in published} == {"lambada", "wikitext103", "race", "piqa"}
    assert not any("Papers" in one.source.title or "paperswithcode" in one.source.url for one in published)
    assert all(one.note and one.source.locator for one in published)
    assert not any("protocol-unknown" in one.flags for one in published)


@pytest.mark.parametrize(
    ("protocol", "model", "metric", "printed", "others"),
    [
        ("wikitext103/megatron", "Megatron GPT-2 8.3B", "adjusted_perplexity", "10.81", {}),
        ("lambada/megatron-strict", "Megatron GPT-2 8.3B", "accuracy", "66.51", {}),
        ("race/megatron", "Megatron-BERT 3.9B", "accuracy", "89.5", {"middle": "91.8", "high": "88.6"}),
        ("race/megatron", "Megatron-BERT 3.9B (ensemble)", "accuracy", "90.9", {"middle": "93.1", "high": "90.0"}),
        ("piqa/mt-nlg", "MT-NLG 530B", "accuracy", "82.0", {}),
    ],
)
def test_published_numbers_hold_those_of_megatron(
    protocol: str, model: str, metric: str, printed: str, others: dict[str, str], published: list[Reported]
) -> None:
    (one,) = [one for one in published if (one.protocol, one.model.name, one.metric.name) == (protocol, model, metric)]
    assert one.printed == printed
    assert one.printed_others == {f"accuracy_{group}": value for group, value in others.items()}
    assert ("unattainable" in one.flags) == (printed == "66.51")


def test_published_numbers_share_boards_with_measured_ones_where_the_procedure_is_the_same(
    published: list[Reported],
) -> None:
    cards = [load_card(name) for name in card_names()]
    metrics = {protocol.id: protocol.metric for card in cards for protocol in card.protocols}
    splits = {(card.name, split.name) for card in cards for split in card.splits}
    shared = [one for one in published if one.protocol in metrics]
    assert {one.protocol for one in shared} == {
        *("wikitext103/megatron", "lambada/megatron-strict", "race/megatron", "lambada/lm-eval-openai", "piqa/lm-eval"),
    }
    assert {one.metric.name for one in shared if one.metric.name != metrics[one.protocol]} == {"perplexity"}
    assert all((one.task, one.part) in splits for one in published)


def test_race_numbers_go_together_but_those_that_say_not() -> None:
    reading = read((data_folder("leaderboard") / "published.csv").read_text(encoding="utf-8"), Given())
    found = {finding.model for finding in checked(reading).findings if finding.code.startswith("race")}
    assert found == {"RoBERTa-large", "XLNet v1", "BiAttention MRU"}
    whole = [
        [100 * metric.value for metric in (one.metric, *one.other_metrics)]
        for one in numbers_of(data_folder("leaderboard") / "published.jsonl")
        if len(one.other_metrics) == 2 and "race-identity" not in one.flags
    ]
    assert len(whole) == 13
    for every, middle, high in whole:
        assert every == pytest.approx((1436 * middle + 3498 * high) / 4934, abs=0.1)


def test_the_columns_of_the_csv_file_are_documented() -> None:
    header = (data_folder("leaderboard") / "published.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert set(header) == set(COLUMNS) - {"title"}
