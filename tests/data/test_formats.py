"""The registry of formats: every one recognizes its own records, and opens them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyseg.data import (
    FeatureSet,
    VideoSchema,
    encode_frames,
    encode_video,
    formats,
    open_collection,
    write_records,
)
from pyseg.data.formats import look


def videos_of(features: FeatureSet, level: str = "frame") -> list[bytes]:
    """Returns records of three videos of features."""
    schema, width = features.schema, features.schema.width
    if level == "frame":
        frames = np.zeros((7, width), np.uint8)
        return [encode_frames(f"v{n}", frames, [n], schema=schema) for n in range(3)]
    means = VideoSchema(features.features, features.id_key)
    return [encode_video(f"v{n}", np.zeros(width, np.float32), [n], means) for n in range(3)]


@pytest.mark.parametrize("format", formats(), ids=lambda format: format.name)
def test_every_format_recognizes_and_opens_its_records(format, tmp_path: Path) -> None:
    features = format.features or FeatureSet((("clip", 4),), id_key="name")
    path = tmp_path / "a.tfrecord"
    write_records(path, videos_of(features, format.level))
    if format.described_by:
        features.write(tmp_path / format.described_by)
    (tmp_path / "vocabulary.csv").write_text("Index,Name\n0,a\n1,b\n2,c\n")
    found = look(path)
    assert (found.format.name, found.features) == (format.name, features)
    collection = open_collection(tmp_path, test_fraction=0.0)
    assert (collection.level, collection.features) == (format.level, features)
    videos = {video.id: video.classes.tolist() for video in collection.videos("train")}
    assert videos == {"v0": [0], "v1": [1], "v2": [2]}
