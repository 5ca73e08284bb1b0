"""TopKPerClass against a full sort."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseg.metrics import TopK, TopKPerClass

SCORES = st.sampled_from([-np.inf, -1.5, -0.0, 0.0, 1e-40, 0.25, 2.0, np.inf])


def oracle(
    ids: np.ndarray, scores: np.ndarray, k: int, candidates: np.ndarray | None = None
) -> list[list[tuple[int, float]]]:
    """Each class's k best (id, score), by a sort in pure Python."""
    best = []
    for index in range(scores.shape[1]):
        pairs = [
            (int(ids[row]), float(scores[row, index]) + 0.0)
            for row in range(len(ids))
            if candidates is None or candidates[row, index]
        ]
        best.append(sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:k])
    return best


def lists(result: TopK) -> list[list[tuple[int, float]]]:
    assert result.offsets.dtype == np.int64
    assert result.segment_ids.dtype == np.uint32
    assert result.scores.dtype == np.float32
    assert not np.signbit(result.scores[result.scores == 0]).any()
    pairs = list(zip(result.segment_ids.tolist(), result.scores.tolist(), strict=True))
    bounds = result.offsets.tolist()
    return [pairs[bounds[c] : bounds[c + 1]] for c in range(len(bounds) - 1)]


@st.composite
def streams(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    # Enough rows to fill lists with little room beyond k, and few distinct scores.
    rows, classes = draw(st.integers(0, 300)), draw(st.integers(1, 3))
    few = draw(st.lists(SCORES, min_size=1, max_size=8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    ids = np.concatenate(([0, 1, 2**31 - 1, 2**31, 2**32 - 1], np.arange(5, 300)))
    scores = rng.choice(np.array(few, np.float32), (rows, classes))
    if draw(st.booleans()):  # later rows are better
        scores = np.sort(scores, axis=0)
    candidates = rng.random((rows, classes)) < draw(st.sampled_from([0.1, 0.8]))
    cuts = draw(st.lists(st.integers(0, rows), max_size=4).map(sorted))
    return rng.permutation(ids)[:rows], scores, candidates, [0, *cuts, rows]


@settings(max_examples=300, deadline=None)
@given(streams(), st.integers(1, 200), st.booleans(), st.booleans())
def test_equals_a_full_sort(stream: tuple, k: int, restricted: bool, merged: bool) -> None:
    ids, scores, candidates, bounds = stream
    best, other = (TopKPerClass(scores.shape[1], k) for _ in range(2))
    for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
        part = slice(begin, end)
        mask = candidates[part] if restricted else None
        target = other if merged and number % 2 else best
        target.update(ids[part], scores[part], mask)
    best.merge(other)
    assert lists(best.finish()) == oracle(ids, scores, k, candidates if restricted else None)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("k", [1, 20, 300, 5000])
@pytest.mark.parametrize("levels", [2, 100, 10**9])
def test_streams_that_fill_and_grow_the_buffers(k: int, levels: int) -> None:
    torch.set_num_threads(2)
    rng = np.random.default_rng(k + levels)
    rows, classes = 8000, 70  # more classes than are read together; some blocks are for two threads
    ids = rng.permutation(2**32 - 1 - np.arange(rows))
    scores = (rng.integers(0, levels, (rows, classes)) / 10).astype(np.float32)
    blocks = np.split(np.arange(rows), np.sort(rng.integers(0, rows, 12)))
    candidates = rng.random((rows, classes)) < 0.8
    best, again = TopKPerClass(classes, k), TopKPerClass(classes, k)
    for block in blocks:
        best.update(ids[block], scores[block], candidates[block])
    for block in reversed(blocks):
        again.update(ids[block], scores[block], candidates[block])
    result = best.finish()
    for index in (0, 33, 69):
        rows_of_class = np.flatnonzero(candidates[:, index])
        order = np.lexsort((ids[rows_of_class], -scores[rows_of_class, index]))[:k]
        expected = rows_of_class[order]
        part = slice(result.offsets[index], result.offsets[index + 1])
        np.testing.assert_array_equal(result.segment_ids[part], ids[expected])
        np.testing.assert_array_equal(result.scores[part], scores[expected, index])
    for one, two in zip(vars(result).values(), vars(again.finish()).values(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_lists_that_are_cut_back_where_a_sample_says() -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((60_000, 3), dtype=np.float32)
    scores[:, 1] = np.sort(scores[:, 1])
    scores[:, 2] = np.round(scores[:, 2], 2)
    best = TopKPerClass(3, 9000)
    for start in range(0, len(scores), 1000):
        best.update(np.arange(start, start + 1000), scores[start : start + 1000])
    result = best.finish()
    for index in range(3):
        expected = np.argsort(-scores[:, index], kind="stable")[:9000]
        part = slice(result.offsets[index], result.offsets[index + 1])
        np.testing.assert_array_equal(result.segment_ids[part], expected)


def test_memory_grows_with_the_segments_kept() -> None:
    best = TopKPerClass(1000, 100_000)
    best.update(np.arange(100), np.zeros((100, 1000), np.float32))
    assert best._keys.nbytes <= 8 * 100 * 1000
    small = TopKPerClass(4, 1000)
    for start in range(0, 20_000, 500):
        small.update(np.arange(start, start + 500), np.random.default_rng(start).random((500, 4)))
    assert small._keys.nbytes <= 12 * 1000 * 4


def test_classes_that_are_never_among_a_segments_best_are_kept() -> None:
    """Class 29 ranks last in every segment and still has its k."""
    scores = np.tile(-np.arange(30.0, dtype=np.float32), (50, 1))
    best = TopKPerClass(30, 50)
    best.update(np.arange(50), scores)
    assert best.finish().offsets.tolist() == list(range(0, 31 * 50, 50))


def test_lowest_scores_are_ordinary_and_candidates_mask_pairs() -> None:
    best = TopKPerClass(2, 3)
    best.update([4, 5], [[-np.inf, 1.0], [0.0, 2.0]], [[1, 0], [1, 1]])
    assert lists(best.finish()) == [[(5, 0.0), (4, -np.inf)], [(5, 2.0)]]


def test_a_pair_given_twice_is_kept_twice() -> None:
    best = TopKPerClass(1, 3)
    best.update([4, 4], [[1.0], [1.0]])
    assert lists(best.finish()) == [[(4, 1.0), (4, 1.0)]]


def test_updates_may_follow_finish() -> None:
    best = TopKPerClass(1, 2)
    best.update([3], [[1.0]])
    assert lists(best.finish()) == [[(3, 1.0)]]
    best.update([1, 2], [[1.0], [3.0]])
    assert lists(best.finish()) == [[(2, 3.0), (1, 1.0)]]


@pytest.mark.parametrize(
    "scores",
    [
        torch.tensor([[0.5], [0.75]], requires_grad=True),
        torch.tensor([[0.5], [0.75]], dtype=torch.bfloat16),
        torch.tensor([[0.5], [0.75]], dtype=torch.float16),
        np.array([[0.5, 9], [0.75, 9]], dtype=np.float64)[:, :1],
        [[0.5], [0.75]],
    ],
)
def test_kinds_of_scores(scores: Any) -> None:
    best = TopKPerClass(1, 2)
    best.update(torch.tensor([7, 8]), scores)
    assert lists(best.finish()) == [[(8, 0.75), (7, 0.5)]]


def test_float64_scores_are_rounded_to_float32() -> None:
    best = TopKPerClass(1, 3)
    best.update([1, 2, 3], [[1.0], [1.0 + 1e-12], [1e300]])
    assert lists(best.finish()) == [[(3, np.inf), (1, 1.0), (2, 1.0)]]


def test_continues_from_a_saved_state(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 50, (1000, 3)).astype(np.float32)
    best = TopKPerClass(3, 100)
    best.update(np.arange(600), scores[:600])
    np.savez(tmp_path / "state.npz", **best.state())
    with np.load(tmp_path / "state.npz", allow_pickle=False) as saved:
        resumed = TopKPerClass.from_state(saved)
    for each in (best, resumed):
        each.update(np.arange(600, 1000), scores[600:])
    assert lists(resumed.finish()) == lists(best.finish()) == oracle(np.arange(1000), scores, 100)
    empty = TopKPerClass.from_state(TopKPerClass(2, 5).state())
    assert lists(empty.finish()) == [[], []]


def test_states_of_the_same_content_are_the_same_bytes() -> None:
    scores = np.random.default_rng(1).random((400, 2), dtype=np.float32)
    files = []
    for order in (np.arange(400), np.arange(400)[::-1]):
        best = TopKPerClass(2, 20)
        for block in np.split(order, [50, 51, 300]):
            best.update(block, scores[block])
        file = io.BytesIO()
        for array in best.state().values():
            np.save(file, array)
        files.append(file.getvalue())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0], [[1.0]]), ValueError, r"scores: expected 2 classes, found shape \(1, 1\)"),
        (([0], [1.0]), ValueError, r"scores: expected 2 dimension"),
        (([0], [["a", "b"]]), TypeError, "scores: expected numbers"),
        (([0], [[1.0, np.nan]]), ValueError, r"scores: .*found NaN at \[0, 1\]"),
        (([0, 1], [[1.0, 2.0]]), ValueError, "segment_ids: expected 1 as scores has.*found 2"),
        (([[0]], [[1.0, 2.0]]), ValueError, "segment_ids: expected 1 dimension"),
        (([0.0], [[1.0, 2.0]]), TypeError, "segment_ids: expected integers, found dtype float64"),
        (([-1], [[1.0, 2.0]]), ValueError, r"segment_ids: expected values in 0\.\.4294967295.*-1"),
        (([2**32], [[1.0, 2.0]]), ValueError, "segment_ids: expected values.*4294967296 at 0"),
        (([0], [[1.0, 2.0]], [[1]]), ValueError, r"candidates: expected shape \(1, 2\)"),
        (([0], [[1.0, 2.0]], [[1, np.nan]]), ValueError, "candidates: .*found NaN"),
    ],
)
def test_bad_input_changes_nothing(arguments: tuple, error: type[Exception], message: str) -> None:
    best = TopKPerClass(2, 3)
    best.update([5], [[1.0, 2.0]])
    with pytest.raises(error, match=message):
        best.update(*arguments)
    assert lists(best.finish()) == [[(5, 1.0)], [(5, 2.0)]]


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("k", [3, 5000])
@pytest.mark.parametrize("place", [(0, 0), (600, 69), (3999, 33)])
def test_a_nan_anywhere_changes_nothing(k: int, place: tuple[int, int]) -> None:
    torch.set_num_threads(2)
    rows = 4000  # enough for both
    scores = np.random.default_rng(0).random((rows, 70), dtype=np.float32)
    best, other = TopKPerClass(70, k), TopKPerClass(70, k)
    for each in (best, other):
        each.update(np.arange(rows), scores)
    worse = scores + 1
    worse[place] = np.nan
    with pytest.raises(ValueError, match=rf"scores: .*found NaN at \[{place[0]}, {place[1]}\]"):
        best.update(np.arange(rows, 2 * rows), worse)
    for each in (best, other):
        each.update(np.arange(2 * rows, 3 * rows), scores)
    assert lists(best.finish()) == lists(other.finish())


