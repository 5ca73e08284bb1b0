"""Learning from answers: beliefs, cross-fitting, and what few answers give."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from pyseg.data import FeatureSet
from pyseg.errors import ArgumentError
from pyseg.labels import LabelCorrelation
from pyseg.rate import learner as learner_module
from pyseg.rate.learner import Learner
from pyseg.rate.pool import Pool
from pyseg.rate.questions import Answers

FRAMES = FeatureSet((("clip", 6),))


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains networks for fewer steps than users do."""
    monkeypatch.setattr(learner_module, "_FIRST_STEPS", 40)
    monkeypatch.setattr(learner_module, "_BATCH", 32)


def make_pool(segments: int = 200, classes: int = 3, width: int = 6, seed: int = 0) -> Pool:
    """Segments in videos of four, whose first columns tell the classes."""
    places = np.arange(segments)
    means = np.random.default_rng(seed).normal(size=(segments, width)).astype(np.float32)
    ids = [f"v{number}" for number in range(-(-segments // 4))]
    names = [f"class {number}" for number in range(classes)]
    return Pool(ids, places // 4, places % 4 * 5, np.full(segments, 5), means, names, FRAMES)


def answer(pool: Pool, count: int, seed: int = 1) -> Answers:
    rng = np.random.default_rng(seed)
    classes = len(pool.class_names)
    pairs = rng.permutation(len(pool) * classes)[:count]
    segments, labels = np.divmod(pairs, classes)
    scores = (pool.means[segments, labels] > 0).astype(np.float32)
    return Answers(segments, labels, scores, rng.random(count) < 0.2)


def related(classes: int) -> LabelCorrelation:
    """P' in which class 0 comes with class 1."""
    offsets = torch.tensor([0] + [1] * classes)
    return LabelCorrelation(offsets, torch.tensor([1]), torch.tensor([0.8]))


def test_the_minimum_is_found() -> None:
    pool = make_pool()
    answers = answer(pool, 60)
    found = Learner(pool, correlation=related(3)).fit(answers)
    x = pool.means * (6**0.5 / np.linalg.norm(pool.means, axis=1, keepdims=True))
    x = np.concatenate((x, np.ones((len(x), 1))), 1).astype(np.float64)
    targets, weights = np.zeros((200, 3)), np.zeros((200, 3))
    weights[np.unique(answers.segments)] = 0.1
    yes = (answers.labels == 0) & (answers.scores == 1)
    targets[answers.segments[yes], 1] = 0.8
    targets[answers.segments, answers.labels] = answers.scores
    weights[answers.segments, answers.labels] = 2.5
    penalty = np.array([6.0] * 6 + [0.05])
    for label in range(3):

        def objective(w: np.ndarray, label: int = label) -> float:
            z = x @ w
            losses = np.logaddexp(0, z) - targets[:, label] * z
            return float(weights[:, label] @ losses + 0.5 * penalty @ w**2)

        best = minimize(objective, np.zeros(7), tol=1e-10).x
        np.testing.assert_allclose(found.logits[:, label], x @ best, atol=5e-3)


def test_a_warm_start_finds_the_same() -> None:
    pool = make_pool()
    answers = answer(pool, 80)
    learner = Learner(pool)
    learner.fit(answers.take(slice(40)))
    warm, cold = learner.fit(answers), Learner(pool).fit(answers)
    np.testing.assert_allclose(warm.logits, cold.logits, atol=5e-3)
    np.testing.assert_allclose(warm.held_out, cold.held_out, atol=5e-3)


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_held_out_answers_are_not_learned_from(model: str) -> None:
    pool = make_pool(40)
    answers = answer(pool, 60)
    make = functools.partial(Learner, pool, correlation=related(3), model=model, folds=2)
    before = make().fit(answers)
    video = pool.videos[answers.segments[0]]
    own = pool.videos[answers.segments] == video
    scores = np.where(own, 1 - answers.scores, answers.scores)
    changed = Answers(answers.segments, answers.labels, scores, answers.random)
    after = make().fit(changed)
    np.testing.assert_allclose(before.held_out[own], after.held_out[own], atol=2e-3)
    assert np.abs(before.logits - after.logits).max() > 0.05
    # Nor from the rows: without the video's answers its held-out logits are the same.
    kept = ~own | (np.arange(60) == 0)
    alone = make().fit(answers.take(kept))
    np.testing.assert_allclose(before.held_out[0], alone.held_out[0], atol=2e-3)


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_learns(model: str) -> None:
    pool = make_pool(400)
    answers = answer(pool, 300)
    beliefs = Learner(pool, model=model, folds=3).fit(answers)
    assert beliefs.logits.shape == (400, 3)
    assert beliefs.logits.dtype == beliefs.held_out.dtype == np.float32
    right = (beliefs.logits > 0) == (pool.means[:, :3] > 0)
    assert right.mean() > 0.85
    assert ((beliefs.held_out > 0) == (answers.scores > 0.5)).mean() > 0.8


@pytest.mark.parametrize("model", ["linear", "mlp"])
@pytest.mark.parametrize("scores", [[], [1], [0, 0, 0, 0, 0], [0.5, 1]])
def test_few_answers(model: str, scores: list[float]) -> None:
    pool, count = make_pool(40), len(scores)
    given = np.array(scores, np.float32)
    answers = Answers(np.arange(count) * 5, np.zeros(count, int), given, np.ones(count, bool))
    beliefs = Learner(pool, model=model, folds=2).fit(answers)
    assert np.isfinite(beliefs.logits).all()
    assert np.abs(beliefs.logits).max() < 10
    assert np.isfinite(beliefs.held_out).all()
    assert len(beliefs.held_out) == count
    if scores and len(set(scores)) == 1 and model == "linear":
        assert (beliefs.logits[answers.segments, 0] > 0).all() == (scores[0] == 1)


def test_undone_answers_are_forgotten() -> None:
    pool = make_pool(40)
    learner = Learner(pool)
    learner.fit(answer(pool, 30))
    assert not learner.fit(answer(pool, 0)).logits.any()


@pytest.mark.parametrize("model", ["linear", "mlp"])
def test_offsets_are_where_it_starts(model: str) -> None:
    pool = make_pool(40)
    offsets = np.random.default_rng(5).normal(size=(40, 3)).astype(np.float32)
    learner = Learner(pool, offsets=offsets, model=model, folds=2)
    np.testing.assert_array_equal(learner.fit(answer(pool, 0)).logits, offsets)
    one = answer(pool, 1)
    held_out = learner.fit(one).held_out
    np.testing.assert_allclose(held_out, offsets[one.segments, one.labels], atol=1e-6)
    # The offsets say all that the answers say, so that there is little to add.
    sure = 8 * np.sign(pool.means[:, :3]).astype(np.float32)
    every = answer(pool, 120)
    added = Learner(pool, offsets=sure, folds=0, model=model).fit(every).logits - sure
    alone = Learner(pool, folds=0, model=model).fit(every).logits
    assert np.abs(added).mean() < 0.7 * np.abs(alone).mean()


def test_relations_teach_other_classes() -> None:
    pool = make_pool(80)
    positive = np.flatnonzero(pool.means[:, 0] > 0.5)
    count = len(positive)
    answers = Answers(
        positive, np.zeros(count, int), np.ones(count, np.float32), np.ones(count, bool)
    )  # fmt: skip
    alone = Learner(pool).fit(answers).logits[:, 1].mean()
    assert Learner(pool, correlation=related(3)).fit(answers).logits[:, 1].mean() > alone + 1


def test_without_folds() -> None:
    pool = make_pool(40)
    beliefs = Learner(pool, folds=0).fit(answer(pool, 30))
    assert beliefs.held_out.shape == (0,)
    whole = Learner(pool).fit(answer(pool, 30))
    np.testing.assert_allclose(beliefs.logits, whole.logits, atol=5e-3)


def test_wrong_arguments() -> None:
    pool = make_pool(40)
    with pytest.raises(ArgumentError, match="correlation: expected 3 classes, found 4"):
        Learner(pool, correlation=related(4))
    with pytest.raises(ArgumentError, match=r"offsets: expected finite numbers of shape \(40, 3\)"):
        Learner(pool, offsets=np.zeros((40, 2), np.float32))
    with pytest.raises(ArgumentError, match="offsets"):
        Learner(pool, offsets=np.full((40, 3), np.nan, np.float32))
    with pytest.raises(ArgumentError, match="folds: expected 0, or at least 2, found 1"):
        Learner(pool, folds=1)
    with pytest.raises(ArgumentError, match="unknown preset 'linea'"):
        Learner(pool, model="linea")
