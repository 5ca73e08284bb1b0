"""The operator batch_statistics_, and the norm that `BatchNorm.deferred` makes with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pyseg import _ext
from pyseg.nn import BatchNorm
from pyseg.ops import AssignmentNorm, soft_assign, soft_assign_reference
from pyseg.ops.assignment import (
    PackedNorm,
    batch_statistics_,
    batch_statistics_reference_,
)
from tests.ops.conftest import DEVICES, DTYPES, needs_cpu_ops, with_layout

pytestmark = pytest.mark.skipif(not _ext.HAS_CPU_OPS, reason="no kernel")
COLUMNS = 19
NAMES = "weight", "bias", "deferred_bias", "running_mean", "running_var"


def make_vectors(dtype: torch.dtype, device: str, columns: int = COLUMNS) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    sums = torch.promote_types(dtype, torch.float32)
    return [(torch.rand(columns, generator=random) + 0.5).to(device, sums) for _ in NAMES]


@pytest.mark.parametrize("momentum", [0.0, 0.25, 0.75, 1.0])
@pytest.mark.parametrize("rows", [(1,), (7,), (4, 70)])
@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_is_what_plain_pytorch_computes(device, dtype, layout, rows, momentum):
    torch.manual_seed(0)
    x = with_layout((torch.randn(*rows, COLUMNS) + 3).to(device, dtype), layout)
    exact = x.double().flatten(0, -2)
    mean, var = exact.mean(0), exact.var(0, correction=0)
    count = len(exact)
    for deferred in (False, True):
        for unbiased in (False, True):
            vectors = make_vectors(dtype, device)
            weight, bias, shift, running_mean, running_var = [v.double().clone() for v in vectors]
            if not deferred:
                vectors[2], shift = None, torch.zeros_like(shift)
            if layout == "permuted":
                vectors[3:] = [torch.stack((v, v), -1)[:, 0] for v in vectors[3:]]
            start = [v if v is None else v.clone() for v in vectors]
            moments, norm = batch_statistics_(x, *vectors, momentum, 1e-3, unbiased)
            own = [v if v is None else v.clone() for v in start]
            defined = batch_statistics_reference_(x, *own, momentum, 1e-3, unbiased)
            torch.testing.assert_close(defined, (moments, norm), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(own[3:], vectors[3:], rtol=1e-5, atol=1e-5)
            factor = count / max(count - 1, 1) if unbiased else 1.0
            expected = {
                "moments": torch.stack((mean, var)),
                "norm": torch.stack((mean, (var + 1e-3).rsqrt(), weight, bias)),
                "running_mean": running_mean.lerp(mean + shift, momentum),
                "running_var": running_var.lerp(var * factor, momentum),
            }
            found = dict(zip(expected, (moments, norm, *vectors[3:]), strict=True))
            tolerance = 1e-12 if dtype == torch.float64 else 2e-6
            for name, value in expected.items():
                assert found[name].dtype == torch.promote_types(dtype, torch.float32)
                torch.testing.assert_close(
                    found[name].double(), value, rtol=tolerance, atol=tolerance, msg=name
                )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(0, COLUMNS), (3, 0, COLUMNS), (4, 0)])
def test_without_rows_or_columns(shape, device):
    vectors = make_vectors(torch.float32, device, shape[-1])
    before = [vector.clone() for vector in vectors]
    x = torch.zeros(shape, device=device)
    moments, norm = batch_statistics_(x, *vectors, 0.5, 1e-3, True)
    assert moments.shape == (2, shape[-1])
    assert norm.shape == (4, shape[-1])
    for now, then in zip(vectors, before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(device, dtype):
    vectors = make_vectors(dtype, device)
    x = torch.randn(3, 5, COLUMNS, device=device).to(dtype)
    op = torch.ops.pyseg.batch_statistics_.default
    torch.library.opcheck(op, (x, *vectors, 0.1, 1e-3, False))
    vectors[2] = None
    torch.library.opcheck(op, (x[0], *vectors, 0.1, 1e-3, True))


def test_gradient_is_refused():
    x = torch.randn(3, COLUMNS, requires_grad=True)
    vectors = make_vectors(torch.float32, "cpu")
    moments, _ = torch.ops.pyseg.batch_statistics_(x, *vectors, 0.1, 1e-3, False)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        moments.sum().backward()


@pytest.mark.parametrize("name", NAMES)
def test_error_texts(name):
    place, x = NAMES.index(name), torch.zeros(3, COLUMNS)

    def call(wrong: Tensor) -> None:
        vectors = make_vectors(torch.float32, "cpu")
        vectors[place] = wrong
        batch_statistics_(x, *vectors, 0.1, 1e-3, False)

    with pytest.raises(
        RuntimeError, match=rf"{name}: expected shape \(C,\) = \(19,\), found \(18,\)"
    ):
        call(torch.zeros(18))
    with pytest.raises(RuntimeError, match=f"{name}: expected Float, found Double"):
        call(torch.zeros(COLUMNS).double())
    with pytest.raises(RuntimeError, match=r"x: expected shape \(..., C\), found \(\)"):
        batch_statistics_(torch.zeros(()), *make_vectors(torch.float32, "cpu"), 0.1, 1e-3, False)


@needs_cpu_ops
@pytest.mark.parametrize("momentum", [0.25, 0.75])
@pytest.mark.parametrize("unbiased", [False, True])
def test_norm_of_a_layer_is_that_of_traced_operators(momentum, unbiased, monkeypatch):
    torch.manual_seed(0)
    x, bias = torch.randn(4, 6, COLUMNS), torch.randn(COLUMNS)
    results = []
    for is_plain in (None, lambda _: False):
        if is_plain is not None:
            monkeypatch.setattr("pyseg.nn.batch_norm.is_plain", is_plain)
        layer = BatchNorm(COLUMNS, momentum=momentum, unbiased=unbiased)
        version = layer.running_mean._version, layer.running_var._version
        norm = layer.deferred(x, deferred_bias=bias)
        assert isinstance(norm, PackedNorm) == (is_plain is None)
        assert layer.running_mean._version > version[0]
        assert layer.running_var._version > version[1]
        results.append([norm.mean, norm.variance, layer.running_mean, layer.running_var])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@needs_cpu_ops
def test_packed_norm_is_an_assignment_norm():
    torch.manual_seed(0)
    layer, x = BatchNorm(6), torch.randn(4, 5, 6)
    norm, attention = layer.deferred(x), torch.rand(4, 5, 2)
    z = x.view(4, 5, 2, 3).requires_grad_()
    leaves = [z, layer.weight, layer.bias]
    grad = torch.randn(4, 5, 2, 3)
    unpacked = norm._replace(eps=1e-3)
    assert unpacked.packed is None
    results = [
        (y, *torch.autograd.grad(y, leaves, grad))
        for y in (
            soft_assign(z, attention, norm=norm),
            soft_assign(z, attention, norm=unpacked),
            soft_assign(z, attention, norm=AssignmentNorm(*norm)),
            soft_assign_reference(z, attention, norm=norm),
        )
    ]
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-5, atol=1e-6)
    with pytest.raises(
        ValueError, match=r"norm.mean: expected shape \(G\*K,\) or \(G, K\) = \(2, 4\)"
    ):
        soft_assign(torch.zeros(4, 5, 2, 4), attention, norm=norm)
