"""Simulated raters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pyseg.data import FeatureSet
from pyseg.labels import LabelCorrelation
from pyseg.rate.pool import Pool
from pyseg.reproduce import asking as module
from pyseg.reproduce.asking import Asking, Truth, read_truth, simulate
from pyseg.reproduce.experiments import open_experiment


@pytest.fixture(autouse=True)
def few_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGETS", (5, 10, 15, 20))


def make_truth(seed: int = 0) -> Truth:
    """1,200 segments, one in five of which shows a class; 400 are held out."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(1200, 6)).astype(np.float32)
    labels = means[:, :3] > 0.8
    places = np.arange(1200)
    pool = Pool(
        [f"v{number}" for number in places], places, 0 * places, np.full(1200, 5), means,
        ["a", "b", "c"], FeatureSet((("clip", 6),)),
    )  # fmt: skip
    none = LabelCorrelation(torch.zeros(4).long(), torch.zeros(0).long(), torch.zeros(0))
    return Truth(pool, labels, 800, none)


def test_asking_for_change_needs_fewer_answers() -> None:
    truth = make_truth()
    random, change = (
        np.array([simulate(truth, Asking(name, name), seed) for seed in range(3)])
        for name in ("random", "change")
    )
    assert change.shape == (3, 4)
    assert change[:, -1].mean() > random[:, -1].mean() + 0.05
    assert simulate(truth, Asking("again", "change"), 0) == change[0].tolist()
    assert change[0].tolist() != change[1].tolist()


def test_held_out_segments_are_only_measured() -> None:
    truth = make_truth()
    before = simulate(truth, Asking("change", "change"), 0)
    labels = truth.labels.copy()
    labels[truth.askable :] = labels[truth.askable :][::-1]
    after = simulate(truth._replace(labels=labels), Asking("change", "change"), 0)
    assert max(after) < 0.4 < max(before)


def test_truth_of_the_sample() -> None:
    experiment = open_experiment("sample", Path("sample"))
    truth = read_truth(experiment)
    assert truth.labels.shape == (len(truth.pool), 8)
    assert truth.labels[: truth.askable].sum(0).min() > 0
    assert truth.correlation.num_classes == 8
    train = {truth.pool.ids[video] for video in truth.pool.videos[: truth.askable]}
    test = {truth.pool.ids[video] for video in truth.pool.videos[truth.askable :]}
    assert train
    assert test
    assert not train & test
    assert (np.diff(truth.pool.videos) >= 0).all()
