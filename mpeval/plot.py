"""The loss curve of a training run, or of several over one another, as SVG and PNG."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mpeval.errors import OutputError, UsageError
from mpeval.folders import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS_FILE = "metrics.jsonl"
RECIPE_FILE = "recipe.toml"
Values = npt.NDArray[np.float64]
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Wong's palette, which colour-blind readers can tell apart (Nature Methods 8, 441, 2011), without its yellow."""
LINES = ("-", "--", ":", "-.")
PARTS = {"lm_loss": "masked tokens", "order_loss": "sentence order"}
"""The losses that a BERT's is the sum of, in words."""
STYLE: Mapping[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "mpeval",
}


@dataclass(frozen=True, kw_only=True)
class Curves:
    """What `metrics.jsonl` says of one run; what a step does not have is NaN."""

    label: str
    title: str
    steps: Values
    values: Mapping[str, Values]
    """`loss`, `lr`, `grad_norm`, and what else there is, by name; each as long as `steps`."""

    def of(self, name: str) -> tuple[Values, Values]:
        """Return the steps that have a finite value of `name`, and these values."""
        values = self.values.get(name, np.full(len(self.steps), np.nan))
        there = np.isfinite(values)
        return self.steps[there], values[there]


def plot_run(folder: Path, *, output: Path | None = None) -> list[Path]:
    """Draw the loss curve of the run in `folder` into `output` (default: the folder itself); see `plot`."""
    return plot([folder], output)


def plot(runs: Sequence[Path], output: Path | None) -> list[Path]:
    """Draw loss, validation loss, learning rate and gradient norm of runs over their steps.

    Args:
        runs: output folders of pretraining; several are drawn over one another, named by their folders.
        output: where `loss.svg` and `loss.png` go; of one run the default is its folder.

    Returns:
        The two files.  Equal metrics give equal bytes.

    Raises:
        OutputError: a folder holds no metrics, or damaged ones, or the pictures cannot be written.
        UsageError: several runs and no `output`, or a run twice.
    """
    folder = output if output is not None else runs[0] if len(runs) == 1 else None
    if folder is None:
        raise UsageError(f"{len(runs)} runs are drawn into one picture", "say where it goes by `--output DIR`")
    labels = _labels(runs)
    curves = [read_curves(run, label) for run, label in zip(runs, labels, strict=True)]
    pictures = _pictures(curves)
    paths = [folder / f"loss.{kind}" for kind in pictures]
    for path, picture in zip(paths, pictures.values(), strict=True):
        write_atomically(path, picture)
    return paths


def _labels(runs: Sequence[Path]) -> list[str]:
    """Name runs by their folders, or by whole paths where two folders have one name."""
    whole = [run.resolve() for run in runs]
    for number, run in enumerate(whole):
        if run in whole[:number]:
            raise UsageError(f"`{runs[number]}` is given twice", "give each run once")
    names = [run.name for run in whole]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]


