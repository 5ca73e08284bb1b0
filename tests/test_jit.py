from __future__ import annotations

import re
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core import caching

from pyseg import _build
from pyseg._jit import njit


def double(values):
    return values * 2


def folder(kernel) -> Path | None:
    """Returns the folder of a kernel's cache."""
    path = kernel._cache.cache_path
    return path if path is None else Path(path)


@pytest.fixture
def no_numba_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")


@pytest.mark.usefixtures("no_numba_cache")
def test_cache_lies_below_pyseg_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYSEG_CACHE", str(tmp_path))
    kernel = njit(double)
    assert np.array_equal(kernel(np.arange(3)), [0, 2, 4])
    assert list(tmp_path.glob("numba/*/test_jit.double-*.nbc"))
    assert numba.config.CACHE_DIR == "", "the user's own functions keep their folder"
    again = njit(double)
    assert np.array_equal(again(np.arange(3)), [0, 2, 4])
    assert sum(again.stats.cache_hits.values()) == 1


def test_numba_cache_dir_takes_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYSEG_CACHE", str(tmp_path / "pyseg"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "numba"))
    found = folder(njit(double))
    assert found is not None
    assert found.parent == tmp_path / "numba"


@pytest.mark.usefixtures("no_numba_cache")
def test_default_is_numbas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYSEG_CACHE")
    assert folder(njit(double)) == folder(numba.njit(cache=True)(double))


@pytest.mark.usefixtures("no_numba_cache")
def test_nothing_is_written_into_an_installed_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PYSEG_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_build, "INSTALLED", True)
    found = folder(njit(double))
    assert found is not None
    assert found.parent == tmp_path / "pyseg" / "numba"


@pytest.mark.parametrize("cache", [None, "not/a/folder"])
@pytest.mark.usefixtures("no_numba_cache")
def test_compiles_where_nothing_can_be_written_to(
    cache: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Simulates a read-only package, home and PYSEG_CACHE, since root can write to any folder."""

    def ensure_cache_path(self: object) -> None:
        raise PermissionError(30, "Read-only file system")

    if cache is None:
        monkeypatch.delenv("PYSEG_CACHE")
    else:
        monkeypatch.setenv("PYSEG_CACHE", str(tmp_path / cache))
    monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", ensure_cache_path)
    with pytest.raises(RuntimeError, match="no locator available"):
        numba.njit(cache=True)(double)
    kernel = njit(double)
    assert folder(kernel) is None
    assert np.array_equal(kernel(np.arange(3)), [0, 2, 4])


def test_every_kernel_is_cached_by_it() -> None:
    sources = _build.PACKAGE.rglob("*.py")
    assert not [p.name for p in sources if re.search(r"njit\(.*cache=", p.read_text())]
