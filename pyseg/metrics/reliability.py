"""Whether probabilities are as large as the shares of positives; see `reliability`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pyseg.errors import ArgumentError

_Z = 1.959964  # of a two-sided interval of 95%


@dataclass(frozen=True, eq=False)
class Reliability:
    """How often pairs of like probability are positive, in B bins, and what follows.

    Attributes:
        probabilities: (B,) the mean probability of each bin, increasing.
        shares: (B,) the share of positives in it.
        counts: (B,) its number of pairs.
        error: The expected calibration error: the mean over pairs of the distance between the
            share and the mean probability of their bin.
        noise: The error that perfect probabilities of this size would have on average, as so few
            pairs are drawn.
        brier: The mean squared distance between probability and truth.
    """

    probabilities: npt.NDArray[np.float64]
    shares: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]
    error: float
    noise: float
    brier: float

    @property
    def intervals(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The ends of the 95% intervals of the shares, (B,) each (Wilson)."""
        square = _Z**2 / self.counts
        center = (self.shares + square / 2) / (1 + square)
        variance = self.shares * (1 - self.shares) / self.counts
        spread = _Z / (1 + square) * np.sqrt(variance + square / self.counts / 4)
        low = np.clip(center - spread, 0.0, self.shares)
        return low, np.clip(center + spread, self.shares, 1.0)


def reliability(
    probabilities: npt.ArrayLike, relevance: npt.ArrayLike, *, bins: int = 10
) -> Reliability:
    """Compares probabilities with the shares of positives, in bins of about equally many pairs.

    Equal probabilities are in one bin, so that there may be fewer bins.

    Source: Nguyen and O'Connor, *Posterior calibration and exploratory analysis for natural
    language processing models*, 2015; the intervals: Wilson, *Probable inference*, 1927.

    Args:
        probabilities: (R,) in [0, 1].
        relevance: (R,) the truth of each pair, in [0, 1].
        bins: The number of bins.

    Raises:
        pyseg.errors.ArgumentError: The shapes differ, there is no pair, or a value is not in
            [0, 1].

    Example:
        >>> found = reliability([0.1, 0.1, 0.1, 0.1, 0.9, 0.9], [0, 0, 0, 1, 1, 1], bins=2)
        >>> found.shares.tolist(), found.counts.tolist(), round(found.error, 3)
        ([0.25, 1.0], [4, 2], 0.133)
    """
    p, y = (np.asarray(values, np.float64).ravel() for values in (probabilities, relevance))
    if p.shape != y.shape or not len(p):
        raise ArgumentError(
            f"probabilities: expected as many as there are truths, at least one, found {len(p)} "
            f"and {len(y)}"
        )
    for name, values in (("probabilities", p), ("relevance", y)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ArgumentError(f"{name}: expected numbers in [0, 1], found others")
    if bins < 1:
        raise ArgumentError(f"bins: expected at least 1, found {bins}")
    order = np.argsort(p, kind="stable")
    p, y = p[order], y[order]
    # A bin ends where the next pair of another probability is due to another bin.
    due = np.arange(len(p)) * bins // len(p)
    first_of_equal = np.searchsorted(p, p)
    starts = np.flatnonzero(np.diff(due[first_of_equal], prepend=-1))
    counts = np.diff(starts, append=len(p))
    means, shares = (np.add.reduceat(values, starts) / counts for values in (p, y))
    variance = np.add.reduceat(p * (1 - p), starts) / counts**2
    weights = counts / len(p)
    return Reliability(
        probabilities=means,
        shares=shares,
        counts=counts,
        error=float(weights @ np.abs(shares - means)),
        noise=float(weights @ np.sqrt(2 / np.pi * variance)),  # the mean of |normal|
        brier=float(np.square(p - y).mean()),
    )
