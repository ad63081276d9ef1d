"""What a board's numbers look like: a few kinds of charts as SVG that take part in the page they stand in."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import accumulate
from typing import TYPE_CHECKING

from mpeval.leaderboard.boards import Board
from mpeval.leaderboard.points import Point, flat, over_time, point_of, swept
from mpeval.leaderboard.svg import INK, LINES, inlined
from mpeval.plot import COLOURS, STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MOST_CHARTS = 24
FEWEST = 3
"""Numbers that a chart needs."""
MOST_POINTS = 100
"""Best numbers that a chart shows."""
MOST_NAMES = 12
"""Of them that are written beside their marks."""
MOST_LINES = 25
"""Rows of a forest plot."""
WIDTH = 5.4
"""Inches."""
LOOK = {
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": LINES,
    "font.size": 9.5,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.formatter.useoffset": False,
}
SPREAD = 20
"""From how many times the least value on the axis of values is logarithmic."""
DECADES = 100
"""From how many times the least value on a logarithmic axis has only powers of ten for marks."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """One picture and what it shows."""

    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A chart that can be drawn."""

    points: Sequence[Point]
    draw: Callable[[Figure, Board, Sequence[Point]], None]
    height: float
    alternative: str
    caption: str


def charts(content: Sequence[Board]) -> list[tuple[Board, list[Chart]]]:
    """Draw what can be drawn of each board, of the largest boards first if there is too much for one page.

    Equal boards give equal text.  matplotlib is imported only if there is anything to draw.
    """
    plans = {place: _plans(board) for place, board in enumerate(content)}
    chosen: set[int] = set()
    room = MOST_CHARTS
    for place in sorted(plans, key=lambda place: (-len(content[place].rows), place)):
        if 0 < len(plans[place]) <= room:
            chosen.add(place)
            room -= len(plans[place])
    if not chosen:
        return []
    import matplotlib.style

    with matplotlib.style.context(["default", {**STYLE, **LOOK}], after_reset=True), warnings.catch_warnings():
        # the browser draws the letters: that a font of matplotlib lacks one does not matter
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return [
            (
                content[place],
                [_chart(content[place], plan, f"c{place}-{number}") for number, plan in enumerate(plans[place])],
            )
            for place in sorted(chosen)
        ]


def _chart(board: Board, plan: Plan, name: str) -> Chart:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, plan.height))
    figure.patch.set_visible(False)
    plan.draw(figure, board, plan.points)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Chart(svg=inlined(buffer.getvalue(), name, plan.alternative), caption=plan.caption)


# ---- what is drawn ----


def _plans(board: Board) -> list[Plan]:
    every = [point_of(row) for row in board.rows if row.rank is not None]
    ranked = every[:MOST_POINTS]
    title = f"{board.title} {board.split}, {board.metric} under {board.protocol}"
    best = f"best: {ranked[0].name} with {board.rows[0].cells['value']}" if ranked else ""
    sized = [point for point in ranked if point.parameters]
    dated = over_time(every, board.direction, MOST_POINTS)
    parts = [point for point in ranked if point.middle is not None and point.upper is not None]
    intervals = [point for point in ranked if point.low < point.high]
    barred = intervals[:MOST_LINES]
    curves = swept(board, FEWEST)
    plans = [
        Plan(
            points=sized,
            draw=_scatter,
            height=3.4,
            alternative=f"{title}, over parameters: {len(sized)} models; {best}",
            caption="Score over parameters" + ", with 95 % intervals" * any(point.low < point.high for point in sized),
        )
        if len({point.parameters for point in sized}) > 1
        else None,
        Plan(
            points=dated,
            draw=_history,
            height=3.4,
            alternative=f"{title}, over time: {len(dated)} numbers; {best}",
            caption="State of the art over time: the line is the best so far",
        )
        if len({point.date for point in dated}) > 1
        else None,
        Plan(
            points=barred,
            draw=_forest,
            height=0.75 + 0.23 * len(barred),
            alternative=f"{title}: 95 % intervals of the best {len(barred)}; {best}",
            caption=(
                f"95 % intervals by rank{f' of the best {MOST_LINES}' * (len(intervals) > MOST_LINES)}; "
                "the band is that of the first"
            ),
        ),
        Plan(
            points=parts,
            draw=_halves,
            height=4.4,
            alternative=f"{title}: accuracy on the middle part against the high part, {len(parts)} models; {best}",
            caption="Middle school against high school questions; on the line both are equally hard",
        ),
        Plan(
            points=curves,
            draw=_learning,
            height=3.4,
            alternative=f"{title}, over training: {', '.join(sorted({point.name for point in curves}))}",
            caption="Learning curve: checkpoints of one training run",
        ),
    ]
    return [plan for plan in plans if plan and len(plan.points) >= FEWEST]


