"""Fused operators, each with the plain-PyTorch reference that defines it."""

from __future__ import annotations

from pyseg.ops.assignment import (
    AssignmentNorm,
    moments,
    moments_reference,
    soft_assign,
    soft_assign_reference,
)
from pyseg.ops.frames import (
    frame_linear,
    frame_linear_reference,
    frame_pool,
    frame_pool_reference,
)
from pyseg.ops.gru import gru_recurrence, gru_recurrence_reference
from pyseg.ops.rated_bce import (
    correlated_targets,
    rated_bce_with_logits,
    rated_bce_with_logits_reference,
)
from pyseg.ops.vlad import vlad_aggregate, vlad_aggregate_reference

__all__ = [
    "AssignmentNorm",
    "correlated_targets",
    "frame_linear",
    "frame_linear_reference",
    "frame_pool",
    "frame_pool_reference",
    "gru_recurrence",
    "gru_recurrence_reference",
    "moments",
    "moments_reference",
    "rated_bce_with_logits",
    "rated_bce_with_logits_reference",
    "soft_assign",
    "soft_assign_reference",
    "vlad_aggregate",
    "vlad_aggregate_reference",
]
