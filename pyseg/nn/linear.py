"""Matrix products that autocast does not make slower on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from pyseg._int8 import Int8Weights, int8_linear, round_weights, takes_int8
from pyseg.nn.derived import DerivedWeights
from pyseg.ops._dispatch import product_dtype

# With so few rows a float32 product costs less than casting the weights, and their gradient back,
# even on a processor with 16-bit matrix instructions.
_FEW_ROWS = 32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes `torch.nn.functional.linear`, under autocast on a CPU in the faster dtype.

    Autocast casts the weights in every step, and their gradient back. On a CPU that can take longer
    than the product, and without bfloat16 instructions the product itself is slower than in float32
    (`pyseg.ops._dispatch.product_dtype`). In both cases the product is computed in float32, and
    only the result is cast to autocast's dtype.

    Args:
        x: (..., K).
        weight: (N, K).
        bias: (N,) or ``None``.

    Returns:
        (..., N), of the dtype that `torch.nn.functional.linear` returns.

    Example:
        >>> x, weight = torch.randn(2, 8), torch.randn(3, 8)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     linear(x, weight).dtype
        torch.bfloat16
    """
    if not torch.is_autocast_enabled("cpu"):
        return functional.linear(x, weight, bias)
    dtype = _autocast_dtype(x, weight)
    if dtype is None or not (_slow(dtype) or x.numel() <= _FEW_ROWS * weight.shape[1]):
        return functional.linear(x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        bias = None if bias is None else bias.float()
        return functional.linear(x.float(), weight.float(), bias).to(dtype)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Computes `torch.matmul`, under autocast on a CPU in the faster dtype, see `linear`.

    Example:
        >>> matmul(torch.ones(2, 3), torch.ones(3, 1)).tolist()
        [[3.0], [3.0]]
    """
    dtype = _autocast_dtype(x, y) if torch.is_autocast_enabled("cpu") else None
    if dtype is None or not _slow(dtype):
        return torch.matmul(x, y)
    with torch.autocast("cpu", enabled=False):
        return torch.matmul(x.float(), y.float()).to(dtype)


class Linear(DerivedWeights, torch.nn.Linear):
    """`torch.nn.Linear`, computed by `linear`; of integers where `pyseg._int8.takes_int8`.

    Weights are rounded once, and again after they have changed (`DerivedWeights`). Where a gradient
    is needed, and in programs of torch.compile and torch.export, they stay as they are.

    Args:
        in_features: size of the input.
        out_features: size of the output.
        bias: whether there is a bias.
        fill: initializes the weights in place, and the bias is 0; ``None``: both as torch does.

    Example:
        >>> Linear(8, 3)(torch.randn(2, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        fill: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.fill = fill  # which the constructor of the base calls
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        """Initializes weights and bias."""
        if self.fill is None:
            return super().reset_parameters()
        self.fill(self.weight)
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """Returns ``input @ weight.T + bias``."""
        if self._may_cache() and takes_int8(input, self.weight):
            return int8_linear(input, self._cached(self._round), self.bias)
        return linear(input, self.weight, self.bias)

    def _round(self) -> Int8Weights:
        return round_weights(self.weight)


def _autocast_dtype(x: Tensor, y: Tensor) -> torch.dtype | None:
    """Returns the dtype that autocast, on for CPUs, gives a product; None if it does not apply."""
    if x.device.type != "cpu":
        return None
    return None if torch.float64 in (x.dtype, y.dtype) else torch.get_autocast_dtype("cpu")


def _slow(dtype: torch.dtype) -> bool:
    return product_dtype("cpu", dtype) != dtype
