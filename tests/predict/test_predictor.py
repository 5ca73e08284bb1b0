"""When classes occur in a video file or in frames: `pyseg.load` and ``--video_file``."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import pyseg
from pyseg import _int8, extract, models, predict, train
from pyseg.data import BackboneInfo, FeatureSet
from pyseg.errors import ArgumentError, DataError, UserError
from pyseg.runs import Run

SEGMENT = 3  # frames, of half a second each
RED, BLUE = (220, 40, 30), (30, 40, 220)
NAMES = ["blue", 'red, "hot"']
FACTORY = '''
"""A backbone without weights: the mean color."""
from pathlib import Path
import numpy as np
from pyseg import backbones

class MeanColor(backbones.Backbone):
    features, size, preprocessing = (("color", 3),), (8, 8), {"mean": True}
    ranges = ((0.0, 256.0),)

    def __init__(self, weights=None):
        self.sha256 = "0" * 64 if weights is None else Path(weights).read_text()

    def __call__(self, images, windows=None):
        return images.mean((1, 2), dtype=np.float32)
'''


def make_run(folder: Path, features: FeatureSet, **changes) -> Path:
    """A run of a model that was not trained."""
    options = {"num_classes": 4, "feature_sizes": features.feature_sizes, "hidden_size": 8}
    model = models.create("mlp", **(options | changes))
    models.save(model, folder, class_names=["a", "b", "c", "d"])
    features.write(folder / "features.json")
    return folder


@pytest.fixture
def features() -> FeatureSet:
    return FeatureSet((("x", 5), ("y", 2)), frame_seconds=0.5, segment_size=SEGMENT)


@pytest.fixture
def run(tmp_path: Path, features: FeatureSet) -> Path:
    return make_run(tmp_path / "run", features)


def test_windows_are_scored_like_each_one_alone(run: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (11, 7), np.uint8)
    model = models.load(run)
    whole = predict.Predictor(run, device="cpu", batch_size=4).predict(frames, title="a b")
    assert whole.starts.tolist() == [start / 2 for start in range(9)]
    assert whole.ends.tolist() == [start / 2 + 1.5 for start in range(9)]
    assert (whole.title, whole.names, whole.segment_seconds) == ("a b", ("a", "b", "c", "d"), 1.5)
    for start in range(9):
        window = torch.from_numpy(frames[None, start : start + SEGMENT])
        with torch.inference_mode():
            expected = model(window).sigmoid()[0].numpy()
        np.testing.assert_allclose(whole.scores[start], expected, atol=1e-6)


def test_arrays_and_tensors_of_bytes_or_values(run: Path, features: FeatureSet) -> None:
    model = pyseg.load(run, device="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
    expected = model.predict(frames).scores
    values = features.dequantize(frames)
    assert values.dtype == np.float32
    for given in (torch.from_numpy(frames), values, torch.from_numpy(values).double()):
        np.testing.assert_allclose(model.predict(given).scores, expected, atol=1e-5)
    requires_grad = torch.from_numpy(values).requires_grad_()
    np.testing.assert_allclose(model.predict(requires_grad).scores, expected, atol=1e-5)
    half = model.predict(torch.from_numpy(values).bfloat16())
    np.testing.assert_allclose(half.scores, expected, atol=0.05)


def test_integers_on_request(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_int8, "_FEWEST_WEIGHTS", 0)
    frames = np.random.default_rng(0).integers(0, 256, (20, 7), np.uint8)
    exact = pyseg.load(run, device="cpu").predict(frames).scores
    model = pyseg.load(run, device="cpu", precision="int8")
    rounded = model.predict(frames).scores
    np.testing.assert_allclose(rounded, exact, atol=0.02)
    assert np.array_equal(rounded, exact) != _int8.has_fast_int8()
    alone = model.predict(frames[4 : 4 + SEGMENT]).scores  # in a batch of one window
    np.testing.assert_allclose(alone[0], rounded[4], atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_videos_no_longer_than_a_segment(run: Path, length: int) -> None:
    frames = np.full((length, 7), 9, np.uint8)
    timeline = pyseg.load(run, device="cpu").predict(frames)
    assert (timeline.starts.tolist(), timeline.ends.tolist()) == ([0], [length / 2])
    with torch.inference_mode():
        expected = models.load(run)(torch.from_numpy(frames)[None]).sigmoid()
    np.testing.assert_allclose(timeline.scores, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((0, 7), np.uint8), r"^video: expected frames of shape \(T, 7\) .* \(0, 7\)"),
        (np.zeros((4, 8), np.uint8), r"^video: expected frames of shape \(T, 7\) .* \(4, 8\)"),
        (np.zeros(7, np.uint8), r"^video: expected frames of shape .* \(7,\)"),
        (
            np.zeros((4, 7), np.int64),
            r"^video: expected frames of uint8 or floating values, found int64: convert them with "
            r"\.astype\(np\.uint8\) if they are bytes .*, with \.astype\(np\.float32\) if",
        ),
        (torch.zeros(4, 7, dtype=torch.int16), r"found int16: convert .* \.to\(torch\.uint8\) if"),
        (np.full((4, 7), np.nan), "^video: expected finite values, found NaN"),
        (np.zeros((4, 7), object), "^video: expected frames of uint8 or floating values, found"),
        (np.full((4, 7), 200.0, np.float32), "^frames: expected bytes .*, or floats"),
        ([[0.0] * 7], "^video: expected an array or tensor of frames, or the path .* found list"),
    ],
)
def test_frames_that_do_not_fit(run: Path, frames: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        pyseg.load(run, device="cpu").predict(frames)


def test_frames_of_a_file(run: Path, features: FeatureSet, tmp_path: Path, capsys) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (11, 7), np.uint8)
    np.save(tmp_path / "a b.npy", frames)
    np.savez(tmp_path / "c.npz", y=frames[:, 5:], x=frames[:, :5], more=np.zeros(3))
    expected = pyseg.load(run, device="cpu").predict(frames)
    for name in ("a b.npy", "c.npz"):
        out = tmp_path / "out.json"
        words = ["--run", str(run), "--frames_file", str(tmp_path / name), "--export", str(out)]
        predict.main([*words, "--device", "cpu"])
        content = json.loads(out.read_text())
        assert content["title"] == name.rpartition(".")[0]
        np.testing.assert_allclose(content["scores"], expected.scores, atol=1e-6)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (np.zeros((4, 8), np.uint8), r"^--frames_file .*a\.npy: expected frames of shape \(T, 7\)"),
        (np.zeros(()), r"^--frames_file .*a\.npy: expected frames of shape"),
        ({"x": np.zeros((4, 5))}, r"a\.npz: expected the array y, found x$"),
        ({"x": np.zeros((4, 5)), "y": np.zeros((3, 2))}, r"a\.npz: expected arrays x \(T, 5\), y"),
        (
            {"x": np.zeros((4, 5)), "y": np.zeros((4, 2), np.uint8)},
            r"a\.npz: .* of one type, found",
        ),
        ({"x": np.zeros(()), "y": np.zeros(())}, r"a\.npz: expected arrays"),
        (b"no array", r"a\.npy: expected a NumPy file"),
        (None, r"a\.npy"),
    ],
)
def test_files_of_other_frames(run: Path, tmp_path: Path, arrays: object, message: str) -> None:
    path = tmp_path / ("a.npz" if isinstance(arrays, dict) else "a.npy")
    if isinstance(arrays, dict):
        np.savez(path, **arrays)
    elif isinstance(arrays, bytes):
        path.write_bytes(arrays)
    elif arrays is not None:
        np.save(path, arrays)
    with pytest.raises((UserError, DataError, FileNotFoundError), match=message):
        predict.main(["--run", str(run), "--frames_file", str(path)])


def test_only_the_rated_classes_of_a_run(run: Path) -> None:
    everything = pyseg.load(run, device="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
    whole = everything.predict(frames)
    Run(run).write_rated_classes([2, 0], None)
    rated = pyseg.load(run, device="cpu")
    assert rated.class_names == ("c", "a")
    assert rated.predict(frames).numbers == (2, 0)
    np.testing.assert_array_equal(rated.predict(frames).scores, whole.scores[:, [2, 0]])
    assert "2 classes, frames of x (5), y (2)" in repr(rated)


def test_runs_that_cannot_score_frames(tmp_path: Path, run: Path, features: FeatureSet) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere", tmp_path / "file", tmp_path):
        with pytest.raises(UserError, match=rf"^{path} is not a run folder: .*no model.json$"):
            pyseg.load(path)
    for wrong in (None, 3):
        with pytest.raises(ArgumentError, match=f"^run: expected a path, found {wrong}$"):
            pyseg.load(wrong)  # type: ignore[arg-type]
    FeatureSet((("x", 6),)).write(run / "features.json")
    with pytest.raises(DataError, match=r"features\.json: expected .* widths \(5, 2\), .* \(6,\)"):
        pyseg.load(run)
    (run / "features.json").unlink()
    with pytest.raises(UserError, match=r"features\.json: expected the features .*, found no such"):
        pyseg.load(run)
    model = models.create("mlp", num_classes=2, feature_sizes=(5, 2), hidden_size=8)
    model.config = type(model.config)(**(vars(model.config) | {"level": "video"}))
    models.save(model, tmp_path / "mean")
    features.write(tmp_path / "mean" / "features.json")
    with pytest.raises(UserError, match="expected a run that was trained on frames, found one"):
        pyseg.load(tmp_path / "mean")


def write_video(path: Path, colors: list[tuple[int, int, int]], rate: int = 4) -> Path:
    """Writes a video that shows each color for half a second."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for color in np.repeat(np.array(colors, np.uint8), rate // 2, axis=0):
            image = np.broadcast_to(color, (24, 32, 3)).copy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def factory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the path of modules, with the backbone mean_color:MeanColor."""
    folder = tmp_path_factory.mktemp("factory")
    (folder / "mean_color.py").write_text(FACTORY)
    (folder / "other.txt").write_text("1" * 64)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    sys.modules.pop("mean_color", None)


@pytest.fixture(scope="module")
def films(factory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was trained on the features of some videos, and a new video.

    The new video is red from second 3 to 6, else blue.
    """
    folder = tmp_path_factory.mktemp("films")
    rng = np.random.default_rng(0)
    lines = ["video,start,end,class,score"]
    (folder / "videos").mkdir()
    for number in range(4):
        red = rng.permutation([True, False] * 4)
        colors = [RED if shown else BLUE for shown in red for _ in range(SEGMENT)]
        write_video(folder / "videos" / f"film {number}.mp4", colors)
        for at, shown in enumerate(red.tolist()):
            for name, score in zip(NAMES, (not shown, shown), strict=True):
                row = f'film {number},{at * 1.5},{at * 1.5 + 1.5},"{name}",{int(score)}'
                lines.append(row.replace('"red, "hot""', '"red, ""hot"""'))
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    words = "--backbone mean_color:MeanColor --fps 2 --segment_seconds 1.5 --processes 0"
    videos = ["--videos", str(folder / "videos"), "--ratings", str(folder / "ratings.csv")]
    extract.main([*videos, *words.split(), "--out", str(folder / "features")])
    options = "--model linear --pretrain.steps 0 --finetune.steps 40 --finetune.batch_size 16"
    data = ["--data", str(folder / "features"), "--run", str(folder / "run")]
    train.main([*data, *options.split(), "--finetune.learning_rate", "0.1"])
    write_video(folder / "new film.mp4", [BLUE] * 6 + [RED] * 6 + [BLUE] * 5)
    return folder


