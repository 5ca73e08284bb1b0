"""Incomplete ratings: how many, which, and reproducible."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from pyseg.data import IncompleteVideoDataset, encode_video, write_records
from pyseg.labels import LabelCorrelation

AMONG = [9, 4, 7, 2]  # numbers 0 to 3 here
VIDEOS = 2000


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos with the labels 9 and 7; every fourth one has none of the classes."""
    path = tmp_path_factory.mktemp("data") / "validate00.tfrecord"
    labels = [[1] if number % 4 == 3 else [1, 7, 9] for number in range(VIDEOS)]
    records = [encode_video(f"{n:04d}", np.full(1152, n), row) for n, row in enumerate(labels)]
    write_records(path, records)
    return path


def confusable() -> LabelCorrelation:
    """Classes mistaken for 9: 4, three times as often 2, and 7; for 7 only 9."""
    return LabelCorrelation(
        torch.tensor([0, 3, 3, 4, 4]),
        torch.tensor([1, 2, 3, 0]),
        torch.tensor([0.2, 0.9, 0.6, 0.5]),
    )


def test_one_class_is_rated(shard: Path) -> None:
    rated = list(IncompleteVideoDataset(shard, AMONG, confusable(), positive_share=0.5))
    assert len(rated) == VIDEOS * 3 // 4
    assert all(len(video.classes) == len(video.scores) == 1 for video in rated)
    assert all(video.frames[0, 0] == int(video.id) for video in rated)
    count = Counter((int(v.classes[0]), float(v.scores[0])) for v in rated)
    # Half of the videos show 9 or 7. Of the others, those that drew 7 have no class to confuse.
    expected = {(0, 1.0): 0.25, (2, 1.0): 0.5, (1, 0.0): 0.25 * 0.25, (3, 0.0): 0.25 * 0.75}
    assert count.keys() == expected.keys()
    for key, share in expected.items():
        assert count[key] / len(rated) == pytest.approx(share, abs=0.04)


def test_ratings_depend_on_seed_and_video_alone(shard: Path) -> None:
    def ratings(**options: object) -> dict[str, tuple[int, float]]:
        dataset = IncompleteVideoDataset(shard, AMONG, confusable(), **options)
        return {v.id: (int(v.classes[0]), float(v.scores[0])) for v in dataset}

    first = ratings()
    assert ratings(shuffle=True, seed=3, cache=True) == first
    assert ratings(rating_seed=1) != first
    assert {score for _, score in ratings(positive_share=1.0).values()} == {1.0}
    half, third = ratings(share=0.5), ratings(share=1 / 3)
    assert third.keys() < half.keys() < first.keys()
    assert len(half) / len(first) == pytest.approx(0.5, abs=0.05)
    assert all(first[id] == rating for id, rating in half.items())


def test_complete_labels_and_classes_of_their_own(shard: Path) -> None:
    whole = list(IncompleteVideoDataset(shard, AMONG, confusable(), complete=True))
    assert all(v.classes.tolist() == [2, 0] and v.scores.tolist() == [1, 1] for v in whole)
    some = IncompleteVideoDataset(shard, AMONG, confusable(), complete=True, classes=[2])
    assert all(video.classes.tolist() == [0] for video in some)


def test_bad_arguments(shard: Path) -> None:
    with pytest.raises(ValueError, match="confusable: expected 3 classes, found 4"):
        IncompleteVideoDataset(shard, AMONG[:3], confusable())
    with pytest.raises(ValueError, match=r"positive_share: expected a number in \[0, 1\], found 2"):
        IncompleteVideoDataset(shard, AMONG, confusable(), positive_share=2)
