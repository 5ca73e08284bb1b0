"""pyseg.calibration: probabilities that agree with ratings, thresholds, and the file of both."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from pyseg.calibration import Calibration
from pyseg.errors import ArgumentError, DataError
from pyseg.metrics import map_at_k, reliability

SEEDS = (0, 1, 2)


class Drawn(NamedTuple):
    """Ratings that were drawn by known probabilities, and the logits of a model."""

    logits: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    truth: np.ndarray  # the logits of the probabilities


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def draw(
    count: int, seed: int, *, temperature: float = 1.0, bias: float = 0.0, spread: float = 0.0
) -> Drawn:
    """Draws ratings of 5 classes; the model's logits are ``temperature * truth + bias``."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, count)
    truth = rng.normal(-1.5, 2.0, count)
    scores = (rng.random(count) < sigmoid(truth)).astype(float)
    biases = bias + spread * np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    return Drawn(temperature * truth + biases[labels], labels, scores, truth)


def fit(drawn: Drawn, **options) -> Calibration:
    return Calibration.fit(drawn.logits, drawn.labels, drawn.scores, num_classes=5, **options)


def mapped(found: Calibration, drawn: Drawn) -> np.ndarray:
    """Returns the probability of each pair."""
    every = np.repeat(drawn.logits[:, None], 5, axis=1)
    return found.probabilities(every)[np.arange(len(drawn.labels)), drawn.labels]


def excess(probabilities: np.ndarray, drawn: Drawn) -> float:
    """Returns the mean divergence of probabilities from the true ones."""
    p, q = sigmoid(drawn.truth), np.clip(probabilities, 1e-12, 1 - 1e-12)
    return float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "wrong", [{"temperature": 3.0, "bias": 2.0}, {"temperature": 0.4}, {"spread": 1.0}]
)
def test_a_miscalibrated_model_is_mended(wrong: dict[str, float], seed: int) -> None:
    found = fit(draw(2000, seed, **wrong))
    fresh = draw(5000, seed + 100, **wrong)
    before = reliability(sigmoid(fresh.logits), fresh.scores)
    after = reliability(mapped(found, fresh), fresh.scores)
    assert before.error > 0.06
    assert after.error < 2.5 * after.noise
    assert after.brier < before.brier
    assert excess(mapped(found, fresh), fresh) < 0.01
    # What it says of itself, by cross-validation, is true of new pairs.
    assert abs(found.before.error - before.error) < 0.03
    assert abs(found.after.brier - after.brier) < 0.015


@pytest.mark.parametrize(("count", "most"), [(40, 0.02), (150, 0.01), (1000, 0.005)])
def test_a_perfect_model_is_hardly_made_worse(count: int, most: float) -> None:
    fresh = draw(5000, 100)
    found = [excess(mapped(fit(draw(count, seed)), fresh), fresh) for seed in SEEDS]
    assert np.mean(found) < most  # what mending is worth: 0.23, in the next test


def test_few_ratings_mend_what_they_can() -> None:
    wrong = {"temperature": 3.0, "bias": 2.0}
    fresh = draw(5000, 100, **wrong)
    found = [excess(mapped(fit(draw(60, seed, **wrong)), fresh), fresh) for seed in SEEDS]
    assert np.mean(found) < 0.5 * excess(sigmoid(fresh.logits), fresh)


def test_temperatures_and_biases_of_classes() -> None:
    """A class with many ratings gets its own; one without any gets the shared ones."""
    drawn = draw(8000, 0, spread=1.0)
    kept = drawn.labels != 4
    some = Drawn(*(values[kept] for values in drawn))
    found = fit(some)
    np.testing.assert_allclose(found.biases[:4], [2, 1, 0, -1], atol=0.35)
    np.testing.assert_allclose(found.slopes[:4], 1, atol=0.15)
    assert (found.rated[4], found.positives[4]) == (0, 0)
    assert -1 < found.biases[4] < 2
    assert found.rated.sum() == len(some.labels)
    assert found.positives.sum() == some.scores.sum()


def test_one_class_is_platts_scaling() -> None:
    drawn = draw(4000, 0, temperature=2.0, bias=1.0)
    found = Calibration.fit(drawn.logits, np.zeros(4000, int), drawn.scores, num_classes=1)
    peer = LogisticRegression(C=1e6).fit(drawn.logits[:, None], drawn.scores)
    np.testing.assert_allclose(found.slopes, peer.coef_[0], rtol=0.02)
    np.testing.assert_allclose(found.biases, peer.intercept_, atol=0.02)


def test_weights_count_as_repetitions() -> None:
    drawn = draw(500, 0, temperature=2.0)
    groups = np.arange(500) % 20
    weights = 1.0 + (np.arange(500) % 3 == 0)
    twice = np.repeat(np.arange(500), weights.astype(int))
    weighted = fit(drawn, groups=groups, weights=weights)
    repeated = fit(Drawn(*(values[twice] for values in drawn)), groups=groups[twice])
    # The center of the logits, around which the prior turns, does not know the weights.
    np.testing.assert_allclose(weighted.slopes, repeated.slopes, rtol=0.02)
    np.testing.assert_allclose(weighted.biases, repeated.biases, atol=0.02)


def test_videos_are_held_out_whole() -> None:
    """Ratings that are repeated within a video are no evidence of many ratings."""
    drawn = draw(30, 0)
    many = Drawn(*(np.tile(values, 20) for values in drawn))
    assert fit(many).changes
    assert not fit(many, groups=np.tile(np.arange(30), 20)).changes