def test_from_a_video_file_to_its_events(films: Path, tmp_path: Path, capsys) -> None:
    out = [str(tmp_path / name) for name in ("a.csv", "b.JSON", "c d.vtt")]
    words = ["--run", str(films / "run"), "--video_file", str(films / "new film.mp4")]
    capsys.readouterr()
    predict.main([*words, "--export", out[0], f"--export={out[1]}", "--on=0.6", "--export", out[2]])
    printed = capsys.readouterr().out.splitlines()
    times = [line.split("  ")[0] for line in printed[:3]]
    assert times == ["0:00.0 to 0:03.0", "0:03.0 to 0:06.0", "0:06.0 to 0:08.5"]
    assert [line.split("  ")[2] for line in printed[:3]] == ["blue", 'red, "hot"', "blue"]
    assert printed[3:] == [f"export: {path}" for path in out]
    with open(out[0], newline="") as file:
        rows = [(row["start"], row["end"], row["class"]) for row in csv.DictReader(file)]
    assert rows == [("0", "3", "blue"), ("3", "6", 'red, "hot"'), ("6", "8.5", "blue")]
    content = json.loads(Path(out[1]).read_text())
    assert len(content["scores"]) == 17 - SEGMENT + 1
    assert content["video"] == str(films / "new film.mp4")

    model = pyseg.load(films / "run", device="cpu")
    timeline = model.predict(films / "new film.mp4")
    assert (timeline.title, timeline.video) == ("new film", str(films / "new film.mp4"))
    assert [(e.start, e.end) for e in timeline.events(0.6)] == [(0, 3), (3, 6), (6, 8.5)]
    np.testing.assert_allclose(timeline.scores, content["scores"], atol=1e-6)
    frames = model.extract(films / "new film.mp4")
    assert (frames.shape, frames.dtype) == ((17, 3), np.uint8)
    np.testing.assert_array_equal(model.predict(frames).scores, timeline.scores)


