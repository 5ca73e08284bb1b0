"""map_at_k against its definition as loops."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseg.metrics import _ranking, map_at_k, map_at_k_dense

# Few values, for ties, some of which differ in their last bit; infinities are ordinary.
SCORES = st.sampled_from(
    [-np.inf, -1.5, -0.0, 0.0, 1e-300, 0.25, np.nextafter(0.25, 1), np.nextafter(2, 1), 2.0, np.inf]
)
CLASSES = 4
ROWS = st.lists(st.tuples(st.integers(0, CLASSES - 1), SCORES, st.booleans()), max_size=40)
K = st.one_of(st.integers(1, 8), st.just(100_000))


def average_precision(rows: list[tuple[float, bool]], k: int) -> float:
    """AP of one class's (score, relevant) rows: sort, then count, in pure Python."""
    ranked = sorted(rows, key=lambda row: -row[0])  # stable
    positives = sum(relevant for _, relevant in ranked)
    if positives == 0:
        return 0.0
    hits, total = 0, 0.0
    for rank, (_, relevant) in enumerate(ranked[:k], start=1):
        if relevant:
            hits += 1
            total += hits / rank
    return total / min(positives, k)


def oracle(rows: list[tuple[int, float, bool]], num_classes: int, k: int) -> list[float]:
    return [
        average_precision([(s, r) for c, s, r in rows if c == index], k)
        for index in range(num_classes)
    ]


def columns(rows: list[tuple[int, float, bool]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.array([row[0] for row in rows], dtype=np.int64),
        np.array([row[1] for row in rows], dtype=np.float64),
        np.array([row[2] for row in rows], dtype=bool),
    )


@settings(max_examples=600, deadline=None)
@given(ROWS, K, st.sampled_from([np.float32, np.float64]))
def test_is_its_definition(rows: list, k: int, dtype: type) -> None:
    classes, scores, relevance = columns(rows)
    scores = scores.astype(dtype)
    rows = list(zip(classes.tolist(), scores.tolist(), relevance.tolist(), strict=True))
    expected = oracle(rows, CLASSES, k)
    result = map_at_k(classes, scores, relevance, num_classes=CLASSES, k=k)
    np.testing.assert_allclose(result.per_class, expected, rtol=1e-15, atol=0)
    assert result.map == pytest.approx(np.mean(expected), rel=1e-15)
    counts = [[r for c, _, r in rows if c == index] for index in range(CLASSES)]
    assert result.positives.tolist() == [sum(c) for c in counts]
    assert result.rated.tolist() == [len(c) for c in counts]

    skipped = map_at_k(classes, scores, relevance, num_classes=CLASSES, k=k, empty_classes="skip")
    kept = [ap for ap, c in zip(expected, counts, strict=True) if sum(c)]
    assert skipped.map == pytest.approx(np.mean(kept) if kept else np.nan, rel=1e-15, nan_ok=True)
    np.testing.assert_array_equal(skipped.per_class, result.per_class)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 7).flatmap(
        lambda n: st.tuples(
            *(
                st.lists(st.lists(item, min_size=3, max_size=3), min_size=n, max_size=n)
                for item in (SCORES, st.booleans(), st.booleans())
            )
        )
    ),
    K,
    st.sampled_from([1, 2, 16]),
    st.sampled_from([0.0, 2.0]),
    st.sampled_from([np.float32, np.float64]),
)
def test_dense_is_the_flat_one(
    matrices: tuple, k: int, width: int, few: float, dtype: type
) -> None:
    scores, relevance, rated = (np.array(m).reshape(-1, 3) for m in matrices)
    scores, rated = scores.astype(dtype), rated.astype(bool)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ranking, "_WIDTH", width)
        patch.setattr(_ranking, "_FEW", few)
        some = map_at_k_dense(scores, relevance, rated, k=k)
        every = map_at_k_dense(scores, relevance, k=k)
    for result, mask in ((some, rated), (every, np.ones_like(rated))):
        row, column = np.nonzero(mask)
        flat = map_at_k(column, scores[row, column], relevance[row, column], num_classes=3, k=k)
        np.testing.assert_array_equal(result.per_class, flat.per_class)
        np.testing.assert_array_equal(result.positives, flat.positives)
        np.testing.assert_array_equal(result.rated, flat.rated)
        assert result.map == flat.map


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_agrees_with_scikit_learn_without_ties(rows: int, seed: int) -> None:
    from sklearn.metrics import average_precision_score  # seconds, for one test of one process

    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(rows, dtype=float), (3, 1)), axis=1).T
    relevance = rng.random((rows, 3)) < 0.4
    relevance[0] = True
    expected = average_precision_score(relevance, scores, average=None)
    found = map_at_k_dense(scores, relevance)
    np.testing.assert_allclose(found.per_class, expected, rtol=1e-12)
    assert found.map == pytest.approx(expected.mean(), rel=1e-12)


