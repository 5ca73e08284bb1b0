"""Devices, inputs and error measures shared by the tests of the ops."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pyseg import _ext
from pyseg.ops import AssignmentNorm, moments, moments_reference

needs_cpu_ops = pytest.mark.skipif(not _ext.HAS_CPU_OPS, reason=f"no CPU ops: {_ext.CPU_REASON}")

# Inductor imports deprecated parts of torch.
ignore_deprecations_of_torch = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def device_parameter(name: str):
    if name == "cpu":
        return pytest.param("cpu", marks=needs_cpu_ops)
    reason = _ext.CUDA_REASON or "no CUDA GPU"
    absent = not (_ext.HAS_CUDA_OPS and torch.cuda.is_available())
    return pytest.param("cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(absent, reason=reason)])


DEVICES = [device_parameter("cpu"), device_parameter("cuda")]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS = ["contiguous", "permuted", "sliced", "expanded"]
NORMS = ["constants", "statistics"]  # kinds of mean and variance of an AssignmentNorm


def half(*dimensions: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Returns half of the product of three or more dimensions, with every pair of values."""
    cases = itertools.product(*(enumerate(values) for values in dimensions))
    return [tuple(value for _, value in case) for case in cases if sum(i for i, _ in case) % 2 == 0]


def with_layout(tensor: Tensor, layout: str) -> Tensor:
    """Returns the same values in another memory layout."""
    if layout == "permuted":
        return tensor.mT.contiguous().mT
    if layout == "sliced":
        larger = tensor.new_full([size + 1 for size in tensor.shape], float("nan"))
        view = larger[tuple(slice(1, None) for _ in tensor.shape)]
        return view.copy_(tensor)
    if layout == "expanded" and tensor.shape[0] > 0:  # the first video (or feature) everywhere
        return tensor[:1].expand_as(tensor)
    return tensor


def make(
    shape: tuple[int, ...] = (2, 3, 2, 5, 4),
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    layout: str = "contiguous",
    grad: bool = True,
    seed: int = 0,
    scale: float = 1.0,
) -> list[Tensor]:
    """Returns features, assignment, attention and centers."""
    b, t, g, f, k = shape
    random = torch.Generator().manual_seed(seed)
    tensors = [
        torch.randn(b, t, g, f, generator=random, dtype=torch.float64),
        torch.randn(b, t, g, k, generator=random, dtype=torch.float64) * scale,
        torch.rand(b, t, g, generator=random, dtype=torch.float64),
        torch.randn(f, k, generator=random, dtype=torch.float64),
    ]
    tensors = [with_layout(tensor.to(device, dtype), layout) for tensor in tensors]
    return [tensor.detach().requires_grad_(grad) for tensor in tensors]


def make_norm(
    assignment: Tensor, kind: str = "constants", *, grad: bool = True
) -> tuple[list[Tensor], Tensor | None]:
    """Returns the differentiable tensors of a normalisation, and its row weights.

    These tensors are mean, variance, weight and bias, or only the last two if mean and variance are
    statistics of the assignment. The row weights then leave every third frame out.
    """
    b, t, g, k = assignment.shape
    dtype = torch.promote_types(assignment.dtype, torch.float32)
    random = torch.Generator().manual_seed(2)
    weight, bias = (torch.rand(g * k, generator=random, dtype=torch.float64) + 0.5 for _ in "wb")
    tensors, row_weights = [weight, bias], None
    if kind == "statistics":
        row_weights = torch.rand(b, t, generator=random, dtype=torch.float64) + 0.5
        row_weights.view(-1)[1::3] = 0
        row_weights = (row_weights / row_weights.sum()).to(assignment.device, dtype)
    else:
        columns = assignment.detach().cpu().double().flatten(0, 1).flatten(1)
        tensors = [*moments_reference(columns), weight, bias]
    tensors = [tensor.to(assignment.device, dtype).requires_grad_(grad) for tensor in tensors]
    return tensors, row_weights


def normalizing(
    function: Callable[..., Tensor],
    inputs: int,
    row_weights: Tensor | None,
    statistics: Callable[..., tuple[Tensor, Tensor]] = moments,
) -> Callable[..., Tensor]:
    """Returns `function` of its `inputs` tensors followed by those of :func:`make_norm`.

    Mean and variance that are not given are computed from the assignment, so that the gradient is
    the total derivative.
    """

    def call(*tensors: Tensor) -> Tensor:
        assignment = tensors[0 if inputs == 2 else 1]
        constants = tensors[inputs:]
        if row_weights is not None:
            weights = row_weights.to(torch.promote_types(assignment.dtype, torch.float32))
            columns = assignment.flatten(0, 1).flatten(1)
            constants = (*statistics(columns, weights.flatten()), *constants)
        else:
            weights = None
        norm = AssignmentNorm(*constants, 1e-3, weights)
        return function(*tensors[:inputs], norm=norm)

    return call


def normalize_plainly(
    assignment: Tensor, tensors: tuple[Tensor, ...], row_weights: Tensor | None
) -> Tensor:
    """Returns the normalised assignment by the plain formula, all in its dtype."""
    shape, dtype = assignment.shape[2:], assignment.dtype
    if row_weights is not None:
        weights = row_weights.to(dtype)[..., None, None]
        mean = (assignment * weights).sum((0, 1))
        tensors = (mean, ((assignment - mean).square() * weights).sum((0, 1)), *tensors)
    mean, variance, weight, bias = (tensor.to(dtype).reshape(shape) for tensor in tensors)
    return (assignment - mean) * (variance + 1e-3).rsqrt() * weight + bias


def values_and_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor
) -> list[Tensor]:
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, grad.to(output))]


def in_float64(inputs: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in inputs]


def assert_error_is_at_most_twice(
    names: list[str], actual: list[Tensor], baseline: list[Tensor], exact: list[Tensor]
) -> None:
    """Checks that errors against `exact` are at most twice those of `baseline`, plus a digit.

    If `baseline` overflows, they may be 4 digits of the largest value.
    """
    for name, value, base, true in zip(names, actual, baseline, exact, strict=True):
        assert value.dtype == base.dtype
        assert value.shape == true.shape
        assert true.isfinite().all(), name
        if not true.numel():
            continue
        # The largest of few errors is random: plain PyTorch may even be exact.
        digit = torch.finfo(actual[0].dtype).eps * true.abs().amax()
        error, allowed = value.double() - true, base.double() - true
        finite = base.isfinite()
        if not finite.all():
            assert error[~finite].abs().amax() <= 4 * digit, name
            error, allowed = error[finite], allowed[finite]
        if finite.any():
            assert error.abs().amax() <= 2 * allowed.abs().amax() + digit, name
            assert error.norm() <= 2 * allowed.norm() + digit, name
