"""The strength of the prior against the likelihood by definition, and P with a prior."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import betaln

from pyseg.labels import Cooccurrence, LabelCorrelation, count_cooccurrence, prior_strength
from pyseg.labels.prior import STRONGEST, WEAKEST


def count(lists: list[list[int]], classes: int) -> Cooccurrence:
    flat = np.array(list(itertools.chain(*lists)), np.int64)
    return count_cooccurrence(np.cumsum([0, *map(len, lists)]), flat, classes)


def generated(seed: int, videos: int) -> Cooccurrence:
    """Lists about one of six topics each; a few of the 40 labels are frequent, some never occur."""
    random = np.random.default_rng(seed)
    topics = random.dirichlet(np.geomspace(1, 0.01, 40), 6)
    lists = [
        random.choice(40, random.integers(6), p=topics[random.integers(6)]).tolist()
        for _ in range(videos)
    ]
    return count(lists, 40)


def log_likelihood(counted: Cooccurrence, strength: float) -> float:
    """All pairs, one by one, without binomial coefficients."""
    rates = counted.counts / counted.num_videos
    total = 0.0
    for j in np.flatnonzero((rates > 0) & (rates < 1)):
        others = np.arange(counted.num_classes) != j
        a, b = strength * rates[j], strength * (1 - rates[j])
        together, of = counted.pairs[others, j], counted.counts[others]
        total += (betaln(a + together, b + of - together) - betaln(a, b)).sum()
    return total


@pytest.mark.parametrize(("seed", "videos"), [(0, 80), (1, 400), (2, 4000)])
def test_is_where_the_likelihood_is_largest(seed: int, videos: int) -> None:
    counted = generated(seed, videos)
    rates = counted.counts / videos
    assert {0, 1, 2} == set(np.digitize(rates, (1e-9, 0.1)))  # all kinds of labels
    best = minimize_scalar(
        lambda x: -log_likelihood(counted, math.exp(x)),
        bounds=(math.log(1e-2), math.log(1e4)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    assert prior_strength(counted) == pytest.approx(math.exp(best.x), rel=1e-3)


def test_a_label_of_all_videos_or_none_changes_nothing() -> None:
    lists = [[0, 1], [0, 1], [2], [1, 2], [0], [], [1], [2]]
    more = [[*labels, 3] for labels in lists]
    assert prior_strength(count(more, 5)) == pytest.approx(prior_strength(count(lists, 3)))


def test_strengths_are_bounded() -> None:
    independent = [[0, 1], [0], [1], []] * 50
    assert prior_strength(count(independent, 2)) == STRONGEST
    never_together = [[0], [1], [2]] * 50
    assert prior_strength(count(never_together, 3)) == WEAKEST
    for lists in ([], [[]], [[0]], [[0], [1]]):  # of N = 1 any strength says p
        assert prior_strength(count(lists, 2)) == 4.0


def test_p_is_the_posterior_mean_of_the_pairs_that_were_seen() -> None:
    counted = generated(1, 400)
    strength = prior_strength(counted)
    pairs, counts = counted.pairs.astype(np.float64), counted.counts[:, None]
    expected = (pairs + strength * counted.counts / 400) / (counts + strength)
    expected[pairs == 0] = 0
    np.fill_diagonal(expected, 0)
    fitted = LabelCorrelation.from_counts(counted, 0.0, prior="fit")
    np.testing.assert_allclose(fitted.dense().numpy(), expected, rtol=1e-6)
    assert fitted.values.max() < 1
    kept = np.where((expected >= 0.2) & (pairs >= 2), expected, 0)
    part = LabelCorrelation.from_counts(
        counted, 0.2, np.arange(39, -1, -1), min_support=2, prior=strength
    )
    np.testing.assert_allclose(part.dense().numpy(), kept[::-1, ::-1], rtol=1e-6)
    plain = LabelCorrelation.from_counts(counted, 0.0)
    without = LabelCorrelation.from_counts(counted, 0.0, prior=0)
    assert torch.equal(without.values, plain.values)


@pytest.mark.parametrize("prior", [-1, math.nan, math.inf, "fitted"])
def test_bad_priors(prior: float) -> None:
    with pytest.raises(ValueError, match=r'prior: expected "fit" or at least 0, found'):
        LabelCorrelation.from_counts(count([[0, 1]], 2), 0.0, prior=prior)
