"""Products of 8-bit integers: exact, row by row, and only where the processor is made for them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time

import pytest
import torch

from pyseg import _int8
from pyseg._int8 import has_fast_int8, int8_linear, int8_products, round_weights, takes_int8

needs_int8 = pytest.mark.skipif(not has_fast_int8(), reason="the processor has no VNNI and no AMX")


def steps(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows rounded to steps, and the steps, by the definition in float64."""
    scales = rows.double().abs().amax(1, keepdim=True) / 127
    return torch.where(scales == 0, 0, rows / scales).round(), scales


@needs_int8
@pytest.mark.parametrize("shape", [(1, 3), (7, 64), (64, 1000), (2, 5, 33), (0, 8), (2, 0, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_product_of_the_rounded_numbers(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape) * torch.rand(*shape[:-1], 1)
    weight = torch.randn(50, shape[-1])
    weight[3] = 0
    if x.numel():
        x.view(-1, shape[-1])[0] = 0
    shift = torch.randn(50) if bias else None
    found = int8_linear(x, round_weights(weight), shift)
    rows, of_rows = steps(x.reshape(-1, shape[-1]))
    columns, of_columns = steps(weight)
    expected = (rows @ columns.T) * of_rows * of_columns.T + (0 if shift is None else shift)
    assert found.shape == (*shape[:-1], 50)
    # Half a step may be rounded either way, which is rare: nothing but that differs.
    torch.testing.assert_close(found.double(), expected.view(found.shape), rtol=1e-5, atol=2e-4)


@needs_int8
def test_the_error_is_that_of_rounding() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 2048), torch.randn(32, 2048)
    exact = x.double() @ weight.double().T
    error = (int8_linear(x, round_weights(weight)) - exact).norm() / exact.norm()
    # Uniform within a step of max / 127, and max is 3.5 standard deviations: 0.8 % from each side.
    assert 0.008 < error < 0.014


@needs_int8
def test_a_row_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(70, 300), round_weights(torch.randn(40, 300))
    x[5] *= 1e6
    alone = torch.cat([int8_linear(row[None], weights) for row in x])
    assert torch.equal(int8_linear(x, weights), alone)


@needs_int8
def test_sums_of_the_widest_rows_do_not_overflow() -> None:
    width = _int8._MOST_FEATURES
    weight = torch.ones(2, width) * torch.tensor([[1.0], [-1.0]])
    for sign in (1.0, -1.0):
        found = int8_linear(torch.full((3, width), sign), round_weights(weight))
        torch.testing.assert_close(found, torch.tensor([[sign, -sign]] * 3) * width)


@needs_int8
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_not_hidden(value: float) -> None:
    x = torch.ones(3, 16)
    x[1, 4] = value
    finite = int8_linear(x, round_weights(torch.randn(5, 16))).isfinite()
    assert finite.tolist() == [[True] * 5, [False] * 5, [True] * 5]


def test_only_large_float32_layers_take_it() -> None:
    x, large, small = torch.ones(1, 1024), torch.ones(512, 1024), torch.ones(256, 1024)
    wide = torch.ones(8, _int8._MOST_FEATURES + 1)
    assert not takes_int8(x, large)
    with int8_products(True):
        assert takes_int8(x, large)
        assert not takes_int8(x, small)
        assert not takes_int8(wide, wide)
        assert not takes_int8(x.double(), large.double())
        assert not takes_int8(x.bfloat16(), large)
        with int8_products(False):
            assert not takes_int8(x, large)
        assert takes_int8(x, large)
    assert not takes_int8(x, large)


@pytest.fixture
def asked_anew():
    has_fast_int8.cache_clear()
    yield
    has_fast_int8.cache_clear()


def saturated(rounded: torch.Tensor, weights: object) -> torch.Tensor:
    return torch.full((64, 256), 32767.0 * 1024)


def missing(rounded: torch.Tensor, weights: object) -> torch.Tensor:
    raise RuntimeError("could not create a primitive descriptor for the matmul primitive")


def slow(rounded: torch.Tensor, weights: object) -> torch.Tensor:
    time.sleep(0.3)
    return torch.full((64, 256), 127.0 * 127 * 2048)


@pytest.mark.parametrize("product", [saturated, missing, slow])
def test_products_that_are_wrong_slow_or_missing_are_found_out(
    monkeypatch: pytest.MonkeyPatch, asked_anew, product
) -> None:
    monkeypatch.setattr(_int8, "round_weights", lambda weight: None)
    monkeypatch.setattr(_int8, "_product", product)
    assert not has_fast_int8()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="not an x86 processor")
def test_a_processor_without_vnni_keeps_float32() -> None:
    code = """if True:
        import torch
        from pyseg._precision import Precision
        print([Precision.on(torch.device("cpu"), "int8").name for _ in range(2)])
    """
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "DNNL_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == "['fp32', 'fp32']\n"
    assert found.stderr.count("precision int8: expected a processor that multiplies 8-bit") == 1
