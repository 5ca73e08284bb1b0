"""pyseg.metrics.reliability: bins, intervals, calibration error and Brier score."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from pyseg.errors import ArgumentError
from pyseg.metrics import reliability


def test_the_same_as_peers() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(1000) ** 2
    y = rng.random(1000) < p
    found = reliability(p, y, bins=10)
    shares, means = calibration_curve(y, p, n_bins=10, strategy="quantile")
    assert found.counts.tolist() == [100] * 10
    np.testing.assert_allclose(found.shares, shares, atol=0.011)  # a pair at a bin's end
    np.testing.assert_allclose(found.probabilities, means, atol=0.002)
    assert found.brier == pytest.approx(brier_score_loss(y, p))
    assert found.error == pytest.approx(np.abs(found.shares - found.probabilities).mean())
    for share, low, high in zip(found.shares, *found.intervals, strict=True):
        peer = binomtest(round(100 * share), 100).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((peer.low, peer.high), abs=1e-6)


def test_noise_is_the_error_of_perfect_probabilities() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(400)
    found = [reliability(p, rng.random(400) < p) for _ in range(200)]
    assert np.mean([one.error for one in found]) == pytest.approx(found[0].noise, rel=0.05)


def test_equal_probabilities_share_a_bin() -> None:
    p = np.array([0.2] * 50 + [0.7] * 3)
    found = reliability(np.random.default_rng(0).permutation(p), np.ones(53), bins=10)
    assert (found.counts.sum(), found.counts[0]) == (53, 50)
    one = reliability([0.3], [1.0])
    assert (one.counts.tolist(), one.error) == ([1], pytest.approx(0.7))


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([], [], "at least one"),
        ([0.5], [1, 0], "as many as there are truths"),
        ([1.5], [1], r"probabilities: expected numbers in \[0, 1\]"),
        ([0.5], [np.nan], r"relevance: expected numbers in \[0, 1\]"),
    ],
)
def test_wrong_arguments(p: list, y: list, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        reliability(p, y)
    with pytest.raises(ArgumentError, match="bins: expected at least 1"):
        reliability([0.5], [1], bins=0)
