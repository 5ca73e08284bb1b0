"""A small data set and a run that was trained on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyseg import train
from pyseg.config import StageConfig, TrainConfig
from pyseg.data import Ratings, encode_frames, write_records

CLASSES = 6
RATED = [4, 1, 3]  # the order of the vocabulary file is the order of the submission
TINY = {"clusters": 4, "groups": 2, "hidden_size": 8, "reduction": 2}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of 8 videos of up to 70 frames, of which every second one is rated."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for shard in range(3):
        records = []
        for number in range(8):
            length = int(rng.integers(1, 71)) if number else 70
            frames = rng.integers(0, 256, (length, 1152), np.uint8)
            starts = rng.permutation(np.arange(0, length, 5))[:6]
            classes, scores = rng.choice(RATED, len(starts)), rng.integers(0, 2, len(starts))
            ratings = Ratings(starts, classes, scores.astype(np.float32)) if number % 2 else None
            labels = rng.choice(CLASSES, 2, replace=False)
            records.append(encode_frames(f"{shard}e{number}", frames, labels, ratings))
        write_records(folder / f"validate{shard}.tfrecord", records)
    lines = [f"{i},class {i}" for i in range(CLASSES)]
    (folder / "vocabulary.csv").write_text("\n".join(["Index,Name", *lines, ""]))
    (folder / "segment_vocabulary.csv").write_text(
        "\n".join(["Index,Name", *(lines[c] for c in RATED), ""])
    )
    return folder


@pytest.fixture(scope="session")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    stages = {"pretrain": StageConfig(2, 1e-2, 8), "finetune": StageConfig(3, 1e-2, 8)}
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train.train(TrainConfig(data=str(data), run=str(folder), overrides=TINY, **stages))
