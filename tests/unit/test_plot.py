"""Loss curves: what is drawn, that equal metrics give equal files, and what is said about bad ones."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from mpeval.errors import OutputError, UsageError
from mpeval.plot import COLOURS, plot, plot_run, read_curves, smoothed
from mpeval.recipe import find_recipe

Records = Sequence[dict[str, Any]]


def records(steps: int, **more: Any) -> list[dict[str, Any]]:
    """Return the metrics of a run whose loss falls from 8 to 3."""
    return [
        {
            "step": step,
            "loss": 3 + 5 * math.exp(-5 * step / steps) + 0.1 * math.sin(9 * step),
            "lr": 1e-3 * step / steps,
            "grad_norm": 1.0 + 1.0 / step,
            "tokens_per_second": 1e3,
            "flops_per_second": 1e9,
            "roof_share": 0.5,
            **more,
        }
        for step in range(1, steps + 1)
    ]


def run(folder: Path, lines: Records, recipe: str | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if recipe:
        (folder / "recipe.toml").write_text(find_recipe(recipe).toml())
    return folder


def drawn(runs: Sequence[Path], monkeypatch: pytest.MonkeyPatch, output: Path | None = None) -> Any:
    """Draw runs and return matplotlib's figure."""
    import mpeval.plot as module

    figures: list[Any] = []
    draw = module._draw

    def keep(figure: Any, curves: Any) -> None:
        figures.append(figure)
        draw(figure, curves)

    monkeypatch.setattr(module, "_draw", keep)
    plot(runs, output)
    return figures[0]


def points(figure: Any, axes: int, number: int) -> tuple[list[float], list[float]]:
    line = figure.axes[axes].lines[number]
    return [float(x) for x in line.get_xdata()], [float(y) for y in line.get_ydata()]


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_run_is_drawn_into_its_own_folder_in_both_formats(tmp_path: Path) -> None:
    folder = run(tmp_path / "one", records(30))
    assert plot_run(folder) == [folder / "loss.svg", folder / "loss.png"]
    assert ElementTree.parse(folder / "loss.svg").getroot().tag.endswith("svg")
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert {item.name for item in folder.iterdir()} == {"metrics.jsonl", "loss.svg", "loss.png"}
    other = tmp_path / "else" / "where"
    assert plot_run(folder, output=other) == [other / "loss.svg", other / "loss.png"]


def test_equal_metrics_give_equal_files_whatever_the_settings(tmp_path: Path) -> None:
    import matplotlib

    first, second = (run(tmp_path / place / "one", records(120), "gpt-tiny") for place in "ab")
    plot_run(first)
    with matplotlib.rc_context({"lines.linewidth": 9.0, "font.size": 30, "svg.hashsalt": "other"}):
        plot_run(second)
    for name in ("loss.svg", "loss.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    plot_run(run(tmp_path / "c" / "one", records(121), "gpt-tiny"))
    assert (first / "loss.svg").read_bytes() != (tmp_path / "c" / "one" / "loss.svg").read_bytes()


def test_every_figure_of_the_metrics_is_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = records(200)
    for line in lines[49::50]:
        line["valid_loss"] = line["loss"] + 0.25
    figure = drawn([run(tmp_path / "one", lines, "gpt-tiny")], monkeypatch)
    steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
    assert points(figure, 0, 0) == (steps, losses)
    assert points(figure, 0, 1) == (steps, smoothed(np.array(losses), 2).tolist())
    assert points(figure, 0, 2) == (steps[49::50], [loss + 0.25 for loss in losses[49::50]])
    assert points(figure, 1, 0) == (steps, [line["lr"] for line in lines])
    assert points(figure, 2, 0) == (steps, [line["grad_norm"] for line in lines])
    labels = [figure.axes[0].get_ylabel(), figure.axes[1].get_ylabel(), figure.axes[2].get_ylabel()]
    assert labels == ["loss (nats per token)", "learning\nrate", "gradient\nnorm"]
    assert figure.axes[2].get_xlabel() == "optimizer step"
    assert legend(figure) == ["training (faint: each step; line: moving average, half-life 2 steps)", "validation"]
    title = f"gpt-tiny: loss {losses[-1]:.3f}, validation loss {losses[-1] + 0.25:.3f} at step 200"
    assert figure.axes[0].get_title(loc="left") == title


def test_a_short_run_is_not_smoothed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn([run(tmp_path / "short", records(99))], monkeypatch)
    assert len(figure.axes[0].lines) == len(figure.axes[2].lines) == 1
    assert legend(figure) == ["training (each step)"]
    assert figure.axes[0].get_title(loc="left").startswith("short: loss 2.940 at step 99")


def test_one_step_is_a_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn([run(tmp_path / "one", records(1))], monkeypatch)
    assert points(figure, 0, 0)[0] == [1]


def test_the_parts_of_a_berts_loss_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn([run(tmp_path / "one", records(20, lm_loss=5.0, order_loss=0.5))], monkeypatch)
    assert legend(figure)[1:] == ["part of it: masked tokens", "part of it: sentence order"]
    assert points(figure, 0, 1)[1] == [5.0] * 20
    assert points(figure, 0, 2)[1] == [0.5] * 20
    assert figure.axes[0].get_ylabel() == "loss (nats)"


def test_skipped_steps_are_gaps_and_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = records(20, loss_scale=65536.0, skipped=0)
    for line in (lines[3], lines[7]):
        line.update(loss=None, grad_norm=None, skipped=1)
    figure = drawn([run(tmp_path / "one", lines)], monkeypatch)
    assert points(figure, 0, 0)[0] == [step for step in range(1, 21) if step not in {4, 8}]
    assert points(figure, 0, 1)[0] == [4, 8]
    assert legend(figure)[1] == "2 steps skipped (overflow)"


def test_a_run_of_skipped_steps_only_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [{**line, "loss": None, "grad_norm": None, "skipped": 1} for line in records(3)]
    figure = drawn([run(tmp_path / "one", lines)], monkeypatch)
    assert figure.axes[0].get_title(loc="left") == "one: 3 steps, all skipped"


def test_a_validation_loss_of_an_earlier_step_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = records(12)
    lines[9]["valid_loss"] = 4.0
    figure = drawn([run(tmp_path / "one", lines)], monkeypatch)
    assert "validation loss 4.000 at step 10, loss" in figure.axes[0].get_title(loc="left")


def test_several_runs_are_told_apart_by_folder_and_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run(tmp_path / name, records(steps, valid_loss=4.0)) for name, steps in (("pre", 40), ("post", 60))]
    figure = drawn(runs, monkeypatch, tmp_path / "both")
    assert legend(figure) == ["pre", "post"]
    first, second = figure.axes[0].lines[0], figure.axes[0].lines[2]
    assert (first.get_color(), second.get_color()) == COLOURS[:2]
    assert len(second.get_xdata()) == 60
    assert figure.axes[0].get_title(loc="left") == "training loss (each step; dots: validation)"
    assert {item.name for item in (tmp_path / "both").iterdir()} == {"loss.svg", "loss.png"}


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run(tmp_path / place / "run", records(5)) for place in "ab"]
    assert legend(drawn(runs, monkeypatch, tmp_path)) == [str(path) for path in runs]


