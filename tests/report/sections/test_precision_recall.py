"""Precision-recall curves against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest

from pyseg.report import precision_recall


@pytest.mark.parametrize("ties", [False, True])
def test_precision_recall(ties: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    relevant = rng.random(200) < 0.3
    scores = rng.normal(size=200) + relevant
    if ties:
        scores = scores.round(1)
    recall, precision, threshold = precision_recall(scores, relevant)
    expected = metrics.precision_recall_curve(relevant, scores)
    np.testing.assert_allclose(precision, expected[0][-2::-1])
    np.testing.assert_allclose(recall, expected[1][-2::-1])
    np.testing.assert_array_equal(threshold, expected[2][::-1])
    half, same, _ = precision_recall(scores, relevant, 2 * int(relevant.sum()))
    np.testing.assert_allclose(half, recall / 2)
    np.testing.assert_array_equal(same, precision)
