"""The k best segments of every class over a stream of scores, as a submission lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pyseg import _threads
from pyseg.errors import ArgumentError
from pyseg.metrics._device_keys import DeviceKeys
from pyseg.metrics._inputs import (
    Array,
    as_array,
    as_integers,
    check_classes,
    check_k,
    refuse_nan,
    same_shape,
)
from pyseg.metrics._ranking import load_kernels

_LAST_ID = 2**32 - 1
# Scores that are enough for a thread.
_WORK = 2**18
# A class has room for at least this many more than k keys, so that it is not full at once.
_LEAST_ROOM = 64


@dataclass(frozen=True)
class TopK:
    """The best segments of each class, best first.

    Attributes:
        offsets: (C + 1,) int64, from 0 to n: class c's entries are ``offsets[c]:offsets[c + 1]``.
        segment_ids: (n,) uint32.
        scores: (n,) float32, not increasing within a class.
    """

    offsets: np.ndarray
    segment_ids: np.ndarray
    scores: np.ndarray


class TopKPerClass:
    """Keeps the k best segments of every class over a stream of blocks of scores.

    The result is exact and does not depend on the order, the size or the merging of the blocks:
    of equal scores the smaller segment id ranks first. Scores are compared in float32; -0 is 0,
    infinities are ordinary values.

    A segment and its score are a 64-bit key, and a class has room for 1.5 k of them (or k + 64):
    memory grows to at most 12 bytes x k x C, and a result takes 8 bytes x k x C. A full class is
    cut back to its k best, which later keys have to beat.

    With a `device`, scores on it are ranked there until a result is asked for: `update` neither
    copies them to the host nor waits for the device. It takes 16 bytes x k x C of its memory, and
    at most 1.7 GB more. Where that is more than half of a GPU's free memory, the host ranks.

    Args:
        num_classes: the number of classes C.
        k: how many segments of each class are kept.
        device: where scores on it are ranked; default: all are ranked on the host.

    Raises:
        ValueError: `num_classes` or `k` is less than 1.

    Example:
        >>> best = TopKPerClass(num_classes=2, k=2)
        >>> best.update([0, 1], [[0.5, 0.1], [0.9, 0.2]])
        >>> best.update([2], [[0.7, 0.2]])
        >>> result = best.finish()
        >>> result.offsets.tolist(), result.segment_ids.tolist()
        ([0, 2, 4], [1, 2, 1, 2])
    """

    def __init__(
        self, num_classes: int, k: int, *, device: torch.device | str | None = None
    ) -> None:
        check_classes(num_classes)
        check_k(k)
        self.num_classes = num_classes
        self.k = k
        self._device_keys: DeviceKeys | None = None
        if device is not None and DeviceKeys.fit(num_classes, k, torch.device(device)):
            self._device_keys = DeviceKeys(num_classes, k, torch.device(device))
        self._most_room = k + max(k // 2, _LEAST_ROOM)
        self._keys = np.empty((num_classes, 0), np.uint64)  # each row is filled to its count
        self._counts = np.zeros(num_classes, np.int64)
        self._thresholds = np.full(num_classes, 2**64 - 1, np.uint64)

    def update(self, segment_ids: Array, scores: Array, candidates: Array | None = None) -> None:
        """Adds a block of segments, or nothing of it if it raises.

        Args:
            segment_ids: (S,) integers in 0..2^32 - 1, or a range of them: the caller's numbers of
                the segments. A (segment, class) pair given twice is kept twice.
            scores: (S, C) numbers, larger is better. float32 is not converted; anything else is
                compared after rounding to it.
            candidates: (S, C) bools or numbers; a pair is left out where it is 0.
                ``None``: none is.

        Raises:
            TypeError: an input does not hold numbers, or `segment_ids` no integers.
            ValueError: shapes differ, an id is out of range, or an input holds a NaN; in scores on
                the `device`, a NaN is found only when a result is asked for.
        """
        if self._device_keys is not None and self._device_keys.is_near(scores):
            self._update_on_device(self._device_keys, segment_ids, scores, candidates)
            return
        score = as_array("scores", scores, 2)
        ids = self._ids_of(segment_ids, score.shape)
        mask = None
        if candidates is not None:
            mask = as_array("candidates", candidates, 2)
            same_shape("candidates", mask, "scores", score)
            refuse_nan("candidates", mask)
            mask = _plain(mask, np.bool_)
        block = _plain(score, np.float32)
        self._grow(int(self._counts.max()) + len(block))
        if not _update(block, ids, mask, self.k, self._thresholds, self._keys, self._counts):
            refuse_nan("scores", score)

    def _update_on_device(
        self, keys: DeviceKeys, segment_ids: Array, scores: Tensor, candidates: Array | None
    ) -> None:
        """Does what `update` does for scores on the device."""
        if scores.ndim != 2 or scores.dtype.is_complex:
            kind = f"{scores.dtype} of shape {tuple(scores.shape)}"
            raise ArgumentError(f"scores: expected real numbers in 2 dimensions, found {kind}")
        ids = self._ids_of(segment_ids, scores.shape)
        if candidates is not None and not (
            keys.is_near(candidates) and candidates.dtype == torch.bool
        ):
            raise TypeError("candidates: expected a tensor of bools on the device of the scores")
        if candidates is not None and candidates.shape != scores.shape:
            raise ArgumentError(
                f"candidates: expected shape {tuple(scores.shape)} as scores has, found "
                f"{tuple(candidates.shape)}"
            )
        keys.add(segment_ids if isinstance(segment_ids, range) else ids, scores, candidates)

    def _ids_of(self, segment_ids: Array, shape: Sequence[int]) -> np.ndarray:
        """Returns the ids of the rows of scores of a shape, in uint32, checked."""
        if shape[1] != self.num_classes:
            raise ArgumentError(
                f"scores: expected {self.num_classes} classes, found shape {tuple(shape)}"
            )
        ids = _ids(segment_ids)
        if len(ids) != shape[0]:
            raise ArgumentError(
                f"segment_ids: expected {shape[0]} as scores has rows, found {len(ids)}"
            )
        return ids

    def _gather(self) -> None:
        """Moves the keys of the device to the host, whose arrays hold all of them then."""
        if self._device_keys is not None:
            self._merge(self._device_keys.take())

    def merge(self, other: TopKPerClass) -> None:
        """Adds the segments of `other`, as if this one had been given its blocks too.

        Raises:
            ValueError: the numbers of classes, or k, differ.
        """
        for name in ("num_classes", "k"):
            own, found = getattr(self, name), getattr(other, name)
            if own != found:
                raise ArgumentError(f"other: expected {name} {own}, found {found}")
        other._gather()
        self._merge([other._of(index) for index in range(self.num_classes)])

    def finish(self) -> TopK:
        """Returns the best segments of each class so far; more may be added afterwards."""
        self._gather()
        # Sorting a few keys more than k is cheaper than cutting them off first.
        wanted = (self._most_room - self.k) * 3 // 4

        _cut(self.k, wanted, self._thresholds, self._keys, self._counts)
        counts = np.minimum(self._counts, self.k)
        offsets = np.concatenate(([0], np.cumsum(counts)))
        ids = np.empty(offsets[-1], np.uint32)
        scores = np.empty(offsets[-1], np.float32)
        kernels = load_kernels()

        def order(index: int) -> None:
            self._of(index).sort()
            if self._counts[index] > self.k:
                self._counts[index] = self.k
                self._thresholds[index] = self._of(index)[-1]
            part = slice(offsets[index], offsets[index + 1])
            kernels.unpack(self._of(index), ids[part], scores[part].view(np.uint32))

        _threads.run_all(order, [(index,) for index in range(self.num_classes)])
        return TopK(offsets, ids, scores)

    def state(self) -> dict[str, np.ndarray]:
        """Returns the state as plain arrays for `from_state`: ``k`` and the arrays of `TopK`.

        Equal contents give equal states.
        """
        result = self.finish()
        return {"k": np.array(self.k), **vars(result)}

    @classmethod
    def from_state(
        cls, state: Mapping[str, np.ndarray], *, device: torch.device | str | None = None
    ) -> TopKPerClass:
        """Returns one that continues from `state`.

        Args:
            state: The state.
            device: see the constructor.

        Raises:
            KeyError: an array is missing.
            TypeError: an array has another dtype than in `state`.
            ValueError: the arrays do not fit together.

        Example:
            >>> best = TopKPerClass(num_classes=1, k=1)
            >>> best.update([7], [[0.5]])
            >>> TopKPerClass.from_state(best.state()).finish().segment_ids.tolist()
            [7]
        """
        k = int(as_integers("k", state["k"], 0))
        offsets = as_array("offsets", state["offsets"], 1)
        scores = as_array("scores", state["scores"], 1)
        ids = _ids(state["segment_ids"])
        for name, array, dtype in (("offsets", offsets, np.int64), ("scores", scores, np.float32)):
            if array.dtype != dtype:
                raise TypeError(f"{name}: expected {np.dtype(dtype)}, found {array.dtype}")
        same_shape("segment_ids", ids, "scores", scores)
        refuse_nan("scores", scores)
        best = cls(len(offsets) - 1, k, device=device)
        counts = np.diff(offsets)
        if offsets[0] != 0 or offsets[-1] != len(scores) or counts.min() < 0 or counts.max() > k:
            raise ArgumentError(
                f"offsets: expected 0 to {len(scores)} (scores) in steps of 0 to {k}, "
                f"found {offsets[0]} to {offsets[-1]} in steps of {counts.min()} to {counts.max()}"
            )
        keys = np.empty(len(scores), np.uint64)
        load_kernels().pack(ids, np.ascontiguousarray(scores).view(np.uint32), keys)
        best._merge([keys[offsets[c] : offsets[c + 1]] for c in range(best.num_classes)])
        return best

    def _of(self, index: int) -> np.ndarray:
        return self._keys[index, : self._counts[index]]

    def _merge(self, others: list[np.ndarray]) -> None:
        sizes = np.array([len(keys) for keys in others])
        self._grow(int((self._counts + sizes).max()))
        for index, keys in enumerate(others):
            both = np.concatenate((self._of(index), keys))
            if len(both) > self._keys.shape[1]:
                both.partition(self.k - 1)
                both = both[: self.k]
                self._thresholds[index] = both[-1]
            self._counts[index] = len(both)
            self._of(index)[:] = both

    def _grow(self, wanted: int) -> None:
        """Makes room for `wanted` keys per class, or for the most that it may have."""
        before = self._keys
        wanted = min(self._most_room, wanted)
        if wanted <= before.shape[1]:
            return
        room = max(wanted, 2 * before.shape[1])
        if room > self.k // 16:  # copying holds the old keys twice, so only while they are few
            room = self._most_room
        self._keys = np.empty((self.num_classes, room), np.uint64)
        for keys, old, count in zip(self._keys, before, self._counts.tolist(), strict=True):
            keys[:count] = old[:count]


def _update(
    scores: np.ndarray,
    ids: np.ndarray,
    candidates: np.ndarray | None,
    k: int,
    thresholds: np.ndarray,
    keys: np.ndarray,
    counts: np.ndarray,
) -> bool:
    """Adds to each class the keys that may be among its k best.

    Args:
        scores: (S, C) float32.
        ids: (S,) uint32.
        candidates: (S, C) bool. ``None``: all are.
        k: Number of keys to keep.
        thresholds: (C,) uint64, which keys have to be below.
        keys: (C, room) uint64, of which each row is filled to its count. There is room for all
            scores, or for `_LEAST_ROOM` more than `k`.
        counts: (C,) int64.

    Returns:
        Whether none of the scores is a NaN; otherwise nothing was added.
    """
    if np.isnan(scores.min(initial=0)):
        return False
    kernels = load_kernels()
    mask = np.empty((0, 0), bool) if candidates is None else candidates
    given = scores.view(np.uint32), ids, mask, candidates is not None

    def add(begin: int, end: int) -> None:
        own = thresholds[begin:end], keys[begin:end], counts[begin:end]
        row = 0
        while (row := kernels.append_keys(*given, begin, row, *own)) < len(scores):
            _cut(k, _LEAST_ROOM, *own)

    columns = -(-_WORK // max(1, len(scores)))
    _threads.run_all(add, _threads.shares(len(counts), columns))
    return True


def _cut(k: int, wanted: int, thresholds: np.ndarray, keys: np.ndarray, counts: np.ndarray) -> None:
    """Drops keys beyond the k best in those classes that have no room for `wanted` more.

    The arguments are those of `_update`; `thresholds` are lowered to the k-th best key.
    """
    for index in np.flatnonzero(counts > max(k, keys.shape[1] - wanted)).tolist():
        own = keys[index, : counts[index]]
        own.partition(k - 1)
        thresholds[index], counts[index] = own[k - 1], k


def _ids(segment_ids: Array) -> np.ndarray:
    """Returns ids in uint32, checked."""
    ids = as_array("segment_ids", segment_ids, 1)
    if ids.size == 0:
        return np.empty(0, np.uint32)
    if ids.dtype.kind not in "iu":
        raise TypeError(f"segment_ids: expected integers, found dtype {ids.dtype}")
    # Negative numbers have bits above the 32nd too: one pass finds both.
    if np.bitwise_or.reduce(ids.astype(np.int64, copy=False).view(np.uint64)) > _LAST_ID:
        row = int(((ids < 0) | (ids > _LAST_ID)).argmax())
        raise ArgumentError(
            f"segment_ids: expected values in 0..{_LAST_ID}, found {ids[row]} at {row}"
        )
    return _plain(ids, np.uint32)


def _plain(array: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    """Returns an array of `dtype` as the compiled loops take it: contiguous, aligned and writable.

    Values beyond the range of float32 become infinite.
    """
    if array.dtype == dtype and array.flags.carray:
        return array
    with np.errstate(over="ignore"):
        return np.require(array, dtype, ["C_CONTIGUOUS", "ALIGNED", "WRITEABLE"])
