"""When further answers no longer pay, against held-out truth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pyseg.rate.learner import Learner
from pyseg.rate.stopping import Advice, ClassAdvice, Stopping, expected_precision
from tests.rate.simulation import NOTHING, World, answering, audioset, generated


def until_enough(
    world: World, *, step: int, most: int, threshold: float, first: int = 0, seed: int = 0
) -> tuple[dict[int, float], dict[int, Advice]]:
    """Answers until it is enough, then as many again; returns the true scores and the advice."""
    learner = Learner(world.pool, folds=3, seed=seed)
    stopping = Stopping(Learner(world.pool, folds=0), threshold=threshold)
    scores: dict[int, float] = {}
    advice: dict[int, Advice] = {}
    for beliefs, _ in answering(world, learner, step=step, seed=seed):
        count = len(beliefs.answers)
        scores[count] = world.precision(beliefs)
        enough = [number for number, given in advice.items() if given.enough]
        if not enough and count >= first:
            advice[count] = stopping.advise(beliefs)
        if count >= (2 * enough[0] if enough else most):
            break
    return scores, advice


def test_it_is_honest_on_generated_data() -> None:
    gains = []
    for seed in range(2):
        world = generated(seed, segments=500, test=500, width=8)
        scores, advice = until_enough(world, step=100, most=1000, threshold=0.02, seed=seed)
        *_, stopped = advice
        assert advice[stopped].enough, "it never stops"
        gains.append(scores[2 * stopped] - scores[stopped])
        bounds = [
            (given.gain, scores[2 * count] - scores[count])
            for count, given in advice.items()
            if not math.isnan(given.gain) and 2 * count in scores
        ]
        assert len(bounds) >= 3
        # Early on, answers do pay; and a gain that pays is no larger than it says.
        assert bounds[0][1] > 0.02
        assert all(bound > min(true, 0.04) for bound, true in bounds if true >= 0.02)
        assert np.mean([bound for bound, _ in bounds]) > np.mean([true for _, true in bounds])
    assert abs(np.mean(gains)) < 0.02


def test_it_is_honest_on_audioset(shared: Path) -> None:
    """Real segments with complete strong labels: it goes on while answers pay, then stops."""
    world = audioset(shared, 2, "00")
    scores, advice = until_enough(world, step=200, most=1600, threshold=0.05, first=400)
    known = {count: given for count, given in advice.items() if not math.isnan(given.gain)}
    *_, stopped = known
    assert known[stopped].enough
    if 2 * stopped in scores:
        assert scores[2 * stopped] - scores[stopped] < 0.05


def test_few_answers_are_too_few_to_say() -> None:
    world = generated(0, segments=200, width=8)
    learner = Learner(world.pool)
    stopping = Stopping(Learner(world.pool, folds=0))
    assert str(stopping.advise(learner.fit(NOTHING))).startswith("Too early to say")
    beliefs, _ = next(answering(world, learner, step=60))
    advice = stopping.advise(beliefs)
    assert math.isnan(advice.gain)
    assert not advice.enough
    assert {one.more for one in advice.classes} == {None}
    assert "too few about" in str(advice)


def test_a_class_that_never_occurs_does_not_hold_it_up() -> None:
    world = generated(0, segments=600, width=8)
    world.truth[:, 3] = False
    learner = Learner(world.pool, folds=2)
    stopping = Stopping(Learner(world.pool, folds=0))
    for beliefs, _ in answering(world, learner, step=440):  # noqa: B007
        break
    advice = stopping.advise(beliefs)
    assert advice.gain > 0
    assert advice.classes[3] == ClassAdvice("snow", 110, 0.0, 0)


def test_advice_in_words() -> None:
    classes = (
        ClassAdvice("sun", 40, 0.01, 0),
        ClassAdvice("car", 40, 0.03, 30),
        ClassAdvice("dog", 40, 0.05, 40),
    )
    assert str(Advice(0.03, 0.02, False, classes)) == (
        "Further answers pay: twice as many would add at most 0.030 to the mean average "
        "precision. Most for dog (40 more), car (30 more)."
    )
    assert str(Advice(0.01, 0.02, True, classes[:1])) == (
        "Enough: twice as many would add at most 0.010 to the mean average precision."
    )
    assert str(Advice(0.01, 0.02, False, classes)) == (
        "Nearly enough: twice as many would add at most 0.010 to the mean average precision. The "
        "next answers decide."
    )
    many = tuple(ClassAdvice(f"c{n}", 1, math.nan, None) for n in range(9))
    assert str(Advice(math.nan, 0.02, False, many)) == (
        "Too early to say whether further answers pay: too few about c0, c1, c2, c3, c4 and 4 "
        "more classes."
    )


def test_expected_precision_is_that_of_drawn_labels() -> None:
    rng = np.random.default_rng(0)
    true = rng.random((300, 1)) ** 4
    scores = true + 0.2 * rng.normal(size=true.shape)
    order = np.argsort(-scores[:, 0])
    drawn = []
    for _ in range(300):
        yes = (rng.random(300) < true[:, 0])[order]
        drawn.append(np.mean((np.cumsum(yes) / np.arange(1, 301))[yes]))
    assert expected_precision(scores, true)[0] == pytest.approx(np.mean(drawn), abs=0.01)
