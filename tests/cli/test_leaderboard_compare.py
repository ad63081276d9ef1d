"""`mpeval leaderboard compare` and `power`: what they print, what they refuse, and that they need no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from compared import LAMBADA, WIKITEXT, lambada, wikitext, write
from making import run_here

from mpeval.leaderboard.power import items_needed, resolution
from mpeval.results import ComparisonResults


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs, of which `good` is better at everything, and `twin`, as good as `good`."""
    monkeypatch.chdir(tmp_path)
    write(Path("poor"), lambada(1), wikitext(1, gap=0.02))
    write(Path("good"), lambada(2, skill=0.6), wikitext(2))
    write(Path("twin"), lambada(2, skill=0.6), wikitext(2))


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of a printed table's lines, without its heading."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_a_row_says_all_of_a_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("leaderboard compare poor good") == 0
    text = capsys.readouterr().out
    assert run_here("leaderboard compare poor good --json") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    content = json.loads(captured.out)
    assert content["command"] == "mpeval leaderboard compare poor good --json"
    found = ComparisonResults(schema_=content.pop("schema"), **content)
    upper, lower = rows_of(text)[::2], rows_of(text)[1::2]
    assert [row[0] for row in upper] == [LAMBADA, LAMBADA, WIKITEXT]
    assert [row[0] for row in lower] == ["accuracy", "target perplexity", "adjusted perplexity"]
    assert [row[1] for row in upper] == ["A - B", "A / B", "A / B"]
    assert [row[2] for row in upper] == ["300", "300", f"{found.comparisons[2].comparison.n:,}"]
    assert [row[2] for row in lower] == ["300", "300", "40"]
    first = found.comparisons[0].comparison.model_dump()
    assert upper[0][3] == f"{100 * first['difference']:+.2f} points"
    assert lower[0][3] == f"{100 * first['low']:+.2f} to {100 * first['high']:+.2f}"
    assert upper[0][5] == f"{first['only_first']} : {first['only_second']}"
    assert upper[2][3] == f"x {found.comparisons[2].comparison.model_dump()['ratio']:.4f}"
    assert {row[7] for row in upper} == {"B better"}
    assert "A: poor\nB: good\n" in text
    assert "Holm's correction for 3 tests" in text
    assert "p is rough" not in text


def test_ties_of_three_runs_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("leaderboard compare poor good twin --protocol lambada") == 0
    text = capsys.readouterr().out
    assert f"{LAMBADA}, accuracy, best first, between semicolons what no test tells from its best: B, C; A" in text
    assert len(rows_of(text)) == 12
    assert "no difference" in text


def test_few_items_and_flags_are_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("c", 1), ("d", 2)):
        made, lines = lambada(seed, count=50)
        write(Path(name), (made.model_copy(update={"flags": ["partial"]}), lines))
    assert run_here("leaderboard compare c d") == 0
    text = capsys.readouterr().out
    assert "with fewer than 200 clusters p is rough" in text
    assert f"flags of {LAMBADA}: partial" in text


def test_one_article_has_no_test(capsys: pytest.CaptureFixture[str]) -> None:
    for name, loss in (("c", 2.0), ("d", 3.0)):
        line = {"task": WIKITEXT, "id": "window-000000", "documents": [[0, loss, 10]]}
        Path(f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    assert run_here("leaderboard compare c.jsonl d.jsonl") == 0
    text = capsys.readouterr().out
    assert "x 0.9048" in text
    assert "no test of one" in text


def test_a_run_without_samples_is_refused_with_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    Path("good/samples.jsonl").unlink()
    assert run_here("leaderboard compare poor good") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "error: `good` holds no samples" in captured.err
    assert f"`mpeval evaluate checkpoints/good --task {LAMBADA} --task {WIKITEXT} --output good`" in captured.err


def test_power_prints_what_a_protocol_resolves(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("leaderboard power --protocol race/lm-eval --accuracy 0.54 --effect 1") == 0
    text = capsys.readouterr().out
    found = resolution(1045, accuracy=0.54, correlation=0.5, power=0.8)
    assert "race/lm-eval: 1,045 items, accuracy 54 %" in text
    needed = [items_needed(0.01, accuracy=0.54, correlation=shared, power=0.8) for shared in (0.0, 0.5)]
    assert [row[1] for row in rows_of(text)] == [
        f"{100 * found.stderr:.2f} points",
        f"{100 * found.half_width:.2f} points",
        "6.11 points",
        "4.32 points",
        *(f"{count:,} items" for count in needed),
    ]
    assert "items are taken as independent" in text


def test_power_of_any_number_of_items(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here("leaderboard power --n 400 --correlation 0.9 --power 0.9") == 0
    text = capsys.readouterr().out
    found = resolution(400, accuracy=0.7, correlation=0.9, power=0.9)
    assert "a set: 400 items, accuracy 70 %" in text
    assert "90 % power, on the same items, correlation 0.9" in text
    assert rows_of(text)[3][1] == f"{100 * found.paired:.2f} points"
    assert len(rows_of(text)) == 4


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("power", "there is no number of items"),
        ("power --protocol nothing", "no task `nothing`"),
        ("power --protocol race/nothing", "task `race` has no protocol `nothing`"),
        ("power --protocol wikitext103/megatron", "`wikitext103/megatron` measures adjusted perplexity"),
        ("power --n 1", "of 1 items nothing can be said"),
        ("power --n 100 --effect 0", "an effect of 0 points"),
        ("power --n 100 --accuracy 70", "`--accuracy 70` is out of range"),
        ("compare poor", "1 run has nothing to be compared with"),
    ],
)
def test_wrong_usage_ends_with_2(command: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(f"leaderboard {command}") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"error: {said}" in captured.err
    assert "hint: " in captured.err


@pytest.mark.parametrize("command", ["compare poor good", "power --protocol lambada"])
def test_neither_command_needs_torch(command: str) -> None:
    program = (
        "import sys\nfrom mpeval.cli import main\nsys.argv[1:] = ['leaderboard', *sys.argv[1].split()]\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, command], capture_output=True, check=True)
