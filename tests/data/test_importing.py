"""Importing features from NumPy files: from the files to a run and its answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyseg import _cli, evaluate, predict, train
from pyseg.data import FeatureSet, import_features, importing, read_frames
from pyseg.data import __main__ as data_command
from pyseg.errors import ArgumentError, DataError, MissingFileError

NAMES = ("my video", "films/b, c:d", "films/ünï 100%", "plain")
RATINGS = "video,start,end,class,score\n"


def values(seed: int, frames: int = 20, width: int = 4, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(frames, width)).astype(dtype)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number, name in enumerate(NAMES):
        path = tmp_path / "features" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, values(number))
    return tmp_path / "features"


def run(*words: str) -> None:
    data_command.main(["import", *words])


def test_from_files_to_answers(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids with spaces, commas, colons, percent signs and accents work from end to end."""
    rows = [
        f'"{name}",{start},{start + 5},"dog, big",{(start // 5 + number) % 2}\n'
        for number, name in enumerate(NAMES)
        for start in range(0, 20, 5)
    ]
    (tmp_path / "ratings.csv").write_text(RATINGS + "".join(rows))
    (tmp_path / "labels.csv").write_text("video,class\nplain,cat\n")
    out, trained = str(tmp_path / "my data"), str(tmp_path / "run")
    tables = ["--ratings", str(tmp_path / "ratings.csv"), "--labels", str(tmp_path / "labels.csv")]
    run("--features", str(folder), *tables, "--out", out, "--feature_name", "clip")
    printed = capsys.readouterr().out
    assert "4 videos, 80 frames; 16 rated segments, 16 ratings" in printed
    assert "| dog, big | 16 | 8 |" in printed
    assert printed.endswith(f"python -m pyseg.train --data '{out}' --model linear\n")
    steps = ["--pretrain.steps=2", "--finetune.steps=2"]
    train.main(["--data", out, "--model", "mlp", *steps, "--test_fraction=0.5", "--run", trained])
    evaluate.main(["--run", trained])
    submission = str(tmp_path / "s.csv")
    predict.main(["--run", trained, "--out", submission])
    capsys.readouterr()
    evaluate.main(["--submission", submission, "--truth", out])
    judged = capsys.readouterr().out
    assert "16 ratings, 8 positive" in judged
    assert "do not count" not in judged
    assert "not in the submission" not in judged
    timeline = str(tmp_path / "t.png")
    predict.main(["--run", trained, "--video", NAMES[1], "--timeline", timeline])
    assert "timeline:" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_values_come_back(tmp_path: Path, dtype: Any) -> None:
    stored = values(0, dtype=dtype)
    np.savez(tmp_path / "a.npz", clip=stored, sound=stored[:, :2] * 9)
    report = import_features(tmp_path, tmp_path / "out")
    assert report.features is not None
    assert report.features.features == (("clip", 4), ("sound", 2))
    assert report.features == FeatureSet.read(tmp_path / "out" / "features.json")
    [record] = read_frames(tmp_path / "out" / "videos-00000.tfrecord", report.features.schema)
    back = report.features.dequantize(record.frames)
    (low, high), (least, most) = report.features.ranges
    assert (low, high) == (stored.min().astype(np.float32), stored.max().astype(np.float32))
    np.testing.assert_allclose(back[:, :4], stored, atol=(high - low) / 200)
    np.testing.assert_allclose(back[:, 4:], stored[:, :2] * 9, atol=(most - least) / 200)
    assert not report.clipped


def test_bytes_are_stored_as_they_are(tmp_path: Path) -> None:
    frames = np.arange(40, dtype=np.uint8).reshape(10, 4)
    np.savez(tmp_path / "a.npz", clip=frames, sound=np.ones((10, 1), np.float16))
    report = import_features(tmp_path, tmp_path / "out")
    assert report.features is not None
    assert report.features.ranges[0] == (-2.0, 2.0)
    assert report.range_notes[0] == "clip: range -2 to 2, the default for bytes, see ranges"
    [record] = read_frames(tmp_path / "out" / "videos-00000.tfrecord", report.features.schema)
    assert (record.frames[:, :4] == frames).all()
    given = import_features(tmp_path, tmp_path / "given", ranges={"clip": (0, 3)})
    assert given.features is not None
    assert given.features.ranges[0] == (0.0, 3.0)


def test_ranges_are_those_of_the_first_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "RANGE_VIDEOS", 2)
    for name, scale in (("a", 1), ("b", 2), ("c", 4)):
        np.save(tmp_path / f"{name}.npy", np.array([[-scale, scale]] * 10, np.float32))
    report = import_features(tmp_path, tmp_path / "out")
    assert report.features is not None
    assert report.features.ranges == ((-2.0, 2.0),)
    assert "of the first 2 videos" in report.range_notes[0]
    assert report.clipped == {"features": 20}


