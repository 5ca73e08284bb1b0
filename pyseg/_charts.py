"""Charts as PNG pictures: what timelines and reports are drawn with.

matplotlib and networkx belong to the extra `report` and are imported where they are used.
"""

from __future__ import annotations

import contextlib
import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyseg._extras import install_command
from pyseg.errors import UserError

if TYPE_CHECKING:
    import networkx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
"""Okabe and Ito's colours, which colour-blind readers tell apart as well."""

GRAY = "0.35"

_HALF = (5.6, 3.5)  # inches: two of these stand beside each other
_WIDE = 11.0
_MARGIN = 0.2
_LOG_RATIO = 10.0  # curves whose values differ by more are drawn on a logarithmic scale


class Series(NamedTuple):
    """A curve of a run.

    Attributes:
        run: The number of the run, which decides the colour.
        name: What the legend calls it.
        x: (n,) increasing.
        y: (n,).
    """

    run: int
    name: str
    x: np.ndarray
    y: np.ndarray


class ClassBar(NamedTuple):
    """A class, as a row of a bar chart.

    Attributes:
        name: What it is called.
        positives: How many it has, shown with the name.
        values: One a run.
        chance: What a random ranking would reach; None: not drawn.
    """

    name: str
    positives: int
    values: Sequence[float]
    chance: float | None = None


@contextlib.contextmanager
def report_extra(what: str) -> Iterator[None]:
    """Around imports of the extra `report`: says what to install where one of them is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{what} needs {error.name}: {install_command('report')} ({error})"
        ) from error


def new_figure(width: float, height: float) -> Figure:
    """Returns a figure of a size in inches that no window shows."""
    with report_extra("a chart"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure) -> bytes:
    """Returns a figure as a PNG file."""
    buffer = io.BytesIO()
    with _any_script():
        figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


@contextlib.contextmanager
def _any_script() -> Iterator[None]:
    """Lets names be in a script that the font lacks, which shows boxes: no news to the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing", category=UserWarning)
        yield


def label(name: str, limit: int = 32) -> str:
    r"""Returns a name as matplotlib shows it literally, on one line, cut where it is too long.

    Example:
        >>> print(label("a  b\n$x$y", 6))
        a b \$…
    """
    name = " ".join(name.split())
    if len(name) > limit:
        name = name[: limit - 1] + "…"
    # A dollar would begin a formula, and legends leave out what begins with an underscore.
    return ("\N{HAIR SPACE}" if name.startswith("_") else "") + name.replace("$", r"\$")


def color(run: int) -> str:
    """Returns the colour of a run."""
    return COLORS[run % len(COLORS)]


def draw_curves(
    title: str,
    x_label: str,
    series: Sequence[Series],
    *,
    smooth: bool = False,
    marks: bool = False,
    from_zero: bool = False,
    borders: Sequence[tuple[int, float]] = (),
) -> bytes:
    """Draws curves over steps.

    Args:
        title: What the y axis shows.
        x_label: What the x axis shows.
        series: The curves; numbers that are not finite leave gaps.
        smooth: Draw a moving average, and the curve itself pale.
        marks: Mark every point, and write the value of the last; otherwise the y axis is
            logarithmic where the values differ much.
        from_zero: Begin the y axis at 0, unless it is logarithmic.
        borders: A run and the x at which a stage of it ends, each a dotted line.
    """
    figure = new_figure(*_HALF)
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes = _axes(figure, title, x_label)
    for run, end in borders:
        axes.axvline(end, color=color(run), linestyle=":", linewidth=1)
    lowest, highest = math.inf, -math.inf
    for run, name, x, values in series:
        y = moving_average(values) if smooth else values
        if smooth:
            axes.plot(x, values, color=color(run), alpha=0.3, linewidth=1)
        finite = y[np.isfinite(y)]
        if len(finite):
            lowest, highest = min(lowest, float(finite.min())), max(highest, float(finite.max()))
        marker = "o" if marks or len(x) == 1 else None
        axes.plot(x, y, color=color(run), marker=marker, markersize=4, label=label(name))
        if marks and len(x) and np.isfinite(y[-1]):
            axes.annotate(
                f"{float(y[-1]):.3f}",
                (x[-1], y[-1]),
                xytext=(0, 5),
                textcoords="offset points",
                ha="right",
                color=color(run),
            )
    if not marks and 0 < lowest * _LOG_RATIO < highest:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif from_zero:
        axes.set_ylim(bottom=0)
    else:
        axes.margins(y=0.12)
    axes.set_xlim(left=0)
    if len(series) > 1:
        axes.legend(fontsize=8, frameon=False)
    return png(figure)


