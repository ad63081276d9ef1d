"""What README, cards and pages say is so."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mpeval.checkpoint.open import open_checkpoint
from mpeval.tasks.cards import card_names, load_card

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short_and_names_both_commands() -> None:
    assert len(README.splitlines()) < 150
    assert "make demo" in README
    assert "make test" in README


def test_the_readme_lists_every_module() -> None:
    tree = README.split("## Files")[1]
    for module in (ROOT / "mpeval").rglob("*.py"):
        if not module.name.startswith("__"):
            assert re.search(rf"\b{module.name}\b", tree), f"{module.name} is not in the file tree"


def test_the_tables_in_the_readme_are_what_the_demo_prints(tmp_path: Path) -> None:
    recipe = (ROOT / "Makefile").read_text().split("\ndemo:")[1].split("\n\n")[0].replace("\\\n", "")
    commands = [line.split()[2:] for line in recipe.splitlines() if " evaluate checkpoints" in line]
    assert len(commands) == 2
    printed = ""
    for command in commands:
        kept = [word.replace("$(DEMO)", str(tmp_path)) for word in command]
        printed += subprocess.run(
            [sys.executable, "-m", "mpeval", "evaluate", *kept, "--device", "cpu"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
    rows = [line.rstrip() for line in printed.splitlines() if line.startswith(("│", "demo-"))]
    shown = [line for line in README.splitlines() if line.startswith(("│", "demo-"))]
    assert len(rows) == len(shown) >= 6
    for row, line in zip(rows, shown, strict=True):
        assert words(row) == words(line)
        # bfloat16 rounds differently from one processor and thread count to the next
        assert numbers(row) == pytest.approx(numbers(line), rel=3e-2)


NUMBER = re.compile(r"\d[\d,.]*(?:e[+-]\d+)?")


def numbers(line: str) -> list[float]:
    return [float(text.rstrip(".,").replace(",", "")) for text in NUMBER.findall(line)]


def words(line: str) -> list[str]:
    return NUMBER.sub("#", line).split()


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    [block] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    log_probability, greedy, tokens = capsys.readouterr().out.split()
    assert float(log_probability) < 0
    assert greedy in {"True", "False"}
    assert tokens == "1"


def test_the_readme_names_every_protocol() -> None:
    for name in card_names():
        for protocol in load_card(name).protocols:
            assert f"`{protocol.id}`" in README


@pytest.mark.parametrize("path", sorted((ROOT / "checkpoints").glob("*.toml")), ids=lambda path: path.stem)
def test_each_checkpoint_card_describes_its_checkpoint(path: Path) -> None:
    card = tomllib.loads(path.read_text())
    protocols = {protocol.id for name in card_names() for protocol in load_card(name).protocols}
    for score in card.get("scores", []):
        assert score["protocol"] in protocols
        assert score["source"]
    if "folder" not in card:
        assert not card["readable"]
        return
    opened = open_checkpoint(path.parent / card["folder"])
    assert opened.digest() == card["digest"]
    assert list(opened.grid) == card["grid"]
    for name, value in card["model"].items():
        assert getattr(opened.config, name) == value


def test_the_committed_leaderboard_pages_are_made_from_the_records() -> None:
    from mpeval.leaderboard.pages import check
    from mpeval.leaderboard.store import default_stores

    assert len(check(default_stores(), ROOT / "leaderboard")) == 2