def test_by_hand() -> None:
    # Class 0 ranks: relevant, not, relevant -> (1 + 2/3) / 2. Class 1 has no positive.
    result = map_at_k([0, 0, 0, 1], [0.9, 0.8, 0.7, 0.1], [1, 0, 1, 0], num_classes=3)
    np.testing.assert_allclose(result.per_class, [5 / 6, 0, 0], rtol=1e-15)
    assert result.map == pytest.approx(5 / 18)


def test_positives_beyond_k_count_in_the_denominator() -> None:
    """min(positives, k), not the number of hits among the k."""
    one_class = {"num_classes": 1, "classes": [0] * 4, "scores": [4.0, 3.0, 2.0, 1.0]}
    assert map_at_k(relevance=[1, 0, 1, 1], k=2, **one_class).map == pytest.approx(1 / 2)
    assert map_at_k(relevance=[0, 0, 1, 0], k=2, **one_class).map == 0.0
    assert map_at_k(relevance=[0, 0, 1, 0], k=3, **one_class).map == pytest.approx(1 / 3)


def test_ties_keep_their_order_and_use_no_random_numbers() -> None:
    random.seed(7)
    np.random.seed(7)
    states = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    for relevance, expected in (([1, 0, 0], 1.0), ([0, 1, 0], 1 / 2), ([0, 0, 1], 1 / 3)):
        found = map_at_k([0, 0, 0], [0.5, 0.5, 0.5], relevance, num_classes=1)
        assert found.map == pytest.approx(expected)
        dense = map_at_k_dense([[0.5]] * 3, [[r] for r in relevance])
        assert dense.map == pytest.approx(expected)
    assert map_at_k([0, 0], [0.0, -0.0], [0, 1], num_classes=1).map == 0.5  # -0 is 0
    assert states == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_more_rows_than_a_block(dtype: type, share: float) -> None:
    """Some rows with equal scores, none, some or all of them relevant, shuffled, and any k."""
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 400, (1000, 5)).astype(dtype) / 7
    relevance = rng.random((1000, 5)) < share
    rated = rng.random((1000, 5)) < 0.7
    for k in (1, 10, 100_000):
        for mask in (rated, np.ones_like(rated)):
            found = map_at_k_dense(scores, relevance, mask, k=k).per_class
            for index in range(5):
                of_class = mask[:, index]
                rows = zip(
                    scores[of_class, index].tolist(),
                    relevance[of_class, index].tolist(),
                    strict=True,
                )
                assert found[index] == pytest.approx(average_precision(list(rows), k), rel=1e-14)


