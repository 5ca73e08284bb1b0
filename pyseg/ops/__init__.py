"""Fused operators, each beside the plain-PyTorch reference that defines it."""

from __future__ import annotations

from pyseg.ops.vlad import vlad_aggregate, vlad_aggregate_reference

__all__ = ["vlad_aggregate", "vlad_aggregate_reference"]
