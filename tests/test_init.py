from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pyseg


@pytest.mark.parametrize("name", ["convert", "data", "metrics", "models", "nn", "ops"])
def test_subpackages_are_attributes(name):
    assert getattr(pyseg, name).__name__ == f"pyseg.{name}"
    assert name in dir(pyseg)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="module 'pyseg' has no attribute 'nothing'"):
        pyseg.nothing  # noqa: B018


def test_import_loads_nothing_that_only_some_need():
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import pyseg\n"
        "heavy = {'numba', 'jsonargparse', 'matplotlib', 'tqdm', 'scipy', 'pyseg.data', 'pyseg.nn'}"
        "\nprint(sorted(heavy & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_paths_for_cpp_users():
    assert Path(pyseg.include_path(), "pyseg", "vlad.h").is_file()
    assert Path(pyseg.cmake_prefix_path, "pysegConfig.cmake").is_file()
