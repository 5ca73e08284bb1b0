"""What the benchmarks share: fair comparison of contenders, and a short table at the end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch

_SECONDS = 0.5  # spent on each contender
_MOST_ROUNDS = 50

Contenders = dict[str, Callable[[], object]]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "filterwarnings", "ignore::DeprecationWarning"
    )  # torch's own, compiling


@pytest.fixture
def compare(benchmark, request: pytest.FixtureRequest) -> Callable[[Contenders], None]:
    """Times the first contender with pytest-benchmark and the others between its rounds.

    All contenders take turns in one process, so that whatever else the machine does hits them
    alike. The medians of the others, in seconds, and their ratios to the first one's are stored in
    the result's ``extra_info``.
    """

    def synchronize() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def seconds(contender: Callable[[], object]) -> float:
        synchronize()
        start = time.perf_counter()
        contender()
        synchronize()
        return time.perf_counter() - start

    def run(contenders: Contenders) -> None:
        (_, subject), *peers = contenders.items()
        for contender in contenders.values():
            contender()  # compiles, allocates
        slowest = max(seconds(contender) for contender in contenders.values())
        times: dict[str, list[float]] = {name: [] for name, _ in peers}

        def measure_peers() -> None:
            for name, peer in peers:
                times[name].append(seconds(peer))
            synchronize()

        def measured() -> None:
            subject()
            synchronize()

        rounds = min(_MOST_ROUNDS, max(5, int(_SECONDS / slowest)))
        benchmark.pedantic(measured, setup=measure_peers, rounds=rounds)
        own = benchmark.stats.stats.median
        for name, values in times.items():
            median = statistics.median(values)
            benchmark.extra_info[name] = median
            benchmark.extra_info[f"{name} / {next(iter(contenders))}"] = median / own
        request.config.stash.setdefault(_LINES, []).append(
            [request.node.name, f"{1e3 * own:.2f} ms"]
            + [f"{1e3 * statistics.median(v):.2f} ms {n}" for n, v in times.items()]
            + [f"{statistics.median(v) / own:.2f}x" for v in times.values()]
        )

    return run


_LINES = pytest.StashKey[list[list[str]]]()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    lines = config.stash.get(_LINES, [])
    if lines:
        terminalreporter.section(f"medians, {torch.get_num_threads()} threads")
    for line in lines:
        terminalreporter.write_line("  ".join(line))
