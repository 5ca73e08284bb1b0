"""What a session starts from: classes, ratings, labels, and a run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pyseg import models
from pyseg.data import FeatureSet, encode_frames, write_records
from pyseg.errors import ArgumentError, UserError
from pyseg.labels import LabelCorrelation, count_cooccurrence
from pyseg.rate.pool import Pool
from pyseg.rate.questions import Answers
from pyseg.rate.sources import (
    Records,
    RunKnowledge,
    class_names,
    count_correlation,
    files_of,
    parse_classes,
    unknown_classes,
)
from tests.rate.simulation import NOTHING


@pytest.fixture
def run(clips: Path, tmp_path: Path) -> Path:
    """A run that was never trained, of two of the classes of the clips and one more."""
    folder = tmp_path / "run"
    folder.mkdir()
    features = FeatureSet.read(clips / "features.json")
    model = models.create("mlp", num_classes=3, feature_sizes=(512,))
    models.save(model, folder, class_names=["Car", "Bird", "Dog"])
    features.write(folder / "features.json")
    (folder / "config.yaml").write_text(f"data: {clips}\nmodel: mlp\n")
    counted = count_cooccurrence([0, 2, 4, 6], [0, 2, 0, 2, 0, 1], 3)
    LabelCorrelation.from_counts(counted, 0.1).save(folder / "correlation.npz")
    return folder


def test_ratings_of_records_are_answers(clips: Path) -> None:
    records = Records.read(str(clips))
    assert (len(records.ids), records.names) == (24, ["Dog", "Cat", "Car"])
    pool = Pool.read(clips, ["Car", "Dog"], ids=["v00", "v01", "v02", "v05"])
    rated = records.rated(pool)
    found = {
        (pool.ids[pool.videos[segment]], int(pool.starts[segment]), pool.class_names[label]): score
        for segment, label, score in zip(rated.segments, rated.labels, rated.scores, strict=True)
    }
    assert len(found) == 12  # v01 is about cats
    assert found["v00", 0, "Dog"] == found["v05", 12, "Car"] == 1
    assert found["v00", 12, "Dog"] == found["v05", 0, "Car"] == 0
    assert not rated.random.any()


def test_records_without_labels(clips: Path, tmp_path: Path) -> None:
    features = FeatureSet.read(clips / "features.json")
    frames = np.zeros((9, 512), np.uint8)
    write_records(tmp_path / "a.tfrecord", [encode_frames("a", frames, [], None, features.schema)])
    features.write(tmp_path / "features.json")
    records = Records.read(str(tmp_path))
    assert (records.ids, records.names, records.ratings) == (["a"], [], [])
    with pytest.raises(ArgumentError, match="classes: expected the classes to ask about"):
        class_names([], [], records, None)
    assert class_names([], ["sun"], records, None) == ["sun"]
    assert class_names(["car"], ["sun"], records, None) == ["car"]
    (tmp_path / "vocabulary.csv").write_text("Index,Name\n0,snow\n")
    assert class_names([], ["sun"], Records.read(str(tmp_path)), None) == ["snow", "sun"]


def test_the_manifest_tells_the_files(clips: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(clips, folder)
    assert files_of(Records.read(str(folder))) == []
    film = tmp_path / "film.mp4"
    film.touch()
    lines = [
        {"id": "v00", "path": str(film), "status": "ok"},
        {"id": "v01", "path": str(tmp_path / "gone.mp4"), "status": "truncated"},
        {"id": "v02", "path": str(film), "status": "skipped"},
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = Records.read(str(folder))
    assert records.paths.keys() == {"v00", "v01"}
    assert files_of(records) == [str(film)]


def test_a_run_gives_logits_by_name(clips: Path, run: Path) -> None:
    knowledge = RunKnowledge.of(str(run), str(clips), "raise", "cpu")
    pool = Pool.read(clips, ["Dog", "Snow", "Car"], ids=[f"v{n:02d}" for n in range(4, 20)])
    logits = knowledge.logits(pool)
    every = RunKnowledge.of(str(run), str(clips), "raise", "cpu").logits(
        Pool.read(clips, ["Car", "Bird", "Dog"])
    )
    rows = slice(4 * 4, 20 * 4)
    assert np.array_equal(logits[:, [2, 0]], every[rows][:, [0, 2]])
    assert not logits[:, 1].any()
    assert every.std() > 0
    scorer = knowledge.scorer
    with pytest.raises(UserError, match=r"--run .*: expected one of the classes Snow"):
        knowledge.logits(Pool.read(clips, ["Snow"]))
    assert scorer.features == FeatureSet.read(clips / "features.json")


def test_other_features_than_those_of_the_run_are_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    features = FeatureSet((("clip", 4),))
    frames = np.zeros((9, 4), np.uint8)
    write_records(other / "a.tfrecord", [encode_frames("a", frames, [], None, features.schema)])
    features.write(other / "features.json")
    with pytest.raises(UserError, match=r"features: expected clip \(512\), found clip \(4\)"):
        RunKnowledge.of(str(run), str(other), "raise", "cpu")
    model = models.create("mlp", num_classes=3, feature_sizes=(512,))
    models.save(model, run)
    with pytest.raises(UserError, match="expected a run that knows the names of its classes"):
        RunKnowledge.of(str(run), str(run / "config.yaml"), "raise", "cpu")


def test_the_correlation_of_a_run_by_name(clips: Path, run: Path) -> None:
    knowledge = RunKnowledge.of(str(run), str(clips), "raise", "cpu")
    found = knowledge.correlation(["Dog", "Snow", "Car"])
    assert found is not None
    # Car and Dog are in 3 and 2 videos, both in 2: P(Dog | Car) = 2/3.
    expected = np.zeros((3, 3), np.float32)
    expected[0, 2], expected[2, 0] = 1, 2 / 3
    assert np.allclose(found.dense().numpy(), expected)
    (run / "correlation.npz").unlink()
    assert knowledge.correlation(["Dog"]) is None


def test_the_correlation_is_counted_from_labels_and_answers(clips: Path) -> None:
    records = Records.read(str(clips))
    pool = Pool.read(clips, ["Car", "Dog"])
    assert count_correlation(records, pool, NOTHING) is None
    cars = np.flatnonzero(np.isin(pool.videos, [0, 3, 6]))  # of videos with dogs
    none = np.zeros(3, np.int64)
    answers = Answers(cars[::4], none, np.ones(3, np.float32), none > 0)
    found = count_correlation(records, pool, answers)
    assert found is None  # a car in 3 of 8 videos with a dog, a dog in 3 of 11 with a car
    fewer = Records(**{**vars(records), "labels": records.labels[:12], "ids": records.ids[:12]})
    pool = Pool.read(clips, ["Car", "Dog"], ids=records.ids[:12])
    found = count_correlation(fewer, pool, answers)
    assert found is not None
    assert found.related(1) == [(0, 0.75)]  # of 4 videos with a dog


@pytest.mark.parametrize("text", ["[1]", "[", "a,,b", "a\nb", '["a"', "[[" * 9999])
def test_classes_that_are_no_names(text: str) -> None:
    with pytest.raises(ArgumentError, match="classes: "):
        parse_classes([text], [])
    assert parse_classes(["a,b", '["b", "c, d"]', '"e, f"'], []) == ["a", "b", "c, d", "e, f"]


def test_new_classes_are_told() -> None:
    assert unknown_classes(["sun", "cra"], ["sun", "car"]) == [
        "classes that are new: cra (did you mean car?)"
    ]
    assert unknown_classes(["sun"], []) == unknown_classes(["sun"], ["sun"]) == []
