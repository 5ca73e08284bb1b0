"""The layout of a graph of names."""

from __future__ import annotations

import numpy as np

from pyseg.report.graph_chart import separate_boxes


def test_boxes_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.uniform((0.3, 0.2), (1.5, 0.5), (20, 2))
    for sideways in (True, False):
        places = separate_boxes(rng.normal(size=(20, 2)), sizes, sideways=sideways)
        first, second = np.triu_indices(20, 1)
        overlap = (sizes[first] + sizes[second]) / 2 - np.abs(places[first] - places[second])
        assert not (overlap > 0).all(axis=1).any()
