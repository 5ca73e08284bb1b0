"""tests/ops/hostile.py, as a process, since it may crash or hang."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ops.conftest import needs_cpu_ops

PROGRAM = Path(__file__).with_name("hostile.py")


@pytest.fixture
def nan_in_new_memory(tmp_path: Path) -> dict[str, str]:
    """An environment in which memory that was never written is full of NaN."""
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or sys.platform != "linux":
        return {}
    source, library = Path(__file__).with_name("uninitialized.cpp"), tmp_path / "uninitialized.so"
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", source, "-o", library], check=True)
    return {"LD_PRELOAD": str(library)}


@needs_cpu_ops
def test_no_call_of_an_operator_crashes_hangs_or_returns_a_wrong_result(nan_in_new_memory) -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM],
        env={**os.environ, **nan_in_new_memory},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = done.stdout.splitlines()
    faults = [line for line in lines if line.startswith("FAULT")]
    assert done.returncode == 0, faults or (lines[-1:], done.stderr)
    found = re.fullmatch(
        r"(\d+) calls of 16 operators: (\d+) refused, (\d+) answered, 0 faults", lines[-1]
    )
    assert found is not None
    calls, refused, answered = map(int, found.groups())
    assert calls == refused + answered > 5500
    assert min(refused, answered) > 1500
