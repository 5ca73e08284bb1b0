"""Metrics over streams equal the functions of the concatenated blocks.

For several processes see tests/test_distributed.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseg.metrics import (
    GlobalAveragePrecisionAtK,
    HitAt1,
    MeanAveragePrecisionAtK,
    PrecisionAtEqualRecallRate,
    gap_at_k,
    hit_at_1,
    map_at_k,
    map_at_k_dense,
    perr,
    streaming,
)

CLASSES = 4
SCORES = st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 0.25, 0.5, np.inf])
FEW: dict[str, Callable[..., float]] = {"gap": gap_at_k, "hit": hit_at_1, "perr": perr}


@st.composite
def streams(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Returns (S, C) scores, labels and a mask, and the bounds of the blocks."""
    rows = draw(st.integers(0, 12))
    scores, labels, mask = (
        draw(st.lists(item, min_size=rows * CLASSES, max_size=rows * CLASSES))
        for item in (SCORES, st.sampled_from([0.0, 0.0, 0.1, 1.0]), st.booleans())
    )
    return (
        np.array(scores, draw(st.sampled_from([np.float32, np.float64]))).reshape(-1, CLASSES),
        np.array(labels, np.float64).reshape(-1, CLASSES),
        np.array(mask, bool).reshape(-1, CLASSES),
        [0, *sorted(draw(st.lists(st.integers(0, rows), max_size=4))), rows],
    )


@settings(max_examples=200, deadline=None)
@given(streams(), st.integers(1, 8), st.sampled_from([0, 10, 2**20]), st.booleans())
def test_map_equals_the_function(stream: tuple, k: int, pending: int, merged: bool) -> None:
    scores, labels, rated, bounds = stream
    column = np.nonzero(rated)[1]
    expected = map_at_k(column, scores[rated], labels[rated], num_classes=CLASSES, k=k)
    flat, dense, other = (MeanAveragePrecisionAtK(CLASSES, k) for _ in range(3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming, "_PENDING_ROWS", pending)
        for begin, end in itertools.pairwise(bounds):
            part = slice(begin, end)
            mask = rated[part]
            target = other if merged and begin >= len(scores) // 2 else flat
            target.update(np.nonzero(mask)[1], scores[part][mask], labels[part][mask])
            dense.update_dense(scores[part], labels[part], mask)
        flat.merge(other)
        results = flat.compute(), dense.compute()
    for result in results:
        for name in ("per_class", "positives", "rated"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
        assert result.map == expected.map
    assert len(dense._blocks[0][0]) <= k * CLASSES


@settings(max_examples=150, deadline=None)
@given(streams(), st.integers(1, 6), st.booleans())
def test_other_metrics_equal_their_functions(stream: tuple, k: int, merged: bool) -> None:
    scores, labels, _, bounds = stream
    made: dict[str, Callable[[], Any]] = {
        "gap": lambda: GlobalAveragePrecisionAtK(CLASSES, k),
        "hit": lambda: HitAt1(CLASSES),
        "perr": lambda: PrecisionAtEqualRecallRate(CLASSES),
    }
    for name, make in made.items():
        metric, other = make(), make()
        for begin, end in itertools.pairwise(bounds):
            target = other if merged and begin >= len(scores) // 2 else metric
            target.update(scores[begin:end], labels[begin:end])
        metric.merge(other)
        if name != "gap" and not len(scores):
            with pytest.raises(ValueError, match=r"scores: expected at least one row.*\(0, 4\)"):
                metric.compute()
            continue
        arguments = (k,) if name == "gap" else ()
        assert metric.compute() == FEW[name](scores, labels, *arguments)


def test_all_pairs_of_a_matrix_count_without_a_mask() -> None:
    scores, labels = np.random.default_rng(0).random((2, 30, CLASSES))
    metric = MeanAveragePrecisionAtK(CLASSES, empty_classes="skip")
    metric.update_dense(torch.from_numpy(scores), labels > 0.5)
    expected = map_at_k_dense(scores, labels > 0.5, empty_classes="skip")
    np.testing.assert_array_equal(metric.compute().per_class, expected.per_class)


def test_arguments_may_be_overwritten_afterwards() -> None:
    classes, scores, relevant = np.array([0, 0]), np.array([0.9, 0.1]), np.array([True, False])
    metric = MeanAveragePrecisionAtK(1)
    metric.update(classes, scores, relevant)
    scores[:] = scores[::-1].copy()
    relevant[:] = False
    assert metric.compute().map == 1.0


def test_reset_clears_the_state_and_compute_keeps_it() -> None:
    metric = HitAt1(2)
    metric.update([[0.9, 0.1]], [[1, 0]])
    assert metric.compute() == metric.compute() == 1.0
    metric.update([[0.9, 0.1]], [[0, 1]])
    assert metric.compute() == 0.5
    metric.reset()
    metric.update([[0.9, 0.1]], [[0, 1]])
    assert metric.compute() == 0.0
    best = MeanAveragePrecisionAtK(1)
    best.update([0], [0.5], [1])
    best.reset()
    assert best.compute().rated.tolist() == [0]


@pytest.mark.parametrize(
    "metric",
    [GlobalAveragePrecisionAtK(3), HitAt1(3), PrecisionAtEqualRecallRate(3)],
    ids=lambda metric: type(metric).__name__,
)
def test_bad_input(metric: Any) -> None:
    with pytest.raises(ValueError, match=r"scores: expected 3 classes, found shape \(1, 2\)"):
        metric.update([[0.1, 0.2]], [[1, 0]])
    with pytest.raises(ValueError, match=r"labels: .*found NaN"):
        metric.update([[0.1, 0.2, 0.3]], [[1, np.nan, 0]])
    with pytest.raises(ValueError, match="num_classes: expected at least 1, found 0"):
        type(metric)(0)
    with pytest.raises(ValueError, match="other: expected num_classes 3, found 4"):
        metric.merge(type(metric)(4))
    with pytest.raises(TypeError, match=r"other: expected .*, found MeanAveragePrecisionAtK"):
        metric.merge(MeanAveragePrecisionAtK(3))


def test_bad_input_of_map() -> None:
    metric = MeanAveragePrecisionAtK(2, k=5)
    with pytest.raises(ValueError, match=r"classes: expected values in 0\.\.1, found 2 at 0"):
        metric.update([2], [0.5], [1])
    with pytest.raises(ValueError, match=r"scores: expected 2 classes, found shape \(1, 1\)"):
        metric.update_dense([[0.5]], [[1]])
    with pytest.raises(ValueError, match="other: expected k 5, found 6"):
        metric.merge(MeanAveragePrecisionAtK(2, k=6))
    with pytest.raises(ValueError, match="k: expected at least 1, found 0"):
        MeanAveragePrecisionAtK(2, k=0)
    with pytest.raises(ValueError, match="empty_classes: expected one of zero, skip"):
        MeanAveragePrecisionAtK(2, empty_classes="drop")  # type: ignore[arg-type]
    assert metric.compute().rated.tolist() == [0, 0]
