"""Loops over labels and pairs, compiled by numba; they release the GIL, so threads can run them.

Row i of a set of pairs holds the labels j > i that occur with i. See `pyseg.labels.cooccurrence`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pyseg._jit import njit

# Lists of labels are short, three on average, so a loop over one mispredicts its end every time.
# Loops over a list, or over the labels after one, therefore always run AHEAD times at least; what
# they write past the end is overwritten, or falls into the space between buckets.
AHEAD = 4
BLOCK = 16  # labels that `tally` scans together


@njit
def copy(offsets, flat, num_classes, labels, begin, end):  # type: ignore[no-untyped-def]
    """Copies the labels of some videos and checks them.

    Returns the first video with a label out of range, or -1, and whether each list increases.
    """
    first = offsets[begin]
    wrong, drops = False, 0
    last = num_classes
    for k in range(first, offsets[end]):
        label = flat[k]
        wrong |= (label < 0) | (label >= num_classes)
        drops += label <= last
        last = label
        labels[k - first] = label
    if wrong:
        for video in range(begin, end):
            for k in range(offsets[video], offsets[video + 1]):
                if flat[k] < 0 or flat[k] >= num_classes:
                    return video, False
    between = 0  # drops from the end of a list to the beginning of the next
    last = num_classes
    for video in range(begin, end):
        start, stop = offsets[video], offsets[video + 1]
        if stop > start:
            between += flat[start] <= last
            last = flat[stop - 1]
    return -1, drops == between


@njit
def sort_unique(starts, labels):  # type: ignore[no-untyped-def]
    """Sorts each list and removes its duplicates, in place; updates `starts`."""
    begin, at = starts[0], starts[0]
    for video in range(len(starts) - 1):
        stop = starts[video + 1]
        part = np.sort(labels[begin:stop])
        first = at
        for label in part:
            if at == first or labels[at - 1] != label:
                labels[at] = label
                at += 1
        starts[video + 1] = at
        begin = stop


@njit
def count(starts, labels, after, counts, pairs):  # type: ignore[no-untyped-def]
    """Counts labels, and pairs by first label; `after` receives the number of labels after each."""
    base = starts[0]
    for video in range(len(starts) - 1):
        at, rest = starts[video] - base, starts[video + 1] - starts[video] - 1
        for k in range(AHEAD):
            after[at + k] = rest - k
        for k in range(AHEAD, rest):
            after[at + k] = rest - k
        if rest >= AHEAD:
            after[at + rest] = 0
    both = np.zeros(len(counts), np.int64)  # one cell, so one store: labels << 32 | pairs
    for k in range(starts[-1] - base):
        both[labels[k]] += 2**32 + after[k]
    for label in range(len(counts)):
        counts[label] = both[label] >> 32
        pairs[label] = both[label] & (2**32 - 1)


@njit
def scatter(labels, after, number, cursors, others):  # type: ignore[no-untyped-def]
    """Appends the other label of every pair to the bucket of the first."""
    # Unsigned indices: numba would check signed ones for negative values at every access.
    one = np.uintp(1)
    for k in range(number):
        at, rest = np.uintp(k), after[k]
        first = np.uintp(labels[at])
        cursor = np.uintp(cursors[first])
        for m in range(AHEAD):
            others[cursor + np.uintp(m)] = labels[at + one + np.uintp(m)]
        for m in range(AHEAD, rest):
            others[cursor + np.uintp(m)] = labels[at + one + np.uintp(m)]
        cursors[first] += rest


@njit
def tally(parts, sizes, others, times, distinct, begin, end):  # type: ignore[no-untyped-def]
    """Replaces each row's labels by the distinct ones, sorted; `times` receives their counts.

    A row's labels lie in one part per thread; the result starts where the first part does.
    """
    blocks = -(-sizes.shape[1] // BLOCK)
    seen = np.zeros(blocks * BLOCK, np.int32)
    touched = np.zeros(8 * -(-blocks // 8), np.uint8)
    eights = touched.view(np.uint64)
    for row in range(begin, end):
        for part in range(len(parts)):
            start = parts[part, row]
            for k in range(start, start + sizes[part, row]):
                label = others[k]
                seen[label] += 1
                touched[label // BLOCK] = 1
        end_of_row = parts[0, row]
        for eight in range(len(eights)):
            if eights[eight] == 0:
                continue
            for block in range(8 * eight, 8 * eight + 8):
                if touched[block] == 0:
                    continue
                for label in range(block * BLOCK, block * BLOCK + BLOCK):
                    others[end_of_row] = label
                    times[end_of_row] = seen[label]
                    end_of_row += seen[label] != 0
                    seen[label] = 0
            eights[eight] = 0
        distinct[row] = end_of_row - parts[0, row]


@njit
def gather(buckets, others, times, offsets):  # type: ignore[no-untyped-def]
    """Returns the results of `tally` without the space between buckets."""
    columns = np.empty(offsets[-1], np.int32)
    values = np.empty(offsets[-1], np.int64)
    for row in range(len(offsets) - 1):
        for k in range(offsets[row + 1] - offsets[row]):
            columns[offsets[row] + k] = others[buckets[row] + k]
            values[offsets[row] + k] = times[buckets[row] + k]
    return columns, values


@njit
def _merge(a_offsets, a_columns, a_values, b_offsets, b_columns, b_values):  # type: ignore[no-untyped-def]
    rows = len(a_offsets) - 1
    offsets = np.zeros(rows + 1, np.int64)
    columns = np.empty(len(a_columns) + len(b_columns), np.int32)
    values = np.empty(len(a_columns) + len(b_columns), np.int64)
    at = 0
    for row in range(rows):
        a, a_end, b, b_end = a_offsets[row], a_offsets[row + 1], b_offsets[row], b_offsets[row + 1]
        while a < a_end or b < b_end:
            if b == b_end or (a < a_end and a_columns[a] < b_columns[b]):
                columns[at], values[at] = a_columns[a], a_values[a]
                a += 1
            elif a == a_end or b_columns[b] < a_columns[a]:
                columns[at], values[at] = b_columns[b], b_values[b]
                b += 1
            else:
                columns[at], values[at] = a_columns[a], a_values[a] + b_values[b]
                a += 1
                b += 1
            at += 1
        offsets[row + 1] = at
    return offsets, columns[:at].copy(), values[:at].copy()


def merge(one: tuple[Any, Any, Any], other: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
    """Returns the sum of two sets of pairs, each as offsets, columns and values."""
    return _merge(*one, *other)


@njit
def _digamma_tail(x):  # type: ignore[no-untyped-def]
    """Returns digamma(x) - log(x) for x of at least 8, to 1e-11."""
    inverse = 1.0 / x
    square = inverse * inverse
    terms = 1 / 12 - square * (1 / 120 - square * (1 / 252 - square / 240))
    return -0.5 * inverse - square * terms


@njit
def _digamma_rise(x, n):  # type: ignore[no-untyped-def]
    """Returns digamma(x + n) - digamma(x), the sum of 1 / (x + k) over k < n."""
    total = 0.0
    while n > 0 and (x < 8 or n < 4):
        total += 1.0 / x
        x += 1.0
        n -= 1
    if n > 0:
        total += np.log((x + n) / x) + _digamma_tail(x + n) - _digamma_tail(x)
    return total


@njit
def likelihood_slope(offsets, columns, values, counts, rates, strength):  # type: ignore[no-untyped-def]
    """Returns what seen pairs add to the slope of the likelihood, see `pyseg.labels.prior`.

    It is relative to what the slope would be if they had not been seen.
    """
    total = 0.0
    for row in range(len(counts)):
        of_row = 0.0  # sums of about the same size lose fewer digits
        for k in range(offsets[row], offsets[row + 1]):
            column, together = np.int64(columns[k]), values[k]
            for i, j in ((row, column), (column, row)):
                p = rates[j]
                if p < 1.0:
                    of_row += p * _digamma_rise(strength * p, together)
                    absent = strength * (1.0 - p) + counts[i] - together
                    of_row -= (1.0 - p) * _digamma_rise(absent, together)
        total += of_row
    return total
