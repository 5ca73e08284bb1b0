"""Wrong answers are found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyseg.errors import ArgumentError
from pyseg.rate.doubts import rank_doubts, worth_a_look
from pyseg.rate.learner import Beliefs, Learner
from pyseg.rate.questions import Answers
from tests.rate.simulation import World, answering, audioset, generated


def found(world: World, count: int, seed: int) -> float:
    """Returns the share of 5% wrong answers that are among the first tenth."""
    learner = Learner(world.pool, seed=seed)
    for beliefs, slips in answering(world, learner, step=count // 8, seed=seed, wrong=0.05):
        if len(beliefs.answers) >= count:
            ranked = rank_doubts(world.pool, beliefs)
            first = [doubt.answer for doubt in ranked[: len(ranked) // 10]]
            return float(slips[first].sum() / slips.sum())
    raise AssertionError("too few segments")


@pytest.mark.parametrize("seed", range(3))
def test_wrong_answers_are_among_the_most_doubted(seed: int) -> None:
    assert found(generated(seed), 800, seed) >= 0.5


def test_wrong_answers_about_real_segments_are_among_the_most_doubted(shared: Path) -> None:
    world = audioset(shared, 6, "00")
    assert np.mean([found(world, 480, seed) for seed in range(3)]) >= 0.5


def test_ties_are_left_out_and_rare_classes_are_not_doubted_throughout() -> None:
    rng, world = np.random.default_rng(0), generated(0)
    labels = np.repeat([0, 1], 100)
    yes = np.concatenate((rng.random(100) < 0.5, np.arange(100) < 4))
    logits = np.where(yes, 2.0, -2.0) + rng.normal(size=200)
    logits[100:104] = -1  # the model gives no yes about the rare class
    scores = yes.astype(np.float32)
    scores[7] = 0.5
    answers = Answers(np.arange(200), labels, scores, np.zeros(200, bool))
    beliefs = Beliefs(np.zeros((800, 4), np.float32), logits.astype(np.float32), answers)
    ranked = rank_doubts(world.pool, beliefs)
    assert 7 not in {doubt.answer for doubt in ranked}
    assert len(ranked) == 199
    first = ranked[0]
    assert (first.segment, first.label) == (first.answer, labels[first.answer])
    assert first.confidence < 0.5
    assert [doubt.doubt for doubt in ranked] == sorted((d.doubt for d in ranked), reverse=True)
    with pytest.raises(ArgumentError, match="beliefs: expected cross-fitted logits, found none"):
        rank_doubts(world.pool, beliefs._replace(held_out=np.zeros(0, np.float32)))


def test_a_second_look_is_at_a_few() -> None:
    world = generated(0)
    beliefs, _ = next(answering(world, Learner(world.pool), step=200))
    ranked = rank_doubts(world.pool, beliefs)
    looked = worth_a_look(ranked)
    assert looked == ranked[: len(looked)]
    assert 5 <= len(looked) <= 20
    assert len(worth_a_look(ranked[-60:])) == 5  # nothing is doubted there
    assert worth_a_look(ranked[:3]) == ranked[:3]
