"""Loops over scores, compiled by numba; they release the GIL, so threads can run them.

The order of ranks is coded here for all of `pyseg.metrics`: the larger score first, of equal scores
that of the earlier row, the lower class or the smaller id.

Scores are compared by their bits: `_descending` maps them to unsigned integers in the order of
ranks. A float32 score with a number below it, which decides between equal scores, is a 64-bit key:
the smaller the better. NumPy sorts and partitions keys with vector instructions. Where a few are
picked from a row of scores, `_cutoff` and `_is_best` do without keys.
"""

from __future__ import annotations

import numba
import numpy as np

from pyseg._jit import njit

# uint32 and uint64: numba would widen a literal, and the vectors with it.
_ZERO, _SIGN, _REST = np.uint32(0), np.uint32(0x80000000), np.uint32(0x7FFFFFFF)
_ONE, _HALF = np.uint64(1), np.uint64(32)
_WIDE_SIGN = np.uint64(0x8000000000000000)
_TURNED = 64  # rows of scores that are turned together
_ROWS = 256  # of a block whose columns are read one after the other: they fit the first cache


@numba.njit(inline="always")
def _descending(bits):  # type: ignore[no-untyped-def]
    """Returns the bits of a float32 as an integer that falls as it grows; -0 counts as 0."""
    if bits == _SIGN:
        bits = _ZERO
    return bits ^ (_REST if bits < _SIGN else _ZERO)


@numba.njit(inline="always")
def _wide_descending(bits):  # type: ignore[no-untyped-def]
    """Does what `_descending` does for the bits of a float64."""
    if bits == _WIDE_SIGN:
        bits = np.uint64(0)
    return bits ^ ((_WIDE_SIGN - _ONE) if bits < _WIDE_SIGN else np.uint64(0))


@numba.njit(inline="always")
def _key(bits, low):  # type: ignore[no-untyped-def]
    return (np.uint64(_descending(bits)) << _HALF) | low


@numba.njit(inline="always")
def _row(place, hit):  # type: ignore[no-untyped-def]
    """Returns what stands below a score: the row within its class, and whether it is relevant."""
    return (np.uint64(place) << _ONE) | np.uint64(hit)


@njit
def columns_to_keys(  # type: ignore[no-untyped-def]
    bits, relevant, rated, masked, first, keys, rows, positives
):
    """Writes the keys of the rated rows of the columns from `first` on, a row of keys per column.

    `rows` and `positives`, zero before, receive their numbers.
    """
    scores, hits = np.empty(_ROWS, np.uint32), np.empty(_ROWS, np.bool_)
    for begin in range(0, len(bits), _ROWS):
        end = min(len(bits), begin + _ROWS)
        for column in range(len(keys)):
            score, hit = bits[begin:end, first + column], relevant[begin:end, first + column]
            size = 0
            if masked:
                mask = rated[begin:end, first + column]
                for row in range(end - begin):  # without a branch: the next row overwrites unrated
                    scores[size] = score[row]
                    hits[size] = hit[row]
                    size += np.int64(mask[row])
            else:
                for row in range(end - begin):
                    scores[row] = score[row]
                    hits[row] = hit[row]
                size = end - begin
            start, found = rows[column], 0
            target = keys[column, start : start + size]
            for row in range(size):
                target[row] = _key(scores[row], _row(start + row, hits[row]))
                found += np.int64(hits[row])
            rows[column] += size
            positives[column] += found


@njit
def rows_to_keys(classes, bits, relevant, starts, rows, keys, positives):  # type: ignore[no-untyped-def]
    """Writes the key of every row to its class's part of `keys`, which begins at `starts`.

    `rows` and `positives`, zero before, receive their numbers.
    """
    for row in range(len(classes)):
        label = classes[row]
        place = rows[label]
        keys[starts[label] + place] = _key(bits[row], _row(place, relevant[row]))
        rows[label] = place + 1
        positives[label] += np.int64(relevant[row])


@njit
def wide_rows_to_keys(  # type: ignore[no-untyped-def]
    classes, bits, relevant, starts, low, rows, keys, full, positives
):
    """`rows_to_keys` for float64 scores, whose last `low` bits do not fit into a key.

    `full` receives all bits of the scores, in descending order as in keys, at the keys' places.
    """
    least = (_ONE << np.uint64(low)) - _ONE
    for row in range(len(classes)):
        label = classes[row]
        place = rows[label]
        value = _wide_descending(bits[row])
        full[starts[label] + place] = value
        keys[starts[label] + place] = (value & ~least) | _row(place, relevant[row])
        rows[label] = place + 1
        positives[label] += np.int64(relevant[row])


@njit
def in_order(keys, full, starts, ends, low):  # type: ignore[no-untyped-def]
    """Returns whether sorted keys are also in the order of the bits that do not fit into them."""
    least = (_ONE << np.uint64(low)) - _ONE
    for label in range(len(starts)):
        ranked, scores = keys[starts[label] : ends[label]], full[starts[label] : ends[label]]
        for rank in range(1, len(ranked)):
            if (ranked[rank - 1] ^ ranked[rank]) <= least:
                before = np.int64((ranked[rank - 1] & least) >> _ONE)
                after = np.int64((ranked[rank] & least) >> _ONE)
                if scores[before] > scores[after]:
                    return False
    return True


