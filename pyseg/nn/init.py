"""Weight initialisation of the reference code."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from pyseg.errors import ArgumentError
from pyseg.nn.linear import Linear


def he_truncated_normal_(tensor: Tensor, fan_in: int) -> Tensor:
    """Fills a weight in place with He initialisation from a truncated normal distribution.

    This is ``variance_scaling_initializer()`` of TensorFlow's slim with its defaults (factor 2,
    fan-in): the normal distribution has the standard deviation sqrt(1.3 * 2 / fan_in) and is cut
    at two of them, which leaves about sqrt(2 / fan_in).

    Args:
        tensor: the weight, of any shape.
        fan_in: number of inputs that one output sums over.

    Returns:
        The same tensor.

    Raises:
        ValueError: `fan_in` is smaller than 1.

    Example:
        >>> weight = he_truncated_normal_(torch.empty(64, 50), fan_in=50)
        >>> bool(weight.abs().max() <= 2 * (1.3 * 2 / 50) ** 0.5)
        True
    """
    if fan_in < 1:
        raise ArgumentError(f"fan_in: expected at least 1, found {fan_in}")
    std = math.sqrt(1.3 * 2.0 / fan_in)
    with torch.no_grad():
        return torch.nn.init.trunc_normal_(tensor, std=std, a=-2.0 * std, b=2.0 * std)


def he_linear(in_features: int, out_features: int, *, bias: bool = True) -> Linear:
    """Makes a linear layer with `he_truncated_normal_` weights and a bias of 0.

    Args:
        in_features: size of the input.
        out_features: size of the output.
        bias: whether the layer has a bias.

    Returns:
        The layer.

    Example:
        >>> he_linear(8, 3)(torch.zeros(2, 8)).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    fill = functools.partial(he_truncated_normal_, fan_in=in_features)
    return Linear(in_features, out_features, bias, fill=fill)


def xavier_linear(in_features: int, out_features: int, *, bias: bool = True) -> Linear:
    """Makes a linear layer with weights of U(+-sqrt(6 / (in + out))) and a bias of 0.

    This is slim's ``fully_connected`` with its defaults.

    Args:
        in_features: size of the input.
        out_features: size of the output.
        bias: whether the layer has a bias.

    Returns:
        The layer.

    Example:
        >>> bool(xavier_linear(8, 4).weight.abs().max() <= 0.5**0.5)
        True
    """
    return Linear(in_features, out_features, bias, fill=torch.nn.init.xavier_uniform_)


def normal_linear(in_features: int, out_features: int) -> Linear:
    """Makes a linear layer without bias, with weights of N(0, 1 / in).

    Args:
        in_features: size of the input.
        out_features: size of the output.

    Returns:
        The layer.

    Example:
        >>> normal_linear(8, 4).bias is None
        True
    """
    fill = functools.partial(torch.nn.init.normal_, std=1.0 / math.sqrt(in_features))
    return Linear(in_features, out_features, False, fill=fill)
