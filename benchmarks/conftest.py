"""Shared by the benchmarks: a fair comparison, and a short table at the end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from measure import GPU, Work, matrix_product, queued_seconds, seconds, synchronize

from pyseg._memory import keep_memory

_SECONDS = 0.5  # spent on each contender
_MOST_ROUNDS = 50

Contenders = dict[str, Callable[[], object]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--max-autotune",
        action="store_true",
        help="compare with torch.compile(mode='max-autotune') too; it compiles for minutes",
    )
    parser.addoption(
        "--keep-memory",
        action="store_true",
        help="measure everything in a process that keeps its memory, like pyseg's commands",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--keep-memory"):
        keep_memory()
    for warning in (":DeprecationWarning", "TypedStorage is deprecated:UserWarning"):
        config.addinivalue_line("filterwarnings", f"ignore:{warning}")  # from torch.compile
    if GPU:  # torch's hints, such as Inductor's to allow TF32, are no errors of ours
        config.addinivalue_line("filterwarnings", "default::UserWarning")


@pytest.fixture(scope="session")
def copy_rate() -> float:
    """Bytes per second, read and written, of a large copy on the device that is measured."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = torch.randn(2**28 if device == "cuda" else 2**25, device=device)
    target = torch.empty_like(source)
    times = [seconds(lambda: target.copy_(source)) for _ in range(8)]
    return 2 * source.nbytes / statistics.median(times[1:])


@pytest.fixture
def compare(
    benchmark, request: pytest.FixtureRequest, copy_rate: float, lines: list[list[str]]
) -> Callable[..., None]:
    """Times the first contender with pytest-benchmark and the others between its rounds.

    All contenders take turns in one process, so that other load on the machine affects them alike.
    The medians of the others, in seconds, and their ratios to the first one's are stored in the
    result's ``extra_info``; on a GPU also the times of queued calls, without that of Python. With
    `work`, a large matrix product takes turns too: its rate and that of a large copy give the
    floor, which no implementation can beat by much. `rounds` is the most that are measured; `timer`
    has to be that of ``pytest.mark.benchmark``.
    """

    def run(
        contenders: Contenders,
        work: Work | None = None,
        *,
        rounds: int = _MOST_ROUNDS,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        (_, subject), *peers = contenders.items()
        if work is not None:
            product_flop, product = matrix_product(work.dtype)
            peers.append(("matrix product", product))
        for contender in (subject, *(peer for _, peer in peers)):
            contender()  # compiles, allocates
        slowest = max(seconds(contender) for contender in (subject, *(peer for _, peer in peers)))
        times: dict[str, list[float]] = {name: [] for name, _ in peers}

        def measure_peers() -> None:
            for name, peer in peers:
                peer()  # every contender is timed after a call of its own, so caches favour none
                times[name].append(seconds(peer, timer))
            subject()
            synchronize()

        def measured() -> None:
            subject()
            synchronize()

        rounds = min(rounds, max(5, int(_SECONDS / slowest)))
        benchmark.pedantic(measured, setup=measure_peers, rounds=rounds)
        own = benchmark.stats.stats.median
        columns = [request.node.name, _text(own)]
        info = benchmark.extra_info
        for name, values in times.items():
            median = statistics.median(values)
            info[name] = median
            if name != "matrix product":
                info[f"{name} / {next(iter(contenders))}"] = median / own
                columns.append(f"{_text(median)} {name} {median / own:.2f}x")
        if GPU:
            columns += _queued(contenders, info)
        if work is not None:
            rate = product_flop / info["matrix product"]
            floor = max(work.flop / rate, work.bytes / copy_rate)
            info |= {"flop": work.flop, "bytes": work.bytes, "floor": floor, "rate": rate}
            info |= {"copy_rate": copy_rate, "time / floor": own / floor}
            columns.append(
                f"{work.flop / 1e9:.2f} GFLOP {work.bytes / 1e6:.1f} MB "
                f"floor {_text(floor)} {own / floor:.2f}x"
            )
        lines.append(columns)

    return run


def _queued(contenders: Contenders, info: dict[str, Any]) -> list[str]:
    """Measures queued calls of each; stores the times, and returns columns of the table."""
    times = {name: queued_seconds(contender) for name, contender in contenders.items()}
    own = info["queued"] = next(iter(times.values()))
    columns = [f"queued {_text(own)}"]
    for name, value in list(times.items())[1:]:
        info[f"queued {name}"] = value
        columns.append(f"queued {_text(value)} {name} {value / own:.2f}x")
    return columns


def _text(seconds: float) -> str:
    return f"{1e3 * seconds:.2f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.1f} us"


_LINES = pytest.StashKey[list[list[str]]]()


@pytest.fixture
def lines(request: pytest.FixtureRequest) -> list[list[str]]:
    """The lines of the table at the end, as columns, to append to."""
    return request.config.stash.setdefault(_LINES, [])


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    lines = config.stash.get(_LINES, [])
    if lines:
        terminalreporter.section(f"medians, {torch.get_num_threads()} threads")
    for line in lines:
        terminalreporter.write_line(" | ".join(line))
