"""Threads: for computations that release the GIL, and for work that waits for disk or network."""

from __future__ import annotations

import contextvars
import functools
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

_PATIENCE = 1.0  # seconds to wait for threads to stop


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


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> Generator[Result, None, None]:
    """Yields ``function(item)`` of each item, in order; a consumer that stops cancels the rest.

    The threads see the context variables of the caller.
    """
    pool = ThreadPoolExecutor(threads)
    contexts = [contextvars.copy_context() for _ in items]
    try:
        yield from pool.map(lambda context, item: context.run(function, item), contexts, items)
    finally:
        pool.shutdown(cancel_futures=True)


def read_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Yields the items; a thread computes the next one while the consumer uses the last.

    Example:
        >>> list(read_ahead(iter("abc")))
        ['a', 'b', 'c']
    """
    end = object()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, items, end)
        while (item := future.result()) is not end:
            future = pool.submit(next, items, end)
            yield item  # type: ignore[misc]


def in_threads(
    work: Callable[[Item], None], items: Sequence[Item], jobs: int, stop: threading.Event
) -> Generator[tuple[Item, BaseException | None], None, None]:
    """Yields the items as they are done, each with its error if any, and sets ``stop`` at the end.

    Unlike an executor's, its threads do not delay the end of the process while they wait for a dead
    server.
    """
    todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[Item, BaseException | None]] = queue.SimpleQueue()
    for item in items:
        todo.put(item)

    def run() -> None:
        while not stop.is_set():
            try:
                item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                work(item)
            except BaseException as error:
                done.put((item, error))
            else:
                done.put((item, None))

    threads = [threading.Thread(target=run, daemon=True) for _ in range(min(jobs, len(items)))]
    for thread in threads:
        thread.start()
    try:
        for _ in items:
            yield done.get()
    finally:
        stop.set()
        until = time.monotonic() + _PATIENCE
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