@pytest.mark.filterwarnings("error")
def test_scores_that_are_read_only_or_in_another_order() -> None:
    scores = np.random.default_rng(0).random((30, 20), dtype=np.float32)
    read_only, ids = scores.copy(), np.arange(30, dtype=np.uint32)
    read_only.flags.writeable = ids.flags.writeable = False
    candidates = scores < 0.5
    expected = oracle(ids, scores, 4, candidates)
    for same in (read_only, np.asfortranarray(scores), scores.repeat(2, axis=1)[:, ::2]):
        best = TopKPerClass(20, 4)
        best.update(ids, same, candidates)
        assert lists(best.finish()) == expected


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="num_classes: expected at least 1, found 0"):
        TopKPerClass(0, 1)
    with pytest.raises(ValueError, match="k: expected at least 1, found 0"):
        TopKPerClass(1, 0)
    with pytest.raises(ValueError, match="other: expected k 2, found 3"):
        TopKPerClass(1, 2).merge(TopKPerClass(1, 3))
    with pytest.raises(ValueError, match="other: expected num_classes 1, found 2"):
        TopKPerClass(1, 2).merge(TopKPerClass(2, 2))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"k": np.array(0)}, ValueError, "k: expected at least 1"),
        ({"k": np.array(1.5)}, TypeError, "k: expected integers"),
        ({"offsets": np.array([0, 3])}, ValueError, r"offsets: expected 0 to 2 .*found 0 to 3"),
        ({"offsets": np.array([0, 2, 1, 2])}, ValueError, "offsets: .*in steps of -1"),
        ({"k": np.array(1)}, ValueError, "offsets: expected 0 to 2 .*in steps of 0 to 1"),
        ({"offsets": np.array([0.0, 2.0])}, TypeError, "offsets: expected int64, found float64"),
        ({"scores": np.array([1.0, 0.0])}, TypeError, "scores: expected float32, found float64"),
        ({"scores": np.array([1, np.nan], np.float32)}, ValueError, "scores: .*found NaN"),
        ({"segment_ids": np.array([1])}, ValueError, "segment_ids: expected shape"),
    ],
)
def test_bad_states(change: dict, error: type[Exception], message: str) -> None:
    best = TopKPerClass(1, 2)
    best.update([1, 2], [[1.0], [0.0]])
    with pytest.raises(error, match=message):
        TopKPerClass.from_state(best.state() | change)
