"""The layout of a graph of names."""

from __future__ import annotations

import re

import numpy as np
import pytest

from pyseg.report.graph_chart import draw_graph, separate_boxes


def test_boxes_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.uniform((0.3, 0.2), (1.5, 0.5), (20, 2))
    for sideways in (True, False):
        places = separate_boxes(rng.normal(size=(20, 2)), sizes, sideways=sideways)
        first, second = np.triu_indices(20, 1)
        overlap = (sizes[first] + sizes[second]) / 2 - np.abs(places[first] - places[second])
        assert not (overlap > 0).all(axis=1).any()


def test_arrows_and_boxes_stay_within_the_picture() -> None:
    networkx = pytest.importorskip("networkx")
    rng = np.random.default_rng(1)
    graph = networkx.DiGraph()
    names = [f"a name of some length, {number}" for number in range(40)]
    graph.add_nodes_from(names)
    for a, b in rng.permutation(40)[:, None] + np.array([0, 1]):
        if b < 40:
            graph.add_edge(names[a], names[b], weight=float(rng.random()))
    graph.add_edge(names[1], names[0], weight=0.5)
    drawing = draw_graph(graph)
    boxes = drawing["nodes"]
    for node in drawing["nodes"]:
        assert 0 <= node["left"] <= node["left"] + node["width"] <= drawing["width"]
        assert 0 <= node["top"] <= node["top"] + node["height"] <= drawing["height"]
    for edge in drawing["edges"]:
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", edge["path"])]
        for place, number in ((numbers[:2], edge["start"]), (numbers[4:], edge["end"])):
            box = boxes[number]
            x, y = place[0] - box["left"], place[1] - box["top"]
            inside = 1 < x < box["width"] - 1 and 1 < y < box["height"] - 1
            assert not inside  # it ends at the border
            assert -30 < x < box["width"] + 30
            assert -30 < y < box["height"] + 30
