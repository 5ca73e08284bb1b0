"""Work in daemon threads, which do not delay the end of the process."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

_PATIENCE = 1.0  # seconds to wait for threads to stop

_Item = TypeVar("_Item")


def in_threads(
    work: Callable[[_Item], None], items: Sequence[_Item], jobs: int, stop: threading.Event
) -> Generator[tuple[_Item, BaseException | None], None, None]:
    """Yields the items as they are done, each with its error if any, and sets ``stop`` at the end.

    Unlike an executor's, its threads do not delay the end of the process while they wait for a dead
    server.
    """
    todo: queue.SimpleQueue[_Item] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[_Item, BaseException | None]] = queue.SimpleQueue()
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
