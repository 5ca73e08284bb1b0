"""Parallel calls of functions that release the GIL."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

Result = TypeVar("Result")


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "pyseg")


os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def run_all(function: Callable[..., Result], calls: Sequence[tuple[Any, ...]]) -> list[Result]:
    """Returns ``function(*arguments)`` of each call, in order.

    As many calls run at once as torch uses threads (`torch.set_num_threads`). They must not call
    `run_all` themselves: that would deadlock.
    """
    threads = min(torch.get_num_threads(), len(calls))
    if threads < 2:
        return [function(*arguments) for arguments in calls]
    return list(_pool(threads).map(lambda arguments: function(*arguments), calls))


def shares(length: int, at_least: int) -> list[tuple[int, int]]:
    """Splits 0..length into one range per thread, of at least `at_least` items where possible."""
    parts = max(1, min(torch.get_num_threads(), length // at_least))
    bounds = np.linspace(0, length, parts + 1).astype(int).tolist()
    return list(itertools.pairwise(bounds))