def test_several_video_files(films: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "more").mkdir()
    write_video(tmp_path / "more" / "red.mp4", [RED] * 8)
    (tmp_path / "more" / "text.mp4").write_text("no video")
    words = ["--run", str(films / "run"), "--on_error", "skip"]
    words += ["--video_file", str(films / "new film.mp4"), str(films / "videos" / "film 0.mp4")]
    words += ["--video_file", str(tmp_path / "more" / "*.mp4"), "--on", "0.6"]
    out = tmp_path / "{video}.csv"
    capsys.readouterr()
    predict.main([*words, "--export", str(out), str(out.with_suffix(".vtt"))])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"{films / 'new film.mp4'}:"
    assert printed[4] == f"export: {tmp_path / 'new film.csv'}"
    assert printed[-2] == "1 of 4 videos could not be read:"
    assert printed[-1].startswith(f"  {tmp_path}/more/text.mp4: expected a video")
    found = {path.stem: path.read_text() for path in tmp_path.glob("*.csv")}
    assert sorted(found) == ["film 0", "new film", "red"]
    assert found["red"].splitlines()[1].startswith('0,4,"red, ""hot"""')
    assert len(list(tmp_path.glob("*.vtt"))) == 3

    with pytest.raises(UserError, match=r"^--export .*/e\.csv: expected \{video\} in the name"):
        predict.main([*words, "--export", str(tmp_path / "e.csv")])
    with pytest.raises(DataError, match=r"text\.mp4: expected a video"):
        predict.main([*words, "--on_error", "raise"])


