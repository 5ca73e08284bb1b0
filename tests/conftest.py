"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("long", max_examples=5_000)  # `tests/test_hostile_text.py`

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference numbers; the test is skipped without it."""
    folder = Path(os.environ.get("PYSEG_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}: set PYSEG_SHARED")
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection that features.json describes: 512 values called clip, at 2 frames a second.

    Segments have 3 seconds, and each of the 3 classes is shown in one half of every third video.
    """
    import numpy as np

    from pyseg.data import FeatureSet, Ratings, encode_frames, write_records

    features = FeatureSet((("clip", 512),), 0.5, 6, ranges=((-0.5, 3.5),))
    folder, rng, records = tmp_path_factory.mktemp("clips"), np.random.default_rng(0), []
    for video in range(24):
        label, shown = video % 3, 12 * (video // 3 % 2)
        frames = rng.integers(20, 60, (24, 512), np.uint8)
        frames[shown : shown + 12, 8 * label : 8 * label + 8] += 150
        starts = np.arange(0, 24, 6)
        scores = (starts // 12 * 12 == shown).astype(np.float32)
        ratings = Ratings(starts, np.full(4, label), scores)
        records.append(encode_frames(f"v{video:02d}", frames, [label], ratings, features.schema))
    write_records(folder / "videos-00000.tfrecord", records)
    (folder / "vocabulary.csv").write_text("Index,Name\n0,Dog\n1,Cat\n2,Car\n")
    features.write(folder / "features.json")
    return folder


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores the words of the command, which `pyseg.__main__` replaces, after every test."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))


@pytest.fixture(autouse=True)
def grad_mode() -> Iterator[None]:
    """Fails a test that leaves gradients switched off, and not all that come after it."""
    yield
    if "torch" in sys.modules:
        import torch

        if not torch.is_grad_enabled():
            torch.set_grad_enabled(True)
            pytest.fail("the test has left gradients switched off")


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Restores torch's number of threads after a test."""
    import torch  # lazily: the controller of pytest-xdist runs no test

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Restores the default handler of SIGINT, which the tests' parent may have ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
