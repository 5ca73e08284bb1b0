"""Configuration shared by the tests and the examples in docstrings."""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent

# Needs a package that is slow to import; tests/metrics/test_torchmetrics.py runs its examples.
collect_ignore = ["pyseg/metrics/torchmetrics.py"]

# The tests have their own PYSEG_CACHE; numba's kernels are still compiled only once.
os.environ.setdefault("NUMBA_CACHE_DIR", str(ROOT / "build" / "numba"))
# Keeps Inductor from testing g++ for vector instructions, which takes 9 s in each process.
os.environ.setdefault("TORCHINDUCTOR_VEC_ISA_OK", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Uses all cores for whole folders of tests, unless ``-n`` or a debugger says otherwise.

    A single file or test ends before other processes have started. Each process has one thread, as
    most computations of the tests are too small for two.
    """
    options = config.option
    is_worker = hasattr(config, "workerinput")
    few = options.keyword or options.usepdb or options.collectonly
    if is_worker or few or not all(Path(argument).is_dir() for argument in config.args):
        return
    if config.pluginmanager.has_plugin("xdist") and options.numprocesses is None:
        options.numprocesses = min(len(os.sched_getaffinity(0)), 8)
        options.dist = "worksteal"
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spares the garbage collector the modules and tests, which live to the end.

    Searching them again and again would be a fifth of the time that collecting them takes.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collect_file(file_path: Path) -> None:
    """Imports the package of a file before pytest collects the file as a module of its own.

    It would be imported twice if the package imports it too, and register its content twice.
    """
    if file_path.suffix == ".py" and file_path.is_relative_to(ROOT / "pyseg"):
        importlib.import_module(".".join(file_path.relative_to(ROOT).parent.parts))


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Names binary values by their argument: gzip data contains the time.

    pytest-xdist needs the same test names in every process.
    """
    if isinstance(val, bytes) and not (val.isascii() and val.decode().isprintable()):
        return argname
    return None


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """Unregisters what a test or an example has registered."""
    from pyseg._registry import Registry

    kept = [(registry, dict(registry)) for registry in Registry.every]
    yield
    for registry, entries in kept:
        registry.clear()
        registry.update(entries)


@pytest.fixture(scope="session", autouse=True)
def sample_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Keeps the generated sample out of the user's cache."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYSEG_CACHE", str(folder))
        yield folder