def test_result_is_independent_of_memory_layout_and_threads() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((500, 40), dtype=np.float32)
    relevance, rated = rng.random((2, 500, 40)) < 0.5
    expected = map_at_k_dense(scores, relevance, rated).per_class
    turned = [np.asfortranarray(matrix) for matrix in (scores, relevance, rated)]
    every_other = [np.repeat(matrix, 2, axis=1)[:, ::2] for matrix in (scores, relevance, rated)]
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            for matrices in ((scores, relevance, rated), turned, every_other):
                np.testing.assert_array_equal(map_at_k_dense(*matrices).per_class, expected)
    finally:
        torch.set_num_threads(threads)
    rows, columns = np.nonzero(rated)
    shuffled = rng.permutation(len(rows))  # no two scores of a class are equal
    rows, columns = rows[shuffled], columns[shuffled]
    flat = map_at_k(columns, scores[rows, columns], relevance[rows, columns], num_classes=40)
    np.testing.assert_array_equal(flat.per_class, expected)
    backwards = [
        array[::-1] for array in (columns, scores[rows, columns], relevance[rows, columns])
    ]
    found = map_at_k(*backwards, num_classes=40).per_class
    np.testing.assert_array_equal(found, expected)


def test_float64_is_not_rounded_to_float32() -> None:
    scores = [1.0, 1.0 + 1e-12]
    assert map_at_k([0, 0], scores, [0, 1], num_classes=1).map == 1.0
    assert map_at_k_dense(np.reshape(scores, (2, 1)), [[0], [1]]).map == 1.0
    rounded = np.array(scores, np.float32)
    assert map_at_k([0, 0], rounded, [0, 1], num_classes=1).map == 0.5


@pytest.mark.parametrize("base", [1.0, -1.0])
def test_float64_scores_that_differ_in_their_last_bits(base: float) -> None:
    rng = np.random.default_rng(0)
    classes, steps = rng.integers(0, 3, 1000), rng.integers(0, 100, 1000)
    scores = base + steps * 2.0**-52
    relevance = rng.random(1000) < 0.5
    rows = list(zip(classes.tolist(), scores.tolist(), relevance.tolist(), strict=True))
    found = map_at_k(classes, scores, relevance, num_classes=3).per_class
    np.testing.assert_allclose(found, oracle(rows, 3, 100_000), rtol=1e-14)


def test_unrated_pairs_take_no_rank() -> None:
    """The best k are those of the rated rows."""
    scores, relevance = [[0.9], [0.8], [0.7], [0.6]], [[0], [0], [1], [1]]
    assert map_at_k_dense(scores, relevance, [[0], [0], [1], [1]], k=1).map == 1.0
    assert map_at_k_dense(scores, relevance, k=1).map == 0.0


def test_more_rows_than_a_key_can_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ranking, "_MOST_ROWS", 2)
    with pytest.raises(ValueError, match=r"scores: expected fewer than 2\^31 rows, found 3"):
        map_at_k([0] * 3, [0.5] * 3, [1] * 3, num_classes=1)
    with pytest.raises(ValueError, match=r"scores: expected fewer than 2\^31 rows, found 3"):
        map_at_k_dense([[0.5]] * 3, [[1]] * 3)


def test_empty_classes() -> None:
    """The challenge divides by all classes."""
    arguments: dict[str, Any] = {"classes": [2, 0], "scores": [1.0, 1.0], "relevance": [1, 0]}
    assert map_at_k(**arguments, num_classes=4).map == 0.25
    assert map_at_k(**arguments, num_classes=4, empty_classes="skip").map == 1.0


def test_no_rows() -> None:
    nothing: dict[str, Any] = {"classes": [], "scores": [], "relevance": [], "num_classes": 2}
    assert map_at_k(**nothing).map == 0.0
    assert np.isnan(map_at_k(**nothing, empty_classes="skip").map)
    assert map_at_k_dense(np.zeros((0, 2)), np.zeros((0, 2))).per_class.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_tensors(dtype: torch.dtype) -> None:
    classes = torch.tensor([0, 1, 0], dtype=torch.int32)
    scores = torch.tensor([0.25, 0.5, 0.75], dtype=dtype, requires_grad=True)
    relevance = torch.tensor([True, True, False])
    expected = map_at_k([0, 1, 0], [0.25, 0.5, 0.75], [1, 1, 0], num_classes=2)
    found = map_at_k(classes, scores, relevance, num_classes=2)
    assert found.map == expected.map == 0.75
    dense = map_at_k_dense(scores[:, None], relevance[:, None].to(dtype))
    assert isinstance(dense.map, float)
    assert dense.per_class.dtype == np.float64


