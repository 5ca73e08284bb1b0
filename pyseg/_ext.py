"""Loads the native libraries; what cannot be loaded has its reason here instead."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch

from pyseg import _build


def _load_ops(library: _build.Library, outcome: _build.Outcome) -> str | None:
    """Loads an operator library; returns the reason where that fails."""
    if outcome.path is None:
        return outcome.reason
    if not _build.INSTALLED and _build.other_operators(library, outcome.path):
        return (
            f"{outcome.path} has other operators than this checkout: "
            "`python -m pyseg._build` builds it anew"
        )
    try:
        torch.ops.load_library(outcome.path)
    except OSError as error:
        return _unloadable(outcome.path, error)
    return None


def _load_records(outcome: _build.Outcome) -> tuple[ModuleType | None, str | None]:
    """Imports the record reader, which may lie outside the package; returns it or the reason."""
    if outcome.path is None:
        return None, outcome.reason
    name = "pyseg._records"
    spec = importlib.util.spec_from_file_location(name, outcome.path)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        return None, _unloadable(outcome.path, error)
    sys.modules[name] = module
    return module, None


def _unloadable(path: Path, error: Exception) -> str:
    return f"{path} does not load ({error}): `python -m pyseg._build --force` builds it anew"


def _warn_of_other_sources() -> None:
    """Says which libraries are of other sources than the checkout has now."""
    stale = [
        library.file
        for library in _build.LIBRARIES
        if (path := PATHS[library.name]) and _build.out_of_date(library, path)
    ]
    if stale:
        warnings.warn(
            f"{', '.join(stale)} {'are' if len(stale) > 1 else 'is'} of other sources than those "
            f"in {_build.SOURCES}: `python -m pyseg._build` builds anew",
            RuntimeWarning,
            stacklevel=2,
        )


PATHS: dict[str, Path | None]
CPU_REASON: str | None
CUDA_REASON: str | None
RECORDS_REASON: str | None
records: ModuleType | None

try:
    _found = _build.prepare()
    PATHS = {name: outcome.path for name, outcome in _found.items()}
    CPU_REASON = _load_ops(_build.CPU, _found["libpyseg"])
    # The CUDA library implements what the other one declares.
    _cuda = _found["libpyseg_cuda"]
    CUDA_REASON = _cuda.reason or CPU_REASON or _load_ops(_build.CUDA, _cuda)
    _build.check_strict(CUDA_REASON)
    records, RECORDS_REASON = _load_records(_found["_records"])
except _build.BuildError as _error:
    raise ImportError(str(_error)) from None

HAS_CPU_OPS: bool = CPU_REASON is None
HAS_CUDA_OPS: bool = CUDA_REASON is None
HAS_RECORDS: bool = RECORDS_REASON is None

if not _build.INSTALLED:
    _warn_of_other_sources()
