"""The projections of YouTube-8M's features: PCA and whitening."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

_WHITENING = 1e-4


class Projection(nn.Module):
    """y = (x - mean) @ vectors / deviations.

    Example:
        >>> halve = Projection(np.ones(2), np.eye(2), np.full(2, 2.0))
        >>> halve(torch.tensor([[1.0, 5.0]]))
        tensor([[0., 2.]])
    """

    mean: Tensor
    vectors: Tensor
    deviations: Tensor

    def __init__(
        self, mean: npt.ArrayLike, vectors: npt.ArrayLike, deviations: npt.ArrayLike
    ) -> None:
        """Makes the projection.

        Args:
            mean: (N,) values.
            vectors: (N, K) values, a vector in each column.
            deviations: (K,) positive values.
        """
        super().__init__()
        for name, value in (("mean", mean), ("vectors", vectors), ("deviations", deviations)):
            self.register_buffer(name, torch.tensor(np.asarray(value, np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the projections (B, K) of vectors (B, N)."""
        return (x - self.mean) @ self.vectors / self.deviations


def whitening(
    mean: npt.ArrayLike, vectors: npt.ArrayLike, variances: npt.NDArray[np.floating]
) -> Projection:
    """Returns YouTube-8M's projection of Inception's values.

    It divides by sqrt(variance + 0.0001), the deviation along each vector.

    Args:
        mean: (N,) values.
        vectors: (N, K) values, an eigenvector in each column.
        variances: (K,) eigenvalues above -0.0001.
    """
    return Projection(mean, vectors, np.sqrt(variances.astype(np.float32) + np.float32(_WHITENING)))
