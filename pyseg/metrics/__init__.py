"""Metrics of rankings and probabilities, exact; of NumPy arrays or torch tensors.

Each has a class for streams and distributed runs, see `pyseg.metrics.streaming`.
"""

from pyseg.metrics.mean_average_precision import (
    MeanAveragePrecision,
    map_at_k,
    map_at_k_dense,
)
from pyseg.metrics.multilabel import gap_at_k, hit_at_1, perr
from pyseg.metrics.reliability import Reliability, reliability
from pyseg.metrics.streaming import (
    GlobalAveragePrecisionAtK,
    HitAt1,
    MeanAveragePrecisionAtK,
    PrecisionAtEqualRecallRate,
)
from pyseg.metrics.top_k import TopK, TopKPerClass

__all__ = [
    "GlobalAveragePrecisionAtK",
    "HitAt1",
    "MeanAveragePrecision",
    "MeanAveragePrecisionAtK",
    "PrecisionAtEqualRecallRate",
    "Reliability",
    "TopK",
    "TopKPerClass",
    "gap_at_k",
    "hit_at_1",
    "map_at_k",
    "map_at_k_dense",
    "perr",
    "reliability",
]
