"""A gated recurrent unit that can be traced for any number of frames."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyseg.errors import ArgumentError
from pyseg.nn.linear import linear
from pyseg.ops import frame_linear, gru_recurrence
from pyseg.ops.frames import dequantize
from pyseg.ops.gru import fused_gru, has_fused_gru


class GRU(nn.Module):
    """`torch.nn.GRU` with ``batch_first=True``, for frames that may still be bytes.

    Parameters have the names and the initial distribution of `torch.nn.GRU`, so weights can be
    exchanged with it, but not with TensorFlow 1's cell, which applies the reset gate before the
    product (see `pyseg.ops.gru_recurrence`). The GRU is unidirectional: padding at the end never
    enters the state at a valid frame, so sequences need not be packed. On a GPU cuDNN computes the
    states, except in a traced module, whose one node for all frames is `pyseg.ops.gru_recurrence`.

    Args:
        input_size: size N of a frame.
        hidden_size: size H of the state.
        num_layers: number of layers, each reading the states of the one before.

    Raises:
        ValueError: a size is smaller than 1.

    Example:
        >>> GRU(input_size=64, hidden_size=32)(torch.randn(2, 10, 64)).shape
        torch.Size([2, 10, 32])
    """

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_layers": num_layers}
        for name, value in sizes.items():
            if value < 1:
                raise ArgumentError(f"{name}: expected at least 1, found {value}")
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        bound = 1.0 / math.sqrt(hidden_size)
        for layer in range(num_layers):
            size = input_size if layer == 0 else hidden_size
            for name, shape in (
                ("weight_ih", (3 * hidden_size, size)),
                ("weight_hh", (3 * hidden_size, hidden_size)),
                ("bias_ih", (3 * hidden_size,)),
                ("bias_hh", (3 * hidden_size,)),
            ):
                parameter = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
                self.register_parameter(f"{name}_l{layer}", parameter)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, dequantization: Tensor | None = None
    ) -> Tensor:
        """Reads a batch, starting from a state of 0.

        Args:
            x: (B, T, N), floating, or uint8 as YouTube-8M stores it: bytes are dequantised tile by
                tile, inside the first product, and for cuDNN all at once.
            mask: (B, T) bool, True where the frame is valid; bytes of other frames are read as 0.
            dequantization: (3, N), what bytes stand for, see `pyseg.ops.frame_linear`.

        Returns:
            (B, T, H), the state of the last layer after every frame.
        """
        for layer in range(self.num_layers):
            weight_ih, weight_hh, bias_ih, bias_hh = (
                self.get_parameter(f"{name}_l{layer}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            if has_fused_gru(weight_ih) and x.numel():
                if x.dtype == torch.uint8:
                    x = dequantize(x, mask, weight_ih.dtype, dequantization)
                x = fused_gru(x, weight_ih, weight_hh, bias_ih, bias_hh)
                continue
            if x.dtype == torch.uint8:
                gates = frame_linear(x, mask, weight_ih, bias_ih, dequantization)
            else:
                gates = linear(x, weight_ih, bias_ih)
            x = gru_recurrence(gates, weight_hh, bias_hh)
        return x

    def extra_repr(self) -> str:
        """Returns the sizes for `repr`."""
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
