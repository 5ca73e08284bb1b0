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


IMPORTS = """
import importlib, sys, torch
before = set(sys.modules)
heavy = {"numba", "jsonargparse", "matplotlib", "tqdm", "scipy", "sklearn", "torch._dynamo"}
for name, later in {"pyseg": {"pyseg.data", "pyseg.nn"}, "pyseg.data": (), "pyseg.nn": ()}.items():
    importlib.import_module(name)
    print(name, sorted(heavy.union(later) & (set(sys.modules) - before)))
"""


def test_import_loads_nothing_that_only_some_need():
    command = [sys.executable, "-c", IMPORTS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "pyseg []\npyseg.data []\npyseg.nn []\n"


def test_paths_for_cpp_users():
    assert Path(pyseg.include_path(), "pyseg", "vlad.h").is_file()
    assert Path(pyseg.cmake_prefix_path, "pysegConfig.cmake").is_file()
