"""Counts of labels and of pairs of labels: N and M of the paper's section 3.3."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from pyseg import _threads
from pyseg.errors import ArgumentError

Integers = NDArray[np.int64]

# Pairs that are buffered before they are counted: 64 MiB, enough to count at full speed.
_PENDING_PAIRS = 2**24


@dataclass(frozen=True)
class Cooccurrence:
    """Counts of labels and of pairs of labels, exact.

    Pairs are stored sparse, i < j only, so memory grows with the pairs that occur; `pairs` gives
    the dense matrix.

    Attributes:
        num_videos: Number of videos counted, including those without labels.
        counts: (C,) int64, N_i: the videos with label i.
        offsets: (C + 1,) int64: row i's entries are ``offsets[i]:offsets[i + 1]``.
        columns: (nnz,) int32, the other label j > i of each pair, increasing within a row.
        values: (nnz,) int64, M_ij > 0.

    Raises:
        ValueError: More videos have a label than there are, or a pair of labels than one of them.
    """

    num_videos: int
    counts: Integers
    offsets: Integers
    columns: NDArray[np.int32]
    values: Integers

    def __post_init__(self) -> None:
        """Checks that the counts fit together."""
        most = self.counts.max(initial=0)
        if most > self.num_videos:
            raise ArgumentError(
                f"counts: expected at most num_videos = {self.num_videos}, found {most}"
            )
        first = np.repeat(self.counts, np.diff(self.offsets))
        outside = self.values > np.minimum(first, self.counts[self.columns])
        if outside.any():
            at = int(outside.argmax())
            raise ArgumentError(
                "values: expected at most as many videos with a pair as with each of its labels, "
                f"found {self.values[at]} of labels with {first[at]} and "
                f"{self.counts[self.columns[at]]}"
            )

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return len(self.counts)

    @property
    def pairs(self) -> Integers:
        """(C, C) int64, M_ij: the videos with both labels; symmetric, with N on the diagonal."""
        dense = np.zeros((self.num_classes, self.num_classes), np.int64)
        rows, columns, values = self.entries()
        dense[rows, columns] = values
        np.fill_diagonal(dense, self.counts)
        return dense

    @property
    def rates(self) -> NDArray[np.float64]:
        """(C,) float64, p_i: the share of the videos with label i; 0 if there are no videos."""
        return self.counts / max(self.num_videos, 1)

    def entries(self) -> tuple[Integers, Integers, Integers]:
        """Returns rows, columns and values of `pairs` off the diagonal, those above it first.

        Returns:
            Three times (2 nnz,) int64.
        """
        upper = np.repeat(np.arange(self.num_classes), np.diff(self.offsets))
        return (
            np.concatenate((upper, self.columns)),
            np.concatenate((self.columns, upper)),
            np.concatenate((self.values, self.values)),
        )

    def merge(self, other: Cooccurrence) -> Cooccurrence:
        """Returns the counts of both, as if the videos had been counted together.

        Raises:
            ValueError: The numbers of classes differ.
        """
        if self.num_classes != other.num_classes:
            raise ArgumentError(
                f"other: expected counts of {self.num_classes} classes, found {other.num_classes}"
            )
        if not len(other.columns) or not len(self.columns):
            larger = self if len(self.columns) else other
            entries = larger.offsets, larger.columns, larger.values
        else:
            entries = _kernels().merge(
                (self.offsets, self.columns, self.values),
                (other.offsets, other.columns, other.values),
            )
        videos = self.num_videos + other.num_videos
        return Cooccurrence(videos, self.counts + other.counts, *entries)


def count_cooccurrence(
    offsets: ArrayLike | torch.Tensor, labels: ArrayLike | torch.Tensor, num_classes: int
) -> Cooccurrence:
    """Counts labels and pairs of labels in ragged lists, in parallel.

    A label that a video has twice counts once. The order of labels does not matter.

    Args:
        offsets: (V + 1,) integers from 0 to L, not decreasing: video v has the labels
            ``labels[offsets[v]:offsets[v + 1]]``.
        labels: (L,) integers in 0..C-1.
        num_classes: the number of classes C.

    Returns:
        The counts.

    Raises:
        TypeError: An argument does not hold integers.
        ValueError: Offsets do not fit, or a label is out of range; the message names the video.

    Example:
        >>> counted = count_cooccurrence([0, 2, 5], [1, 0, 0, 2, 2], num_classes=3)
        >>> counted.counts.tolist()
        [2, 1, 1]
        >>> counted.pairs.tolist()
        [[2, 1, 1], [1, 1, 0], [1, 0, 1]]
    """
    counter = CooccurrenceCounter(num_classes)
    counter.update(offsets, labels)
    return counter.finish()


class CooccurrenceCounter:
    """Counts a stream of videos, a block at a time.

    Memory grows with the pairs that occur, plus 64 MiB of pairs that are not yet counted.

    Args:
        num_classes: the number of classes C.

    Raises:
        ValueError: `num_classes` is not in 1..2^31-1.

    Example:
        >>> counter = CooccurrenceCounter(3)
        >>> counter.update([0, 2], [0, 1])
        >>> counter.update([0, 1, 3], [2, 1, 0])
        >>> counter.finish().counts.tolist()
        [2, 2, 1]
    """

    def __init__(self, num_classes: int) -> None:
        if not 1 <= num_classes < 2**31:
            raise ArgumentError(f"num_classes: expected 1..2^31-1, found {num_classes}")
        self.num_classes = num_classes
        nothing = np.zeros(num_classes, np.int64), np.zeros(num_classes + 1, np.int64)
        self._total = Cooccurrence(0, *nothing, np.zeros(0, np.int32), np.zeros(0, np.int64))

    def update(self, offsets: ArrayLike | torch.Tensor, labels: ArrayLike | torch.Tensor) -> None:
        """Counts more videos; arguments and errors are those of `count_cooccurrence`.

        Errors number the videos from the first update on. A block that raises is not counted.
        """
        starts, flat = _integers("offsets", offsets), _integers("labels", labels)
        if len(starts) == 0 or starts[0] != 0 or starts[-1] != len(flat):
            found = f"{starts[0]} to {starts[-1]}" if len(starts) else "none"
            raise ArgumentError(f"offsets: expected 0 to {len(flat)} (labels), found {found}")
        lengths = np.diff(starts)
        if len(lengths) and lengths.min() < 0:
            video = int(np.argmax(lengths < 0))
            raise ArgumentError(
                f"offsets: expected them not to decrease, found {starts[video]} before "
                f"{starts[video + 1]} (video {self._total.num_videos + video})"
            )
        total = self._total
        for begin, end in _blocks(lengths):
            total = total.merge(self._count(starts[begin : end + 1], flat, total.num_videos))
        self._total = total

    def finish(self) -> Cooccurrence:
        """Returns what was counted so far."""
        return self._total

    def _count(self, starts: Integers, flat: Integers, first: int) -> Cooccurrence:
        """Counts one block: a bucket per first label collects pairs, then buckets are tallied."""
        kernels, classes = _kernels(), self.num_classes
        videos = len(starts) - 1
        ranges = _threads.shares(videos, 4096)
        kind = np.uint16 if classes <= 2**16 else np.uint32  # page faults cost more than counting
        counts = np.zeros((len(ranges), classes), np.int64)
        sizes = np.zeros_like(counts)  # pairs in each thread's part of each bucket

        def count_labels(thread: int) -> tuple[NDArray[Any], NDArray[np.int32]]:
            """Counts a thread's labels; returns them, and how many of their video follow each."""
            begin, end = ranges[thread]
            own = starts[begin : end + 1]
            labels = np.empty(own[-1] - own[0] + kernels.AHEAD + 1, kind)
            bad, increasing = kernels.copy(starts, flat, classes, labels, begin, end)
            if bad >= 0:
                self._refuse(flat[starts[bad] : starts[bad + 1]], first + bad)
            own = own - own[0]
            if not increasing:
                kernels.sort_unique(own, labels)
            after = np.empty(len(labels), np.int32)
            kernels.count(own, labels, after, counts[thread], sizes[thread])
            return labels[: own[-1] + kernels.AHEAD + 1], after

        lists = _threads.run_all(count_labels, [(thread,) for thread in range(len(ranges))])
        # Where each thread's part of each label's bucket begins, with space between.
        ends = np.cumsum(sizes.T + kernels.AHEAD).reshape(classes, len(ranges)).T
        parts = np.ascontiguousarray(ends - sizes - kernels.AHEAD)
        others = np.empty(ends[-1, -1] + kernels.BLOCK, kind)
        _threads.run_all(
            kernels.scatter,
            [
                (labels, after, len(labels) - kernels.AHEAD - 1, part.copy(), others)
                for (labels, after), part in zip(lists, parts, strict=True)
            ],
        )
        # Ranges of labels whose buckets hold about as many pairs each.
        buckets = np.append(parts[0], ends[-1, -1])
        rows = np.searchsorted(buckets, np.linspace(0, buckets[-1], 4 * len(ranges) + 1))
        rows = rows.clip(0, classes)
        rows[0], rows[-1] = 0, classes
        times = np.empty(len(others), np.int32)
        distinct = np.zeros(classes + 1, np.int64)
        _threads.run_all(
            kernels.tally,
            [
                (parts, sizes, others, times, distinct, *pair)
                for pair in itertools.pairwise(rows.tolist())
            ],
        )
        offsets = np.concatenate(([0], np.cumsum(distinct[:-1])))
        columns, values = kernels.gather(buckets, others, times, offsets)
        return Cooccurrence(videos, counts.sum(0), offsets, columns, values)

    def _refuse(self, labels: Integers, video: int) -> None:
        wrong = labels[(labels < 0) | (labels >= self.num_classes)][0]
        raise ArgumentError(
            f"labels: expected 0..{self.num_classes - 1}, found {wrong} in video {video}"
        )


