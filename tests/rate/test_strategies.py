"""Which questions are chosen, and the registry of strategies."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from pyseg.data import FeatureSet
from pyseg.errors import ArgumentError
from pyseg.labels import LabelCorrelation
from pyseg.rate.learner import Beliefs
from pyseg.rate.pool import Pool
from pyseg.rate.questions import RANDOM, Answers, Question
from pyseg.rate.strategies import (
    AMONG,
    GROUP,
    State,
    change,
    choose,
    find_strategy,
    register_strategy,
    uncertain,
)


def make_state(
    segments: int = 400,
    classes: int = 6,
    *,
    per_video: int = 4,
    asked: list[tuple[int, int]] | None = None,
    logits: np.ndarray | None = None,
    correlation: LabelCorrelation | None = None,
    seed: int = 0,
) -> State:
    rng = np.random.default_rng(9)
    places = np.arange(segments)
    pool = Pool(
        [f"v{number}" for number in range(-(-segments // per_video))],
        places // per_video,
        places % per_video * 5,
        np.full(segments, 5),
        rng.normal(size=(segments, 8)).astype(np.float32),
        [f"class {number}" for number in range(classes)],
        FeatureSet((("clip", 8),)),
    )
    none = np.zeros(0, np.int64)
    answers = Answers(none, none, none.astype(np.float32), none.astype(bool))
    if logits is None:
        logits = rng.normal(size=(segments, classes)).astype(np.float32)
    pairs = np.array(asked or [], np.int64).reshape(-1, 2)
    return State(pool, Beliefs(logits, none.astype(np.float32), answers), pairs, correlation, seed)


def rounds(state: State, strategy: str, times: int, count: int) -> list[Question]:
    questions: list[Question] = []
    for _ in range(times):
        asked = np.array([question[:2] for question in questions], np.int64).reshape(-1, 2)
        now = State(state.pool, state.beliefs, asked, state.correlation, state.seed)
        questions += choose(now, count, strategy)
    return questions


@pytest.mark.parametrize("strategy", ["random", "uncertain", "change"])
def test_questions_differ_and_keep_apart(strategy: str) -> None:
    state = make_state()
    questions = rounds(state, strategy, 6, 60)
    assert len({question[:2] for question in questions}) == 360
    for label in range(6):
        segments = {question.segment for question in questions if question.label == label}
        assert len(segments) == 60
        assert not any(near in segments for s in segments for near in state.pool.neighbors(s))


@pytest.mark.parametrize("count", [5, 7, 23])
def test_exactly_one_of_five_is_random(count: int) -> None:
    questions = rounds(make_state(), "change", 15, count)
    reasons = [question.reason for question in questions]
    assert set(reasons) == {RANDOM, "change"}
    fives = [reasons[start : start + 5] for start in range(0, len(reasons) - 4, 5)]
    assert all(five.count(RANDOM) == 1 for five in fives)
    assert len({five.index(RANDOM) for five in fives}) > 1
    assert {question.reason for question in choose(make_state(), 30, with_random=False)} == {
        "change"
    }


def test_random_questions_are_about_the_sample_and_others_are_not() -> None:
    state = make_state(400, 2)
    sample = np.arange(400) // 4 % 5 == 0  # the segments of every fifth video
    state = replace(state, sample=sample)
    questions = choose(state, 100)
    assert [question.reason == RANDOM for question in questions] == [
        bool(sample[question.segment]) for question in questions
    ]
    every = choose(replace(state, sample=sample & (np.arange(400) < 4)), 100)  # one video
    assert sum(question.reason == RANDOM for question in every) == 20
    assert {q.segment for q in every if q.reason == RANDOM} > {0, 1, 2, 3}
    assert len(choose(state, 1000)) == 800


def test_random_questions_are_spread_evenly() -> None:
    drawn = [
        question.segment
        for seed in range(60)
        for question in choose(make_state(40, 2, seed=seed), 20)
        if question.reason == RANDOM
    ]
    counts = np.bincount(drawn, minlength=40)
    assert counts.sum() == 240
    assert counts.max() < 18  # 6 expected, whatever they are worth
    assert (counts == 0).sum() < 3


def test_classes_are_balanced_and_grouped() -> None:
    asked = [(4 * number, 0) for number in range(10)] + [(4 * number, 1) for number in range(5)]
    questions = choose(make_state(asked=asked), 20)
    assert {question.label for question in questions} == {2, 3, 4, 5}
    groups = [questions[start : start + GROUP] for start in range(0, 20, GROUP)]
    assert all(len({question.label for question in group}) == 1 for group in groups)
    even = np.zeros((400, 6), np.float32)
    first = Counter(choose(make_state(logits=even, seed=n), 1)[0].label for n in range(40))
    assert len(first) > 3
    totals = Counter(question.label for question in rounds(make_state(), "change", 12, 20))
    assert max(totals.values()) - min(totals.values()) <= GROUP


def test_a_seed_determines_the_questions() -> None:
    assert choose(make_state(), 40) == choose(make_state(), 40)
    assert choose(make_state(), 40) != choose(make_state(seed=1), 40)


def test_the_worthiest_are_asked() -> None:
    logits = np.full((400, 1), -3, np.float32)
    near = np.arange(0, 16 * AMONG, 4)
    logits[near] = 0.1
    for strategy in ("uncertain", "change"):
        questions = choose(make_state(classes=1, logits=logits), 10, strategy)
        chosen = {question.segment for question in questions if question.reason == strategy}
        assert chosen <= set(near.tolist())


def test_what_is_unlike_the_questions_before_is_asked_first() -> None:
    state = make_state(classes=1, logits=np.zeros((400, 1), np.float32), asked=[(0, 0)])
    means = np.tile(state.pool.means[0], (400, 1))
    means[200] = -means[0]  # all others are like the segment that was asked about
    object.__setattr__(state.pool, "means", means)
    worth = np.zeros((400, 1), np.float32)
    worth[190:210] = 1

    def flat(_: State) -> np.ndarray:
        return worth

    assert choose(state, 1, flat, with_random=False) == [Question(200, 0, "flat")]


def test_at_first_videos_differ() -> None:
    logits = np.zeros((400, 3), np.float32)
    questions = choose(make_state(classes=3, logits=logits), 30, with_random=False)
    for label in range(3):
        segments = [question.segment for question in questions if question.label == label]
        assert len({segment // 4 for segment in segments}) == len(segments)


def test_neighbors_and_the_end() -> None:
    questions = choose(make_state(8, 1, per_video=8), 20)
    assert sorted(question.segment for question in questions) == list(range(8))
    first = [question.segment for question in questions][:3]
    assert all(abs(one - other) > 1 for one in first for other in first if one != other)
    asked = [(segment, 0) for segment in range(8)]
    assert choose(make_state(8, 1, asked=asked), 5) == []
    others = choose(make_state(8, 2, asked=asked), 20)
    assert {question.label for question in others} == {1}
    assert len(others) == 8
    assert choose(make_state(), 0) == []


def test_change_counts_related_classes() -> None:
    offsets, columns = torch.tensor([0, 2, 2, 2, 2]), torch.tensor([1, 2])
    correlation = LabelCorrelation(offsets, columns, torch.tensor([0.5, 1.0]))
    logits = np.zeros((3, 4), np.float32)
    logits[1, 2] = -20  # an answer that is expected changes nothing
    state = make_state(3, 4, logits=logits, correlation=correlation)
    expected = np.full((3, 4), 2 * 2.5 * 0.25)
    expected[1, 2] = 0
    expected[:, 0] += 2 * 0.1 * 0.25 * (0.5 + 1.0)
    np.testing.assert_allclose(change(state), expected, atol=1e-6)
    assert {choose(replace(state, seed=seed), 1)[0].label for seed in range(9)} == {0}
    without = make_state(3, 4)
    assert (change(without).argsort(0) == uncertain(without).argsort(0)).all()


def test_registry() -> None:
    @register_strategy("first")
    def first(state: State) -> np.ndarray:
        worth = np.zeros_like(state.beliefs.logits)
        worth[:AMONG] = 1
        return worth

    assert find_strategy("first") is first
    chosen = choose(make_state(), 10, "first")
    own = [question for question in chosen if question.reason == "first"]
    assert len(own) == 8
    assert all(question.segment < AMONG for question in own)
    with pytest.raises(ArgumentError, match=r"strategy: expected one of .* 'chance'.*'change'"):
        find_strategy("chance")
    with pytest.raises(ArgumentError, match="new strategy, found 'change'"):
        register_strategy("change")(first)


@pytest.mark.parametrize(
    ("worth", "found"),
    [
        (np.zeros((3, 6), np.float32), "shape .3, 6."),
        (np.full((400, 6), np.nan, np.float32), "some NaN"),
        (np.zeros((400, 6), bool), "found bool"),
    ],
)
def test_a_strategy_that_returns_something_else(worth: np.ndarray, found: str) -> None:
    def broken(_: State) -> np.ndarray:
        return worth

    with pytest.raises(ArgumentError, match=f"strategy broken: expected floating .*{found}"):
        choose(make_state(), 5, broken)
    with pytest.raises(ArgumentError, match="count: expected at least 0, found -1"):
        choose(make_state(), -1)
