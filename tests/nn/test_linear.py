"""The dtypes in which products under autocast are computed, and that nothing else changes."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional

from pyseg._int8 import has_fast_int8, int8_linear, int8_products, round_weights
from pyseg.nn.linear import _FEW_ROWS, Linear, linear, matmul
from pyseg.ops import _dispatch


@pytest.fixture(params=[True, False], ids=["slow", "fast"])
def slow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether this processor is taken to be slow in bfloat16."""
    monkeypatch.setattr(_dispatch, "_SLOW_BFLOAT16", request.param)
    found: bool = request.param
    return found


@pytest.fixture
def tensors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, _FEW_ROWS, 70), torch.randn(5, 70), torch.randn(5)


def test_without_autocast_it_is_torchs(tensors, slow: bool) -> None:
    x, weight, bias = tensors
    assert torch.equal(linear(x, weight, bias), functional.linear(x, weight, bias))
    assert torch.equal(matmul(x, weight.t()), x @ weight.t())
    low = [tensor.bfloat16() for tensor in tensors]
    assert torch.equal(linear(*low), functional.linear(*low))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("few", [True, False])
def test_autocast_products_use_the_faster_dtype(
    tensors, dtype: torch.dtype, few: bool, slow: bool
) -> None:
    x, weight, bias = tensors
    x = (x[0] if few else x).to(dtype)
    exact = functional.linear(x.float(), weight, bias).to(dtype)
    slow = slow and dtype == torch.bfloat16
    with torch.autocast("cpu", dtype):
        usual = functional.linear(x, weight, bias)
        found, product = linear(x, weight, bias), matmul(x, weight.t())
    assert not torch.equal(usual, exact)  # of rounded weights
    assert torch.equal(found, exact if slow or few else usual)
    assert torch.equal(product, (x.float() @ weight.t()).to(dtype)) is slow
    assert product.dtype == dtype


def test_float64_is_left_alone(tensors, slow: bool) -> None:
    x, weight, bias = (tensor.double() for tensor in tensors)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(linear(x, weight, bias), functional.linear(x, weight, bias))
        assert matmul(x, weight.t()).dtype == torch.float64


def test_gradients_are_those_of_float32(tensors) -> None:
    layer = Linear(70, 5)
    other = copy.deepcopy(layer)
    x = tensors[0][0].bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = layer(x).float().square().sum()
    loss.backward()
    y = functional.linear(x.detach().float(), other.weight, other.bias).bfloat16()
    y.float().square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(layer.weight.grad, other.weight.grad, rtol=0, atol=0)
    torch.testing.assert_close(layer.bias.grad, other.bias.grad, rtol=0, atol=0)


def test_compiles_whole_for_any_number_of_rows(slow: bool) -> None:
    layer = Linear(6, 3)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend="eager")
    for rows in (2, 7, 2 * _FEW_ROWS, 5):
        x = torch.randn(rows, 6)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(compiled(x), layer(x))


@pytest.mark.skipif(not has_fast_int8(), reason="the processor has no VNNI and no AMX")
@torch.no_grad()
def test_large_layers_multiply_integers_where_that_is_asked_for() -> None:
    torch.manual_seed(0)
    layer, x = Linear(1024, 300).eval(), torch.randn(4, 1024)
    exact = layer(x)
    with int8_products(True):
        rounded = layer(x)
        assert torch.equal(rounded, int8_linear(x, round_weights(layer.weight), layer.bias))
        assert not torch.equal(rounded, exact)
        layer.weight *= 2
        assert torch.equal(layer(x), int8_linear(x, round_weights(layer.weight), layer.bias))
        layer.weight /= 2
        # What derives nothing keeps the weights: a gradient, training, programs.
        compiled = torch.compile(layer, fullgraph=True, backend="eager")
        with torch.enable_grad():
            assert torch.equal(layer(x), exact)
        assert torch.equal(compiled(x), exact)
        [in_thread] = ThreadPoolExecutor(1).map(layer, [x])
        assert torch.equal(in_thread, exact)
        assert torch.equal(layer.train()(x), exact)
        copied = copy.deepcopy(layer.eval())
        assert torch.equal(copied(x), rounded)
        assert copied.state_dict().keys() == {"weight", "bias"}
    assert torch.equal(layer(x), exact)
