"""Matrix products that autocast does not make slower on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from pyseg.ops._dispatch import product_dtype

# With so few rows a product costs less than to cast the weights, and their gradient back, even
# where the processor has a unit for matrices of 16-bit numbers.
_FEW_ROWS = 32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns what `torch.nn.functional.linear` does, in the time of the quicker dtype.

    Autocast casts the weights in every step, and their gradient back. On a CPU that can take longer
    than the product, which itself is slower in bfloat16 than in float32 where there is no unit for
    it (`pyseg.ops._dispatch.product_dtype`). In these cases the product is one of float32, and only
    its result is of autocast's dtype.

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
    dtype = _autocast_dtype(x, weight)
    if dtype is None or not (_slow(dtype) or x.numel() <= _FEW_ROWS * weight.shape[1]):
        return functional.linear(x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        bias = None if bias is None else bias.float()
        return functional.linear(x.float(), weight.float(), bias).to(dtype)


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """Returns what `torch.matmul` does, in the time of the quicker dtype, see `linear`.

    Example:
        >>> matmul(torch.ones(2, 3), torch.ones(3, 1)).tolist()
        [[3.0], [3.0]]
    """
    dtype = _autocast_dtype(x, y)
    if dtype is None or not _slow(dtype):
        return torch.matmul(x, y)
    with torch.autocast("cpu", enabled=False):
        return torch.matmul(x.float(), y.float()).to(dtype)


class Linear(torch.nn.Linear):
    """`torch.nn.Linear` that computes what `linear` does; `pyseg.nn.init` fills its weights.

    Example:
        >>> Linear(8, 3)(torch.randn(2, 8)).shape
        torch.Size([2, 3])
    """

    def reset_parameters(self) -> None:
        """Leaves the weights as they are: random ones would be thrown away, and cost as much again.

        `torch.nn.utils.skip_init`, which is for that, imports sympy (0.5 s and more).
        """

    def forward(self, input: Tensor) -> Tensor:
        """Returns ``input @ weight.T + bias``."""
        return linear(input, self.weight, self.bias)


def _autocast_dtype(x: Tensor, y: Tensor) -> torch.dtype | None:
    """Returns the dtype that autocast would give a product on a CPU, None where it gives none."""
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return None
    return None if torch.float64 in (x.dtype, y.dtype) else torch.get_autocast_dtype("cpu")


def _slow(dtype: torch.dtype) -> bool:
    return product_dtype("cpu", dtype) != dtype
