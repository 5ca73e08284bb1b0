"""Noise that is added to frames in training."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyseg.errors import ArgumentError
from pyseg.nn.dropout import bernoulli_mask


class MaskedGaussianNoise(nn.Module):
    """Adds Gaussian noise to a random part of every frame vector, in training mode only.

    y[b,t,n] = x[b,t,n] + m[b,t,n] e[b,t,n] with m from a Bernoulli distribution of probability p
    and e from a normal one of standard deviation sigma, drawn anew for every element. In eval mode,
    and with a sigma of 0, it returns its input.

    Source: the paper, section 3.5, which masks half of the dimensions of every input vector but
    gives no standard deviation; 0.1 is that of another system of the same challenge.

    Args:
        sigma: standard deviation of the noise, in units of the normalised frames.
        p: probability that an element gets noise.
        generator: the random numbers to use, on the device of the frames. ``None``: torch's own,
            which `torch.manual_seed` seeds.

    Raises:
        ValueError: `sigma` is negative or not finite, or `p` is not in [0, 1].

    Example:
        >>> noise = MaskedGaussianNoise(sigma=0.1)
        >>> _ = torch.manual_seed(0)
        >>> round((noise(torch.zeros(10, 300, 64)) != 0).float().mean().item(), 2)
        0.5
        >>> noise.eval()(torch.ones(1, 1, 3)).tolist()
        [[[1.0, 1.0, 1.0]]]
    """

    def __init__(
        self, sigma: float = 0.1, p: float = 0.5, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if not 0.0 <= sigma < float("inf"):
            raise ArgumentError(f"sigma: expected a finite number of at least 0, found {sigma}")
        if not 0.0 <= p <= 1.0:
            raise ArgumentError(f"p: expected a number in [0, 1], found {p}")
        self.sigma = sigma
        self.p = p
        self.generator = generator

    @property
    def active(self) -> bool:
        """Whether `forward` changes anything."""
        return self.training and self.sigma > 0.0 and self.p > 0.0

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Adds the noise.

        Args:
            x: (B, T, N) normalised frames.
            mask: (B, T) bool; frames with False stay as they are. ``None``: all get noise.

        Returns:
            (B, T, N), of the dtype of `x`.
        """
        if not self.active:
            return x
        noise = torch.empty_like(x).normal_(0.0, self.sigma, generator=self.generator)
        noisy = bernoulli_mask(x, self.p, generator=self.generator)
        if mask is not None:
            noisy &= mask.unsqueeze(-1)
        return torch.addcmul(x, noise, noisy.to(x.dtype))

    def extra_repr(self) -> str:
        """Returns the arguments for `repr`."""
        return f"sigma={self.sigma}, p={self.p}"
