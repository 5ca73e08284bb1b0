from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pyseg.data import DataError, FrameDataset, SegmentDataset, open_collection, read_frames
from pyseg.data import sample as sample_module
from pyseg.data.sample import generate, main, make_sample
from pyseg.data.vocabulary import read_segment_vocabulary, read_vocabulary


def digest(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def sample(sample_cache: Path) -> Path:
    return make_sample()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_module, "TRAIN_VIDEOS", 8)
    monkeypatch.setattr(sample_module, "RATED_VIDEOS", 8)


def test_layout(sample: Path) -> None:
    files = {str(path.relative_to(sample)) for path in sample.rglob("*") if path.is_file()}
    assert files == {
        *(
            f"{name}/{name}000{shard}.tfrecord"
            for name in ("train", "validate")
            for shard in range(4)
        ),
        "vocabulary.csv",
        "segment_vocabulary.csv",
        "graph.json",
        "sample.json",
    }
    assert sum(path.stat().st_size for path in sample.rglob("*") if path.is_file()) < 100e6
    assert (sample.stat().st_mode & 0o777) == 0o755


def test_the_bytes_are_the_same_everywhere(sample: Path) -> None:
    """Only raw bits and integers are used: independent of machine, compiler and NumPy version."""
    hashes = digest(sample)
    assert hashes["train/train0000.tfrecord"].startswith("e84423692b1c4cb2")
    assert hashes["validate/validate0003.tfrecord"].startswith("ed7dbe771d2751e8")


@pytest.mark.usefixtures("small")
def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    first = digest(generate(tmp_path / "a", seed=3))
    assert digest(generate(tmp_path / "b", seed=3)) == first
    other = digest(generate(tmp_path / "c", seed=4))
    assert all(other[name] != first[name] for name in first if name.endswith(".tfrecord"))


def test_records(sample: Path) -> None:
    seen: Counter[str] = Counter()
    rated = 0
    for path in sorted(sample.rglob("*.tfrecord")):
        for record in read_frames(path):
            seen[record.id] += 1
            assert record.frames.shape[1] == 1152
            assert 40 <= len(record.frames) <= 110
            assert 1 <= len(record.labels) == len(set(record.labels.tolist()))
            assert (record.ratings is None) == (path.parent.name == "train")
            if record.ratings is not None:
                rated += len(record.ratings.starts)
                assert len(set(record.ratings.starts.tolist())) == len(record.ratings.starts) == 8
                assert (record.ratings.starts % 5 == 0).all()
                assert (record.ratings.starts + 5 <= len(record.frames)).all()
                positive = record.ratings.classes[record.ratings.scores == 1]
                assert set(positive.tolist()) <= set(record.labels.tolist())
    assert len(seen) == 500
    assert set(seen.values()) == {1}
    assert {"1e10", "0012", "None", "inf0"} <= seen.keys()
    assert all(len(id) == 4 for id in seen)
    assert rated == 2400


def test_ratings_are_as_hard_as_the_real_ones(sample: Path) -> None:
    segments = list(SegmentDataset(sample / "validate"))
    assert all(len(segment.classes) == 1 for segment in segments)
    scores = np.array([segment.scores[0] for segment in segments])
    assert 0.53 < scores.mean() < 0.59
    labels = {e.id: set(e.classes.tolist()) for e in FrameDataset(sample / "validate")}
    of_video = [
        segment.classes[0] in labels[segment.id.split(":")[0]]
        for segment in segments
        if segment.scores[0] == 0
    ]
    assert np.mean(of_video) > 0.7  # in the video, at another time


def test_vocabularies_match_the_records(sample: Path) -> None:
    names = read_vocabulary(sample / "vocabulary.csv")
    assert len(names) == len(set(names)) == 44
    rated = read_segment_vocabulary(sample / "segment_vocabulary.csv")
    assert rated.names == [names[number] for number in rated.classes]
    used = {int(e.classes[0]) for e in SegmentDataset(sample / "validate")}
    assert used == set(rated.classes)
    counts = Counter(c for e in FrameDataset(sample / "train") for c in e.classes.tolist())
    rows = (sample / "vocabulary.csv").read_text().splitlines()[1:]
    assert {int(row.split(",")[0]): int(row.split(",")[1]) for row in rows} == {
        number: counts[number] for number in range(44)
    }