def test_times(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "r.csv"
    table.write_text(RATINGS + "plain,1.5,3,dog,1\n")
    report = import_features(
        folder, tmp_path / "out", ratings=table, fps=2, segment_seconds=1.5, complete="all"
    )
    assert report.features is not None
    assert (report.features.frame_seconds, report.features.segment_size) == (0.5, 3)
    assert (report.rated["dog"], report.positive["dog"]) == (7, 1)
    for wrong, expected in (
        ({"segment_seconds": 1.2, "fps": 2}, "segment_seconds: .* of 0.5 s, such as 1, found 1.2"),
        ({"fps": 0}, "fps: expected above 0, found 0"),
        ({"segment_seconds": 0.2}, "segment_seconds: expected a multiple .* such as 1, found 0.2"),
    ):
        with pytest.raises(ArgumentError, match=expected):
            import_features(folder, tmp_path / "no", **wrong)
    assert importing.frames_of_a_segment(1 / 0.96, 4.8) == 5


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("z.npy", np.zeros((20, 5), np.float32), r"z\.npy: expected features \(4 numbers\) as in"),
        ("z.npy", np.zeros((20, 4), np.uint8), r"z\.npy: .* found features \(4 bytes\)"),
        ("z.npy", np.zeros(20), r"z\.npy: expected features of shape \(T, N\), found features of"),
        ("z.npy", np.zeros((0, 4)), r"z\.npy: expected features of shape"),
        ("z.npy", np.zeros((20, 4), np.int32), r"z\.npy: expected float16, .* found int32"),
        ("z.npy", np.array([["a"] * 4]), r"z\.npy: expected float16"),
        ("z.npy", np.array([[None] * 4]), r"z\.npy: .* Python objects"),
        ("z.npy", np.full((20, 4), np.inf), r"z\.npy: expected finite numbers, found inf in row 0"),
        ("z.npy", np.full((20, 4), 1e300), r"z\.npy: expected finite numbers"),
        (
            "plain.npz",
            np.zeros((20, 4)),
            r"plain\.npz: expected every video once, found 'plain' in .*plain\.npy, too",
        ),
        (" z.npy", np.zeros((20, 4)), r" z\.npy: the id of the video: .* white space"),
        ("z\n.npy", np.zeros((20, 4)), r"z\\n\.npy': the id of the video"),
    ],
)
def test_a_bad_file(
    folder: Path, tmp_path: Path, name: str, array: np.ndarray, expected: str
) -> None:
    if name.endswith("z"):
        np.savez(folder / name, features=array)
    else:
        np.save(folder / name, array)
    with pytest.raises(DataError, match=expected):
        import_features(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = import_features(folder, tmp_path / "out", on_error="skip")
    assert (report.videos, len(report.left_out)) == (4, 1)


def test_files_that_are_no_arrays(folder: Path, tmp_path: Path) -> None:
    (folder / "z.npy").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"z\.npy: expected a NumPy file, found a file that starts"):
        import_features(folder, tmp_path / "out")
    np.savez(folder / "z.npz", a=np.zeros((3, 2)), b=np.zeros((4, 2)))
    (folder / "z.npy").unlink()
    with pytest.raises(DataError, match=r"z\.npz: expected as many frames of every feature"):
        import_features(folder, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArgumentError, match="out: expected another folder than that of the feat"):
        import_features(folder, folder / "in" / "..")
    for missing in ("none", "empty"):
        with pytest.raises(MissingFileError, match=missing):
            import_features(tmp_path / missing, tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--ranges=1"], "--ranges: expected low,high or name:low,high"),
        (["--ranges=2,1"], "--ranges: expected low < high for features, found 2.0, 1.0"),
        (["--ranges=clip:0,1"], "--ranges: expected the features features, found 'clip'"),
        (["--complete", "dig"], "--complete: expected rated classes .* found 'dig'"),
        (["--complete", 'a"b'], "--complete: expected .* found"),
        (["--segment_seconds", "0.3"], "--segment_seconds: expected a multiple"),
        (["--annotation_fps", "-1"], "--annotation_fps: expected above 0"),
    ],
)
def test_bad_options(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: str,
) -> None:
    table = tmp_path / "r.csv"
    table.write_text(RATINGS + "plain,0,5,dog,1\n")
    given = ["--features", str(folder), "--out", str(tmp_path / "out"), "--ratings", str(table)]
    with pytest.raises(SystemExit):
        _cli.run(lambda: run(*given, *words))
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(expected, error), error
    assert not (tmp_path / "out").exists()


def test_complete_takes_names_with_commas(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "r.csv"
    table.write_text(RATINGS + 'plain,0,5,"dog, big",1\nplain,0,5,cat,1\n')
    given = ["--features", str(folder), "--out", str(tmp_path / "out"), "--ratings", str(table)]
    run(*given, "--complete", "dog, big", "--complete=dog, big", "--ranges=features:-3,3")
    features = FeatureSet.read(tmp_path / "out" / "features.json")
    assert features.ranges == ((-3.0, 3.0),)
    [rated] = [
        record.ratings
        for record in read_frames(tmp_path / "out" / "videos-00000.tfrecord", features.schema)
        if record.ratings is not None
    ]
    assert rated.classes.tolist() == [0, 1, 1, 1, 1]