def test_no_event(films: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--run", str(films / "run"), "--video_file", str(films / "new film.mp4")]
    capsys.readouterr()
    predict.main([*words, "--on", "1"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "no class reaches 1; the highest scores are:"
    assert [line.split("  ")[1] for line in printed[1:]] == ["0 blue", '1 red, "hot"']


def test_page_of_a_video_file(films: Path, tmp_path: Path, capsys) -> None:
    pytest.importorskip("jinja2")
    page = tmp_path / "t.html"
    words = ["--run", str(films / "run"), "--video_file", str(films / "new film.mp4")]
    predict.main([*words, "--timeline", str(page), "--timeline_classes", "1"])
    assert capsys.readouterr().out.splitlines()[-1] == f"timeline: {page}"
    assert "new%20film.mp4" in page.read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--video_file", "none.mp4"], r"none\.mp4"),
        (["--video_file", "ratings.csv"], r"ratings\.csv: expected a video"),
        (["--backbone", "nothing"], "^--backbone: expected one of .* found 'nothing'"),
        (["--backbone", "nothing:make"], "^--backbone: expected a module nothing"),
        (
            ["--weights", "WEIGHTS"],
            r"^--backbone: expected .*digest 000.*, found .*other\.txt, digest 111",
        ),
        (["--export", "nowhere/a.csv"], "^--export nowhere/a.csv: expected a folder nowhere"),
        (["--export", "e.csv", "--export", "e.doc"], "^--export: expected a file that ends in"),
        (
            ["--export", "new film.mp4.csv", "--timeline", "./t.html", "--export", "t.html"],
            "^--exp",
        ),
    ],
)
def test_videos_that_cannot_be_scored(
    films: Path, factory: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(films)
    before = sorted(films.iterdir())
    words = [str(factory / "other.txt") if word == "WEIGHTS" else word for word in words]
    if "--video_file" not in words:
        words += ["--video_file", "new film.mp4"]
    with pytest.raises((UserError, DataError, FileNotFoundError), match=message) as caught:
        predict.main(["--run", "run", *words])
    assert "\n" not in str(caught.value)
    assert sorted(films.iterdir()) == before


def test_a_run_without_a_backbone(films: Path, tmp_path: Path) -> None:
    """It takes the one that the user names; nobody knows whether it is the right one."""
    found = Run(films / "run").features()
    bare = FeatureSet(found.features, found.frame_seconds, found.segment_size, found.ranges)
    for path in (films / "run").iterdir():
        if path.suffix in (".json", ".safetensors", ".csv"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    bare.write(tmp_path / "features.json")
    video = films / "new film.mp4"
    with pytest.raises(UserError, match=r"features\.json: expected the backbone .* found none"):
        pyseg.load(tmp_path, device="cpu").predict(video)
    model = pyseg.load(tmp_path, device="cpu", backbone="mean_color:MeanColor")
    expected = pyseg.load(films / "run", device="cpu").predict(video)
    np.testing.assert_array_equal(model.predict(video).scores, expected.scores)


def test_weights_are_found_where_extraction_found_them(
    factory: Path, tmp_path: Path, features: FeatureSet
) -> None:
    weights = tmp_path / "weights.txt"
    weights.write_text("2" * 64)
    made = pyseg.backbones.make_backbone("mean_color:MeanColor", str(weights)).description
    assert made.weights == str(weights)
    color = FeatureSet((("color", 3),), 0.5, SEGMENT, ((0.0, 256.0),), made)
    run = make_run(tmp_path / "run", color)
    video = write_video(tmp_path / "a.mp4", [RED] * 4)
    assert pyseg.load(run, device="cpu").backbone.sha256 == "2" * 64
    assert len(pyseg.load(run, device="cpu").predict(video).starts) == 2
    moved = weights.rename(tmp_path / "moved.txt")
    with pytest.raises(ArgumentError, match=r"^backbone: expected .*weights\.txt, digest 222"):
        pyseg.load(run, device="cpu").predict(video)
    assert len(pyseg.load(run, device="cpu", weights=str(moved)).predict(video).starts) == 2
    assert BackboneInfo("a", "b", {}, "c", "e") == BackboneInfo("a", "b", {}, "d", "f")


def test_a_network_in_a_file_is_found_from_any_folder(
    factory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mean_color import MeanColor

    from pyseg.backbones import make_backbone, registry

    monkeypatch.setitem(registry._KINDS, ".color", lambda request: MeanColor(request.argument))
    here, there = tmp_path / "here", tmp_path / "there"
    for folder, digest in ((here, "3"), (there, "4")):
        folder.mkdir()
        (folder / "net.color").write_text(digest * 64)
    monkeypatch.chdir(here)
    made = make_backbone("net.color").description
    color = FeatureSet((("color", 3),), 0.5, SEGMENT, ((0.0, 256.0),), made)
    run = make_run(tmp_path / "run", color)
    video = write_video(tmp_path / "a.mp4", [RED] * 4)
    monkeypatch.chdir(there)  # where another network has the same name
    assert len(pyseg.load(run, device="cpu").predict(video).starts) == 2
    moved = (here / "net.color").rename(tmp_path / "moved.color")
    both = r"expected .* net\.color \(\S+/here/net.color, digest 333.* found net\.color \(\S+there"
    with pytest.raises(ArgumentError, match=both):
        pyseg.load(run, device="cpu").predict(video)
    (there / "net.color").unlink()
    words = ["--run", str(run), "--video_file", str(video)]
    gone = rf"^the run's backbone net\.color \({here}/net\.color\) is not there: name it with --"
    with pytest.raises(FileNotFoundError, match=gone):
        predict.main(words)
    predict.main([*words, "--backbone", str(moved)])
