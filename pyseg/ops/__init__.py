"""Fused operators, each beside the plain-PyTorch reference that defines it."""

from __future__ import annotations

from pyseg.ops.assignment import (
    AssignmentNorm,
    moments,
    moments_reference,
    soft_assign,
    soft_assign_reference,
)
from pyseg.ops.frames import frame_linear, frame_pool
from pyseg.ops.vlad import vlad_aggregate, vlad_aggregate_reference

__all__ = [
    "AssignmentNorm",
    "frame_linear",
    "frame_pool",
    "moments",
    "moments_reference",
    "soft_assign",
    "soft_assign_reference",
    "vlad_aggregate",
    "vlad_aggregate_reference",
]
