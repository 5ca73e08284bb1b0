"""The chart of a graph of labels, as the parts of an SVG picture.

networkx lays out points; this module moves them until the boxes of their names do not overlap.
"""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyseg._charts import shorten
from pyseg._extras import requires

if TYPE_CHECKING:
    import networkx

# Pixels.
_WIDTH = 1120.0
_MARGIN = 20.0
_EDGE_LENGTH = (135.0, 85.0)  # horizontal and vertical, on average
_GAP = (36.0, 31.0)  # between boxes
_PADDING = (9.0, 7.0)
_LINE = 16.0
_CHARACTER = 7.3  # the width of most characters; others are twice as wide

_BEND = 0.15  # of an arrow's length, where there is one in reverse
_POINTS = 64  # at which an arrow is searched for the borders of its boxes

_Place = tuple[float, float]


class _Part(NamedTuple):
    """A connected part of a graph: nodes, (n, 2) their centers, and (n, 2) their boxes' sizes."""

    nodes: Sequence[Hashable]
    places: np.ndarray
    sizes: np.ndarray


def draw_graph(graph: networkx.DiGraph) -> dict[str, Any]:
    """Returns the drawing of a graph whose edges have a weight in [0, 1], the width of arrows.

    Names are boxes that do not overlap. Every connected part has a spring layout, always from
    the same start, and the parts stand side by side, the largest first.

    Returns:
        ``width`` and ``height`` in pixels; ``nodes`` with their boxes, lines of text and tips;
        ``edges`` with their paths, widths, tips, and the numbers of the nodes that they join.
    """
    texts = {node: _wrap(str(node)) for node in graph}
    sizes = {node: _box_size(lines) for node, lines in texts.items()}
    where, height = _pack([_lay_out(part, sizes) for part in _connected_parts(graph)])
    order = {node: number for number, node in enumerate(graph)}
    return {
        "width": _WIDTH,
        "height": round(height, 1),
        "nodes": [_node(graph, n, where[n], sizes[n], texts[n]) for n in graph],
        "edges": [
            {
                "start": order[a],
                "end": order[b],
                "both": (both := graph.has_edge(b, a)),
                "width": round(0.6 + 3.4 * weight**2, 2),
                "path": _path(where[a], where[b], sizes[a], sizes[b], _BEND if both else 0.0),
                "tip": f"{a} → {b}\nprobability: {weight:.3f}",
            }
            for a, b, weight in graph.edges(data="weight")
        ],
    }


def _node(
    graph: networkx.DiGraph, node: Hashable, place: _Place, size: _Place, lines: Sequence[str]
) -> dict[str, Any]:
    """Returns the drawing of a name."""
    x, y = place
    to = sorted(graph.out_edges(node, data="weight"), key=lambda edge: -edge[2])
    implied = [f"→ {b} {weight:.2f}" for _, b, weight in to[:8]]
    top = y - _LINE * (len(lines) - 1) / 2
    return {
        "x": round(x, 1),
        "left": round(x - size[0] / 2, 1),
        "top": round(y - size[1] / 2, 1),
        "width": round(size[0], 1),
        "height": round(size[1], 1),
        "lines": [
            {"text": line, "y": round(top + _LINE * number, 1)} for number, line in enumerate(lines)
        ],
        "tip": "\n".join([str(node), *implied]),
    }


def _path(start: _Place, end: _Place, first: _Place, last: _Place, bend: float) -> str:
    """Returns the path of an arrow between the borders of two boxes.

    Args:
        start: The center of the first box.
        end: The center of the last one.
        first: Width and height of the first box.
        last: Those of the last one.
        bend: How far the arrow is bent to its right, relative to its length.
    """
    a, b = np.array(start), np.array(end)
    across = (b - a)[::-1] * (-1, 1)
    middle = (a + b) / 2 + 2 * bend * across
    t = np.linspace(0, 1, _POINTS)[:, None]
    line = (1 - t) ** 2 * a + 2 * t * (1 - t) * middle + t**2 * b
    outside_first = (np.abs(line - a) > np.array(first) / 2).any(axis=1)
    outside_last = (np.abs(line - b) > np.array(last) / 2 + 1).any(axis=1)
    kept = np.flatnonzero(outside_first & outside_last)
    low, high = (float(t[i, 0]) for i in (kept[[0, -1]] if len(kept) else (0, -1)))
    # The part of the curve from one border to the other, by de Casteljau's construction.
    p, q = (_at(a, middle, b, s) for s in (low, high))
    control = (1 - low) * ((1 - high) * a + high * middle) + low * ((1 - high) * middle + high * b)
    (x0, y0), (x1, y1), (x2, y2) = (point.round(1).tolist() for point in (p, control, q))
    return f"M{x0} {y0}Q{x1} {y1} {x2} {y2}"


def _at(a: np.ndarray, middle: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * middle + t**2 * b


def _wrap(name: str) -> list[str]:
    return [shorten(line, 24) for line in textwrap.wrap(name, 18)[:3]] or [" "]


def _box_size(lines: Sequence[str]) -> _Place:
    """Returns width and height of a name's box."""
    widest = max(
        sum(2 if unicodedata.east_asian_width(c) in "FW" else 1 for c in line) for line in lines
    )
    return _CHARACTER * widest + 2 * _PADDING[0], _LINE * len(lines) + 2 * _PADDING[1]


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
    room = _WIDTH - 2 * _MARGIN - boxes[:, 0].max()
    if (across := np.ptp(places[:, 0])) > room:
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
    gap = np.array(_GAP)
    first, second = np.triu_indices(len(places), 1)
    room = (sizes[first] + sizes[second]) / 2 + gap
    for _ in range(500):
        apart = places[second] - places[first]
        overlap = room - np.abs(apart)
        pairs = np.flatnonzero((overlap > 0.1).all(axis=1))
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
