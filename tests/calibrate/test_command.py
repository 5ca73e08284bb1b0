"""python -m pyseg.calibrate, and what predictions and reports make of its file."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

import pyseg
from pyseg import calibrate, evaluate, models, predict, report, train
from pyseg.calibration import Calibration
from pyseg.config import StageConfig, TrainConfig
from pyseg.data import Ratings, encode_frames, held_out, read_records, write_records
from pyseg.data.features import FeatureSet
from pyseg.errors import DataError, MissingFileError, UserError
from pyseg.runs import Run

NAMES = ("dog", "cat", "sea")
VIDEOS, SEGMENTS, SIZE = 60, 6, 2
HELD_OUT = [f"v{number}" for number in range(VIDEOS) if held_out(f"v{number}", 0.5, 0)]
FEATURES = FeatureSet((("clip", 6),), frame_seconds=0.5, segment_size=SIZE, ranges=((-2.0, 2.0),))


class Made(NamedTuple):
    """A data set and a run that was trained on it.

    Attributes:
        data: The folder of records.
        run: The run folder; its model is far too sure.
        truth: Whether a segment of a video shows a class, (SEGMENTS, 3) bool, by id.
    """

    data: Path
    run: Path
    truth: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("calibrate")
    data = folder / "data"
    data.mkdir()
    FEATURES.write(data / "features.json")
    lines = "\n".join(f"{number},{name}" for number, name in enumerate(NAMES))
    for file in ("vocabulary.csv", "segment_vocabulary.csv"):
        (data / file).write_text(f"Index,Name\n{lines}\n")
    rng = np.random.default_rng(0)
    truth, records = {}, []
    for number in range(VIDEOS):
        evidence = rng.normal(-0.7, 1.5, (SEGMENTS, 3))
        shown = truth[f"v{number}"] = rng.random((SEGMENTS, 3)) < 1 / (1 + np.exp(-evidence))
        values = np.concatenate((evidence, rng.normal(size=(SEGMENTS, 3))), 1).repeat(SIZE, 0)
        frames = np.clip(np.rint((values / 5 + 2) * 255 / 4), 0, 255).astype(np.uint8)
        classes = rng.integers(0, 3, SEGMENTS)
        scores = shown[np.arange(SEGMENTS), classes].astype(np.float32)
        rated = Ratings(np.arange(SEGMENTS) * SIZE, classes, scores)
        labels = np.flatnonzero(shown.any(0))
        records.append(encode_frames(f"v{number}", frames, labels, rated, FEATURES.schema))
    write_records(data / "videos-00000.tfrecord", records)
    run = train.train(
        TrainConfig(
            data=str(data),
            run=str(folder / "run"),
            model="linear",
            test_fraction=0.5,
            pretrain=StageConfig(0, 1e-2, 8),
            finetune=StageConfig(30, 1e-1, 8),
        )
    )
    model = models.load(run)
    with torch.no_grad():  # far too sure
        for name, weight in model.named_parameters():
            weight *= 4.0 if name.endswith(("weight", "bias")) else 1.0
    models.save(model, run)
    return Made(data, run, truth)


@pytest.fixture
def run(made: Made, tmp_path: Path) -> Path:
    """A copy of the run."""
    shutil.copytree(made.run, tmp_path / "run")
    return tmp_path / "run"


def other_data(made: Made, folder: Path) -> Path:
    """Copies the data into a folder, without the last video, so that its file is another one."""
    other = folder / "other"
    shutil.copytree(made.data, other)
    [shard] = other.glob("*.tfrecord")
    write_records(shard, [*read_records(shard)][:-1])
    return other


def write_answers(path: Path, made: Made, count: int, *, reason: str = "random") -> None:
    """Writes answers about segments of all videos, half of them to questions of a strategy."""
    rng = np.random.default_rng(1)
    lines = ["video,start,end,class,score,rater,reason,time"]
    for number in range(count):
        id = f"v{rng.integers(VIDEOS)}"
        segment, label = rng.integers(SEGMENTS), rng.integers(3)
        score = int(made.truth[id][segment, label])
        why = reason if number % 2 else "change"
        lines.append(f"{id},{segment}.0,{segment + 1}.0,{NAMES[label]},{score},ann,{why},")
    path.write_text("\n".join([*lines, ""]))


def test_by_the_ratings_of_held_out_videos(run: Path, capsys: pytest.CaptureFixture) -> None:
    calibrate.main(["--run", str(run)])
    printed = capsys.readouterr().out
    rated = SEGMENTS * len(HELD_OUT)
    assert printed.startswith(f"{rated} ratings of held-out videos, ")
    assert "may not be a random sample" in printed
    assert f"thresholds of events: of {rated} segments" in printed
    assert printed.endswith(f"written: {run}/calibration.json\n")
    found = Calibration.read(run / "calibration.json")
    assert found.source == f"{rated} ratings of held-out videos"
    assert (found.is_sample, found.num_classes, found.rated.sum()) == (False, 3, rated)
    assert (found.slopes < 0.7).all()
    assert found.after.error < 0.6 * found.before.error
    assert found.after.brier < found.before.brier
    assert found.weights == Run(run).weights_digest()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*\+00:00", found.date)


def test_by_random_answers(made: Made, run: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "ratings.csv"
    write_answers(path, made, 500)
    # A second rater disagrees about an answer, which then says nothing.
    first = next(line for line in path.read_text().splitlines() if ",random," in line)
    fields = first.split(",")
    fields[4], fields[5] = str(1 - int(fields[4])), "bob"
    with path.open("a") as file:
        file.write(",".join(fields) + "\n")
    calibrate.main(["--run", str(run), "--ratings", str(path)])
    printed = capsys.readouterr().out
    asked = {tuple(x.split(",")[:4]) for x in path.read_text().splitlines() if ",random," in x}
    asked -= {tuple(fields[:4])}
    of_held_out = [question for question in asked if question[0] in HELD_OUT]
    found = Calibration.read(run / "calibration.json")
    # The first reason of a question counts, so that a few are not random.
    assert 0.8 * len(of_held_out) < found.rated.sum() <= len(of_held_out)
    assert found.source == f"{found.rated.sum()} random answers about held-out videos"
    assert found.is_sample
    assert "may not be a random sample" not in printed
    assert re.search(r"left out: \d+ answers to questions that were not random", printed)
    assert re.search(r"left out: \d+ answers about videos that the run was trained on", printed)
    assert found.after.brier < found.before.brier


def test_a_table_without_reasons(made: Made, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    write_answers(path, made, 300)
    rows = [line.split(",")[:5] for line in path.read_text().splitlines()]
    unique = {tuple(row[:4]): row for row in rows}
    path.write_text("\n".join(",".join(row) for row in unique.values()) + "\n")
    calibrate.main(["--run", str(run), "--ratings", str(path)])
    found = Calibration.read(run / "calibration.json")
    of_held_out = [question for question in unique if question[0] in HELD_OUT]
    assert found.source == f"{len(of_held_out)} ratings about held-out videos"
    assert not found.is_sample


def test_other_data(made: Made, run: Path, tmp_path: Path) -> None:
    other = other_data(made, tmp_path)
    calibrate.main(["--run", str(run), "--data", str(other), "--part", "all"])
    found = Calibration.read(run / "calibration.json")
    assert found.source == f"{SEGMENTS * (VIDEOS - 1)} ratings of videos of {other}"


def test_too_few(made: Made, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ratings.csv"
    write_answers(path, made, 40)
    with pytest.raises(
        UserError,
        match=r"--ratings .*: expected at least 30 random answers about held-out videos, 3 of them "
        r"positive and 3 negative, found \d+, \d+ positive: answer more questions in pyseg.rate, "
        r"one in five is random: about \d+ more$",
    ) as error:
        calibrate.main(["--run", str(run), "--ratings", str(path)])
    numbers = re.search(r"found (\d+),.*about (\d+) more", str(error.value))
    assert numbers is not None
    assert int(numbers[2]) == 5 * (30 - int(numbers[1]))
    write_answers(path, made, 100, reason="uncertain")
    with pytest.raises(UserError, match=r"found 0, 0 positive: .* about 150 more"):
        calibrate.main(["--run", str(run), "--ratings", str(path)])
    path.write_text(f"video,start,end,class,score\n{HELD_OUT[0]},0,1,dog,1\n")
    with pytest.raises(UserError, match="found 1, 1 positive: rate at least 29 more segments"):
        calibrate.main(["--run", str(run), "--ratings", str(path)])
    monkeypatch.setattr(calibrate.cli, "FEWEST", 10**6)
    with pytest.raises(UserError, match=r"--run .*: name a file with more with --ratings, such as"):
        calibrate.main(["--run", str(run)])
    assert not (run / "calibration.json").exists()


def test_a_file_of_ratings_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"^--ratings no\.csv: no such file$"):
        calibrate.main(["--run", "run", "--ratings", "no.csv"])
    with pytest.raises(UserError, match=r"^--ratings .*: expected a file, found a folder$"):
        calibrate.main(["--run", "run", "--ratings", str(tmp_path)])


def test_unknown_classes_and_parts(made: Made, run: Path, tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    write_answers(path, made, 100)
    path.write_text(path.read_text().replace(",dog,", ",dig,"))
    with pytest.raises(UserError, match=r"ratings\.csv, line \d+: .*'?dig'?.*dog"):
        calibrate.main(["--run", str(run), "--ratings", str(path)])
    for words in ([], ["--data", f"{made.data}/*.tfrecord"]):
        with pytest.raises(UserError, match=r"--part all: expected .* or --part test, as"):
            calibrate.main(["--run", str(run), "--part", "all", *words])


def test_runs_without_held_out_videos(made: Made, run: Path, capsys) -> None:
    """Their training videos are not taken for held-out ones, by no command that would."""
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("final_fit: false", "final_fit: true"))
    own = f"{made.data}/*.tfrecord"
    for words in ([], ["--data", own]):
        for command in (calibrate, evaluate):
            with pytest.raises(UserError, match="trained on all with --final_fit: name --data"):
                command.main(["--run", str(run), *words])
        report.main(["--run", str(run), *words])
        assert f"was not evaluated: --run {run}: expected" in capsys.readouterr().out
    with pytest.raises(UserError, match="trained on all with --final_fit: name --data"):
        evaluate.main(["--run", str(run), "--submission", str(config)])
    copied = str(shutil.copytree(made.data, run / "copied"))
    with pytest.raises(UserError, match="trained on all with --final_fit: name --data"):
        evaluate.main(["--run", str(run), "--data", copied])
    other = other_data(made, run)
    for words in (["--part", "all"], ["--data", str(other)]):
        evaluate.main(["--run", str(run), *words])
        assert "MAP@100k" in capsys.readouterr().out
    config.write_text(config.read_text().replace("test_fraction: 0.5", "test_fraction: 0.0"))
    config.write_text(config.read_text().replace("final_fit: true", "final_fit: false"))
    with pytest.raises(UserError, match="trained on all with --test_fraction 0: name --data"):
        evaluate.main(["--run", str(run)])
    with pytest.raises(UserError, match="--part test: expected all with --data of other videos"):
        evaluate.main(["--run", str(run), "--data", str(other)])
    evaluate.main(["--run", str(run), "--data", str(other), "--part", "all"])


def test_data_that_has_moved_is_told_to_be_the_runs(run: Path) -> None:
    config = Run(run).config()
    Run(run).write_config(replace(config, data="gone"))
    for main in (evaluate.main, calibrate.main, lambda w: predict.main([*w, "--out", "x.csv"])):
        with pytest.raises(MissingFileError, match=r"^gone: no such .*; this is what the run was"):
            main(["--run", str(run)])
        with pytest.raises(MissingFileError, match=r"^lost: no such [^;]*; your own has [^;]*$"):
            main(["--run", str(run), "--data", "lost"])


def test_a_calibration_is_repeated_for_held_out_videos_only(run: Path, tmp_path: Path, capsys):
    calibrate.main(["--run", str(run)])
    data = Run(run).config().data
    for words, repeated in (
        ([], True),
        (["--data", data], True),
        (["--part", "all"], False),
        (["--data", str(shutil.copytree(data, tmp_path / "other"))], False),
    ):
        capsys.readouterr()
        evaluate.main(["--run", str(run), *words])
        assert ("calibration error" in capsys.readouterr().out) == repeated, words


def test_predictions_use_it(run: Path, tmp_path: Path, capsys) -> None:
    calibrate.main(["--run", str(run)])
    found = Calibration.read(run / "calibration.json")
    rng = np.random.default_rng(0)
    frames = rng.normal(0, 0.4, (40, 6)).astype(np.float32)
    raw = pyseg.load(run, device="cpu", calibrate=False).predict(frames)
    timeline = pyseg.load(run, device="cpu").predict(frames)
    logits = np.log(raw.scores.astype(np.float64)) - np.log1p(-raw.scores.astype(np.float64))
    np.testing.assert_allclose(timeline.scores, found.probabilities(logits), atol=1e-4)
    np.testing.assert_array_equal(timeline.on, found.thresholds)
    np.testing.assert_array_equal(raw.on, [0.5] * 3)
    assert timeline.events() == timeline.events(on=found.thresholds)
    assert timeline.best(2).events() == [
        event for event in timeline.events() if event.name in timeline.best(2).names
    ]

    np.save(tmp_path / "a.npy", frames)
    shared = ["--run", str(run), "--frames_file", str(tmp_path / "a.npy")]

    def exported(*words: str) -> dict:
        predict.main([*shared, "--export", str(tmp_path / "a.json"), *words])
        return json.loads((tmp_path / "a.json").read_text())

    def times(timeline: pyseg.timeline.Timeline, **options: float) -> list:
        return [(e.start, e.end, e.name) for e in timeline.events(**options)]

    def listed(content: dict) -> list:
        return [(e["start"], e["end"], e["class"]) for e in content["events"]]

    assert listed(exported()) == times(timeline)
    assert listed(exported("--on", "0.6")) == times(timeline, on=0.6)
    assert listed(exported("--no_calibrate")) == times(raw)
    assert times(raw) != times(timeline)
    lowest = exported("--off", "0.5")  # above the thresholds: no event goes below its own
    assert listed(lowest) == times(timeline, off=found.thresholds)


def test_records_and_submissions(run: Path, tmp_path: Path, capsys) -> None:
    words = ["--run", str(run), "--out"]
    predict.main([*words, str(tmp_path / "before.csv"), "--scores", str(tmp_path / "before.npz")])
    logged = evaluate.evaluate_run(evaluate.EvaluateConfig(str(run)))
    calibrate.main(["--run", str(run)])
    predict.main([*words, str(tmp_path / "after.csv"), "--scores", str(tmp_path / "after.npz")])
    assert (tmp_path / "before.csv").read_bytes() == (tmp_path / "after.csv").read_bytes()
    before, after = (np.load(tmp_path / f"{name}.npz")["scores"] for name in ("before", "after"))
    np.testing.assert_array_equal(before, after)
    found = Calibration.read(run / "calibration.json")
    capsys.readouterr()
    evaluate.main(["--run", str(run)])
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        logged.describe(),
        f"calibration error {found.after.error:.3f} ({found.before.error:.3f} without "
        f"calibration.json), by cross-validation, of {found.source}",
    ]
    predict.main(["--run", str(run), "--video", "v3", "--export", str(tmp_path / "v.json")])
    content = json.loads((tmp_path / "v.json").read_text())
    shown = np.array(content["scores"])
    place = [NAMES.index(c["name"]) for c in content["classes"]]
    logits = before[3 * SEGMENTS : 4 * SEGMENTS]
    np.testing.assert_allclose(shown, found.probabilities(logits)[:, place], atol=1e-5)


def test_other_weights_are_refused(made: Made, run: Path) -> None:
    calibrate.main(["--run", str(run)])
    model = models.load(run)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)
    models.save(model, run)
    with pytest.raises(DataError, match=r"calibration\.json: .*pyseg\.calibrate --run .* again"):
        pyseg.load(run, device="cpu")
    pyseg.load(run, device="cpu", calibrate=False)
    predict.main(["--run", str(run), "--out", str(run / "submission.csv")])
    calibrate.main(["--run", str(run)])
    pyseg.load(run, device="cpu")
    path = run / "calibration.json"
    content = json.loads(path.read_text()) | {"is_sample": True, "weights": "others"}
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"again with the --ratings of then, or remove the file$"):
        pyseg.load(run, device="cpu")
    path.write_text("{")
    with pytest.raises(
        DataError,
        match=r"calibration\.json: .*; run python -m pyseg\.calibrate --run .* again, or remove",
    ):
        pyseg.load(run, device="cpu")
    calibrate.main(["--run", str(run)])


def test_another_number_of_classes_is_refused(run: Path) -> None:
    calibrate.main(["--run", str(run)])
    path = run / "calibration.json"
    content = json.loads(path.read_text())
    content["classes"] = {name: values[:2] for name, values in content["classes"].items()}
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="expected 3 classes, as the model has, found 2"):
        pyseg.load(run, device="cpu")


def test_training_removes_it(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stages = {"pretrain": StageConfig(0, 1e-2, 8), "finetune": StageConfig(4, 1e-2, 8)}
    config = TrainConfig(
        data=str(made.data), run=str(folder), model="linear", checkpoint_steps=2, **stages
    )
    removed = []
    unlink = Path.unlink

    def watched(self: Path, missing_ok: bool = False) -> None:
        removed.append(self.name)
        unlink(self, missing_ok)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", watched)
        train.train(config)
    assert "calibration.json" in removed


def test_the_report_draws_reliability(made: Made, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("networkx")
    pytest.importorskip("jinja2")
    from pyseg import report

    out = tmp_path / "report.html"
    words = ["--run", str(run), "--out", str(out), "--videos", "0"]
    report.main(words)
    page = out.read_text()
    assert "Reliability of probabilities" in page
    assert "is not calibrated: python -m pyseg.calibrate --run" in page
    calibrate.main(["--run", str(run)])
    report.main(words)
    page = out.read_text()
    found = Calibration.read(run / "calibration.json")
    charts = [
        json.loads(text)
        for text in re.findall(r'<script type="application/json">(.*?)</script>', page)
    ]
    [chart] = [c for c in charts if c.get("y") == "share of positives"]
    diagonal, before, after = chart["series"]
    assert (diagonal["x"], diagonal["y"]) == ([0, 1], [0, 1])
    for series, expected in ((before, found.before), (after, found.after)):
        np.testing.assert_allclose(series["x"], expected.probabilities, rtol=1e-4)
        np.testing.assert_allclose(series["y"], expected.shares, rtol=1e-4, atol=1e-5)
        low, high = expected.intervals
        np.testing.assert_allclose(series["low"], low, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(series["high"], high, rtol=1e-4)
        assert all(
            f"{n} ratings" in t for n, t in zip(expected.counts, series["names"], strict=True)
        )
    assert f"{found.after.error:.3f}" in page
    assert "may not be a random sample" in page
