"""`mpeval plot`: from the metrics of one or several runs to pictures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from making import run_apart, run_here


def make_run(folder: Path, steps: int = 5) -> Path:
    """Write the metrics of a run as training leaves them."""
    folder.mkdir(parents=True)
    lines = [{"step": step, "loss": 4.0 / step, "lr": 1e-3, "grad_norm": 1.0} for step in range(1, steps + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_one_run_is_drawn_into_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run")
    assert run_here(f"plot {run}") == 0
    assert capsys.readouterr().out == f"wrote {run / 'loss.svg'}\nwrote {run / 'loss.png'}\n"
    assert (run / "loss.svg").stat().st_size > 1000
    assert (run / "loss.png").stat().st_size > 1000


def test_several_runs_are_drawn_where_they_are_told_to(tmp_path: Path) -> None:
    first, second, both = make_run(tmp_path / "a"), make_run(tmp_path / "b"), tmp_path / "both"
    assert run_here(f"plot {first} {second} --output {both}") == 0
    assert {item.name for item in both.iterdir()} == {"loss.svg", "loss.png"}
    assert [item.name for item in first.iterdir()] == ["metrics.jsonl"]


def test_several_runs_without_a_place_are_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    assert run_here(f"plot {first} {second}") == 2
    said = capsys.readouterr().err
    assert "error: 2 runs are drawn into one picture" in said
    assert "hint: say where it goes by `--output DIR`" in said


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_here(f"plot {tmp_path}") == 1
    assert "holds no `metrics.jsonl`: it holds nothing" in capsys.readouterr().err


def test_a_process_of_its_own_shows_no_warning(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 150)
    done = run_apart(f"plot {run}", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("wrote ") == 2


def test_drawing_loads_no_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    program = "import sys; from pathlib import Path; from mpeval.plot import plot; plot([Path(sys.argv[1])], None)"
    program += "; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, str(run)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
