"""The likelihood of held-out label lists, and that a Beta prior makes them most likely."""

from __future__ import annotations

import numpy as np
import pytest
from measure_correlation import nats, rows

from pyseg.labels import Cooccurrence, count_cooccurrence

CLASSES = 30


def generated(seed: int, videos: int) -> tuple[list[list[int]], Cooccurrence]:
    """Lists about one of five topics each."""
    topics = np.random.default_rng(0).dirichlet(np.geomspace(1, 0.02, CLASSES), 5)
    random = np.random.default_rng(seed)
    lists = [
        np.unique(random.choice(CLASSES, random.integers(6), p=topics[random.integers(5)])).tolist()
        for _ in range(videos)
    ]
    offsets = np.cumsum([0, *map(len, lists)])
    return lists, count_cooccurrence(offsets, np.concatenate(lists).astype(int), CLASSES)


def test_likelihood_by_definition() -> None:
    lists, counted = generated(1, 50)
    p = np.random.default_rng(2).random((CLASSES, CLASSES))
    losses = [
        sum(-np.log(p[i, j] if j in labels else 1 - p[i, j]) for j in range(CLASSES) if j != i)
        for labels in lists
        for i in labels
    ]
    assert nats(p, counted) == pytest.approx(np.mean(losses))


@pytest.mark.parametrize("videos", [50, 500, 5000])
def test_held_out_lists_are_most_likely_with_the_prior(videos: int) -> None:
    found = dict(rows(generated(1, videos)[1], generated(2, 3000)[1]))
    assert 10 < found.pop("its strength") < 200
    best = found.pop("Beta prior, all pairs")
    assert best < min(found.values())
    assert found["Beta prior, seen pairs"] < found["τ = 0"] < found["τ = 0.5"]
