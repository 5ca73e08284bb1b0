"""Memory of a process that takes the same steps again and again."""

from __future__ import annotations

import ctypes
import platform

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h


def keep_memory() -> None:
    """Lets the process keep the memory that it frees, for the commands that train or predict.

    By default glibc gives large blocks back to the system at once, and a step that wants them again
    waits for every page of them to be cleared: the gradients of nextvlad1 are 65,000 pages, a fifth
    of a short step on a CPU; scoring segments takes a seventh less without. The price is memory:
    what was needed at the worst moment stays, and blocks of different sizes lie between each other.
    With another C library nothing happens.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)  # large blocks come from the heap too ...
        mallopt(_M_TRIM_THRESHOLD, -1)  # ... whose end is never given back
