from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch

from pyseg import _precision
from pyseg._int8 import takes_int8
from pyseg._precision import Precision, allow_tf32

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture(autouse=True)
def float32_products() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    ("device", "name", "tf32", "expected"),
    [
        (CPU, None, None, Precision("fp32", False)),
        (CPU, "bf16", None, Precision("bf16", False)),
        (CPU, None, True, Precision("fp32", True)),
        (GPU, None, None, Precision("bf16", True)),
        (GPU, "fp16", None, Precision("fp16", True)),
        (GPU, "fp32", None, Precision("fp32", False)),
        (GPU, "fp32", True, Precision("fp32", True)),
        (GPU, None, False, Precision("bf16", False)),
    ],
)
def test_defaults_are_those_of_the_device(device, name, tf32, expected) -> None:
    assert Precision.on(device, name, tf32) == expected


@pytest.mark.parametrize("wrong", ["fp64", "BF16", "bfloat16", torch.bfloat16, 3, ""], ids=str)
def test_other_values_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="precision: expected one of fp32, bf16, fp16"):
        Precision.on(CPU, wrong)
    with pytest.raises(ValueError, match="tf32: expected True, False or None"):
        Precision.on(CPU, None, wrong)


@pytest.mark.parametrize("fast", [True, False])
def test_int8_is_for_processors_that_are_fast_with_it(monkeypatch, caplog, fast) -> None:
    monkeypatch.setattr(_precision, "has_fast_int8", lambda: fast)
    _precision._int8_or_fp32.cache_clear()
    found = [Precision.on(CPU, "int8") for _ in range(2)]
    _precision._int8_or_fp32.cache_clear()
    assert found == [Precision("int8" if fast else "fp32")] * 2
    assert len(caplog.records) == (0 if fast else 1)  # it says so once
    with pytest.raises(ValueError, match=r"precision: expected .* on a GPU; found 'int8', which"):
        Precision.on(GPU, "int8")


@pytest.mark.parametrize("width", [512, 513])
def test_int8_is_for_models_with_a_large_layer(monkeypatch, caplog, width) -> None:
    monkeypatch.setattr(_precision, "_int8_or_fp32", lambda: "int8")
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(512, width))
    found = Precision.on(CPU, "int8", model=model)
    assert found == Precision("int8" if width > 512 else "fp32")
    assert [
        r.message.startswith("precision int8: expected a model with") for r in caplog.records
    ] == [True] * (width == 512)


def test_int8_is_left_after_an_error() -> None:
    x, weight = torch.ones(1, 1024), torch.ones(512, 1024)
    with contextlib.suppress(ZeroDivisionError), Precision("int8").used_on(CPU):
        assert takes_int8(x, weight)
        with Precision("fp32").used_on(CPU):
            assert not takes_int8(x, weight)
        assert (torch.ones(2, 3) @ torch.ones(3, 2)).dtype == torch.float32
        _ = 1 / 0
    assert not takes_int8(x, weight)


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_products_have_the_dtype(name, dtype) -> None:
    def found() -> torch.dtype:
        return (torch.ones(2, 3) @ torch.ones(3, 2)).dtype

    with torch.autocast("cpu", torch.bfloat16):  # the caller's, which a precision replaces
        with Precision(name).used_on(CPU):
            assert found() == dtype
        assert found() == torch.bfloat16
    assert found() == torch.float32


def state() -> tuple[str, str]:
    return torch.backends.cuda.matmul.fp32_precision, torch.get_float32_matmul_precision()


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_restored_after_an_error(before, allowed) -> None:
    torch.set_float32_matmul_precision(before)
    expected = state()
    with contextlib.suppress(ZeroDivisionError), Precision(tf32=allowed).used_on(CPU):
        assert (state()[0] == "tf32") == allowed
        assert (state()[1] != "highest") == allowed
        _ = 1 / 0
    assert state() == expected


def test_tf32_is_restored_where_the_caller_used_its_newer_name() -> None:
    matmul = torch.backends.cuda.matmul
    torch.set_float32_matmul_precision("highest")
    matmul.fp32_precision = "tf32"
    with allow_tf32(False):
        assert matmul.fp32_precision == "ieee"
        with allow_tf32(True):
            assert matmul.fp32_precision == "tf32"
        assert matmul.fp32_precision == "ieee"
    assert matmul.fp32_precision == "tf32"


def test_gpus_without_bfloat16_products_compute_in_float32(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for capability, name in (((7, 5), "fp32"), ((8, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert Precision.on(GPU).name == name