def moving_average(values: np.ndarray) -> np.ndarray:
    """Returns the exponential moving average of values, over about a fifteenth of them.

    The weights of each sum to 1, so that it begins at the first value; values that are not finite
    do not count.

    Example:
        >>> moving_average(np.array([2.0, np.nan, 2.0])).tolist()
        [2.0, 2.0, 2.0]
        >>> moving_average(np.repeat([1.0, 0.0], 30))[[29, 40, 59]].round(3).tolist()
        [1.0, 0.004, 0.0]
    """
    keep = 1 - 2 / (max(1.0, len(values) / 15) + 1)
    total = weight = 0.0
    averages = np.full(len(values), np.nan)
    for i, value in enumerate(values.tolist()):
        if np.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
        if weight:
            averages[i] = total / weight
    return averages


def draw_class_bars(
    title: str,
    x_label: str,
    groups: Sequence[Sequence[ClassBar]],
    runs: Sequence[tuple[int, str]],
) -> bytes:
    """Draws a value of classes as bars from 0, of a first run; of the others as marks.

    Args:
        title: What the chart shows.
        x_label: What the value is.
        groups: Classes from top to bottom, with a gap between the groups.
        runs: Number and name of every run, as many as every class has values.
    """
    rows = sum(map(len, groups)) + len(groups) - 1
    figure = new_figure(_HALF[0], 1.0 + 0.21 * rows)
    axes = _axes(figure, title, x_label)
    axes.grid(visible=False, axis="y")
    places, names = [], []
    at = 0
    for group in groups:
        for name, positives, values, chance in group:
            axes.barh(at, values[0], 0.7, color=color(runs[0][0]), alpha=0.75)
            for (run, _), value in zip(runs[1:], values[1:], strict=True):
                axes.plot(value, at, "D", color=color(run), markersize=4)
            if chance is not None:
                axes.plot([chance] * 2, [at - 0.35, at + 0.35], color="black", linewidth=1.5)
            places.append(at)
            names.append(f"{label(name)} ({positives:,})")
            at += 1
        at += 1
    axes.set_yticks(places, names, fontsize=8)
    axes.set_ylim(at - 1.4, -0.6)
    if len(runs) > 1:
        _run_legend(figure, runs)
    return png(figure)


def draw_class_points(
    titles: tuple[str, str], x_labels: tuple[str, str], series: Sequence[Series]
) -> bytes:
    """Draws a value in [0, 1] of classes: in decreasing order, and against a count.

    Args:
        titles: What the two charts show, one below the other.
        x_labels: What their x axes show.
        series: Counts, at least 1, and values.
    """
    figure = new_figure(_HALF[0], 1.9 * _HALF[1])
    above, below = (
        _axes(figure, *texts, place=(2, 1, number))
        for number, texts in enumerate(zip(titles, x_labels, strict=True), 1)
    )
    for run, name, x, y in series:
        ranks = np.arange(1, len(y) + 1)
        above.plot(ranks, -np.sort(-y), color=color(run), marker=".", label=label(name))
        below.plot(x, y, "o", color=color(run), alpha=0.5, markersize=4, linewidth=0)
    below.set_xscale("log")
    for axes in (above, below):
        axes.set_ylim(-0.03, 1.03)
    if len(series) > 1:
        above.legend(fontsize=8, frameon=False)
    return png(figure)