@njit
def precision_sums(keys, starts, ends, k, sums):  # type: ignore[no-untyped-def]
    """Sums P(i) rel(i) over the first k of each class's sorted keys, which are overwritten."""
    for label in range(len(starts)):
        ranked = keys[starts[label] : ends[label]]
        hits = 0
        for row in range(min(len(ranked), k)):  # collects the ranks of the hits without a branch
            hit = ranked[row] & _ONE
            ranked[hits] = row + 1
            hits += np.int64(hit)
        total = 0.0
        for hit in range(hits):
            total += (hit + 1) / np.int64(ranked[hit])
        sums[label] = total


@njit
def append_keys(  # type: ignore[no-untyped-def]
    bits, ids, candidates, masked, first, row, thresholds, keys, counts
):
    """Appends keys, score above id, below their class's threshold, until a class is full.

    It starts at column `first` and at `row`, and returns the row to continue from.
    """
    made, wanted = np.empty(_TURNED, np.uint64), np.empty(_TURNED, np.bool_)
    while row < len(bits):
        size = min(len(bits) - row, _TURNED)
        if counts.max() > keys.shape[1] - size:
            break
        part = slice(row, row + size)
        low = ids[part]
        for column in range(len(keys)):
            score = bits[part, first + column]
            for place in range(size):
                made[place] = score[place]
            threshold = thresholds[column]
            for place in range(size):
                key = _key(np.uint32(made[place]), low[place])
                made[place] = key
                wanted[place] = key < threshold
            if masked:
                candidate = candidates[part, first + column]
                for place in range(size):
                    wanted[place] &= candidate[place]
            target, count = keys[column], counts[column]
            for place in range(size):  # without a branch: the next key overwrites an unwanted one
                target[count] = made[place]
                count += np.int64(wanted[place])
            counts[column] = count
        row += size
    return row


@njit
def unpack(keys, ids, bits):  # type: ignore[no-untyped-def]
    """Writes the ids and the bits of the scores in the keys."""
    for entry in range(len(keys)):
        ids[entry] = np.uint32(keys[entry])
        bits[entry] = _descending(np.uint32(keys[entry] >> _HALF))  # it is its own inverse


@njit
def pack(ids, bits, keys):  # type: ignore[no-untyped-def]
    """Writes the keys that `append_keys` makes."""
    for entry in range(len(keys)):
        keys[entry] = _key(bits[entry], ids[entry])


@njit
def _cutoff(row, k, heap):  # type: ignore[no-untyped-def]
    """Returns the k-th largest value of a row, and how many of the k largest are equal to it.

    The first k places of `heap` are overwritten; 1 <= k <= len(row).
    """
    for place in range(k):
        heap[place] = row[place]
    for parent in range(k // 2 - 1, -1, -1):
        _sift(heap, parent, k)
    for value in row[k:]:
        if value > heap[0]:
            heap[0] = value
            _sift(heap, 0, k)
    equal = 0
    for value in heap[:k]:
        equal += value == heap[0]
    return heap[0], equal


@njit
def _sift(heap, parent, size):  # type: ignore[no-untyped-def]
    """Moves a value down a min-heap until no child is smaller."""
    value = heap[parent]
    while True:
        child = 2 * parent + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[parent] = heap[child]
        parent = child
    heap[parent] = value


@numba.njit(inline="always")
def _is_best(score, cutoff, equal):  # type: ignore[no-untyped-def]
    """Returns whether a score is above a cutoff, or equal to it and `equal` more may be."""
    return score > cutoff or (score == cutoff and equal > 0)


@njit
def best_of_rows(scores, relevant, best, hits, begin, end):  # type: ignore[no-untyped-def]
    """Writes the k best scores of some rows, the k columns of `best`, in the order of classes.

    Of equal scores the lower classes are taken. Returns how many values of these rows are relevant.
    """
    k = best.shape[1]
    heap = np.empty(k, scores.dtype)
    total = 0
    for index in range(begin, end):
        row, labels = scores[index], relevant[index]
        for label in labels:
            total += label
        cutoff, equal = _cutoff(row, k, heap)
        at = 0
        for column in range(len(row)):
            score = row[column]
            if _is_best(score, cutoff, equal):
                equal -= score == cutoff
                best[index, at] = score
                hits[index, at] = labels[column]
                at += 1
    return total


@njit
def right_of_rows(scores, relevant, right, numbers, begin, end):  # type: ignore[no-untyped-def]
    """Counts each row's labels n, and those of them among the n best scores and above 0.

    Of equal scores the lower class ranks first.
    """
    heap = np.empty(scores.shape[1], scores.dtype)
    for index in range(begin, end):
        row, labels = scores[index], relevant[index]
        number = 0
        for label in labels:
            number += label
        numbers[index], found = number, 0
        if number > 0:
            cutoff, equal = _cutoff(row, number, heap)
            for column in range(len(row)):
                score = row[column]
                if _is_best(score, cutoff, equal):
                    equal -= score == cutoff
                    found += labels[column] and score > 0
        right[index] = found
