"""`mpeval leaderboard publish` and `show --json` from the command line."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from boarding import measured, megatron

from mpeval.cli import main
from mpeval.leaderboard.markdown import BEGIN, END
from mpeval.leaderboard.pages import FORMATS
from mpeval.leaderboard.store import append


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    append(tmp_path / "s.jsonl", [*megatron(), measured(0.45)])
    return tmp_path


def run_here(command: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command of `mpeval leaderboard`; return its exit status."""
    monkeypatch.setattr("sys.argv", ["mpeval", "leaderboard", *shlex.split(command)])
    try:
        main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def test_every_format_is_written_and_what_is_left_out_is_said(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(f"publish --store s.jsonl --output out --format {','.join(FORMATS)}", monkeypatch) == 0
    assert capsys.readouterr().out.splitlines() == [
        "left out of eval-results.yaml: 2 of perplexity: the format cannot say that lower is better",
        "left out of lm-eval: 3 reported: not measured here",
        *(f"wrote out/{name}" for name in ("README.md", "index.html", "leaderboard.csv", "leaderboard.tex")),
        *(f"wrote out/{name}" for name in ("leaderboard.json", "evaluation-tables.json")),
        *(f"wrote out/{name}" for name in ("evaluation-tables.sidecar.json", "model-index.yaml", "eval-results.yaml")),
        *("wrote 4 files below out/eee", "wrote 1 file below out/lm-eval"),
    ]
    assert len(list((store / "out" / "eee").iterdir())) == 4


def test_two_pages_are_written_by_default(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("publish --store s.jsonl --output out", monkeypatch) == 0
    assert capsys.readouterr().out == "wrote out/README.md\nwrote out/index.html\n"


def test_a_readme_is_filled_in_and_nothing_else_is_written(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / "README.md").write_text(f"# Mine\n{BEGIN}\n{END}\n")
    assert run_here("publish --store s.jsonl --readme README.md --model gpt-345m", monkeypatch) == 0
    assert capsys.readouterr().out == "wrote README.md\n"
    text = (store / "README.md").read_text()
    assert "| gpt-345m |" in text
    assert "Megatron-LM 8.3B" not in text
    assert sorted(path.name for path in store.iterdir()) == ["README.md", "s.jsonl", "s.jsonl.lock"]


def test_show_prints_the_document_that_is_published(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("publish --store s.jsonl --output out --format json", monkeypatch) == 0
    capsys.readouterr()
    assert run_here("show --store s.jsonl --json", monkeypatch) == 0
    text = capsys.readouterr().out
    assert text == (store / "out" / "leaderboard.json").read_text()
    assert len(json.loads(text)["boards"]) == 4


@pytest.mark.parametrize(
    ("options", "said", "hint", "status"),
    [
        ("--output out --format cvs", "`--format cvs` is unknown", "did you mean `csv`?", 2),
        ("--output out --format ,", "`--format` names no format", "give some of", 2),
        ("--output out --siunitx", "`--siunitx` is about LaTeX tables", "add `tex` to `--format`", 2),
        ("", "nowhere to publish to", "give a folder by `--output`", 2),
        ("--readme x --format csv", "`--format` and `--siunitx` are about files in a folder", "`--output`", 2),
        ("--push-to-hub a/b", "`--push-to-hub` is about the models of one card", "name them by `--model`", 2),
        ("--output out --model gpt", "no record of the model `gpt`", "did you mean `gpt-345m`?", 1),
        ("--readme none.md", "there is no file `none.md`", BEGIN, 1),
        ("--readme s.jsonl", f"`s.jsonl` has no line `{BEGIN}`", END, 1),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    options: str,
    said: str,
    hint: str,
    status: int,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (store / "s.jsonl").read_bytes()
    assert run_here(f"publish --store s.jsonl {options}", monkeypatch) == status
    text = " ".join(capsys.readouterr().err.split())
    assert said in text
    assert hint in text
    assert not (store / "out").exists()
    assert (store / "s.jsonl").read_bytes() == before


def test_publishing_imports_no_torch(store: Path) -> None:
    program = (
        "import sys\nfrom mpeval.cli import main\n"
        f"sys.argv = ['mpeval', 'leaderboard', 'publish', '--store', 's.jsonl', '--output', 'out', '--format', "
        f"'{','.join(FORMATS)}']\n"
        "try:\n    main()\nfinally:\n    assert not {'torch', 'lm_eval', 'datasets'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
