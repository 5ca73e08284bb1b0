"""Loads the native libraries, or holds the reasons why they are not loaded."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch

from pyseg import _build, _command


def _load_ops(library: _build.Library, found: Path | str) -> str | None:
    """Loads an operator library; returns the reason if that fails."""
    if isinstance(found, str):
        return found
    operators = _build.read_note(found).get("operators")
    if not _build.INSTALLED and operators not in (None, _build.operator_digest()):
        return (
            f"{found} has other operators than this checkout: "
            "`python -m pyseg._build` builds it anew"
        )
    try:
        torch.ops.load_library(found)
    except OSError as error:
        return _unloadable(found, error)
    return None


def _load_records(found: Path | str) -> tuple[ModuleType | None, str | None]:
    """Imports the record reader, which may be outside the package; returns it or the reason."""
    if isinstance(found, str):
        return None, found
    name = "pyseg._records"
    spec = importlib.util.spec_from_file_location(name, found)
    assert spec is not None
    assert spec.loader is not None
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        return None, _unloadable(found, error)
    sys.modules[name] = module
    return module, None


def _unloadable(path: Path, error: Exception) -> str:
    return f"{path} does not load ({error}): `python -m pyseg._build --force` builds it anew"


def is_stale(found: Path | str) -> bool:
    """Returns whether the library at ``found`` is known to be built from other sources."""
    sources = None if isinstance(found, str) else _build.read_note(found).get("sources")
    return sources not in (None, _build.source_digest())


def _warn_of_stale_libraries() -> None:
    """Warns of libraries that were built from other sources than the checkout has now."""
    stale = [library.file for library, found in FOUND.items() if is_stale(found)]
    if stale:
        warnings.warn(
            f"{', '.join(stale)} {'are' if len(stale) > 1 else 'is'} of other sources than those "
            f"in {_build.SOURCES}: `python -m pyseg._build` builds anew",
            RuntimeWarning,
            stacklevel=2,
        )


CPU_REASON: str | None
CUDA_REASON: str | None
RECORDS_REASON: str | None
records: ModuleType | None

try:
    FOUND = _build.prepare()  # the path of each library, or the reason why there is none
    CPU_REASON = _load_ops(_build.CPU, FOUND[_build.CPU])
    # The CUDA library implements operators that the other one declares.
    _cuda = FOUND[_build.CUDA]
    CUDA_REASON = _load_ops(_build.CUDA, _cuda if isinstance(_cuda, str) else CPU_REASON or _cuda)
    _build.check_strict(CUDA_REASON)
    records, RECORDS_REASON = _load_records(FOUND[_build.RECORDS])
except _build.BuildError as _error:  # a switch has a wrong value, or asks for what fails
    if _command.started_module() is not None:
        _command.end_on_error(_error)
    raise ImportError(str(_error)) from None

HAS_CPU_OPS: bool = CPU_REASON is None
HAS_CUDA_OPS: bool = CUDA_REASON is None
HAS_RECORDS: bool = RECORDS_REASON is None

if not _build.INSTALLED:
    _warn_of_stale_libraries()
