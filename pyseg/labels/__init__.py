"""Label co-occurrence: counts of pairs, and what is computed from them."""

from __future__ import annotations

from pyseg.labels.cooccurrence import (
    Cooccurrence,
    CooccurrenceCounter,
    count_cooccurrence,
    count_cooccurrence_reference,
)
from pyseg.labels.correlation import LabelCorrelation
from pyseg.labels.embedding import embed_labels
from pyseg.labels.prior import prior_strength

__all__ = [
    "Cooccurrence",
    "CooccurrenceCounter",
    "LabelCorrelation",
    "count_cooccurrence",
    "count_cooccurrence_reference",
    "embed_labels",
    "prior_strength",
]
