"""Writes the fuzzer's seeds: small files with every kind of record that pyseg writes.

python tests/fuzz/make_corpus.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from pyseg.data.records import (
    FrameSchema,
    Ratings,
    VideoSchema,
    encode_frames,
    encode_video,
    write_records,
)

FRAMES = FrameSchema(features=(("rgb", 6), ("audio", 3)))  # as in fuzz_records.cpp
VIDEOS = VideoSchema(features=(("mean_rgb", 3), ("mean_audio", 2)))


def seeds() -> dict[str, list[bytes]]:
    """Returns the records of every file, by file name."""
    rng = np.random.default_rng(0)

    def frames(number: int) -> np.ndarray:
        return rng.integers(0, 256, (number, FRAMES.width), dtype=np.uint8)

    starts, classes = np.array([0, 5, 5, 7, 8]), np.array([3, 4, 4, 5, 6])  # the last is dropped
    ratings = Ratings(starts, classes, np.array([1, 0, 0.5, 1, 1]))
    none = Ratings(starts[:0], classes[:0], np.zeros(0))
    unlabelled = FrameSchema(FRAMES.features, labels_key=None)
    context = {"start": 1.5, "end": 3, "name": "gr\u00f6\u00dfe"}
    return {
        "frames": [encode_frames("06xy", frames(t), [4, 300], None, FRAMES) for t in (1, 2, 7)],
        "rated": [encode_frames("-Q7G", frames(8), [0], ratings, FRAMES)],
        "ends": [encode_frames("a,b", frames(6), [], ratings, FRAMES, segment_ends=starts + 2)],
        "no_ratings": [encode_frames("0", frames(1), [2**62], none, FRAMES)],
        "unlabelled": [encode_frames("\U0001f3a5", frames(3), [], None, unlabelled)],
        "context": [encode_frames("x" * 1024, frames(1), [1], ratings, FRAMES, context=context)],
        "videos": [
            encode_video(name, rng.standard_normal(VIDEOS.width), labels, VIDEOS)
            for name, labels in (("a", []), ("b", [7]), ("c", [1, 128, 70000]))
        ],
        "empty": [b"", b""],
    }


def main() -> None:
    """Writes them."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in seeds().items():
        write_records(folder / name, records)


if __name__ == "__main__":
    main()
