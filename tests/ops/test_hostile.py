"""tests/ops/hostile.py, as a process, since it may crash or hang."""

from __future__ import annotations

import re
from pathlib import Path

from tests.ops.conftest import needs_cpu_ops

PROGRAM = Path(__file__).with_name("hostile.py")


@needs_cpu_ops
def test_no_call_of_an_operator_crashes_hangs_or_returns_a_wrong_result(python) -> None:
    done = python(str(PROGRAM))
    lines = done.stdout.splitlines()
    faults = [line for line in lines if line.startswith("FAULT")]
    assert done.returncode == 0, faults or (lines[-1:], done.stderr)
    found = re.fullmatch(
        r"(\d+) calls of 15 operators: (\d+) refused, (\d+) answered, 0 faults", lines[-1]
    )
    assert found is not None
    calls, refused, answered = map(int, found.groups())
    assert calls == refused + answered > 5500
    assert min(refused, answered) > 1500