def test_more_runs_than_colours_differ_in_their_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [run(tmp_path / f"run-{number}", records(5)) for number in range(9)]
    lines = drawn(runs, monkeypatch, tmp_path).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9


def test_several_runs_need_a_place(tmp_path: Path) -> None:
    runs = [run(tmp_path / name, records(5)) for name in "ab"]
    with pytest.raises(UsageError, match="2 runs are drawn into one picture") as caught:
        plot(runs, None)
    assert "`--output DIR`" in caught.value.hint


def test_a_run_is_drawn_once(tmp_path: Path) -> None:
    folder = run(tmp_path / "one", records(5))
    with pytest.raises(UsageError, match="is given twice"):
        plot([folder, folder / ".." / "one"], tmp_path)


def test_smoothing_is_the_weighted_mean_that_it_says() -> None:
    values = np.random.default_rng(1).normal(size=30)
    found = smoothed(values, 3.0)
    for at in range(30):
        weights = 0.5 ** (np.abs(np.arange(30) - at) / 3.0)
        assert found[at] == pytest.approx(np.average(values, weights=weights))
    assert smoothed(np.full(9, 2.5), 2.0) == pytest.approx(np.full(9, 2.5))


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    folder = run(tmp_path / "one", records(5))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert read_curves(folder, "one").steps.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 3, "loss"', "line 3 is damaged: "),
        ("[1, 2]", "line 3 is damaged: it has no `step` and `loss`"),
        ('{"step": 3}', "line 3 is damaged: it has no `step` and `loss`"),
        ('{"step": "3", "loss": 1.0}', "line 3 is damaged: it has no `step` and `loss`"),
        ('{"step": true, "loss": 1.0}', "line 3 is damaged: it has no `step` and `loss`"),
        ('{"step": 2, "loss": 1.0}', "line 3 is damaged: step 2 follows step 2"),
        ('{"step": 9, "loss": 1.0}', "line 4 is damaged: step 4 follows step 9"),
        ("", "line 3 is damaged: "),
        ("\xff", "line 3 is damaged: "),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    folder = run(tmp_path / "one", records(5))
    lines = (folder / "metrics.jsonl").read_bytes().split(b"\n")
    lines[2] = line.encode("latin-1")
    (folder / "metrics.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(OutputError) as caught:
        plot_run(folder)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert not (folder / "loss.svg").exists()


def test_a_run_without_a_step_says_so(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"metrics\.jsonl` holds no step yet"):
        plot_run(run(tmp_path / "one", []))


def test_a_folder_without_metrics_says_what_it_holds(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(OutputError, match=r"holds no `metrics\.jsonl`: it holds `0.txt`, .* `5.txt` and 2 more"):
        plot_run(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OutputError, match=r"holds no `metrics\.jsonl`: it holds nothing"):
        plot_run(tmp_path / "empty")


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file` is a file"):
        plot_run(tmp_path / "file")
    with pytest.raises(OutputError, match="missing` is not there"):
        plot_run(tmp_path / "missing")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    folder = run(tmp_path / "one", records(5))
    with pytest.raises(OutputError, match="cannot write"):
        plot_run(folder, output=folder / "metrics.jsonl")


def test_a_loss_that_is_no_number_is_a_gap(tmp_path: Path) -> None:
    lines = records(4)
    lines[1]["loss"] = math.nan
    curves = read_curves(run(tmp_path / "one", lines), "one")
    assert curves.of("loss")[0].tolist() == [1, 3, 4]
    assert curves.of("valid_loss")[0].tolist() == []
