"""The sample as an experiment of some seconds, and outcomes to write down."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from pyseg.config import LossConfig, StageConfig
from pyseg.data import encode_video, write_records
from pyseg.reproduce import ModelSpec, Outcome, Variant
from pyseg.reproduce.experiments import GeneratedSample

RATED = [5, 3, 8]  # numbers 0 to 2 among the rated classes


@pytest.fixture(scope="session")
def yt8m(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 videos with two rated classes each, and label lists of them and of 40 others."""
    folder = tmp_path_factory.mktemp("yt8m")
    lists = []
    for shard in range(2):
        records = []
        for number in range(60):
            labels = [RATED[number % 3], RATED[(number + 1) % 3], 1]
            records.append(encode_video(f"{shard}v{number:02d}", np.full(1152, number % 3), labels))
            lists.append(f"{shard}v{number:02d},8")  # wrong, so that counting it shows
        write_records(folder / f"video_level_validate{shard:04d}.tfrecord.gz", records)
    lists += [f"o{number:02d},{'5 3' if number % 4 else '5'}" for number in range(40)]
    with gzip.open(folder / "labelsets.csv.gz", "wt") as file:
        file.write("\n".join(lists))
    rows = ["Index,Name", *(f"{number},class {number}" for number in range(3862))]
    (folder / "vocabulary.csv").write_text("\n".join(rows))
    (folder / "segment_vocabulary.csv").write_text("Index\n" + "\n".join(map(str, RATED)))
    return folder


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """The sample with a tiny model, which is returned, and a few steps."""
    model = ModelSpec("nextvlad-small", {"clusters": 4, "hidden_size": 8, "reduction": 2})
    monkeypatch.setattr(GeneratedSample, "model", model)
    monkeypatch.setattr(GeneratedSample, "pretrain", StageConfig(4, 1e-3, 8))
    monkeypatch.setattr(GeneratedSample, "finetune", StageConfig(8, 1e-3, 8))
    return model


def outcomes_of(*values: list[list[float]]) -> list[Outcome]:
    """Returns outcomes of rows, of their values by seed and class."""
    model = ModelSpec("mlp")
    return [
        Outcome(Variant(f"row {number}", model, LossConfig()), {"map": np.array(own)}, 1.0)
        for number, own in enumerate(values)
    ]
