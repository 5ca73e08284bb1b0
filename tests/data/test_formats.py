"""The registry of formats: every one recognizes its own records, and opens them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyseg.data import (
    FrameSchema,
    encode_frames,
    encode_video,
    formats,
    open_collection,
    write_records,
)
from pyseg.data.formats import frame_format, look
from pyseg.errors import ArgumentError


@pytest.mark.parametrize("format", formats(), ids=lambda format: format.name)
def test_every_format_recognizes_and_opens_its_records(format, tmp_path: Path) -> None:
    schema = format.schema
    if isinstance(schema, FrameSchema):
        frames = np.zeros((7, schema.width), np.uint8)
        records = [encode_frames(f"v{n}", frames, [n], schema=schema) for n in range(3)]
    else:
        features = np.zeros(sum(format.feature_sizes), np.float32)
        records = [encode_video(f"v{n}", features, [n], schema) for n in range(3)]
    path = tmp_path / "a.tfrecord"
    write_records(path, records)
    (tmp_path / "vocabulary.csv").write_text("Index,Name\n0,a\n1,b\n2,c\n")
    assert look(path).format.name == format.name
    collection = open_collection(tmp_path, test_fraction=0.0)
    assert (collection.level, collection.feature_sizes) == (format.level, format.feature_sizes)
    videos = {video.id: video.classes.tolist() for video in collection.videos("train")}
    assert videos == {"v0": [0], "v1": [1], "v2": [2]}
    if format.level == "frame":
        assert frame_format(format.feature_sizes, [str(path)]).name == format.name


def test_features_that_no_format_has() -> None:
    with pytest.raises(ArgumentError, match=r"feature_sizes: expected \(1024, 128\) or \(128,\)"):
        frame_format((3,))
