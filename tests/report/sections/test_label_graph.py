"""Which part of a label correlation is drawn."""

from __future__ import annotations

import numpy as np
import torch

from pyseg.labels import LabelCorrelation
from pyseg.report import strongest


def test_strongest_relations() -> None:
    rng = np.random.default_rng(0)
    matrix = rng.random((30, 30)).round(1)
    np.fill_diagonal(matrix, 0)
    rows, columns = matrix.nonzero()
    offsets = np.concatenate(([0], np.bincount(rows, minlength=30).cumsum()))
    correlation = LabelCorrelation(
        torch.from_numpy(offsets),
        torch.from_numpy(columns),
        torch.from_numpy(matrix[rows, columns]),
    )
    assert strongest(correlation, 100) == list(range(30))
    chosen = strongest(correlation, 7)
    assert 6 <= len(chosen) <= 7
    assert {0, int(matrix[0].argmax())} <= set(chosen)  # 1.0, and the first of these
