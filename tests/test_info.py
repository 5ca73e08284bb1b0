from __future__ import annotations

import pytest
import torch

from pyseg import _build, _ext, info
from pyseg.errors import UserError


def test_collect_names_what_is_loaded_and_why_not():
    facts = info.collect()
    for name, reason in (
        ("CPU ops", _ext.CPU_REASON),
        ("CUDA ops", _ext.CUDA_REASON),
        ("records", _ext.RECORDS_REASON),
    ):
        expected = f"not loaded: {reason}" if reason else "loaded: "
        assert facts[name].startswith(expected)


@pytest.mark.parametrize(("fast", "expected"), [(True, "fast and exact"), (False, "not fast and")])
def test_collect_tells_whether_int8_pays(fast, expected, monkeypatch):
    monkeypatch.setattr(info, "has_fast_int8", lambda: fast)
    assert info.collect()["int8"].startswith(expected)


@pytest.mark.skipif(not _ext.HAS_CPU_OPS, reason=f"{_ext.CPU_REASON}")
def test_collect_tells_of_changed_sources(monkeypatch):
    monkeypatch.setattr(_build, "source_digest", lambda: "another")
    assert "its sources have changed since" in info.collect()["CPU ops"]


def test_orders_of_known_gpus_and_of_a_cpu(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("PYSEG_CACHE", str(tmp_path))
    info.main(["--orders"])
    text = capsys.readouterr().out
    for name in ("sm_80, assumed, as of sm_80", "sm_90, assumed", "CPU, by operations alone"):
        assert name in text
    tables = [part for part in text.split("\n\n") if part.startswith("| B |")]
    assert len(tables) == 3
    for table in tables:
        assert "| 80 | bfloat16 | train | direct |" in table
        assert "| reassociated |" in table
    assert tables[1] != tables[2]


def test_measuring_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--measure: expected a GPU"):
        info.main(["--measure"])


def test_command_line_without_libraries(python):
    done = python("-m", "pyseg.info", PYSEG_EXT="0", PYSEG_CUDA="auto")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert all(": " in line for line in lines)
    assert "CPU ops: not loaded: PYSEG_EXT=0; plain PyTorch runs instead" in lines
    assert "records: not loaded: PYSEG_EXT=0; Python code reads instead" in lines
    assert any(line.startswith("switches: PYSEG_EXT=0") for line in lines)