def draw_estimates(
    title: str,
    names: Sequence[str],
    panels: Sequence[tuple[str, Sequence[tuple[float, float]]]],
) -> bytes:
    """Draws means as points with two standard errors, a panel a measure, a line a row.

    Args:
        title: What the chart shows.
        names: What the rows are called, from top to bottom.
        panels: What the x axis shows, and mean and standard error of every row; NaN: not drawn.
    """
    figure = new_figure(2.6 + 2.9 * len(panels), 1.0 + 0.3 * len(names))
    places = np.arange(len(names))
    for number, (x_label, estimates) in enumerate(panels, 1):
        axes = _axes(figure, title if number == 1 else "", x_label, place=(1, len(panels), number))
        means, errors = np.array(estimates).T
        axes.errorbar(
            means, places, xerr=2 * np.nan_to_num(errors), fmt="o", color=color(number - 1),
            markersize=5, capsize=2,
        )  # fmt: skip
        axes.set_yticks(places, [label(name, 48) for name in names] if number == 1 else [])
        axes.set_ylim(len(names) - 0.5, -0.5)
    return png(figure)


def draw_steps(
    title: str,
    x_label: str,
    series: Sequence[Series],
    points: Sequence[tuple[float, float]] = (),
) -> bytes:
    """Draws curves in the unit square, the last value of a curve holding up to its x.

    Args:
        title: What the y axis shows.
        x_label: What the x axis shows.
        series: The curves.
        points: A marked point of each.
    """
    figure = new_figure(_HALF[0], 0.8 * _HALF[0])
    axes = _axes(figure, title, x_label)
    for run, name, x, y in series:
        axes.plot(
            x, y, color=color(run), drawstyle="steps-pre", linewidth=1.5, label=label(name, 60)
        )
    for (run, *_), point in zip(series, points, strict=False):
        axes.plot(*point, "o", color=color(run), markersize=5, markeredgecolor="white")
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.02)
    axes.legend(fontsize=8, frameon=False, loc="best")
    return png(figure)


def draw_graph(graph: networkx.DiGraph) -> bytes:
    """Draws a graph whose edges have a weight in [0, 1], the width of their arrows.

    Names are boxes that do not overlap. Every connected part is laid out by springs, from the same
    start each time, and the parts stand side by side, the largest first.
    """
    with report_extra("the label graph"):
        import networkx
        from matplotlib.font_manager import FontProperties
    from matplotlib.patches import FancyArrowPatch

    figure = new_figure(_WIDE, _WIDE)
    figure.set_layout_engine("none")
    font = FontProperties(size=9)
    renderer: Any = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    texts, sizes = {}, {}
    for node in graph:
        lines = [label(line, 24) for line in textwrap.wrap(str(node), 18)[:3]] or [" "]
        texts[node] = "\n".join(lines)
        with _any_script():
            width = max(
                renderer.get_text_width_height_descent(line.replace(r"\$", "$"), font, False)[0]
                for line in lines
            )
        sizes[node] = (width / figure.dpi + 0.16, 0.16 * len(lines) + 0.14)
    parts = []
    components = networkx.weakly_connected_components(graph)
    order = {node: number for number, node in enumerate(graph)}
    for members in sorted(components, key=lambda part: (-len(part), min(order[n] for n in part))):
        nodes = sorted(members, key=order.__getitem__)
        part = networkx.Graph()
        part.add_nodes_from(nodes)
        part.add_edges_from((a, b) for a, b in graph.edges if a in members)
        spread = networkx.spring_layout(part, seed=0, iterations=200)
        places = _upright(np.array([spread[node] for node in nodes]))
        place = dict(zip(nodes, places, strict=True))
        length = np.mean([np.hypot(*(place[a] - place[b])) for a, b in part.edges])
        boxes = np.array([sizes[node] for node in nodes])
        places = _apart(places / length * (1.3, 0.8), boxes)
        room = _WIDE - 2 * _MARGIN
        if (across := np.ptp(places[:, 0]) + boxes[:, 0].max()) > room:
            places = _apart(places * (room / across, 1.0), boxes, sideways=False)
        parts.append((nodes, places, boxes))
    where, height = _packed(parts, _WIDE)
    figure.set_size_inches(_WIDE, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, _WIDE)
    axes.set_ylim(height, 0)
    drawn = {}
    for node, (x, y) in where.items():
        drawn[node] = axes.text(
            x,
            y,
            texts[node],
            ha="center",
            va="center",
            fontproperties=font,
            zorder=3,
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "#eef4fa", "edgecolor": "#7f9db9"},
        )
    for a, b, weight in graph.edges(data="weight"):
        both = graph.has_edge(b, a)
        axes.add_patch(
            FancyArrowPatch(
                where[a],
                where[b],
                arrowstyle="-|>",
                mutation_scale=9 + 3 * weight,
                linewidth=0.4 + 2.4 * weight**2,
                color=color(1) if both else color(0),
                alpha=0.75,
                connectionstyle=f"arc3,rad={0.15 if both else 0.0}",
                patchA=drawn[a].get_bbox_patch(),
                patchB=drawn[b].get_bbox_patch(),
                shrinkA=1,
                shrinkB=1,
                zorder=2,
            )
        )
    return png(figure)


