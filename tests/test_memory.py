"""Memory that is kept is not fetched again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
from pyseg._memory import keep_memory
if {keep}:
    keep_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**23)  # 64 MiB, 16,384 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_is_kept() -> None:
    def faults(keep: bool) -> int:
        command = [sys.executable, "-c", SCRIPT.format(keep=keep)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert faults(keep=True) < 100
    if faults(keep=False) < 100:  # large pages, perhaps: then there is nothing to be seen
        pytest.skip("this system does not fetch it again in any case")
