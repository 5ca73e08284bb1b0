"""Loops over the bytes of tables of labels, compiled by numba; see `pyseg.data.label_lists`."""

from __future__ import annotations

import numpy as np

from pyseg._jit import njit

# Errors of a line that `parse` reports.
NO_COMMA, NO_NUMBER, TOO_LARGE = 1, 2, 3


@njit
def parse(text, excluded, starts, offsets, labels, hashes):  # type: ignore[no-untyped-def]
    """Parses complete lines ``id,label label ...`` with labels of ASCII digits.

    `starts` receives the start of each line, `offsets` and `labels` the lists. With `excluded`,
    sorted hashes of ids, `hashes` receives for each line whether its id may be one of them.

    Returns the number of lines, and the error of the last one (0: none).
    """
    line, count, at, end = 0, 0, 0, len(text)
    while at < end:
        starts[line] = at
        while at < end and text[at] == 32:
            at += 1
        if at == end:
            break
        if text[at] == 10 or (text[at] == 13 and at + 1 < end and text[at + 1] == 10):
            at += 1  # an empty line
            continue
        value = np.uint64(14695981039346656037)  # FNV-1a
        trimmed = value  # the hash without trailing spaces
        while at < end and text[at] != 44 and text[at] != 10:
            value = (value ^ np.uint64(text[at])) * np.uint64(1099511628211)
            if text[at] != 32:
                trimmed = value
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
            place = np.searchsorted(excluded, trimmed)
            hashes[line] = place < len(excluded) and excluded[place] == trimmed
        line += 1
        offsets[line] = count
    return line, 0


@njit
def hash_id(text):  # type: ignore[no-untyped-def]
    """Returns the hash of an id, as `parse` computes it."""
    value = np.uint64(14695981039346656037)
    for byte in text:
        value = (value ^ np.uint64(byte)) * np.uint64(1099511628211)
    return value
