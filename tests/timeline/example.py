"""A small timeline, with names that need escapes."""

from __future__ import annotations

from pyseg.timeline import Rating, Timeline


def make(**changes) -> Timeline:
    """A video of 8 frames of half a second, in segments of 3 frames."""
    options = {
        "title": 'a "b" <c>',
        "starts": [0, 1.5, 3],
        "ends": [1.5, 3, 4],
        "scores": [[0.5, 0.0], [1.0, 0.0], [0.25, 0.0]],
        "numbers": [7, 2],
        "names": ["<seven>", "two"],
        "ratings": [Rating(1.5, 3, 7, True), Rating(0, 1.5, 9, False)],
    }
    return Timeline(**(options | changes))