# ---- how it is drawn ----


def _axes(figure: Figure, height: float, left: float = 0.13) -> Axes:
    """Return axes with room for the labels below and at the left; laying them out anew for each chart takes long."""
    bottom = 0.5 / height
    return figure.add_axes((left, bottom, 0.97 - left, 1 - bottom - 0.1 / height))


def _unit(board: Board) -> str:
    percent = " (%)" if board.rows[0].entry.metric.unit == "proportion" else ""
    return f"{flat(board.metric)}{percent}, {board.arrow}"


def _value_axis(axes: Axes, board: Board, points: Sequence[Point], which: str = "y") -> None:
    """Label the axis of values, which is logarithmic where they are far apart."""
    low, high = min(point.low for point in points), max(point.high for point in points)
    label, limits, scale, axis = (
        (axes.set_ylabel, axes.set_ylim, axes.set_yscale, axes.yaxis)
        if which == "y"
        else (axes.set_xlabel, axes.set_xlim, axes.set_xscale, axes.xaxis)
    )
    label(_unit(board))
    if low > 0 and high > SPREAD * low:
        scale("log")
        _few_marks(axis, low, high)
        limits(low / 1.3, high * 1.3)
    else:
        room = 0.07 * (high - low) or 1.0
        limits(low - room, high + room)
    axis.set_major_formatter(lambda value, _: f"{value:,.10g}")