def test_labels_follow_the_planted_graph(sample: Path) -> None:
    graph = json.loads((sample / "graph.json").read_text())
    labels = [set(e.classes.tolist()) for e in FrameDataset(sample)]
    edges = {(edge["class"], edge["implies"]): edge["probability"] for edge in graph["edges"]}

    def conditional(i: int, j: int) -> float:
        with_i = [classes for classes in labels if i in classes]
        return float(np.mean([j in classes for classes in with_i]))

    planted = {pair: conditional(*pair) for pair in edges}
    # A class may also come from its own edges or another scene, so that the frequency varies.
    to_topic = [p for pair, p in planted.items() if edges[pair] == 0.85]
    assert np.mean(to_topic) > 0.75
    others = [conditional(i, j) for i in range(8, 40) for j in range(8, 40)
              if i != j and (i, j) not in edges]  # fmt: skip
    assert np.mean(list(planted.values())) > 3 * np.mean(others)


def test_videos_have_all_labels_and_segments_only_some(sample: Path) -> None:
    world = sample_module._make_world(0)
    video = sample_module._make_video(world, sample_module._Dice(0, 1, 5), False)
    assert set(np.flatnonzero(video.present.any(axis=0))) == {
        label for label in video.labels if label < world.rated
    }
    partial = video.present.any(axis=0) & ~video.present.all(axis=0)
    assert partial.any()  # scenes have a beginning and an end


@pytest.mark.usefixtures("small")
def test_an_interrupted_generation_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYSEG_CACHE", str(tmp_path))

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sample_module, "_write_tables", full)
        with pytest.raises(OSError, match="No space left"):
            make_sample()
    assert list(tmp_path.iterdir()) == []
    assert open_collection("sample").has_segments


@pytest.mark.usefixtures("small")
def test_every_seed_has_its_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYSEG_CACHE", str(tmp_path / "cache"))
    folder = make_sample(5)
    assert folder.name.endswith("-5")
    assert digest(folder) == digest(generate(tmp_path / "direct", seed=5))
    assert make_sample(5) == folder
    assert digest(make_sample(6)) != digest(folder)


def _make(cache: str, start) -> None:
    sample_module.TRAIN_VIDEOS = sample_module.RATED_VIDEOS = 8
    os.environ["PYSEG_CACHE"] = cache
    start.wait()
    make_sample()


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_concurrent_processes(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    workers = [context.Process(target=_make, args=(str(tmp_path), start)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["sample-1-0"]


@pytest.mark.usefixtures("small")
def test_no_temporary_folder_is_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYSEG_CACHE", str(tmp_path))
    (tmp_path / ".sample-1-0.unfinished").mkdir()  # of processes that met in it
    assert make_sample() == tmp_path / "sample-1-0"
    assert [path.name for path in tmp_path.iterdir()] == ["sample-1-0"]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("victim", ["train/train0001.tfrecord", "sample.json"])
def test_a_damaged_sample_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, victim: str
) -> None:
    monkeypatch.setenv("PYSEG_CACHE", str(tmp_path))
    path = make_sample() / victim
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(DataError, match=f"{victim} is not as it was written: delete .*sample-1-0"):
        make_sample()
    path.unlink()
    with pytest.raises(DataError, match=f"{victim} is not as it was written"):
        make_sample()


@pytest.mark.usefixtures("small")
def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    main(["--out", str(tmp_path / "out"), "--seed", "7"])
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(
        f"{tmp_path / 'out'}: 8 videos with labels, 8 with up to 8 rated segments"
    )
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path / "out")])
    assert stop.value.code == 1
    assert "exists already and is not an empty folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--seed", "-1"])
    assert "--seed -1: expected at least 0" in capsys.readouterr().err


def test_as_a_module(python) -> None:
    done = python("-m", "pyseg.data.sample", "--help")
    assert done.returncode == 0, done.stderr
    assert "small generated collection" in done.stdout
    assert "RuntimeWarning: 'pyseg.data.sample'" not in done.stderr
