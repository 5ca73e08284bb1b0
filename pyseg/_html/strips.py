"""The data of strips of scores over time, as ``strips.js`` reads it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np


def encode(
    starts: np.ndarray,
    ends: np.ndarray,
    scores: np.ndarray,
    names: Sequence[str],
    *,
    ratings: Sequence[tuple[int, float, float, bool]] = (),
    events: Sequence[tuple[int, float, float, float]] = (),
    thumbnails: Sequence[tuple[float, str, float]] = (),
) -> dict[str, Any]:
    """Returns scores over time as values of JSON: one byte a score, times in milliseconds.

    Args:
        starts: (S,) starts in seconds, increasing; the windows do not overlap.
        ends: (S,) ends.
        scores: (S, C) in [0, 1].
        names: The C classes.
        ratings: The class, start, end and whether it is shown, of each rating.
        events: The class, start, end and highest score of each event, by time.
        thumbnails: The time, address and width in pixels of each thumbnail, by time.

    Example:
        >>> data = encode(np.array([0.0]), np.array([1.0]), np.array([[0.5, 1.0]]), ["a", "b"])
        >>> list(base64.b64decode(data["scores"])), data["duration"]
        ([128, 255], 1.0)
    """
    return {
        "duration": float(ends[-1]) if len(ends) else 0.0,
        "starts": _base64(np.rint(1000 * starts).astype("<u4")),
        "ends": _base64(np.rint(1000 * ends).astype("<u4")),
        "scores": _base64(np.ascontiguousarray(np.rint(255 * scores).astype(np.uint8).T)),
        "names": list(names),
        "ratings": [[row, *_round(times), bool(shown)] for row, *times, shown in ratings],
        "events": [[row, *_round(values)] for row, *values in events],
        "thumbnails": [list(thumbnail) for thumbnail in thumbnails],
    }


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()


def _round(values: Sequence[float]) -> list[float]:
    return [round(float(value), 3) for value in values]
