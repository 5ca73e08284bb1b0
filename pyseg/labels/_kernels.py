"""Loops over labels and pairs, compiled by numba; they release the GIL, so threads can run them.

Row i of a set of pairs holds the labels j > i that occur with i. See `pyseg.labels.cooccurrence`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def clean(  # type: ignore[no-untyped-def]
    offsets, flat, num_classes, labels, sizes, counts, pairs, begin, end
):
    """Writes each video's labels sorted and once, and counts them and their pairs by first label.

    Returns the first video with a label out of range, or -1.
    """
    base = offsets[0]
    for video in range(begin, end):
        start, stop = offsets[video], offsets[video + 1]
        at, last, increasing = start - base, -1, True
        for k in range(start, stop):
            label = flat[k]
            if label < 0 or label >= num_classes:
                return video
            increasing &= label > last
            last = label
            labels[k - base] = label
        size = stop - start
        if not increasing:
            part = np.sort(labels[at : at + size])
            size = 0
            for label in part:
                if size == 0 or labels[at + size - 1] != label:
                    labels[at + size] = label
                    size += 1
        sizes[video] = size
        for k in range(size):
            counts[labels[at + k]] += 1
            pairs[labels[at + k]] += size - 1 - k
    return -1


@njit(cache=True, nogil=True)
def scatter(offsets, labels, sizes, cursors, others, begin, end):  # type: ignore[no-untyped-def]
    """Appends the other label of every pair to the bucket of the first."""
    base = offsets[0]
    for video in range(begin, end):
        at, size = offsets[video] - base, sizes[video]
        for k in range(size - 1):
            first = labels[at + k]
            cursor = cursors[first]
            for m in range(k + 1, size):
                others[cursor] = labels[at + m]
                cursor += 1
            cursors[first] = cursor


@njit(cache=True, nogil=True)
def tally(buckets, others, times, distinct, begin, end):  # type: ignore[no-untyped-def]
    """Replaces each bucket's labels by the different ones, sorted, and says how often each was."""
    num_classes = len(buckets) - 1
    seen = np.zeros(num_classes, np.int32)
    for row in range(begin, end):
        start, stop = buckets[row], buckets[row + 1]
        found = start
        for k in range(start, stop):
            label = others[k]
            if seen[label] == 0:
                others[found] = label
                found += 1
            seen[label] += 1
        others[start:found].sort()
        for k in range(start, found):
            times[k] = seen[others[k]]
            seen[others[k]] = 0
        distinct[row] = found - start


@njit(cache=True, nogil=True)
def gather(buckets, others, times, offsets):  # type: ignore[no-untyped-def]
    """Returns what `tally` left in the buckets without the space between."""
    columns = np.empty(offsets[-1], np.int32)
    values = np.empty(offsets[-1], np.int64)
    for row in range(len(offsets) - 1):
        for k in range(offsets[row + 1] - offsets[row]):
            columns[offsets[row] + k] = others[buckets[row] + k]
            values[offsets[row] + k] = times[buckets[row] + k]
    return columns, values


@njit(cache=True, nogil=True)
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


# What `parse` may find wrong with a line.
NO_COMMA, NO_NUMBER, TOO_LARGE = 1, 2, 3


@njit(cache=True, nogil=True)
def parse(text, excluded, starts, offsets, labels, hashes):  # type: ignore[no-untyped-def]
    """Reads lines ``id,label label ...`` of ASCII digits, whole ones, from bytes.

    `starts` receives where each line begins, `offsets` and `labels` the lists. With `excluded`,
    sorted hashes of ids, `hashes` says of each line whether its id may be one of them.

    Returns the number of lines, and what is wrong with the last one (0: nothing).
    """
    line, count, at, end = 0, 0, 0, len(text)
    while at < end:
        if text[at] == 10 or (text[at] == 13 and at + 1 < end and text[at + 1] == 10):
            at += 1  # an empty line
            continue
        starts[line] = at
        value = np.uint64(14695981039346656037)  # FNV-1a
        while at < end and text[at] != 44 and text[at] != 10:
            value = (value ^ np.uint64(text[at])) * np.uint64(1099511628211)
            at += 1
        if at == end or text[at] != 44:
            return line + 1, NO_COMMA
        at += 1
        while at < end and text[at] != 10:
            if text[at] == 32 or text[at] == 13:
                at += 1
                continue
            number, digits = 0, 0
            while at < end and 48 <= text[at] <= 57:
                number = number * 10 + (text[at] - 48)
                digits += 1
                at += 1
            if digits == 0 or (at < end and text[at] not in (10, 13, 32)):
                return line + 1, NO_NUMBER
            if digits > 9:
                return line + 1, TOO_LARGE
            labels[count] = number
            count += 1
        at += 1
        if len(excluded):
            place = np.searchsorted(excluded, value)
            hashes[line] = place < len(excluded) and excluded[place] == value
        line += 1
        offsets[line] = count
    return line, 0


@njit(cache=True)
def hash_id(text):  # type: ignore[no-untyped-def]
    """Returns the hash that `parse` takes of an id."""
    value = np.uint64(14695981039346656037)
    for byte in text:
        value = (value ^ np.uint64(byte)) * np.uint64(1099511628211)
    return value
