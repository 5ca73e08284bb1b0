"""keep_memory: freed memory is reused without new page faults."""

from __future__ import annotations

import platform

import pytest

SCRIPT = """
import resource
import numpy as np
from pyseg._memory import keep_memory
def faults():
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(2**23)  # 64 MiB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(faults())
keep_memory()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_is_kept(python) -> None:
    done = python("-c", SCRIPT)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert after < 100
    if before < 100:  # probably huge pages, which cause too few faults to compare
        pytest.skip("this system does not fetch it again in any case")
