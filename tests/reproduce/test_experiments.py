"""The experiments' data: which videos are held out, which labels are known, and the measures."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pyseg.config import LossConfig
from pyseg.data import encode_video, held_out, write_records
from pyseg.errors import UserError
from pyseg.evaluate import predictions
from pyseg.labels import LabelCorrelation, embed_labels
from pyseg.reproduce.experiments import FEWEST_POSITIVES, ModelSpec, open_experiment

from .conftest import RATED


def ids(dataset) -> set[str]:
    return {example.id for example in dataset}


def test_incomplete_videos(yt8m: Path, tmp_path: Path) -> None:
    experiment = open_experiment("yt8m", yt8m)
    collection = experiment.collection(0)
    assert collection.class_names == ["class 5", "class 3", "class 8"]
    everything = {f"{shard}v{number:02d}" for shard in range(2) for number in range(60)}
    test = {id for id in everything if held_out(id, 0.3, 0)}
    assert ids(collection.segments("test")) == test
    assert ids(collection.segments("train")) == everything - test
    assert all(len(example.classes) == 1 for example in collection.segments("train"))
    complete = experiment.collection(0, complete=True)
    assert all(len(example.classes) == 2 for example in complete.segments("train"))
    rated = [
        {e.id: int(e.classes[0]) for e in experiment.collection(seed).segments("train")}
        for seed in (0, 0, 1)
    ]
    assert rated[0] == rated[1] != rated[2]
    # Counted on the 40 other videos alone: 30 of them have both labels.
    loss = experiment.loss(LossConfig(threshold=0.5), tmp_path)
    assert LabelCorrelation.load(loss.correlation).related(0) == [(1, pytest.approx(0.75))]
    assert LabelCorrelation.load(loss.correlation).related(2) == []
    assert experiment.loss(LossConfig(correlation="none"), tmp_path).correlation == "none"


def test_node_features_are_of_other_videos(yt8m: Path, tmp_path: Path) -> None:
    experiment = open_experiment("yt8m", yt8m)
    model = ModelSpec("dbof-gcn", {"node_size": 2}, node_features="auto")
    path = experiment.node_features(model, tmp_path)
    nodes = np.load(path)
    # All labels are embedded, then the rated ones are chosen. None of the others has label 8.
    np.testing.assert_array_equal(nodes, embed_labels(experiment.counts, 2)[RATED].numpy())
    assert nodes[1].any()  # label 5 is in every list, and says nothing
    assert not nodes[[0, 2]].any()
    given = replace(model, node_features="nodes.npy")
    assert experiment.node_features(given, tmp_path) == "nodes.npy"
    assert experiment.node_features(ModelSpec("dbof"), tmp_path) is None


def test_validation_leaves_test_videos_alone(yt8m: Path) -> None:
    test = ids(open_experiment("yt8m", yt8m).collection(0).segments("test"))
    inner = open_experiment("yt8m", yt8m, "validation").collection(0)
    assert inner.segments("test") is not None
    assert not test & ids(inner.segments("all"))
    assert 0 < len(ids(inner.segments("test"))) < len(ids(inner.segments("train")))


def test_shares_of_the_videos(yt8m: Path) -> None:
    experiment = open_experiment("yt8m", yt8m)
    whole, half, eighth = (
        ids(experiment.collection(0, share=share).segments("train")) for share in (1.0, 0.5, 0.125)
    )
    assert eighth < half < whole
    assert experiment.training_examples(0.5) == len(half)
    assert 0.35 < len(half) / len(whole) < 0.65


def test_further_shards(yt8m: Path, tmp_path: Path) -> None:
    videos = [encode_video(f"m{number:02d}", np.ones(1152), [RATED[0]]) for number in range(9)]
    write_records(tmp_path / "video_level_train0.tfrecord", videos)
    both = ids(open_experiment("yt8m", yt8m, more=tmp_path).collection(0).segments("all"))
    assert both == ids(open_experiment("yt8m", yt8m).collection(0).segments("all")) | {
        f"m{number:02d}" for number in range(9)
    }
    with pytest.raises(UserError, match=r"--more .*: expected --data yt8m with it, found sample"):
        open_experiment("sample", yt8m, more=tmp_path)


class Oracle(nn.Module):
    """Reads the classes from the features of `yt8m`, and gets one wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(()))

    def forward(self, frames: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        first = frames[:, 0, 0].round().long()
        logits = nn.functional.one_hot(first, 3) + nn.functional.one_hot((first + 1) % 3, 3)
        return torch.where(torch.arange(3) == 2, -logits, logits).float()


def test_measured_on_complete_labels(yt8m: Path) -> None:
    experiment = open_experiment("yt8m", yt8m)
    truth = np.stack(
        [
            np.isin(np.arange(3), example.classes)
            for example in experiment.collection(0, complete=True).segments("test")
        ]
    )
    assert truth.sum(0).min() >= FEWEST_POSITIVES
    reversed_order = np.sort(truth[:, 2])  # all negatives come first
    ranks = np.flatnonzero(reversed_order) + 1
    worst = (np.arange(1, len(ranks) + 1) / ranks).mean()
    measured = experiment.measure(functools.partial(predictions, Oracle()), 0)["map"]
    assert measured == pytest.approx([1, 1, worst])


def test_sample() -> None:
    experiment = open_experiment("sample", Path("no such folder"))
    collection = experiment.collection(0)
    assert collection.has_segments
    assert len(ids(collection.videos("test"))) < 200
    assert not experiment.has_ceiling


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^--folder .*labelsets\.csv\.gz: no such file"):
        open_experiment("yt8m", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^--folder .*: no file in this folder ends in"):
        open_experiment("audioset", tmp_path)


def test_real_videos(shared: Path) -> None:
    experiment = open_experiment("yt8m", shared / "data/yt8m")
    collection = experiment.collection(0)
    assert (len(collection.segments("train")), len(collection.segments("test"))) == (3671, 1486)
    assert experiment.counts.num_videos == 973_817  # of 980,029: those in no shard
    scores = [float(video.scores[0]) for video in collection.segments("all")]
    assert np.mean(scores) == pytest.approx(132_442 / 237_788, abs=0.03)


def test_audioset(shared: Path) -> None:
    experiment = open_experiment("audioset", shared / "data/audioset")
    rated = {e.id: e.classes.tolist() for e in experiment.collection(0).segments("test")}
    complete = {
        e.id: dict(zip(e.classes.tolist(), e.scores.tolist(), strict=True))
        for e in experiment.collection(0, complete=True).segments("test")
    }
    assert rated.keys() == complete.keys()
    assert all(len(classes) == 1 and classes[0] in complete[id] for id, classes in rated.items())
    assert max(map(len, complete.values())) > 3
    other = {e.id: e.classes.tolist() for e in experiment.collection(1).segments("test")}
    assert other != rated
