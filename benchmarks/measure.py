"""Measurements of the benchmarks: one call's time and memory, and the limits of the machine."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pyseg import _ext

GPU = _ext.HAS_CUDA_OPS and torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DTYPES = [torch.float32, torch.bfloat16, *([torch.float16] if GPU else [])]
DIRECTIONS = ["forward", "forward+backward"]
needs_kernels = pytest.mark.skipif(
    not (GPU or _ext.HAS_CPU_OPS), reason=f"no kernel to measure: {_ext.CPU_REASON}"
)


@dataclass(frozen=True)
class Work:
    """The minimal work of a contender: operations, and bytes, each moved once."""

    flop: float
    bytes: float
    dtype: torch.dtype


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(
    contender: Callable[[], object], timer: Callable[[], float] = time.perf_counter
) -> float:
    synchronize()
    start = timer()
    contender()
    synchronize()
    return timer() - start


def queued_seconds(contender: Callable[[], object], calls: int = 20) -> float:
    """Returns the GPU's time of a call among several that wait for nothing in between.

    It is the time of the kernels, without that of Python. A CUDA graph of the call is replayed;
    where it cannot be captured, calls are queued, and the time is the host's if that is slower.
    """
    contender()
    synchronize()
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            contender()
        contender = graph.replay
    except RuntimeError:  # it synchronises, say
        torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = []
    for _ in range(5):
        start.record()
        for _ in range(calls):
            contender()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / calls)
    return statistics.median(times)


def matrix_product(dtype: torch.dtype) -> tuple[float, Callable[[], object]]:
    """Returns the operations of a large matrix product, and the product: the arithmetic limit."""
    size, device = (8192, "cuda") if torch.cuda.is_available() else (1536, "cpu")
    if device == "cpu":
        dtype = torch.float32  # the fastest without matrix instructions
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2.0 * size**3, lambda: left @ right


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def tensorflow() -> Any:
    """Returns TensorFlow, with as many threads as torch has; None if it is not installed."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow as tf
    except ImportError:
        return None
    if tf.config.threading.get_intra_op_parallelism_threads() == 0:
        tf.config.threading.set_intra_op_parallelism_threads(torch.get_num_threads())
    return tf


def compilations(request: pytest.FixtureRequest, function: Callable) -> dict[str, Callable]:
    """Returns torch.compile of `function` in every mode of the comparison."""
    torch._dynamo.reset()
    modes = {"torch.compile": None}
    if request.config.getoption("--max-autotune"):
        modes["max-autotune"] = "max-autotune" if GPU else "max-autotune-no-cudagraphs"
    return {name: torch.compile(function, dynamic=False, mode=mode) for name, mode in modes.items()}


def return_memory_at_once() -> None:
    """Makes freed memory return to the system, as `peak_of` needs for host memory."""
    if not GPU:  # blocks of 64 KiB or more are mapped from the system and unmapped
        m_mmap_threshold = -3
        ctypes.CDLL(None).mallopt(m_mmap_threshold, 2**16)


def peak_of(step: Callable[[], object]) -> int:
    """Returns the peak memory of `step` in bytes, including results."""
    gc.collect()
    if GPU:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # Linux: the peak of the process's memory. Freed memory must return to the system at once.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    result = step()
    after = int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    del result
    return 1024 * (after - before)
