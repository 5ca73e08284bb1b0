"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("long", max_examples=5_000)  # `tests/test_hostile_text.py`

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference numbers; the test skips where there is none."""
    folder = Path(os.environ.get("PYSEG_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}: set PYSEG_SHARED")
    return folder


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Sets torch's number of threads back after a test that changes it."""
    import torch  # late: of several processes the first runs no test

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C does what it usually does, also where the tests were started to ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
