"""The chart of a graph of labels, as a PNG picture.

networkx lays out points; this module moves them until the boxes of their names do not overlap.
"""

from __future__ import annotations

import textwrap
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyseg._charts import color, label, new_figure, png, without_glyph_warnings
from pyseg._extras import requires

if TYPE_CHECKING:
    import networkx
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

_WIDTH = 11.0  # inches
_MARGIN = 0.2
_EDGE_LENGTH = (1.3, 0.8)  # horizontal and vertical, on average
_FONT_SIZE = 9


class _Part(NamedTuple):
    """A connected part of a graph: nodes, (n, 2) their centers, and (n, 2) their boxes' sizes."""

    nodes: Sequence[Hashable]
    places: np.ndarray
    sizes: np.ndarray


def draw_graph(graph: networkx.DiGraph) -> bytes:
    """Draws a graph whose edges have a weight in [0, 1], the width of their arrows.

    Names are boxes that do not overlap. Every connected part has a spring layout, always from
    the same start, and the parts stand side by side, the largest first.
    """
    figure = new_figure(_WIDTH, _WIDTH)
    figure.set_layout_engine("none")
    texts = {node: _wrap(str(node)) for node in graph}
    sizes = {node: _box_size(figure, text) for node, text in texts.items()}
    where, height = _pack([_lay_out(part, sizes) for part in _connected_parts(graph)])
    figure.set_size_inches(_WIDTH, height)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(height, 0)
    names = {node: _draw_name(axes, place, texts[node]) for node, place in where.items()}
    for a, b, weight in graph.edges(data="weight"):
        _draw_arrow(axes, names[a], names[b], weight, graph.has_edge(b, a))
    return png(figure)


def _wrap(name: str) -> str:
    return "\n".join([label(line, 24) for line in textwrap.wrap(name, 18)[:3]] or [" "])


def _box_size(figure: Figure, text: str) -> tuple[float, float]:
    """Returns width and height of a name's box in inches."""
    from matplotlib.font_manager import FontProperties

    font = FontProperties(size=_FONT_SIZE)
    renderer: Any = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    lines = text.split("\n")
    with without_glyph_warnings():
        width = max(
            renderer.get_text_width_height_descent(line.replace(r"\$", "$"), font, False)[0]
            for line in lines
        )
    return width / figure.dpi + 0.16, 0.16 * len(lines) + 0.14


def _connected_parts(graph: networkx.DiGraph) -> Iterator[networkx.Graph]:
    """Yields the connected parts as undirected graphs, the largest first."""
    with requires("report", "the label graph"):
        import networkx
    order = {node: number for number, node in enumerate(graph)}
    components = networkx.weakly_connected_components(graph)
    for members in sorted(components, key=lambda part: (-len(part), min(order[n] for n in part))):
        part = networkx.Graph()
        part.add_nodes_from(sorted(members, key=order.__getitem__))
        part.add_edges_from((a, b) for a, b in graph.edges if a in members)
        yield part


def _lay_out(part: networkx.Graph, sizes: Mapping[Hashable, tuple[float, float]]) -> _Part:
    """Returns the layout of a connected part, in which no boxes overlap."""
    import networkx

    nodes = list(part)
    spread = networkx.spring_layout(part, seed=0, iterations=200)
    places = _turn_upright(np.array([spread[node] for node in nodes]))
    place = dict(zip(nodes, places, strict=True))
    length = np.mean([np.hypot(*(place[a] - place[b])) for a, b in part.edges])
    boxes = np.array([sizes[node] for node in nodes])
    places = separate_boxes(places / length * _EDGE_LENGTH, boxes)
    room = _WIDTH - 2 * _MARGIN
    if (across := np.ptp(places[:, 0]) + boxes[:, 0].max()) > room:
        places = separate_boxes(places * (room / across, 1.0), boxes, sideways=False)
    return _Part(nodes, places, boxes)


def _turn_upright(places: np.ndarray) -> np.ndarray:
    """Rotates points (n, 2) so that their largest extent is horizontal."""
    centered = places - places.mean(axis=0)
    axes = np.linalg.eigh(centered.T @ centered)[1][:, ::-1]
    # The sign of an eigenvector is arbitrary: its largest component is made positive.
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))
    turned: np.ndarray = centered @ (axes * signs)
    return turned


def separate_boxes(places: np.ndarray, sizes: np.ndarray, *, sideways: bool = True) -> np.ndarray:
    """Moves boxes until none of them overlap.

    Args:
        places: (n, 2) their centers.
        sizes: (n, 2) their widths and heights.
        sideways: Whether they may also move horizontally, where that is shorter.

    Returns:
        The centers, (n, 2).
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


def _pack(parts: Sequence[_Part]) -> tuple[dict[Hashable, tuple[float, float]], float]:
    """Packs parts, each as far up as it fits, then as far to the left.

    Returns:
        The center of every node, y growing downwards, and the height of the picture.
    """
    where: dict[Hashable, tuple[float, float]] = {}
    taken: list[tuple[float, float, float]] = []  # left, right and lower edges, gaps included
    gap = 2 * _MARGIN
    for nodes, places, sizes in parts:
        low, high = (places - sizes / 2).min(axis=0), (places + sizes / 2).max(axis=0)
        across, down = (high - low).tolist()
        starts = [_MARGIN, *(right for _, right, _ in taken if right + across <= _WIDTH - _MARGIN)]
        y, x = min(
            (max([_MARGIN, *(end for a, b, end in taken if a < x + across and x < b)]), x)
            for x in starts
        )
        taken.append((x, x + across + gap, y + down + gap))
        for node, place in zip(nodes, places - low, strict=True):
            where[node] = (float(x + place[0]), float(y + place[1]))
    return where, max([_MARGIN, *(end - _MARGIN for _, _, end in taken)])


def _draw_name(axes: Axes, place: tuple[float, float], text: str) -> Text:
    return axes.text(
        *place,
        text,
        ha="center",
        va="center",
        fontsize=_FONT_SIZE,
        zorder=3,
        bbox={"boxstyle": "round,pad=0.25", "facecolor": "#eef4fa", "edgecolor": "#7f9db9"},
    )


def _draw_arrow(axes: Axes, start: Text, end: Text, weight: float, both_ways: bool) -> None:
    """Draws an arrow between the boxes of two names, bent if there is one in reverse."""
    from matplotlib.patches import FancyArrowPatch

    axes.add_patch(
        FancyArrowPatch(
            start.get_position(),
            end.get_position(),
            arrowstyle="-|>",
            mutation_scale=9 + 3 * weight,
            linewidth=0.4 + 2.4 * weight**2,
            color=color(1) if both_ways else color(0),
            alpha=0.75,
            connectionstyle=f"arc3,rad={0.15 if both_ways else 0.0}",
            patchA=start.get_bbox_patch(),
            patchB=end.get_bbox_patch(),
            shrinkA=1,
            shrinkB=1,
            zorder=2,
        )
    )
