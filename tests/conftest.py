"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("long", max_examples=5_000)  # `tests/test_hostile_text.py`

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference numbers; the test is skipped without it."""
    folder = Path(os.environ.get("PYSEG_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}: set PYSEG_SHARED")
    return folder


@pytest.fixture(autouse=True)
def grad_mode() -> Iterator[None]:
    """Fails a test that leaves gradients switched off, and not all that come after it."""
    yield
    if "torch" in sys.modules:
        import torch

        if not torch.is_grad_enabled():
            torch.set_grad_enabled(True)
            pytest.fail("the test has left gradients switched off")


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Restores torch's number of threads after a test."""
    import torch  # lazily: the controller of pytest-xdist runs no test

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Restores the default handler of SIGINT, which the tests' parent may have ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
