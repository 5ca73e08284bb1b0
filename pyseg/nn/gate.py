"""Squeeze-and-excitation context gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyseg.errors import ArgumentError
from pyseg.nn.batch_norm import BatchNorm
from pyseg.nn.init import he_linear


class ContextGate(nn.Module):
    """Scales every feature by a gate computed from all of them: x * sigmoid(W2 relu(BN(W1 x))).

    As in the public reference code, neither product has a bias, batch normalisation follows only
    the first (the NeXtVLAD paper's figure shows it after both), and its running variance is
    unbiased.

    Source: reference NeXtVLAD code, nextvlad.py, lines 152-175; "SE context gating" in Lin et al.,
    NeXtVLAD, 2018, section 3.3.

    Args:
        num_features: size H of the input and the output.
        reduction: the inner size is H // reduction.
        batch_norm_momentum: momentum of the batch normalisation.

    Raises:
        ValueError: `reduction` leaves no inner feature.

    Example:
        >>> ContextGate(32, reduction=4)(torch.randn(6, 32)).shape
        torch.Size([6, 32])
    """

    def __init__(
        self, num_features: int, reduction: int = 8, *, batch_norm_momentum: float = 0.001
    ) -> None:
        super().__init__()
        if not 1 <= reduction <= num_features:
            raise ArgumentError(f"reduction: expected 1..{num_features}, found {reduction}")
        inner = num_features // reduction
        self.squeeze = he_linear(num_features, inner, bias=False)
        self.norm = BatchNorm(inner, momentum=batch_norm_momentum, unbiased=True)
        self.excite = he_linear(inner, num_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Gates a batch.

        Args:
            x: (B, H).

        Returns:
            (B, H).
        """
        return x * torch.sigmoid(self.excite(torch.relu(self.norm(self.squeeze(x)))))