def count_cooccurrence_reference(
    offsets: ArrayLike | torch.Tensor, labels: ArrayLike | torch.Tensor, num_classes: int
) -> tuple[Integers, Integers]:
    """Returns counts and dense pairs as `count_cooccurrence` does, counted video by video.

    Example:
        >>> counts, pairs = count_cooccurrence_reference([0, 2], [0, 1], num_classes=2)
        >>> counts.tolist(), pairs.tolist()
        ([1, 1], [[1, 1], [1, 1]])
    """
    starts, flat = _integers("offsets", offsets), _integers("labels", labels)
    pairs = np.zeros((num_classes, num_classes), np.int64)
    for begin, end in itertools.pairwise(starts):
        present = np.unique(flat[begin:end])
        pairs[np.ix_(present, present)] += 1
    return pairs.diagonal().copy(), pairs


def _integers(name: str, values: ArrayLike | torch.Tensor) -> Integers:
    array = values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if array.size == 0 and not isinstance(values, np.ndarray | torch.Tensor):
        array = array.astype(np.int64)  # an empty list has no dtype
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, found {array.dtype}")
    if array.ndim != 1:
        raise ArgumentError(f"{name}: expected one dimension, found shape {array.shape}")
    return np.ascontiguousarray(array, np.int64)


def _blocks(lengths: Integers) -> list[tuple[int, int]]:
    """Cuts videos into ranges of at most `_PENDING_PAIRS` pairs (or of one video)."""
    if int(lengths @ lengths) <= 2 * _PENDING_PAIRS:
        return [(0, len(lengths))] if len(lengths) else []
    ends = np.cumsum(lengths * (lengths - 1) // 2)
    blocks, begin, done = [], 0, 0
    while begin < len(lengths):
        end = int(np.searchsorted(ends, done + _PENDING_PAIRS, side="right"))
        end = max(end, begin + 1)
        blocks.append((begin, end))
        begin, done = end, int(ends[end - 1])
    return blocks


def _kernels() -> Any:
    from pyseg.labels import _kernels  # lazily: it loads numba

    return _kernels
