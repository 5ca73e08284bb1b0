"""The rates of GPUs: their file, what is assumed without it, and the measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pyseg import _rates
from pyseg._rates import Rates
from pyseg.errors import UserError

RATES = Rates(4000, 51, 352, 753, 754)


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gpu_rates.json"


def test_measured_rates_are_kept_by_the_name_of_the_device(path: Path) -> None:
    assert _rates.write_rates("NVIDIA A", RATES) == path
    _rates.write_rates("NVIDIA B", RATES._replace(copy=1))
    _rates.write_rates("NVIDIA B", RATES._replace(copy=2))
    assert _rates.known_rates("NVIDIA A", 9) == (RATES, f"measured, in {path}", None)
    assert _rates.known_rates("NVIDIA B", 9).rates.copy == 2
    assert _rates.known_rates("NVIDIA C", 9) == (_rates.ASSUMED[9], "assumed, as of sm_90", None)


def test_a_cache_that_cannot_be_written_is_named(path: Path) -> None:
    path.parent.write_text("a file")
    with pytest.raises(UserError, match=f"{path.parent}: expected a folder .* PYSEG_CACHE"):
        _rates.make_rates_folder()


@pytest.mark.parametrize(("major", "nearest"), [(7, 8), (8, 8), (9, 9), (12, 9)])
def test_without_a_file_the_nearest_known_device_is_assumed(major: int, nearest: int) -> None:
    known = _rates.known_rates("NVIDIA A", major)
    assert known == (_rates.ASSUMED[nearest], f"assumed, as of sm_{nearest}0", None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff\xfe",
        b"[" * 10**5,
        json.dumps({"devices": {"NVIDIA A": RATES._asdict() | {"copy": 0}}}).encode(),
        json.dumps({"devices": {"NVIDIA A": RATES._asdict() | {"tf32": 1.5}}}).encode(),
        json.dumps({"devices": {"NVIDIA A": RATES._asdict() | {"tf32": 10**12}}}).encode(),
        json.dumps({"devices": {"NVIDIA A": {"copy": 1}}}).encode(),
        json.dumps({"devices": [RATES]}).encode(),
    ],
)
def test_a_damaged_file_is_ignored_with_the_reason(path: Path, content: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    rates, source, problem = _rates.known_rates("NVIDIA A", 8)
    assert (rates, source) == (_rates.ASSUMED[8], "assumed, as of sm_80")
    assert problem.startswith(f"{path}: expected ")
    assert problem.endswith("; ignored")
    _rates.write_rates("NVIDIA A", RATES)
    assert _rates.known_rates("NVIDIA A", 8).rates == RATES


def test_a_gpu_is_looked_up_once_and_a_cpu_has_no_rates(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Device:
        name, major = "NVIDIA A", 9

    path.parent.mkdir()
    path.write_text("{")
    looked_up: list[int] = []
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda index: (looked_up.append(index), Device)[1]
    )
    _rates._of_gpu.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="ignored"):
            assert _rates.rates_of("cuda", 3) == _rates.ASSUMED[9]
        assert _rates.rates_of("cuda", 3) == _rates.ASSUMED[9]
    finally:
        _rates._of_gpu.cache_clear()
    assert looked_up == [3]
    assert _rates.rates_of("cpu", None) is None


def test_measures() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    found = _rates.measure_rates(torch.device("cpu"), size=64, repeats=2)
    assert all(type(rate) is int and rate >= 1 for rate in found)
    assert torch.backends.cuda.matmul.fp32_precision == before
