"""The score on answers that were drawn at random."""

from __future__ import annotations

import numpy as np
import pytest

from pyseg.metrics import map_at_k
from pyseg.rate.held_out import by_chance, held_out_score
from pyseg.rate.learner import Beliefs
from pyseg.rate.questions import Answers
from tests.rate.simulation import generated

WORLD = generated(0, segments=400, width=8)


def beliefs(logits: np.ndarray, scores: np.ndarray, labels: np.ndarray, random: bool) -> Beliefs:
    count = len(scores)
    answers = Answers(np.arange(count), labels, scores, np.full(count, random))
    return Beliefs(np.zeros((400, 4), np.float32), logits.astype(np.float32), answers)


def test_it_is_the_mean_average_precision_of_random_answers() -> None:
    rng = np.random.default_rng(0)
    scores = (rng.random(200) < 0.3).astype(np.float32)
    labels, logits = rng.integers(0, 3, 200), scores + rng.normal(size=200)
    scores[labels == 2] = 0  # a class without an answer yes
    made = beliefs(logits, scores, labels, True)
    found = held_out_score(WORLD.pool, made)
    assert found is not None
    of_both = labels < 2
    expected = map_at_k(
        labels[of_both], made.held_out[of_both], scores[of_both] > 0.5, num_classes=2
    )
    assert found.score == pytest.approx(expected.map)
    assert found.answers == of_both.sum()
    assert 0.02 < found.error < 0.1
    assert "over 2 of 4 classes" in found.metric
    others = beliefs(logits, 1 - scores, labels, False).answers
    columns = zip(vars(made.answers).values(), vars(others).values(), strict=True)
    both = Answers(*map(np.concatenate, columns))
    mixed = Beliefs(made.logits, np.tile(made.held_out, 2), both)
    assert held_out_score(WORLD.pool, mixed) == found  # the others do not count


def test_its_error_is_that_of_other_videos() -> None:
    """The standard error is about the deviation of scores of independent answers."""
    found, errors = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        scores = (rng.random(100) < 0.4).astype(np.float32)
        made = beliefs(scores + rng.normal(size=100), scores, np.zeros(100, np.int64), True)
        score = held_out_score(WORLD.pool, made)
        assert score is not None
        found.append(score.score)
        errors.append(score.error)
    assert np.mean(errors) == pytest.approx(np.std(found), rel=0.35)


def test_few_answers_have_no_score() -> None:
    scores = np.float32([1] * 4 + [0] * 30)
    labels, logits = np.zeros(34, np.int64), np.arange(34)
    assert held_out_score(WORLD.pool, beliefs(logits, scores, labels, True)) is None
    scores[5] = 1
    assert held_out_score(WORLD.pool, beliefs(logits, scores, labels, True)) is not None
    assert held_out_score(WORLD.pool, beliefs(logits, scores, labels, False)) is None
    without = beliefs(np.zeros(0), scores, labels, True)
    assert held_out_score(WORLD.pool, without) is None


def test_the_score_of_a_random_order() -> None:
    rng = np.random.default_rng(0)
    scores = []
    for _ in range(4000):
        yes = rng.permutation(10) < 3
        scores.append(np.mean((np.cumsum(yes) / np.arange(1, 11))[yes]))
    assert by_chance(3, 10) == pytest.approx(np.mean(scores), abs=0.01)
    assert by_chance(1, 1) == 1.0
    logits = np.zeros(60)  # equal ones are no better
    yes = np.float32([1, 0] * 30)
    tied = held_out_score(WORLD.pool, beliefs(logits, yes, np.zeros(60, np.int64), True))
    assert tied is not None
    assert tied.score <= 0.5