def read_curves(folder: Path, label: str) -> Curves:
    """Read the metrics of a run, which may still be going on: a last line without its end is left out.

    Raises:
        OutputError: there are none, or a line is damaged.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        raise _no_metrics(folder)
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise OutputError(f"cannot read `{path}`: {error.strerror}", "give a folder that you may read") from error
    records = [_record(path, number, line) for number, line in enumerate(lines, start=1)]
    if not records:
        raise OutputError(f"`{path}` holds no step yet", "wait for the first step, or give another run")
    for number, (before, after) in enumerate(pairwise(records), start=2):
        if after["step"] <= before["step"]:
            found = f"step {after['step']} follows step {before['step']}"
            raise OutputError(f"`{path}` line {number} is damaged: {found}", "each step has one line, in order")
    names = sorted({name for record in records for name in record} - {"step"})
    values = {name: np.array([_number(record.get(name)) for record in records]) for name in names}
    steps = np.array([record["step"] for record in records], dtype=np.float64)
    return Curves(label=label, title=_title(folder, label), steps=steps, values=values)


def _no_metrics(folder: Path) -> OutputError:
    hint = "give the `--output` folder of `mpeval pretrain`"
    if not folder.is_dir():
        return OutputError(f"`{folder}` is {'a file' if folder.exists() else 'not there'}", hint)
    names = sorted(item.name for item in folder.iterdir())
    held = ", ".join(f"`{name}`" for name in names[:6]) or "nothing"
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return OutputError(f"`{folder}` holds no `{METRICS_FILE}`: it holds {held}{more}", hint)


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise _damaged(path, number, str(error)) from error
    if not isinstance(record, dict) or type(record.get("step")) is not int or "loss" not in record:
        raise _damaged(path, number, "it has no `step` and `loss`")
    return record


def _damaged(path: Path, number: int, why: str) -> OutputError:
    return OutputError(f"`{path}` line {number} is damaged: {why}", "remove that line, or give another run")


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _title(folder: Path, label: str) -> str:
    from mpeval.recipe import read_recipe

    path = folder / RECIPE_FILE
    return read_recipe(path).name if path.is_file() else label


def smoothed(values: Values, half_life: float) -> Values:
    """Return the moving average whose weights halve every `half_life` values to both sides.

    It does not lag behind a falling loss, as a one-sided one does.
    """
    past, future = _decayed(values, half_life), _decayed(values[::-1], half_life)[::-1]
    counts = _decayed(np.ones(len(values)), half_life)
    result: Values = (past + future - values) / (counts + counts[::-1] - 1.0)
    return result


def _decayed(values: Values, half_life: float) -> Values:
    """Return at each value the sum of it and those before it, weighted by how far back they lie."""
    keep = 0.5 ** (1.0 / half_life)
    result = np.empty(len(values))
    total = 0.0
    for number, value in enumerate(values.tolist()):
        total = keep * total + value
        result[number] = total
    return result


def _pictures(curves: Sequence[Curves]) -> dict[str, bytes]:
    """Return the picture in each format; nothing in it depends on the time or the user's settings of matplotlib."""
    import matplotlib.style
    from matplotlib.figure import Figure

    saved: dict[str, bytes] = {}
    with matplotlib.style.context(["default", dict(STYLE)], after_reset=True):
        figure = Figure(figsize=(8.0, 6.4), layout="constrained")
        _draw(figure, curves)
        for kind, metadata in (("svg", {"Date": None, "Creator": "mpeval"}), ("png", {"Software": "mpeval"})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            saved[kind] = buffer.getvalue()
    return saved


def _draw(figure: Figure, curves: Sequence[Curves]) -> None:
    """Draw three panels over one another, and the legend below them, where no curve can be in its way."""
    from matplotlib.ticker import MaxNLocator

    loss, rate, norm = figure.subplots(3, 1, sharex=True, height_ratios=[5, 1.3, 1.3])
    half_life = max(len(run.steps) for run in curves) // 100
    if len(curves) == 1:
        _draw_one(loss, curves[0], half_life)
    else:
        _draw_many(loss, curves, half_life)
    order = any("order_loss" in run.values for run in curves)
    loss.set_ylabel("loss (nats)" if order else "loss (nats per token)")
    _draw_rates(rate, curves)
    _draw_norms(norm, curves, half_life)
    norm.xaxis.set_major_locator(MaxNLocator(integer=True))
    norm.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    norm.set_xlabel("optimizer step")
    figure.align_ylabels()
    handles, labels = loss.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=1 if len(max(labels, key=len)) > 70 else 2)


def _draw_curve(axes: Axes, points: tuple[Values, Values], half_life: int, **look: Any) -> None:
    """Draw each value faintly and their moving average over them; of a short run only the values."""
    steps, values = points
    if not half_life:
        axes.plot(steps, values, marker=".", linewidth=1.6, **look)
        return
    axes.plot(steps, values, color=look["color"], alpha=0.3, linewidth=0.7)
    axes.plot(steps, smoothed(values, half_life), linewidth=1.6, **look)