def _upright(places: np.ndarray) -> np.ndarray:
    """Turns points such that they extend most from left to right; (n, 2)."""
    centred = places - places.mean(axis=0)
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1]
    # An axis may point either way: the largest part of each decides.
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))
    turned: np.ndarray = centred @ (axes * signs)
    return turned


def _apart(places: np.ndarray, sizes: np.ndarray, *, sideways: bool = True) -> np.ndarray:
    """Moves boxes until none of them overlap.

    Args:
        places: (n, 2) their centres.
        sizes: (n, 2) their widths and heights.
        sideways: Whether they may be moved so, where that is shorter than up or down.

    Returns:
        The centres, (n, 2).
    """
    places = places.copy()
    gap = np.array([0.35, 0.3])
    first, second = np.triu_indices(len(places), 1)
    room = (sizes[first] + sizes[second]) / 2 + gap
    for _ in range(500):
        apart = places[second] - places[first]
        overlap = room - np.abs(apart)
        pairs = np.flatnonzero((overlap > 1e-3).all(axis=1))
        if not len(pairs):
            break
        for pair in pairs.tolist():
            axis = int(overlap[pair].argmin()) if sideways else 1
            step = overlap[pair, axis] / 2 * (1 if apart[pair, axis] >= 0 else -1)
            places[first[pair], axis] -= step / 2
            places[second[pair], axis] += step / 2
    return places


def _packed(
    parts: Sequence[tuple[list[Any], np.ndarray, np.ndarray]], width: float
) -> tuple[dict[Any, tuple[float, float]], float]:
    """Puts parts of a graph side by side, each as far up as it fits, then as far to the left.

    Args:
        parts: Nodes, (n, 2) centres, and (n, 2) widths and heights of each.
        width: Of all together.

    Returns:
        The centre of every node, y growing downwards, and the height of all.
    """
    where: dict[Any, tuple[float, float]] = {}
    taken: list[tuple[float, float, float]] = []  # left, right and lower end, gaps included
    gap = 2 * _MARGIN
    for nodes, places, sizes in parts:
        low, high = (places - sizes / 2).min(axis=0), (places + sizes / 2).max(axis=0)
        across, down = (high - low).tolist()
        starts = [_MARGIN, *(right for _, right, _ in taken if right + across <= width - _MARGIN)]
        y, x = min(
            (max([_MARGIN, *(end for a, b, end in taken if a < x + across and x < b)]), x)
            for x in starts
        )
        taken.append((x, x + across + gap, y + down + gap))
        for node, place in zip(nodes, places - low, strict=True):
            where[node] = (float(x + place[0]), float(y + place[1]))
    return where, max([_MARGIN, *(end - _MARGIN for _, _, end in taken)])


def _axes(
    figure: Figure, title: str, x_label: str, place: tuple[int, int, int] = (1, 1, 1)
) -> Axes:
    axes = figure.add_subplot(*place)
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(x_label)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    for side in ("right", "top"):
        axes.spines[side].set_visible(False)
    return axes


def _run_legend(figure: Figure, runs: Sequence[tuple[int, str]]) -> None:
    """Says which colour is which run, below a chart whose first run is a bar."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(color=color(runs[0][0]), alpha=0.75)]
    handles += [
        Line2D([], [], color=color(run), marker="D", markersize=4, linewidth=0)
        for run, _ in runs[1:]
    ]
    names = [label(name) for _, name in runs]
    figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)