def _few_marks(axis: Axis, low: float, high: float) -> None:
    """Mark a logarithmic axis at round numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < DECADES * low else (1,)))
    axis.set_minor_locator(NullLocator())


def _marks(axes: Axes, points: Sequence[Point], place: Callable[[Point], tuple[float, float]], bars: str = "") -> None:
    """Draw each kind of point, with `bars` `up` or `across`: measured ones filled circles, reported hollow diamonds."""
    for measured, marker in ((True, "o"), (False, "D")):
        found = [point for point in points if point.measured is measured]
        if not found:
            continue
        colour = found[0].colour
        barred = [point for point in found if bars and point.low < point.high]
        if barred:
            ends = [end for point in barred for end in (point.low, point.high, math.nan)]  # one line, cut after each
            beside = [place(point)[0 if bars == "up" else 1] for point in barred for _ in range(3)]
            axes.plot(*((beside, ends) if bars == "up" else (ends, beside)), color=colour, linewidth=1.2)
        face = colour if measured else "none"
        across, up = zip(*map(place, found), strict=True)
        axes.plot(across, up, marker, color=colour, markerfacecolor=face, markersize=5, clip_on=False)


def _scatter(figure: Figure, board: Board, points: Sequence[Point]) -> None:
    axes = _axes(figure, 3.4)
    axes.set_xscale("log")
    sizes = [point.parameters or 1.0 for point in points]
    axes.set_xlim(min(sizes) / 1.6, max(sizes) * 1.6)
    _value_axis(axes, board, points)
    _marks(axes, points, lambda point: (point.parameters or 1.0, point.value), bars="up")
    axes.xaxis.set_major_formatter(lambda size, _: _size(size))
    _few_marks(axes.xaxis, min(sizes), max(sizes))
    axes.set_xlabel("parameters")
    _name(axes, [(point.name, point.parameters or 1.0, point.value) for point in points])


def _size(parameters: float) -> str:
    for power, letter in ((12, "T"), (9, "B"), (6, "M"), (3, "K")):
        if parameters >= 10**power:
            return f"{parameters / 10**power:.3g}{letter}"
    return f"{parameters:.3g}"


def _history(figure: Figure, board: Board, points: Sequence[Point]) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num

    axes = _axes(figure, 3.4)
    days = [float(date2num(point.date)) for point in points]
    room = 0.04 * (days[-1] - days[0])
    axes.set_xlim(max(days[0] - room, date2num(date.min)), min(days[-1] + room, date2num(date.max)))
    _value_axis(axes, board, points)
    best = list(accumulate((point.value for point in points), max if board.direction == "max" else min))
    axes.step(days, best, where="post", color=INK, linewidth=1.2)
    _marks(axes, points, lambda point: (float(date2num(point.date)), point.value))
    locator = AutoDateLocator(minticks=3, maxticks=7)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlabel("published or measured")
    records = [place for place, value in enumerate(best) if place == 0 or value != best[place - 1]]
    _name(axes, [(points[place].name, days[place], points[place].value) for place in reversed(records)])


def _forest(figure: Figure, board: Board, points: Sequence[Point]) -> None:
    axes = _axes(figure, 0.75 + 0.23 * len(points), left=0.44)
    axes.axvspan(points[0].low, points[0].high, color=INK, alpha=0.1, linewidth=0)
    lines = {id(point): line for line, point in enumerate(points)}
    _marks(axes, points, lambda point: (point.value, lines[id(point)]), bars="across")
    axes.set_ylim(len(points) - 0.4, -0.6)
    axes.set_yticks([])
    at_the_edge = axes.get_yaxis_transform()
    for line, point in enumerate(points):
        label = f"{point.rank}. {point.name}"
        axes.text(-0.02, line, label, transform=at_the_edge, ha="right", va="center", fontsize=8.5)
    _value_axis(axes, board, points, "x")


def _halves(figure: Figure, _: Board, points: Sequence[Point]) -> None:
    axes = _axes(figure, 4.4)
    middle, upper = [point.middle or 0.0 for point in points], [point.upper or 0.0 for point in points]
    least, most = min(middle + upper), max(middle + upper)
    room = 0.05 * (most - least) or 1.0
    axes.set_xlim(least - room, most + room)
    axes.set_ylim(least - room, most + room)
    axes.plot([least - room, most + room], [least - room, most + room], color=INK, linewidth=0.8, linestyle=":")
    _marks(axes, points, lambda point: (point.middle or 0.0, point.upper or 0.0))
    axes.set_xlabel("accuracy on middle school questions (%)")
    axes.set_ylabel("on high school questions (%)")
    _name(axes, [(point.name, point.middle or 0.0, point.upper or 0.0) for point in points])


def _learning(figure: Figure, board: Board, points: Sequence[Point]) -> None:
    axes = _axes(figure, 3.4)
    last = max(point.iteration or 0 for point in points)
    axes.set_xlim(0, 1.03 * last)
    _value_axis(axes, board, points)
    names = list(dict.fromkeys(point.name for point in points))
    for name, colour in zip(names, COLOURS, strict=False):
        run = [point for point in points if point.name == name]
        steps = [point.iteration or 0 for point in run]
        ink = INK if colour == "#000000" else colour
        axes.plot(steps, [point.value for point in run], marker="o", markersize=4, color=ink)
        bars = [end for point in run for end in (point.low, point.high, math.nan)]
        axes.plot([step for step in steps for _ in range(3)], bars, color=ink, linewidth=1)
    axes.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
    axes.set_xlabel("iteration")
    ends = {point.name: point for point in points}
    _name(axes, [(name, ends[name].iteration or 0, ends[name].value) for name in names])


def _name(axes: Axes, places: Sequence[tuple[str, float, float]]) -> None:
    """Write names beside points, the first ones first, where they hide no other name."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = 72 * figure.get_size_inches()
    to_figure = axes.transData - figure.transFigure
    taken: list[tuple[float, float, float, float]] = []
    for name, across, up in places[:MOST_POINTS]:
        x, y = to_figure.transform((across, up)) * (width, height)
        length = 4.6 * len(name)
        left = x + 6 + length > width
        start = x - 6 - length if left else x + 6
        box = (start, y - 1, start + length, y + 9)
        if start < 0 or any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            continue
        taken.append(box)
        edge = x - 6 if left else x + 6
        figure.text(edge / width, (y + 2) / height, name, ha="right" if left else "left", fontsize=8)
        if len(taken) == MOST_NAMES:
            return
