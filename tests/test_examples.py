"""The examples run and give the documented results."""

from __future__ import annotations

import doctest
import importlib
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "python"


def test_netvlad_learns(capsys):
    runpy.run_path(str(FOLDER / "netvlad.py"), run_name="__main__")
    accuracy = float(capsys.readouterr().out.rsplit("accuracy ", 1)[1])
    assert accuracy > 0.9  # 0.5 is chance


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_doctests(name, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    try:
        results = doctest.testmod(importlib.import_module(name))
    finally:
        sys.modules.pop(name, None)
    assert results.attempted > 0
    assert results.failed == 0
