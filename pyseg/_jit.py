"""numba's compiler for pyseg's kernels, with a cache in a writable folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import numba

from pyseg import _build


def njit(function: Callable[..., Any]) -> Any:
    """Compiles ``function`` when it is first called; it releases the GIL, and is cached on disk.

    The cache lies in ``NUMBA_CACHE_DIR`` if that is set, else below ``PYSEG_CACHE`` if that is set
    or pip has installed the package, whose folder is pip's, else beside the source or in the
    user's cache, which is numba's default. If none of these is writable, every process compiles
    anew.
    """
    kernel = numba.njit(nogil=True)(function)
    config: Any = numba.config
    before = config.CACHE_DIR
    if not before and (_build.INSTALLED or os.environ.get("PYSEG_CACHE")):
        config.CACHE_DIR = str(_build.user_cache() / "numba")
    try:
        with contextlib.suppress(RuntimeError):  # no writable folder
            kernel.enable_caching()
    finally:
        config.CACHE_DIR = before
    return kernel