def test_rankings_stay() -> None:
    drawn = draw(3000, 1, temperature=2.0, spread=1.0)
    found = fit(drawn)
    assert (found.slopes > 0).all()
    before = map_at_k(drawn.labels, drawn.logits, drawn.scores > 0, num_classes=5)
    after = map_at_k(drawn.labels, mapped(found, drawn), drawn.scores > 0, num_classes=5)
    np.testing.assert_array_equal(before.per_class, after.per_class)


def test_tensors_and_arrays_agree() -> None:
    found = fit(draw(1000, 0, temperature=2.0, spread=1.0))
    logits = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    from_array = found.probabilities(logits)
    from_tensor = found.probabilities(torch.from_numpy(logits))
    assert from_array.dtype == np.float32
    assert from_tensor.dtype == torch.float32
    np.testing.assert_allclose(from_array, from_tensor.numpy(), atol=1e-6)
    extreme = found.probabilities(np.array([[1e9, -1e9, 0, 0, 0]]))
    assert np.isfinite(extreme).all()


def test_thresholds_maximise_the_expected_f1() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal([-3.0, 0.0, 2.0, -9.0, -1.0], 2.0, (400, 5))
    logits[:, 3] = -12.0  # a class that hardly occurs
    found = fit(draw(1000, 0)).with_thresholds(logits)
    p = found.probabilities(logits)

    def expected(column: int, threshold: float) -> float:
        above = p[:, column] >= threshold
        return 2 * p[above, column].sum() / (above.sum() + p[:, column].sum())

    grid = np.linspace(0.001, 0.999, 999)
    for column in (0, 1, 2, 4):
        best = max(expected(column, threshold) for threshold in grid)
        assert expected(column, found.thresholds[column]) == pytest.approx(best, abs=1e-3)
    assert (found.thresholds <= 0.5).all()
    together = p.ravel()
    best = max(
        2 * together[together >= t].sum() / ((together >= t).sum() + together.sum()) for t in grid
    )
    assert found.thresholds[3] == pytest.approx(best / 2, abs=1e-3)
    with pytest.raises(ArgumentError, match="logits: expected the shape"):
        found.with_thresholds(logits[:, :4])


@functools.cache
def small() -> Calibration:
    return fit(draw(300, 0, temperature=2.0)).with_thresholds(np.zeros((10, 5)))


def written(tmp_path: Path) -> Path:
    small().write(tmp_path / "calibration.json")
    return tmp_path / "calibration.json"


def test_the_file_keeps_everything(tmp_path: Path) -> None:
    found, path = small(), written(tmp_path)
    again = Calibration.read(path)
    for name in ("slopes", "biases", "rated", "positives", "thresholds"):
        np.testing.assert_allclose(getattr(again, name), getattr(found, name), rtol=1e-12)
    for name in ("before", "after"):
        ours, theirs = vars(getattr(found, name)), vars(getattr(again, name))
        for key, value in ours.items():
            np.testing.assert_array_equal(theirs[key], value)
    assert (again.source, again.is_sample, again.date, again.weights) == ("", False, "", "")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("temperature", [1.0] * 4, r"classes\.rated: expected 4 numbers"),
        ("temperature", [0.0] * 5, r"classes\.temperature: expected numbers"),
        ("bias", ["a"] * 5, r"classes\.bias: expected 5 numbers"),
        ("rated", [1.5] * 5, r"classes\.rated: expected 5 numbers"),
        ("positives", [-1] * 5, r"classes\.positives: expected 5 numbers"),
        ("threshold", [2.0] * 5, r"classes\.threshold: expected 5 numbers"),
    ],
)
def test_hostile_columns_are_refused(
    tmp_path: Path, column: str, values: list, message: str
) -> None:
    path = written(tmp_path)
    content = json.loads(path.read_text())
    content["classes"][column] = values
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        Calibration.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"format_version": 2}', '{"format_version": true}', "[" * 100_000, "NaN"],
)
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"calibration\.json: expected|format_version"):
        Calibration.read(path)


@pytest.mark.parametrize("key", ["source", "is_sample", "date", "weights", "before", "after"])
@pytest.mark.parametrize("value", [None, 3, {}, [1e400]])
def test_hostile_values_are_refused(tmp_path: Path, key: str, value: object) -> None:
    path = written(tmp_path)
    content = json.loads(path.read_text())
    content[key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"calibration\.json"):
        Calibration.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": [np.nan, 0.0]}, "logits: expected finite"),
        ({"scores": [2.0, 0.0]}, "scores: expected numbers in"),
        ({"labels": [0, 1]}, "labels: expected classes below 1"),
        ({"labels": [0]}, "labels: expected one number for each"),
        ({"weights": [-1.0, 1.0]}, "weights: expected finite numbers"),
        ({"logits": [], "labels": [], "scores": []}, "at least one pair"),
    ],
)
def test_wrong_arguments(change: dict, message: str) -> None:
    arguments = {"logits": [0.0, 1.0], "labels": [0, 0], "scores": [0.0, 1.0], **change}
    with pytest.raises(ArgumentError, match=message):
        Calibration.fit(**arguments, num_classes=1)


def test_one_video_changes_nothing() -> None:
    drawn = draw(100, 0, temperature=3.0)
    found = fit(drawn, groups=np.zeros(100, int))
    assert not found.changes
    assert found.after.error == found.before.error
