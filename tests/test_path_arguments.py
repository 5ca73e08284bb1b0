"""Arguments that are paths: what is none is named in one line, in the whole public API."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import pyseg
from pyseg import data, models, submission, timeline, video
from pyseg.calibration import Calibration
from pyseg.data import vocabulary
from pyseg.errors import ArgumentError
from pyseg.labels import LabelCorrelation
from pyseg.rate.answers import AnswerFile
from pyseg.runs import Run

CLIP = data.FeatureSet((("clip", 4),))
MODEL = models.create("mlp", num_classes=2, feature_sizes=(4,))
CORRELATION = LabelCorrelation(
    torch.tensor([0, 0, 0]), torch.empty(0, dtype=torch.long), torch.empty(0)
)
CALIBRATION = Calibration.fit([0.0], [0], [1.0], num_classes=1)
TIMELINE = timeline.Timeline("trip", [0], [5], [[0.5]], ["cat"])

CALLS: dict[str, tuple[str, Callable[[Any], object]]] = {
    "load": ("run", pyseg.load),
    "Run": ("run", Run),
    "models.load": ("folder", models.load),
    "models.save": ("folder", lambda path: models.save(MODEL, path)),
    "open_collection": ("data", data.open_collection),
    "open_collection vocabulary": (
        "vocabulary",
        lambda path: data.open_collection("sample", vocabulary=path or 3),
    ),
    "find_shards": ("paths", data.find_shards),
    "find_shards of a list": ("paths", lambda path: data.find_shards([path])),
    "FrameDataset": ("paths", data.FrameDataset),
    "FeatureSet.read": ("path", data.FeatureSet.read),
    "FeatureSet.write": ("path", CLIP.write),
    "read_annotations": ("paths", lambda path: data.read_annotations(path)),
    "Annotations.read": ("labels", lambda path: data.Annotations.read(["a"], labels=path or 3)),
    "read_frames": ("path", lambda path: next(data.read_frames(path))),
    "read_videos": ("path", lambda path: next(data.read_videos(path))),
    "read_records": ("path", lambda path: next(data.read_records(path))),
    "write_records": ("path", lambda path: data.write_records(path, [])),
    "sniff": ("path", data.sniff),
    "read_label_table": ("path", lambda path: next(data.read_label_table(path))),
    "read_label_records": ("path", lambda path: next(data.read_label_records(path))),
    "import_features": ("features", lambda path: data.import_features(path, "out")),
    "import_features out": ("out", lambda path: data.import_features(".", path)),
    "rate_collection": ("data", lambda path: data.rate_collection(path, "out")),
    "rate_collection out": ("out", lambda path: data.rate_collection("sample", path)),
    "AnswerFile": ("path", lambda path: AnswerFile(path, "ann")),
    "write_collection": ("out", lambda path: data.write_collection(path, CLIP, [])),
    "read_vocabulary": ("path", vocabulary.read_vocabulary),
    "read_segment_vocabulary": ("path", vocabulary.read_segment_vocabulary),
    "write_vocabulary": ("path", lambda path: vocabulary.write_vocabulary(path, ["a"])),
    "LabelCorrelation.load": ("path", LabelCorrelation.load),
    "Calibration.read": ("path", Calibration.read),
    "Calibration.write": ("path", CALIBRATION.write),
    "LabelCorrelation.save": ("path", CORRELATION.save),
    "read_submission": ("path", lambda path: next(submission.read_submission(path))),
    "Timeline.save": ("path", TIMELINE.save),
    "probe": ("path", video.probe),
    "sample_frames": ("path", video.sample_frames),
    "read_audio": ("path", lambda path: next(iter(video.read_audio(path, 16000)))),
    "find_videos": ("paths", video.find_videos),
}


@pytest.mark.parametrize("value", [None, 3], ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_path_is_refused(call: str, value: object) -> None:
    argument, function = CALLS[call]
    with pytest.raises(ArgumentError, match=f"^{argument}: expected a path.*, found (None|3)$"):
        function(value)