def _draw_one(axes: Axes, run: Curves, half_life: int) -> None:
    """Draw the losses of one run: each step, smoothed, in parts, and on the validation split."""
    _draw_curve(axes, run.of("loss"), half_life, color=COLOURS[0], label=f"training ({_how(half_life)})")
    if "order_loss" in run.values:
        for colour, (name, words) in zip(COLOURS[2:], PARTS.items(), strict=False):
            steps, parts = run.of(name)
            shown = smoothed(parts, half_life) if half_life else parts
            axes.plot(steps, shown, color=colour, linewidth=1.2, linestyle="--", label=f"part of it: {words}")
    _draw_validation(axes, run, COLOURS[1], "validation")
    _draw_skipped(axes, run)
    axes.set_title(f"{run.title}: {_summary(run)}", loc="left", fontsize=11)


def _how(half_life: int) -> str:
    if not half_life:
        return "each step"
    steps = "1 step" if half_life == 1 else f"{half_life:,} steps"
    return f"faint: each step; line: moving average, half-life {steps}"


def _draw_many(axes: Axes, curves: Sequence[Curves], half_life: int) -> None:
    """Draw the losses of several runs over one another, each in its own colour."""
    for number, run in enumerate(curves):
        colour, line = _look(number)
        _draw_curve(axes, run.of("loss"), half_life, color=colour, linestyle=line, label=run.label)
        _draw_validation(axes, run, colour, None)
    dots = "; dots: validation" if any("valid_loss" in run.values for run in curves) else ""
    axes.set_title(f"training loss ({_how(half_life)}{dots})", loc="left", fontsize=10)


def _look(number: int) -> tuple[str, str]:
    return COLOURS[number % len(COLOURS)], LINES[number // len(COLOURS) % len(LINES)]


def _draw_validation(axes: Axes, run: Curves, colour: str, label: str | None) -> None:
    steps, losses = run.of("valid_loss")
    if len(steps):
        axes.plot(
            steps,
            losses,
            color=colour,
            marker="o",
            markersize=5,
            markeredgecolor="white",
            linewidth=0,
            zorder=3,
            label=label,
        )


def _draw_skipped(axes: Axes, run: Curves) -> None:
    """Mark on the lower edge the steps that float16's loss scale skipped."""
    steps, skipped = run.of("skipped")
    if skipped.any():
        at = steps[skipped > 0]
        label = f"{len(at):,} {'step' if len(at) == 1 else 'steps'} skipped (overflow)"
        edge = axes.get_xaxis_transform()
        axes.plot(at, np.full(len(at), 0.015), "|", color="black", markersize=7, transform=edge, label=label)


def _draw_rates(axes: Axes, curves: Sequence[Curves]) -> None:
    for number, run in enumerate(curves):
        colour, line = _look(number)
        axes.plot(*run.of("lr"), color=colour, linestyle=line, linewidth=1.4)
    axes.set_ylabel("learning\nrate")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)


def _draw_norms(axes: Axes, curves: Sequence[Curves], half_life: int) -> None:
    for number, run in enumerate(curves):
        colour, line = _look(number)
        _draw_curve(axes, run.of("grad_norm"), half_life, color=colour, linestyle=line)
    axes.set_ylabel("gradient\nnorm")
    norms = np.concatenate([run.of("grad_norm")[1] for run in curves])
    if len(norms) and norms.min() > 0 and norms.max() > 30 * norms.min():
        axes.set_yscale("log")


def _summary(run: Curves) -> str:
    """Say in words how the run ended: its last losses and their steps."""
    steps, losses = run.of("loss")
    if not len(steps):
        return f"{run.steps[-1]:,.0f} steps, all skipped"
    at, validation = run.of("valid_loss")
    said = [f"loss {losses[-1]:.3f}"]
    if len(at) and at[-1] != steps[-1]:
        said = [f"validation loss {validation[-1]:.3f} at step {at[-1]:,.0f}", *said]
    elif len(at):
        said.append(f"validation loss {validation[-1]:.3f}")
    return f"{', '.join(said)} at step {steps[-1]:,.0f}"
