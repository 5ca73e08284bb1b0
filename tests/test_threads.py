from __future__ import annotations

import multiprocessing
import threading
import warnings
from collections.abc import Iterator

import pytest
import torch

from pyseg import _threads


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def together(number: int) -> int:
    """Two concurrent calls, each of which waits for the other."""
    BARRIER.wait()
    return 10 * number


BARRIER = threading.Barrier(2, timeout=60)


def test_calls_run_at_once_and_results_keep_their_order() -> None:
    assert _threads.run_all(together, [(number,) for number in range(4)]) == [0, 10, 20, 30]


def test_errors_propagate() -> None:
    with pytest.raises(ZeroDivisionError):
        _threads.run_all(lambda number: 1 / number, [(1,), (0,)])


def in_fork(results: multiprocessing.SimpleQueue) -> None:
    results.put(_threads.run_all(together, [(1,), (2,)]))


def test_a_fork_has_threads_of_its_own() -> None:
    _threads.run_all(together, [(1,), (2,)])
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=in_fork, args=(results,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads
        process.start()
    process.join(60)
    assert process.exitcode == 0
    assert results.get() == [10, 20]


def test_shares() -> None:
    assert _threads.shares(10, 1) == [(0, 5), (5, 10)]
    assert _threads.shares(10, 6) == [(0, 10)]
    assert _threads.shares(0, 1) == [(0, 0)]


def test_read_ahead_passes_errors_on_and_leaves_no_thread() -> None:
    def items():
        yield 1
        raise ValueError("broken")

    before = threading.active_count()
    ahead = _threads.read_ahead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken"):
        next(ahead)
    stopped = _threads.read_ahead(iter(range(10)))
    assert next(stopped) == 0
    stopped.close()
    assert threading.active_count() == before


def test_map_in_order_cancels_what_nobody_waits_for() -> None:
    begun: list[int] = []
    release = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number:
            release.wait(10)
        return -number

    results = _threads.map_in_order(work, range(100), 2)
    assert next(results) == 0
    release.set()
    results.close()
    assert len(begun) < 100
    assert list(_threads.map_in_order(lambda n: n * n, range(9), 4)) == [n * n for n in range(9)]
    with pytest.raises(ZeroDivisionError):
        list(_threads.map_in_order(lambda n: 1 // n, [1, 0, 1], 2))
