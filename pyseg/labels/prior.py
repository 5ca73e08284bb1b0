"""The strength of a Beta prior of P, by the marginal likelihood of counts."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from pyseg.labels.cooccurrence import Cooccurrence

WEAKEST, STRONGEST = 2.0**-10, 2.0**20
"""The range of strengths; below it P is as counted, above it labels say nothing of each other."""

_FREQUENT = 0.1  # base rates above it, which few labels can have, are computed one by one
_TERMS = 8  # of a series in base rates up to that: the relative error is below 1e-8
_USUAL, _STEP = 4.0, math.log(2)  # the search starts there
_MOST_STEPS = 50  # about five are taken
_TOLERANCE = 1e-3  # of the logarithm of the strength, on which P hardly depends


def prior_strength(cooccurrence: Cooccurrence) -> float:
    """Returns how many videos the base rates of labels are worth as a prior of P (empirical Bayes).

    Of the N_i videos with label i, M_ij have j. With the base rate p_j = N_j / (number of videos)
    and the prior P_ij ~ Beta(s p_j, s (1 - p_j)), M_ij has a beta-binomial distribution. The
    strength s is where the likelihood of all M_ij, i != j, is largest, those that are 0 included:
    type II maximum likelihood (Good, The Estimation of Probabilities, 1965). Then the posterior
    mean of P_ij is (M_ij + s p_j) / (N_i + s).

    Takes a time proportional to the different pairs that were counted, not to C^2.

    Args:
        cooccurrence: the counts of `count_cooccurrence`.

    Returns:
        s, to 0.1%, in `WEAKEST` to `STRONGEST`; 4 if the counts do not depend on it, as those of no
        videos.

    Example:
        >>> from pyseg.labels import count_cooccurrence
        >>> lists = [0, 1] * 9 + [0] * 20 + [1] * 41
        >>> offsets = [*range(0, 18, 2), *range(18, 80)]
        >>> round(prior_strength(count_cooccurrence(offsets, lists, num_classes=2)), 1)
        2.6
    """
    rates = cooccurrence.rates
    numbers, times = np.unique(cooccurrence.counts, return_counts=True)
    arrays = (cooccurrence.counts, rates, numbers, times)
    counts, p, distinct, repeats = (torch.from_numpy(array).double() for array in arrays)
    uncertain = (p > 0) & (p < 1)  # a label of no video, or of all, fits any strength
    counts, p = counts[uncertain], p[uncertain]
    frequent, rare = p[p > _FREQUENT], p[p <= _FREQUENT]
    powers = torch.stack([(rare**term).sum() for term in range(1, _TERMS + 1)])
    pairs = (
        cooccurrence.offsets,
        cooccurrence.columns,
        cooccurrence.values,
        cooccurrence.counts,
        rates,
    )
    from pyseg.labels import _kernels  # lazily: it loads numba

    def slope(log_strength: float) -> float:
        """Returns the derivative of the log-likelihood by the logarithm of the strength."""
        s = torch.tensor(log_strength, dtype=torch.float64).exp()
        # As if no pair had been seen: of every count with every label, without the diagonal.
        unseen = repeats @ _never_together(distinct[:, None], frequent, s).sum(1)
        unseen += repeats @ (_series(distinct, s) @ powers)
        unseen -= _never_together(counts, p, s).sum()
        seen = _kernels.likelihood_slope(*pairs, float(s))
        return float(s * (unseen + seen))

    return math.exp(_falling_root(slope, math.log(WEAKEST), math.log(_USUAL), math.log(STRONGEST)))


def _never_together(counts: Tensor, p: Tensor, s: Tensor) -> Tensor:
    """Returns d/ds log of Gamma(s (1 - p) + N) Gamma(s) / (Gamma(s (1 - p)) Gamma(s + N))."""
    absent = s * (1 - p)
    one = torch.digamma(absent + counts) - torch.digamma(absent)
    return (1 - p) * one - (torch.digamma(s + counts) - torch.digamma(s))


def _series(counts: Tensor, s: Tensor) -> Tensor:
    """Returns what `_never_together` is as a power series of p.

    It is the sum of -p k / ((s (1 - p) + k) (s + k)) over k < N; 1 / (1 - s p / (s + k)) is
    expanded, and sums of powers of 1 / (s + k) are differences of zeta functions.

    Returns:
        (len(counts), `_TERMS`) factors of p^1, p^2 and so on.
    """
    sums = [torch.digamma(s + counts) - torch.digamma(s)]
    for power in range(2, _TERMS + 2):
        sums.append(torch.special.zeta(power, s) - torch.special.zeta(power, s + counts))
    return torch.stack([-(s**m) * (sums[m] - s * sums[m + 1]) for m in range(_TERMS)], 1)


def _falling_root(
    function: Callable[[float], float], low: float, start: float, high: float
) -> float:
    """Returns where a function falls through 0; a bound where it does not, `start` where it is 0.

    Steps from the start bracket the root, then the Illinois method (Dowell and Jarratt, 1971)
    narrows the bracket until it moves by less than `_TOLERANCE`.
    """
    at, value = start, function(start)
    if value == 0:
        return start
    step = math.copysign(_STEP, value)
    other = at, value
    while value * other[1] > 0:
        if at in (low, high):
            return at
        other = at, value
        at = min(max(at + step, low), high)
        value = function(at)
        step *= 2
    for _ in range(_MOST_STEPS):
        before, at = at, (other[0] * value - at * other[1]) / (value - other[1])
        if abs(at - before) < _TOLERANCE:
            break
        found = function(at)
        other = (before, value) if found * value < 0 else (other[0], other[1] / 2)
        value = found
    return at
