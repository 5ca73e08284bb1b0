"""Products of float32 rows with weights of 8-bit integers, on a CPU, by torch's oneDNN."""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

_LEVELS = 127  # a value is one of -127..127 steps
# oneDNN is fast where the rows are unsigned: elsewhere than on AMX, signed ones take its reference.
_ZERO = 128
# What a sum of 32 bits holds if every product is the largest.
_MOST_FEATURES = (2**31 - 1) // (255 * _LEVELS)
# Of fewer weights the product takes about as long as rounding its input.
_FEWEST_WEIGHTS = 2**18


class _State(threading.local):
    used = False


_state = _State()


@contextlib.contextmanager
def int8_products(used: bool) -> Iterator[None]:
    """Lets `pyseg.nn.linear.Linear` multiply 8-bit integers, in this thread; or forbids it."""
    before, _state.used = _state.used, used
    try:
        yield
    finally:
        _state.used = before


def has_large_layer(model: nn.Module) -> bool:
    """Returns whether a model has a linear layer that `int8_products` makes faster."""
    return any(
        isinstance(layer, nn.Linear) and _is_large(layer.weight) for layer in model.modules()
    )


def _is_large(weight: Tensor) -> bool:
    return weight.numel() > _FEWEST_WEIGHTS and weight.shape[1] <= _MOST_FEATURES


def takes_int8(x: Tensor, weight: Tensor) -> bool:
    """Returns whether a layer has to multiply 8-bit integers.

    That is so inside `int8_products` on a CPU, where the weights are many, and the sum of a row
    cannot overflow.

    Args:
        x: (..., K).
        weight: (N, K).
    """
    return (
        _state.used
        and weight.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and _is_large(weight)
    )


class Int8Weights(NamedTuple):
    """Weights (N, K) as 8-bit integers."""

    packed: Tensor  # in oneDNN's own layout
    scales: Tensor  # (N,) float32: what 1 stands for in each row
    zeros: Tensor  # (N,) int32: the integer that stands for 0, which is 0


def round_weights(weight: Tensor) -> Int8Weights:
    """Rounds the weights (N, K) of a linear layer to 127 steps of each sign, row by row.

    Args:
        weight: (N, K) float32.

    Example:
        >>> round_weights(torch.tensor([[0.0, 0.5], [1.0, -127.0]])).scales.tolist()
        [0.003937007859349251, 1.0]
    """
    scales = _scales(weight)
    rounded = torch.div(weight, scales).round_().to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(rounded, None)
    return Int8Weights(packed, scales.flatten(), torch.zeros(len(weight), dtype=torch.int32))


def int8_linear(x: Tensor, weights: Int8Weights, bias: Tensor | None = None) -> Tensor:
    """Computes `torch.nn.functional.linear` of rows and weights rounded to 8-bit integers.

    Every row of x is rounded to 127 steps of each sign of its own, so that it does not depend on
    the rows beside it. Sums of integers are exact.

    Args:
        x: (..., K) float32.
        weights: (N, K), of `round_weights`.
        bias: (N,) or ``None``.

    Returns:
        (..., N) float32. No value is finite of a row with a value that is not.

    Example:
        >>> x, weight = torch.randn(2, 8), torch.randn(3, 8)
        >>> found = int8_linear(x, round_weights(weight))
        >>> bool((found - functional.linear(x, weight)).abs().max() < 0.2)
        True
    """
    rows = x.reshape(-1, x.shape[-1])
    scales = _scales(rows)
    # The conversion cuts off, so with the half it rounds.
    rounded = (rows * (1 / scales)).add_(_ZERO + 0.5).to(torch.uint8)
    result = _product(rounded, weights).mul_(scales)
    if bias is not None:
        result += bias
    return result.view(*x.shape[:-1], result.shape[1])


def _scales(rows: Tensor) -> Tensor:
    """Returns what 1 stands for in each row, (M, 1)."""
    # Together they take less than half the time of torch.aminmax.
    largest = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True))
    # Of zeros any scale is right whose inverse is finite.
    return largest.div_(_LEVELS).clamp_(min=torch.finfo(torch.float32).tiny)


def _product(rounded: Tensor, weights: Int8Weights) -> Tensor:
    """Returns (M, N) of integers (M, K) that `_ZERO` was added to."""
    product: Tensor = torch.ops.onednn.qlinear_pointwise(
        rounded, 1.0, _ZERO, *weights, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product


@functools.cache
def has_fast_int8() -> bool:
    """Returns whether this processor multiplies 8-bit integers exactly, and fast.

    It is found out by a product, in a fraction of a second. Processors with VNNI or AMX are exact.
    Others add two products to a number of 16 bits, which may not hold the sum; they gain little.
    oneDNN's reference is exact everywhere, but a hundred times as slow: the times tell that on a
    busy machine, too, so that the answer is always the same.
    """
    rows, inner, columns = 64, 2048, 256
    weights = torch.full((columns, inner), float(_LEVELS))
    x = torch.full((rows, inner), 255, dtype=torch.uint8)
    try:
        rounded = round_weights(weights)
        exact = bool((_product(x, rounded) == float((255 - _ZERO) * _LEVELS * inner)).all())
    except (AttributeError, RuntimeError):  # torch was built without oneDNN
        return False
    if not exact:
        return False
    floats = x.float()
    contenders: list[Callable[[], Tensor]] = [
        lambda: _product(x, rounded),
        lambda: functional.linear(floats, weights),
    ]
    best = [float("inf")] * 2
    for _ in range(3):
        for number, product in enumerate(contenders):
            start = time.perf_counter()
            product()
            best[number] = min(best[number], time.perf_counter() - start)
    return best[0] < 10 * best[1]
