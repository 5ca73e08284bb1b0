"""Memory of a process that repeats the same steps."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_memory() -> None:
    """Lets the process keep the memory that it frees, for the commands that train or predict.

    By default glibc returns large blocks to the system at once, and the next step waits for the
    kernel to clear every page again: for the 65,000 pages of nextvlad1's gradients that is a fifth
    of a short step on a CPU, and a seventh of the time of scoring segments. The price is memory:
    the peak stays allocated, and fragmented. With another C library nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)  # large blocks come from the heap too ...
        mallopt(_M_TRIM_THRESHOLD, -1)  # ... whose top is never returned
