"""Loops over scores, compiled by numba; they release the GIL, so threads can run them.

A float32 score is compared by its bits: `_ascending` maps them to unsigned integers in the order of
the scores. Together with the place where a row stands, a score then fits a 64-bit key, rows with
equal scores have different keys, and NumPy sorts keys with vector instructions.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# A uint32 constant each: numba would widen a literal, and the vectors with it.
_ZERO, _SIGN, _ALL = np.uint32(0), np.uint32(0x80000000), np.uint32(0xFFFFFFFF)
_ONE, _HALF = np.uint64(1), np.uint64(32)
_ROWS = 256  # of a block that is turned over: columns of it fit the first cache
_LANES = 16  # values whose largest is found at once


@njit(inline="always")
def _ascending(bits):  # type: ignore[no-untyped-def]
    """Returns the bits of a float32 as an integer that grows with it; -0 counts as 0."""
    if bits == _SIGN:
        bits = _ZERO
    return bits ^ (_ALL if bits >= _SIGN else _SIGN)


@njit(inline="always")
def _key(bits, place, hit):  # type: ignore[no-untyped-def]
    """The smaller the earlier in the ranking: the score's complement, the row's place, the hit."""
    descending = np.uint64(~_ascending(bits) & _ALL)
    return (descending << _HALF) | (np.uint64(place) << _ONE) | np.uint64(hit)


@njit(cache=True, nogil=True)
def columns_to_keys(  # type: ignore[no-untyped-def]
    bits, relevant, rated, masked, first, keys, rows, positives
):
    """Writes the keys of the rated rows of some columns, from `first` on, a row of keys for each.

    `rows` and `positives`, zero before, receive how many there are.
    """
    scores, hits = np.empty(_ROWS, np.uint32), np.empty(_ROWS, np.bool_)
    for begin in range(0, len(bits), _ROWS):
        end = min(len(bits), begin + _ROWS)
        for column in range(len(keys)):
            score, hit = bits[begin:end, first + column], relevant[begin:end, first + column]
            size = 0
            if masked:
                mask = rated[begin:end, first + column]
                for row in range(end - begin):  # what is not rated is overwritten by the next
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
                target[row] = _key(scores[row], start + row, hits[row])
                found += np.int64(hits[row])
            rows[column] += size
            positives[column] += found


@njit(cache=True, nogil=True)
def rows_to_keys(classes, bits, relevant, starts, rows, keys, positives):  # type: ignore[no-untyped-def]
    """Writes the key of every row to the part of `keys` that its class has from `starts` on.

    `rows` and `positives`, zero before, receive how many there are.
    """
    for row in range(len(classes)):
        label = classes[row]
        place = rows[label]
        keys[starts[label] + place] = _key(bits[row], place, relevant[row])
        rows[label] = place + 1
        positives[label] += np.int64(relevant[row])


@njit(cache=True, nogil=True)
def precision_sums(keys, starts, ends, k, sums):  # type: ignore[no-untyped-def]
    """Sums P(i) rel(i) over the first k of each class's sorted keys, which are overwritten."""
    for label in range(len(starts)):
        ranked = keys[starts[label] : ends[label]]
        hits = 0
        for row in range(min(len(ranked), k)):  # first the ranks of the hits, without a branch
            hit = ranked[row] & _ONE
            ranked[hits] = row + 1
            hits += np.int64(hit)
        total = 0.0
        for hit in range(hits):
            total += (hit + 1) / np.int64(ranked[hit])
        sums[label] = total
