"""A gated recurrent unit that can be traced for any number of frames."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyseg.errors import ArgumentError
from pyseg.nn.linear import linear
from pyseg.nn.normalize import shared_frames
from pyseg.ops import frame_linear, gru_recurrence


class GRU(nn.Module):
    """`torch.nn.GRU` with ``batch_first=True``, for frames that may still be bytes.

    Parameters have the names and the initial distribution of `torch.nn.GRU`, so weights can be
    exchanged with it, but not with TensorFlow 1's cell, which applies the reset gate before the
    product (see `pyseg.ops.gru_recurrence`). The GRU is unidirectional: padding at the end never
    enters the state at a valid frame, so sequences need not be packed.

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
                tile, inside the first product, or on a GPU at once.
            mask: (B, T) bool, True where the frame is valid; bytes of other frames are read as 0.
            dequantization: (3, N), what bytes stand for, see `pyseg.ops.frame_linear`.

        Returns:
            (B, T, H), the state of the last layer after every frame.
        """
        x = shared_frames(x, mask, self.get_parameter("weight_ih_l0"), dequantization)
        for layer in range(self.num_layers):
            weight, bias = self._layer("ih", layer)
            if x.dtype == torch.uint8:
                gates = frame_linear(x, mask, weight, bias, dequantization)
            else:
                gates = linear(x, weight, bias)
            x = gru_recurrence(gates, *self._layer("hh", layer))
        return x

    def _layer(self, kind: str, layer: int) -> tuple[Tensor, Tensor]:
        return (
            self.get_parameter(f"weight_{kind}_l{layer}"),
            self.get_parameter(f"bias_{kind}_l{layer}"),
        )

    def extra_repr(self) -> str:
        """Returns the sizes for `repr`."""
        return f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}"
