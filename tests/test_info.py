from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pyseg import _build, _ext, info


def test_collect_names_what_is_loaded_and_why_not():
    facts = info.collect()
    for name, reason in (
        ("CPU ops", _ext.CPU_REASON),
        ("CUDA ops", _ext.CUDA_REASON),
        ("records", _ext.RECORDS_REASON),
    ):
        expected = f"not loaded: {reason}" if reason else "loaded: "
        assert facts[name].startswith(expected)


@pytest.mark.skipif(not _ext.HAS_CPU_OPS, reason=f"{_ext.CPU_REASON}")
def test_collect_tells_of_changed_sources(monkeypatch):
    monkeypatch.setattr(_build, "source_digest", lambda: "another")
    assert "its sources have changed since" in info.collect()["CPU ops"]


def test_command_line_without_libraries():
    done = subprocess.run(
        [sys.executable, "-m", "pyseg.info"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYSEG_EXT": "0", "PYSEG_CUDA": "auto"},
    )
    lines = done.stdout.splitlines()
    assert all(": " in line for line in lines)
    assert "CPU ops: not loaded: PYSEG_EXT=0; plain PyTorch runs instead" in lines
    assert "records: not loaded: PYSEG_EXT=0; Python code reads instead" in lines
    assert any(line.startswith("switches: PYSEG_EXT=0") for line in lines)
