"""Counts of labels and pairs against a loop over videos, and against SciPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseg.labels import CooccurrenceCounter, cooccurrence, count_cooccurrence
from pyseg.labels.cooccurrence import Cooccurrence, count_cooccurrence_reference


def ragged(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = [len(labels) for labels in lists]
    flat = np.array(list(itertools.chain(*lists)), np.int64)
    return np.concatenate(([0], np.cumsum(lengths))).astype(np.int64), flat


def zipf_lists(videos: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Lists like those of real videos: few frequent labels, and some duplicates."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 8, videos)
    flat = (random.zipf(1.3, lengths.sum()) - 1) % classes
    return np.concatenate(([0], np.cumsum(lengths))), flat


def check(counted: Cooccurrence, offsets: np.ndarray, flat: np.ndarray, classes: int) -> None:
    counts, pairs = count_cooccurrence_reference(offsets, flat, classes)
    assert counted.num_videos == len(offsets) - 1
    assert counted.counts.dtype == counted.values.dtype == counted.pairs.dtype == np.int64
    np.testing.assert_array_equal(counted.counts, counts)
    np.testing.assert_array_equal(counted.pairs, pairs)
    assert (counted.values > 0).all()
    for begin, end in itertools.pairwise(counted.offsets):
        assert (np.diff(counted.columns[begin:end]) > 0).all()


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(st.integers(0, 6), max_size=9), max_size=12))
def test_counts_are_those_of_the_reference(lists: list[list[int]]) -> None:
    offsets, flat = ragged(lists)
    check(count_cooccurrence(offsets, flat, 7), offsets, flat, 7)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sets(st.integers(0, 40), max_size=12), max_size=12))
def test_increasing_lists(sets: list[set[int]]) -> None:
    """Increasing lists are not sorted: short, long and empty ones, anywhere."""
    offsets, flat = ragged([sorted(labels) for labels in sets])
    check(count_cooccurrence(offsets, flat, 41), offsets, flat, 41)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("classes", [300, 2**16, 2**16 + 1])
def test_any_number_of_classes(classes: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    offsets, flat = zipf_lists(13_000, 300, seed=6)
    lists = [
        sorted({int(label) if label < 290 else classes - 300 + int(label) for label in labels})
        for labels in np.split(flat, offsets[1:-1])
    ]
    lists[4000:4100] = [[]] * 100
    lists[5000] = list(range(classes - 200, classes))
    offsets, flat = ragged(lists)
    counted = count_cooccurrence(offsets, flat, classes)
    shape = len(offsets) - 1, classes
    incidence = scipy.sparse.csr_matrix((np.ones(len(flat), np.int64), flat, offsets), shape)
    expected = scipy.sparse.triu(incidence.T @ incidence, 1).tocsr()
    expected.sort_indices()
    np.testing.assert_array_equal(counted.counts, incidence.sum(0).A1)
    np.testing.assert_array_equal(counted.offsets, expected.indptr)
    np.testing.assert_array_equal(counted.columns, expected.indices)
    np.testing.assert_array_equal(counted.values, expected.data)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_equals_scipy_with_any_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    offsets, flat = zipf_lists(20_000, 300, seed=1)
    counted = count_cooccurrence(offsets, flat, 300)
    ones = np.ones(len(flat), np.int64)
    incidence = scipy.sparse.csr_matrix((ones, flat, offsets), shape=(20_000, 300))
    incidence.sum_duplicates()
    incidence.data[:] = 1
    np.testing.assert_array_equal(counted.pairs, (incidence.T @ incidence).toarray())
    np.testing.assert_array_equal(counted.counts, incidence.sum(0).A1)


def test_a_stream_counts_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    offsets, flat = zipf_lists(500, 40, seed=2)
    whole = count_cooccurrence(offsets, flat, 40)
    counter = CooccurrenceCounter(40)
    for begin, end in ((0, 0), (0, 1), (1, 137), (137, 500)):
        part = offsets[begin : end + 1]
        counter.update(part - part[0], flat[part[0] : part[-1]])
    monkeypatch.setattr(cooccurrence, "_PENDING_PAIRS", 50)  # blocks of a few videos
    in_blocks = count_cooccurrence(offsets, flat, 40)
    for other in (counter.finish(), in_blocks):
        assert other.num_videos == whole.num_videos
        for name in ("counts", "offsets", "columns", "values"):
            np.testing.assert_array_equal(getattr(other, name), getattr(whole, name))
    assert len(cooccurrence._blocks(np.diff(offsets))) > 10


def test_merging_is_counting_together() -> None:
    one, other = zipf_lists(60, 20, seed=3), zipf_lists(50, 20, seed=4)
    merged = count_cooccurrence(*one, 20).merge(count_cooccurrence(*other, 20))
    offsets = np.concatenate((one[0], one[0][-1] + other[0][1:]))
    check(merged, offsets, np.concatenate((one[1], other[1])), 20)
    nothing = CooccurrenceCounter(20).finish()
    np.testing.assert_array_equal(nothing.merge(merged).pairs, merged.pairs)
    np.testing.assert_array_equal(merged.merge(nothing).pairs, merged.pairs)
    with pytest.raises(ValueError, match="other: expected counts of 20 classes, found 3"):
        merged.merge(CooccurrenceCounter(3).finish())


def test_duplicate_labels_count_once_and_counts_are_64_bit() -> None:
    counted = count_cooccurrence([0, 4], [3, 1, 3, 3], 5)
    assert counted.counts.tolist() == [0, 1, 0, 1, 0]
    assert counted.pairs[1, 3] == counted.pairs[3, 1] == 1
    large = Cooccurrence(
        2**40, counted.counts * 2**40, counted.offsets, counted.columns,
        counted.values * 2**40,
    )  # fmt: skip
    assert large.merge(counted).pairs[3, 1] == 2**40 + 1


@pytest.mark.parametrize(
    ("videos", "pairs", "text"),
    [
        (4, 2, "counts: expected at most num_videos = 4, found 5"),
        (5, 4, "values: .* with each of its labels, found 4 of labels with 5 and 3"),
    ],
)
def test_more_videos_with_labels_than_there_are(videos: int, pairs: int, text: str) -> None:
    arrays = (np.array(values) for values in ([5, 3], [0, 1, 1], [1], [pairs]))
    with pytest.raises(ValueError, match=text):
        Cooccurrence(videos, *arrays)


@pytest.mark.parametrize("kind", ["list", "int32", "uint8", "torch"])
def test_kinds_of_integers(kind: str) -> None:
    offsets, flat = [0, 2, 3], [1, 0, 2]
    if kind == "torch":
        arguments = torch.tensor(offsets), torch.tensor(flat, dtype=torch.int32)
    elif kind == "list":
        arguments = offsets, flat
    else:
        arguments = np.array(offsets, kind), np.array(flat, kind)
    assert count_cooccurrence(*arguments, 3).pairs.tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_nothing_to_count() -> None:
    assert count_cooccurrence([0], [], 3).num_videos == 0
    counted = count_cooccurrence([0, 0, 0], [], 3)
    assert counted.num_videos == 2
    assert counted.pairs.sum() == 0


def test_errors_name_the_video() -> None:
    with pytest.raises(ValueError, match=r"labels: expected 0\.\.4, found 5 in video 1"):
        count_cooccurrence([0, 1, 3], [0, 4, 5], 5)
    with pytest.raises(ValueError, match=r"labels: expected 0\.\.4, found -1 in video 0"):
        count_cooccurrence([0, 1], [-1], 5)
    with pytest.raises(ValueError, match=r"offsets: expected 0 to 2 \(labels\), found 0 to 3"):
        count_cooccurrence([0, 3], [0, 1], 5)
    with pytest.raises(
        ValueError, match=r"offsets: .*not to decrease, found 2 before 1 \(video 1\)"
    ):
        count_cooccurrence([0, 2, 1, 2], [0, 1], 5)
    with pytest.raises(ValueError, match=r"offsets: expected 0 to 0 \(labels\), found none"):
        count_cooccurrence([], [], 5)
    with pytest.raises(TypeError, match="labels: expected integers, found float64"):
        count_cooccurrence([0, 1], [0.0], 5)
    with pytest.raises(ValueError, match=r"labels: expected one dimension, found shape \(1, 1\)"):
        count_cooccurrence([0, 1], [[0]], 5)
    with pytest.raises(ValueError, match=r"num_classes: expected 1\.\.2\^31-1, found 0"):
        CooccurrenceCounter(0)


def test_an_error_counts_nothing_and_names_the_video_of_the_stream() -> None:
    counter = CooccurrenceCounter(3)
    counter.update([0, 1, 2], [0, 1])
    with pytest.raises(ValueError, match=r"found 7 in video 3"):
        counter.update([0, 1, 2], [0, 7])
    assert counter.finish().num_videos == 2
    assert counter.finish().counts.tolist() == [1, 1, 0]
