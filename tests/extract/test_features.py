"""The features of one video."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pyseg.backbones import make_backbone
from pyseg.data import FeatureSet
from pyseg.errors import ArgumentError, DataError
from pyseg.extract import extract_features
from pyseg.extract.features import read_rows
from pyseg.video import DecodeReport
from tests.video.make_videos import Sound, Video

NUMBERS = "tests.extract.networks:numbers"
PITCH = "tests.extract.networks:pitch"


def described(name: str, fps: float, **changes: object) -> FeatureSet:
    backbone = make_backbone(name)
    made = FeatureSet(backbone.features, frame_seconds=1 / fps, backbone=backbone.description)
    return replace(made, **changes)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_row_k_belongs_to_the_frame_on_display(batch_size: int, videos: Path) -> None:
    features = described(NUMBERS, 2.5, ranges=((0.0, 255.0), (0.0, 2.0)))
    report = DecodeReport()
    rows = extract_features(
        videos / "c d.mp4", make_backbone(NUMBERS), features, batch_size=batch_size, report=report
    )
    assert rows.dtype == np.uint8
    assert rows[:, 0].tolist() == list(range(100, 155, 4))
    assert rows[:, 1:].tolist() == [[127, 127]] * 14
    assert (report.frames, report.rows) == (55, 14)


def test_windows_of_sound_start_where_rows_do(tmp_path: Path) -> None:
    path = Video(range(30), rate=10, sound=Sound(seconds=1.6)).write(tmp_path / "a.mp4")
    rows = np.concatenate(list(read_rows(path, make_backbone(PITCH), 1.0)))
    np.testing.assert_allclose(rows[:2, 0], [100, 200], atol=4)  # second s has 100 * (s + 1) Hz
    assert rows[2, 0] == 0  # after the end of the sound all is zero
    silent = Video(range(20), rate=10).write(tmp_path / "silent.mp4")
    rows = np.concatenate(list(read_rows(silent, make_backbone(PITCH), 1.0)))
    assert rows.tolist() == [[-1], [-1]]


def test_another_backbone_is_refused(videos: Path) -> None:
    features = described(NUMBERS, 1.0)
    made = features.backbone
    assert made is not None
    for wrong, match in (
        (None, "expected features of a known backbone, found none recorded"),
        (
            replace(made, name="n.onnx", sha256="3" * 64, location="/x/n.onnx"),
            rf"expected the collection's n.onnx \(/x/n.onnx, digest 3+\), found {NUMBERS} \(dig",
        ),
        (replace(made, preprocessing={}), f"expected the preprocessing {{}}.* of {NUMBERS}$"),
    ):
        with pytest.raises(ArgumentError, match=f"backbone: {match}"):
            extract_features(
                videos / "b.mp4", make_backbone(NUMBERS), replace(features, backbone=wrong)
            )
    other = replace(features, features=(("number", 3),), ranges=())
    with pytest.raises(ArgumentError, match="backbone: expected the features"):
        extract_features(videos / "b.mp4", make_backbone(NUMBERS), other)


def test_values_that_are_not_finite_are_an_error(videos: Path) -> None:
    rows = read_rows(videos / "c d.mp4", make_backbone("tests.extract.networks:infinite"), 10)
    with pytest.raises(DataError, match=r"c d.mp4: expected finite features, .* at 0.50 s"):
        list(rows)
