"""How the benchmarks measure: one call's time, and the limits of the machine itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Work:
    """The least that a contender must do: operations, and bytes each moved once."""

    flop: float
    bytes: float
    dtype: torch.dtype


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(contender: Callable[[], object]) -> float:
    synchronize()
    start = time.perf_counter()
    contender()
    synchronize()
    return time.perf_counter() - start


def matrix_product(dtype: torch.dtype) -> tuple[float, Callable[[], object]]:
    """Returns the operations of a large matrix product, and the product: what arithmetic can do."""
    size, device = (8192, "cuda") if torch.cuda.is_available() else (1536, "cpu")
    if device == "cpu":
        dtype = torch.float32  # what a processor without matrix units is best at
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3, lambda: left @ right
