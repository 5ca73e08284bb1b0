"""Batches of a data set, read ahead by worker processes, and the errors of these.

See :func:`loader`.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pyseg.data.batch import Batch, Example, collate
from pyseg.data.datasets import RecordDataset
from pyseg.data.memory import MOST_WORKERS
from pyseg.data.stream import Start
from pyseg.errors import ArgumentError, PysegError, WorkerError

_DEAD_WORKER = re.compile(r"DataLoader worker \(pid.*?\) (?:is killed by signal: ([\w ]+)|exited)")
_SHARED_MEMORY = re.compile(r"shared memory|Bus error|</torch_")
_TOO_LITTLE = (
    "--workers: expected shared memory for the batches of the processes that read ahead, found too "
    "little in /dev/shm: give a container more (docker run --shm-size), or use fewer --workers; 0 "
    "need none"
)


@contextlib.contextmanager
def worker_errors(workers: Sequence[BaseProcess] = ()) -> Iterator[None]:
    """Reports the death of workers as a `WorkerError`.

    torch may raise its error from a signal handler, anywhere in the block.

    Args:
        workers: The processes, if known: their exit codes say more than the error.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and _SHARED_MEMORY.search(text):
            raise WorkerError(_TOO_LITTLE) from error
        found = _DEAD_WORKER.search(text)
        if found is None and not isinstance(error, ConnectionError | EOFError):
            raise
        wait([worker.sentinel for worker in workers], timeout=1)
        codes = [worker.exitcode for worker in workers if worker.exitcode]
        if found is None and not codes:
            raise
        how = "has ended unexpectedly"
        if found is not None and found[1]:
            how = f"was killed by a signal ({found[1]})"
        elif codes and codes[0] < 0:
            how = f"was killed by a signal ({signal.strsignal(-codes[0])})"
        raise WorkerError(
            f"--workers: a process that reads the data {how}; where memory was short, fewer need "
            "less"
        ) from error


@contextlib.contextmanager
def _stop_requests_spare_workers() -> Iterator[None]:
    """Has the processes that its block starts outlive SIGTERM if this process handles it.

    Batch systems and ``timeout`` send it to all processes; this one still needs its workers to get
    to a point where it can stop. They inherit that it is blocked; `_end_with_parent` ends them.
    """
    if not callable(signal.getsignal(signal.SIGTERM)):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(_: int) -> None:
    if signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(forked_by: int) -> None:
    """Ends a worker in which SIGTERM is blocked if its parent sends it, or has ended."""
    parent = multiprocessing.parent_process()
    while os.getppid() == forked_by:
        received = signal.sigtimedwait({signal.SIGTERM}, 1)
        if received is not None and parent is not None and received.si_pid == parent.pid:
            break
    os._exit(0)  # as torch's workers do


class _Loader(DataLoader[Batch]):
    """A DataLoader that reports how its workers died.

    Only private attributes of torch hold the worker processes.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        if not self.num_workers:
            return super().__iter__()
        try:  # the queues' semaphores are in /dev/shm too; torch would print more than an error
            _ = [multiprocessing.Lock() for _ in range(4 * (self.num_workers + 1))]
        except OSError as error:
            raise WorkerError(_TOO_LITTLE) from error
        with _stop_requests_spare_workers():
            batches: Any = super().__iter__()

        def explained() -> Iterator[Batch]:
            try:
                with worker_errors(batches._workers):
                    yield from batches
            except Exception as error:
                # The traceback keeps the iterator in a cycle, of which the garbage collector may
                # first delete the queues that tell workers to end.
                self._iterator = None
                batches._shutdown_workers()
                # torch puts the worker's traceback into the message, and the error's line last.
                name = f"\n{type(error).__module__}.{type(error).__qualname__}: "
                _, found, line = str(error).rpartition(name)
                if isinstance(error, PysegError) and found:
                    raise type(error)(line.rstrip()) from error
                raise

        return explained()


def loader(
    dataset: IterableDataset[Example],
    batch_size: int,
    *,
    workers: int = 0,
    frames: int | None = None,
    drop_last: bool = False,
    pin_memory: bool | None = None,
    prefetch: int = 2,
    start: Start = Start(),  # noqa: B008 - immutable
) -> DataLoader[Batch]:
    """Returns a DataLoader of `Batch` for a data set.

    Workers persist between passes, and torch's global random state is not touched. A cached data
    set gives the same batches for any number of workers. Every batch that waits for its consumer
    holds one file descriptor, and its size in shared memory.

    Args:
        dataset: The examples.
        batch_size: Examples per batch (on every rank).
        workers: Processes that read ahead; 0 reads in this process.
        frames: The length to pad to; default: the longest of each batch (`collate`).
        drop_last: Drop a last batch that is not full (of every worker, if there are any).
        pin_memory: Whether batches are in page-locked memory; default: if there is a GPU.
        prefetch: The number of batches that every worker reads ahead.
        start: Where to begin; `pyseg.data.Feed` keeps track of it.

    Raises:
        ValueError: An argument is out of range.
        WorkerError: While iterating: a worker has died, or there is too little shared memory.

    Example:
        >>> from pyseg.data import SegmentDataset
        >>> from pyseg.data.sample import make_sample
        >>> batches = loader(SegmentDataset(make_sample() / "validate"), 80)
        >>> next(iter(batches)).frames.shape
        torch.Size([80, 5, 1152])
    """
    if batch_size < 1:
        raise ArgumentError(f"batch_size: expected at least 1, found {batch_size}")
    if not 0 <= workers <= MOST_WORKERS:
        raise ArgumentError(f"workers: expected 0 to {MOST_WORKERS}, found {workers}")
    seed = 0
    if isinstance(dataset, RecordDataset):
        seed = dataset.seed
        dataset = dataset.in_batches(batch_size, start)
    return _Loader(
        cast(Any, dataset),  # DataLoader's type ignores that collate_fn turns examples into batches
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=functools.partial(_collate, dataset, frames=frames),
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=prefetch if workers else None,
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(seed),
    )


def _collate(
    dataset: IterableDataset[Example], examples: Sequence[Example], *, frames: int | None
) -> Batch:
    batch = collate(examples, frames=frames)
    info = get_worker_info()  # a worker's copy of the data set has its position
    here = dataset if info is None else info.dataset
    return replace(batch, position=here.position) if isinstance(here, RecordDataset) else batch
