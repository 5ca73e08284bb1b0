"""GAP, Hit@1 and PERR against the starter code's definitions, row by row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseg.metrics import TopKPerClass, gap_at_k, hit_at_1, map_at_k_dense, perr

SCORES = st.sampled_from([-np.inf, -1.5, 0.0, 0.25, 0.5, 0.75, np.inf])


@st.composite
def matrices(draw: st.DrawFn, min_rows: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rows, classes = draw(st.integers(min_rows, 6)), draw(st.integers(1, 6))
    size = rows * classes
    scores = draw(st.lists(SCORES, min_size=size, max_size=size))
    labels = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return (
        np.array(scores, dtype=np.float64).reshape(rows, classes),
        np.array(labels, dtype=bool).reshape(rows, classes),
    )


def ranked(row: np.ndarray) -> list[int]:
    return sorted(range(len(row)), key=lambda index: -row[index])


@settings(max_examples=150, deadline=None)
@given(matrices(), st.one_of(st.integers(1, 7), st.just(20)))
def test_gap_is_its_definition(data: tuple[np.ndarray, np.ndarray], k: int) -> None:
    scores, labels = data
    pool = [(scores[i, j], labels[i, j]) for i in range(len(scores)) for j in ranked(scores[i])[:k]]
    hits, total = 0, 0.0
    for rank, (_, hit) in enumerate(sorted(pool, key=lambda pair: -pair[0]), start=1):
        if hit:
            hits += 1
            total += hits / rank
    expected = total / labels.sum() if labels.any() else 0.0
    assert gap_at_k(scores, labels, k) == pytest.approx(expected, rel=1e-14)


@settings(max_examples=150, deadline=None)
@given(matrices(min_rows=1))
def test_hit_and_perr_are_their_definitions(data: tuple[np.ndarray, np.ndarray]) -> None:
    scores, labels = data
    hits = [labels[i, ranked(scores[i])[0]] for i in range(len(scores))]
    assert hit_at_1(scores, labels) == pytest.approx(np.mean(hits))
    precisions = []
    for row, label in zip(scores, labels, strict=True):
        best = ranked(row)[: label.sum()]
        right = sum(bool(label[j]) and row[j] > 0 for j in best)
        precisions.append(right / len(best) if best else 0.0)
    assert perr(scores, labels) == pytest.approx(np.mean(precisions))


def test_gap_counts_labels_outside_the_best_k() -> None:
    assert gap_at_k([[0.9, 0.8, 0.7]], [[1, 0, 1]], k=1) == 0.5
    assert gap_at_k([[0.9, 0.8, 0.7]], [[1, 0, 1]], k=3) == pytest.approx((1 + 2 / 3) / 2)


def test_gap_pools_twenty_by_default() -> None:
    scores = -np.arange(30.0)[None]
    labels = np.zeros((1, 30), dtype=bool)
    labels[0, 19] = True
    assert gap_at_k(scores, labels) == pytest.approx(1 / 20)
    assert gap_at_k(scores, np.roll(labels, 1)) == 0.0


def test_ties_go_to_the_lower_class_and_the_earlier_row() -> None:
    scores = np.full((2, 2), 0.5)
    assert hit_at_1(scores, [[1, 0], [0, 1]]) == 0.5
    assert perr(scores, [[1, 0], [0, 1]]) == 0.5
    assert gap_at_k(scores, [[1, 0], [0, 0]]) == 1.0
    assert gap_at_k(scores, [[0, 0], [1, 0]]) == pytest.approx(1 / 3)


def test_perr_of_rows_without_labels_and_of_scores_below_zero() -> None:
    assert perr([[0.9, 0.1], [0.9, 0.1]], [[1, 0], [0, 0]]) == 0.5
    assert perr([[-0.1, -0.9]], [[1, 0]]) == 0.0


def test_hit_at_1_takes_the_labels_value() -> None:
    assert hit_at_1([[0.9, 0.1], [0.9, 0.1]], [[0.5, 1.0], [1.0, 0.0]]) == 0.75


@pytest.mark.parametrize("labels", [[[1, 0], [0, -1]], [[1, 2], [0, 1]], [[0.5, 1.0], [0, np.inf]]])
def test_hit_at_1_averages_label_values_and_the_others_binarize_them(
    labels: list[list[float]],
) -> None:
    """Hit@1 is a mean of label values; GAP and PERR only test whether a label is above 0."""
    scores = [[0.9, 0.1], [0.9, 0.1]]
    with pytest.raises(
        ValueError, match=r"labels: expected values in 0\.\.1, found .* at \[\d, 1\]"
    ):
        hit_at_1(scores, labels)
    relevant = np.array(labels) > 0
    for metric in (gap_at_k, perr):
        assert metric(scores, labels) == metric(scores, relevant)
    found, expected = (map_at_k_dense(scores, relevance) for relevance in (labels, relevant))
    assert found.per_class.tolist() == expected.per_class.tolist()


@pytest.mark.parametrize(
    ("k", "error"), [(0, ValueError), (-1, ValueError), (2**63, ValueError), (2.5, TypeError)]
)
def test_k_is_a_positive_integer(k: float, error: type[Exception]) -> None:
    for call in (
        lambda: gap_at_k([[0.5]], [[1]], k=k),
        lambda: map_at_k_dense([[0.5]], [[1]], k=k),
        lambda: TopKPerClass(1, k),
    ):
        with pytest.raises(error, match="k: expected "):
            call()


def test_the_largest_k_means_all() -> None:
    assert gap_at_k([[0.5]], [[1]], k=2**63 - 1) == map_at_k_dense([[0.5]], [[1]], k=2**63 - 1).map
    best = TopKPerClass(1, 2**63 - 1)
    for segment in range(200):
        best.update([segment], [[segment / 200]])
    assert best.finish().segment_ids.tolist() == list(range(199, -1, -1))


@pytest.mark.parametrize("metric", [gap_at_k, hit_at_1, perr])
def test_tensors_give_the_same_as_arrays(metric: Callable[..., float]) -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.random((20, 7), dtype=np.float32), rng.random((20, 7)) < 0.3
    found = metric(torch.from_numpy(scores).requires_grad_(), torch.from_numpy(labels))
    assert isinstance(found, float)
    assert found == metric(scores, labels)


@pytest.mark.parametrize("metric", [gap_at_k, hit_at_1, perr])
def test_bad_input(metric: Callable[..., float]) -> None:
    with pytest.raises(ValueError, match=r"scores: .*found NaN at \[0, 1\]"):
        metric([[0.1, np.nan]], [[1, 0]])
    with pytest.raises(ValueError, match=r"labels: .*found NaN"):
        metric([[0.1, 0.2]], [[1, np.nan]])
    with pytest.raises(ValueError, match=r"labels: expected shape \(1, 2\).*found \(1, 1\)"):
        metric([[0.1, 0.2]], [[1]])
    with pytest.raises(ValueError, match=r"scores: expected 2 dimension"):
        metric([0.1, 0.2], [1, 0])
    with pytest.raises(TypeError, match=r"labels: expected numbers"):
        metric([[0.1]], [["a"]])


def test_empty_input() -> None:
    assert gap_at_k(np.zeros((0, 3)), np.zeros((0, 3))) == 0.0
    assert gap_at_k([[0.5]], [[0]]) == 0.0
    with pytest.raises(ValueError, match=r"k: expected at least 1, found 0"):
        gap_at_k([[0.5]], [[0]], k=0)
    for metric in (hit_at_1, perr):
        with pytest.raises(ValueError, match=r"scores: expected at least one row .*\(0, 3\)"):
            metric(np.zeros((0, 3)), np.zeros((0, 3)))
