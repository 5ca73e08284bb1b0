"""Ranking metrics, exact and in float64; NumPy arrays or torch tensors in, Python floats out."""

from pyseg.metrics.mean_average_precision import (
    MeanAveragePrecision,
    map_at_k,
    map_at_k_dense,
)
from pyseg.metrics.multilabel import gap_at_k, hit_at_1, perr

__all__ = [
    "MeanAveragePrecision",
    "gap_at_k",
    "hit_at_1",
    "map_at_k",
    "map_at_k_dense",
    "perr",
]