def test_integer_scores_are_compared_exactly() -> None:
    """Unsigned scores must not wrap around when the order is reversed."""
    scores = np.array([0, 200, 255], dtype=np.uint8)
    assert map_at_k([0, 0, 0], scores, [0, 0, 1], num_classes=1).map == 1.0


def test_unrated_pairs_are_not_read() -> None:
    relevance = np.array([[1.0, np.nan], [np.nan, 0.0]])
    rated = np.array([[1, 0], [0, 1]])
    assert map_at_k_dense([[1.0, 9.0], [2.0, 1.0]], relevance, rated).per_class.tolist() == [1, 0]


def test_table() -> None:
    result = map_at_k([0, 0, 2], [0.9, 0.4, 0.5], [0, 1, 1], num_classes=3)
    assert result.table(["cat", "eel", "dog"]).splitlines() == [
        "    AP  positives  rated  class",
        "1.0000          1      1  2 dog",
        "0.5000          1      2  0 cat",
    ]
    assert result.table(limit=1).splitlines()[1:] == ["1.0000          1      1  2"]
    with pytest.raises(ValueError, match=r"class_names: expected 3 names, found 1"):
        result.table(["cat"])


GOOD: dict[str, Any] = {
    "classes": [0, 1],
    "scores": [1.0, 2.0],
    "relevance": [1, 0],
    "num_classes": 2,
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"classes": [0, 2]}, ValueError, r"classes: expected values in 0\.\.1, found 2 at 1"),
        ({"classes": [-1, 0]}, ValueError, r"classes: expected values in 0\.\.1, found -1 at 0"),
        ({"classes": [0.0, 1.0]}, TypeError, "classes: expected integers, found dtype float64"),
        ({"classes": [[0, 1]]}, ValueError, r"classes: expected 1 dim.*, found shape \(1, 2\)"),
        ({"scores": [1.0]}, ValueError, r"scores: expected shape \(2,\).*, found \(1,\)"),
        ({"scores": ["a", "b"]}, TypeError, "scores: expected numbers, found dtype"),
        ({"scores": [1.0, np.nan]}, ValueError, r"scores: .*found NaN at \[1\]"),
        ({"relevance": [1.0, np.nan]}, ValueError, r"relevance: .*found NaN at \[1\]"),
        ({"relevance": [1]}, ValueError, r"relevance: expected shape \(2,\)"),
        ({"num_classes": 0}, ValueError, "num_classes: expected at least 1, found 0"),
        ({"k": 0}, ValueError, "k: expected at least 1, found 0"),
        ({"empty_classes": "drop"}, ValueError, "empty_classes: .*zero, skip; found 'drop'"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        map_at_k(**(GOOD | change))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1]), r"scores: expected 2 dimension\(s\), found shape \(1,\)"),
        (([[1.0]], [[1, 0]]), r"relevance: expected shape \(1, 1\) as scores has, found \(1, 2\)"),
        (([[1.0]], [[1]], [[1, 0]]), r"rated: expected shape \(1, 1\)"),
        (([[np.nan]], [[1]], [[0]]), r"scores: .*found NaN at \[0, 0\]"),
        (([[1.0, 1.0]], [[0, np.nan]]), r"relevance: .*found NaN at \[0, 1\]"),
        (([[1.0, 1.0]], [[0, np.nan]], [[0, 1]]), r"relevance: .*found NaN at \[0, 1\]"),
        (([[1.0]], [[1]], [[np.nan]]), "rated: .*found NaN"),
        ((np.zeros((2, 0)), np.zeros((2, 0))), r"scores: expected at least one class.*\(2, 0\)"),
    ],
)
def test_bad_dense_input(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        map_at_k_dense(*arguments)
