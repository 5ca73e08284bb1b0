"""pyseg.predict: every segment of every video, ranked exactly, even after an interruption."""

from __future__ import annotations

import contextlib
import csv
import functools
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from pyseg import _cli, _files, _int8, evaluate, models, predict, train
from pyseg._int8 import has_fast_int8
from pyseg.config import StageConfig, TrainConfig
from pyseg.data import (
    FrameSchema,
    RecordError,
    encode_frames,
    encode_video,
    read_frames,
    write_records,
)
from pyseg.errors import DataError, UserError
from pyseg.metrics._device_keys import DeviceKeys
from pyseg.predict.partial import PartialPrediction
from pyseg.submission import read_submission

RATED = [4, 1, 3]  # the order of the vocabulary file is the order of the submission
TINY = {"clusters": 4, "groups": 2, "hidden_size": 8, "reduction": 2}


@functools.cache
def all_scores(run: Path, data: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of all segments in reading order, their logits, and their videos' logits."""
    model = models.load(run)
    names, rows, videos = [], [], []
    with torch.inference_mode():
        for path in sorted(data.glob("*.tfrecord")):
            for record in read_frames(path, FrameSchema(labels_key=None)):
                frames = torch.from_numpy(record.frames).unsqueeze(0)
                whole = model(frames)[0].numpy()
                for start in range(0, frames.shape[1], 5):
                    names.append(f"{record.id}:{start}")
                    rows.append(model(frames[:, start : start + 5])[0].numpy())
                    videos.append(whole)
    return names, np.array(rows), np.array(videos)


def ranking(path: Path) -> dict[int, list[str]]:
    return dict(read_submission(path))


def best_first(names: list[str], scores: np.ndarray, kept: np.ndarray) -> list[str]:
    order = np.argsort(-scores, kind="stable")
    return [names[i] for i in order if kept[i]]


def main(run: Path, data: Path, out: Path, *options: str) -> None:
    predict.main(["--run", str(run), "--data", str(data), "--out", str(out), *options])


def test_all_segments_of_all_videos(run: Path, data: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "s.csv"
    main(run, data, out, "--batch-size", "7")
    names, rows, _ = all_scores(run, data)
    found = ranking(out)
    assert list(found) == RATED
    for number in RATED:
        assert found[number] == best_first(names, rows[:, number], np.ones(len(names), bool))
    assert [path.name for path in tmp_path.iterdir()] == ["s.csv"]
    printed = capsys.readouterr().out
    assert f"{len(names)} segments of 24 videos, 3 classes, " in printed
    assert f"submission: {out}" in printed


def test_the_best_segments_of_chosen_classes(run: Path, data: Path, tmp_path: Path) -> None:
    classes = tmp_path / "classes.csv"
    classes.write_text("Index\n5\n0\n")
    out = tmp_path / "s.csv"
    main(run, data, out, "--classes", str(classes), "--top", "9", "--skip-ends", "true")
    names, rows, _ = all_scores(run, data)
    counts = {}
    for name in names:
        counts[name.split(":")[0]] = counts.get(name.split(":")[0], 0) + 1
    kept = np.array(
        [
            6 <= int(start) // 5 < counts[video] - 2
            for video, start in (name.split(":") for name in names)
        ]
    )
    assert 9 < kept.sum() < len(names)
    found = ranking(out)
    assert found == {c: best_first(names, rows[:, c], kept)[:9] for c in (5, 0)}


def test_the_videos_own_classes_and_scores(run: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    options = ["--video-top", "2", "--video-weight", "0.3", "--scores", str(tmp_path / "s.npz")]
    main(run, data, out, *options)
    names, rows, videos = all_scores(run, data)
    among = np.argsort(np.argsort(-videos, axis=1), axis=1) < 2
    segment, video = (1 / (1 + np.exp(-x.astype(np.float64))) for x in (rows, videos))
    merged = segment**0.7 * video**0.3
    found = ranking(out)
    for number in RATED:
        assert found[number] == best_first(names, merged[:, number], among[:, number])
    with np.load(tmp_path / "s.npz", allow_pickle=False) as scores:
        assert scores["segments"].tolist() == names
        assert scores["classes"].tolist() == RATED
        expected = np.where(among, np.log(merged), -np.inf)[:, RATED]
        np.testing.assert_allclose(scores["scores"], expected, rtol=1e-4, atol=1e-5)


def test_video_scores_of_another_run(run: Path, data: Path, tmp_path: Path) -> None:
    main(run, data, tmp_path / "a.csv", "--video-weight", "0.5")
    main(run, data, tmp_path / "b.csv", "--video-weight", "0.5", "--video-run", str(run))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    main(run, data, tmp_path / "c.csv")
    assert (tmp_path / "a.csv").read_bytes() != (tmp_path / "c.csv").read_bytes()


@pytest.mark.parametrize("part", ["test", "all"])
def test_file_and_run_have_the_same_map(
    run: Path, data: Path, tmp_path: Path, part: str, capsys
) -> None:
    out = tmp_path / "s.csv"
    main(run, data, out)
    capsys.readouterr()
    by_run = evaluate.evaluate_run(evaluate.EvaluateConfig(run=str(run), part=part))
    options = {"run": str(run), "submission": str(out), "part": part}
    by_file, _ = evaluate.evaluate_submission(evaluate.EvaluateConfig(**options))
    assert by_file.values() == pytest.approx(by_run.values(), rel=1e-12)
    assert 0 < by_run.map < 1
    assert by_run.all_classes == len(RATED)


def test_a_model_of_the_rated_classes_alone(data: Path, tmp_path: Path, capsys) -> None:
    """Its classes are numbered differently from the data's; all commands handle both."""
    stages = {"pretrain": StageConfig(2, 1e-2, 8), "finetune": StageConfig(3, 1e-2, 8)}
    options = {"data": str(data), "run": str(tmp_path / "run"), "classes": "rated"}
    run = train.train(TrainConfig(overrides=TINY, **options, **stages))
    model = models.load(run)
    assert model.num_classes == len(RATED)
    assert list(model.config.class_names) == [f"class {c}" for c in RATED]
    out = tmp_path / "s.csv"
    main(run, data, out)
    names, rows, _ = all_scores(run, data)
    everything = np.ones(len(names), bool)
    expected = {c: best_first(names, rows[:, at], everything) for at, c in enumerate(RATED)}
    assert ranking(out) == expected
    by_run = evaluate.evaluate_run(evaluate.EvaluateConfig(run=str(run)))
    options = {"run": str(run), "submission": str(out)}
    by_file, _ = evaluate.evaluate_submission(evaluate.EvaluateConfig(**options))
    assert by_file.values() == pytest.approx(by_run.values(), rel=1e-12)
    printed = capsys.readouterr().out
    assert f"after finetune: {by_run.describe()}" in printed
    pytest.importorskip("matplotlib")
    options = ["--video", "1e1", "--timeline", str(tmp_path / "t.png"), "--timeline-classes", "1"]
    predict.main(["--run", str(run), *options])
    printed = capsys.readouterr().out
    probabilities = 1 / (1 + np.exp(-rows[[name.startswith("1e1:") for name in names]]))
    best = int(probabilities.max(axis=0).argmax())
    assert re.search(rf"{probabilities[:, best].max():.2f}  class {RATED[best]}\n", printed)


def test_evaluating_against_a_table_or_records(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "s.csv"
    main(run, data, out)
    table = ["segment,class,score"]
    for path in sorted(data.glob("*.tfrecord")):
        for record in read_frames(path):
            for start, number, score in zip(*record.ratings or ([], [], []), strict=True):
                table.append(f"{record.id}:{start},{number},{score}")
    (tmp_path / "truth.csv").write_text("\n".join(table))
    lines = []
    for truth in (tmp_path / "truth.csv", data, data / "*.tfrecord"):
        capsys.readouterr()
        evaluate.main(["--submission", str(out), "--truth", str(truth)])
        lines.append(capsys.readouterr().out.splitlines())
    assert lines[0] == lines[1]
    # A glob of the records alone does not determine the number of classes.
    assert lines[0][0].split(",")[0] == lines[2][0].split(",")[0]
    assert "different segments of no rated video" in lines[0][1]


class StopError(Exception):
    pass


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch):
    """Makes the next prediction receive a request to stop after some blocks."""

    def arrange(blocks: int | None) -> None:
        calls = iter(range(1, 10**9))

        @contextlib.contextmanager
        def requests():
            yield lambda: next(calls) == blocks

        monkeypatch.setattr(_cli, "stop_requests", requests)

    return arrange


@pytest.mark.parametrize("blocks", [1, 4, 9])
def test_resuming_after_an_interruption(
    run: Path, data: Path, tmp_path: Path, stop_after, blocks: int, capsys
) -> None:
    options = ["--batch-size", "20", "--top", "11"]
    main(run, data, tmp_path / "whole.csv", *options, "--scores", str(tmp_path / "whole.npz"))
    out, scores = tmp_path / "s.csv", tmp_path / "s.npz"
    options += ["--scores", str(scores)]
    stop_after(blocks)
    with pytest.raises(KeyboardInterrupt):
        main(run, data, out, *options)
    assert not out.exists()
    assert not scores.exists()
    # As if it had been killed later: rows beyond the saved state.
    with open(tmp_path / "s.csv.partial" / "scores.raw", "ab") as file:
        file.write(b"x" * 100)
    stop_after(None)
    capsys.readouterr()
    main(run, data, out, *options)
    assert "continuing from" in capsys.readouterr().out
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    with np.load(scores) as a, np.load(tmp_path / "whole.npz") as b:
        assert all(np.array_equal(a[name], b[name]) for name in b)
    assert not (tmp_path / "s.csv.partial").exists()


def test_ranking_where_the_scores_are(
    run: Path, data: Path, tmp_path: Path, stop_after, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, with torch's operators; also after an interruption."""
    options = ["--batch-size", "20", "--top", "11", "--video-top", "2"]
    main(run, data, tmp_path / "host.csv", *options, "--scores", str(tmp_path / "host.npz"))
    ranked = []

    class OnDevice(PartialPrediction):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments[:5], torch.device("cpu"))

    def add(self, *arguments, function=DeviceKeys.add) -> None:
        ranked.append(1)
        function(self, *arguments)

    monkeypatch.setattr(predict.ranking, "PartialPrediction", OnDevice)
    monkeypatch.setattr(DeviceKeys, "add", add)
    out, scores = tmp_path / "s.csv", tmp_path / "s.npz"
    stop_after(4)
    with pytest.raises(KeyboardInterrupt):
        main(run, data, out, *options, "--scores", str(scores))
    assert len(ranked) == 4
    stop_after(None)
    main(run, data, out, *options, "--scores", str(scores))
    assert len(ranked) > 5
    assert out.read_bytes() == (tmp_path / "host.csv").read_bytes()
    assert scores.read_bytes() == (tmp_path / "host.npz").read_bytes()


def test_the_precision_is_that_of_the_options(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_int8, "_FEWEST_WEIGHTS", 0)
    scores = {}
    for name in ("fp32", "bf16", "int8"):
        path = tmp_path / f"{name}.npz"
        main(run, data, tmp_path / "s.csv", "--scores", str(path), "--precision", name)
        with np.load(path) as file:
            scores[name] = file["scores"]
    _, rows, _ = all_scores(run, data)
    np.testing.assert_allclose(scores["fp32"], rows[:, RATED], rtol=1e-4, atol=1e-5)
    for name in ("bf16", "int8"):
        error = np.abs(scores[name] - scores["fp32"]).max() / np.abs(scores["fp32"]).max()
        if name == "bf16" or has_fast_int8():
            assert 1e-4 < error < 5e-2, name
        else:
            assert error == 0


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["state.npz", "scores.raw"])
def test_damage_to_partial_results_is_noticed(
    run: Path, data: Path, tmp_path: Path, stop_after, name: str
) -> None:
    options = ["--batch-size", "20", "--scores", str(tmp_path / "s.npz")]
    stop_after(2)
    with pytest.raises(KeyboardInterrupt):
        main(run, data, tmp_path / "s.csv", *options)
    stop_after(None)
    flip(tmp_path / "s.csv.partial" / name)
    with pytest.raises(DataError, match=f"{name}: expected .*delete the folder to start anew"):
        main(run, data, tmp_path / "s.csv", *options)


def test_one_prediction_of_a_file_at_a_time(
    run: Path, data: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(_files, "_lock", lambda file: False)  # as if another process held it
    (tmp_path / "s.csv.partial").mkdir()
    with pytest.raises(UserError, match=r"s\.csv\.partial: another process is at work there"):
        main(run, data, tmp_path / "s.csv")
    assert (tmp_path / "s.csv.partial").exists()


def test_other_options_do_not_resume(run: Path, data: Path, tmp_path: Path, stop_after) -> None:
    out = tmp_path / "s.csv"
    stop_after(1)
    with pytest.raises(KeyboardInterrupt):
        main(run, data, out, "--batch-size", "20")
    stop_after(None)
    with pytest.raises(UserError, match=r"s\.csv\.partial holds an unfinished prediction"):
        main(run, data, out, "--batch-size", "20", "--skip-ends", "true")
    with pytest.raises(UserError, match="holds an unfinished prediction with other options"):
        main(run, data, out, "--precision", "bf16")
    # Another batch size affects only the speed, and this is the precision of a CPU anyway.
    main(run, data, out, "--batch-size", "31", "--precision", "fp32")


def test_a_failure_leaves_no_incomplete_file(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self, block, sent):
        raise StopError

    monkeypatch.setattr(predict.Scorer, "score", fail)
    with pytest.raises(StopError):
        main(run, data, tmp_path / "s.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_requests_to_stop_are_noted_once(number: int) -> None:
    class SecondError(Exception):
        pass

    def second(*_: object) -> None:
        raise SecondError

    before = signal.signal(number, second)
    try:
        with _cli.stop_requests() as stopped:
            assert not stopped()
            os.kill(os.getpid(), number)
            assert stopped()
            with pytest.raises(SecondError):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is second
        signal.signal(number, signal.SIG_IGN)  # as for nohup and background jobs of scripts
        with _cli.stop_requests() as stopped:
            os.kill(os.getpid(), number)
            assert not stopped()
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run", "nowhere"], "nowhere is not a run folder"),
        (["--data", "nowhere/*.tfrecord"], "no file matches"),
        (["--video", "none", "--timeline", "t.png"], "--video none: no such video in 3 shards"),
        (
            ["--video", "1e1", "--out", "x.csv"],
            "--out: expected no submission with --video",
        ),
        (
            ["--video", "1e1", "--export", "e.csv", "--export", "e.csv"],
            "--export: expected each file once, found e.csv again",
        ),
        (["--timeline", "t.png"], "--timeline: expected --video, --video_file or --frames_file"),
        (["--export", "e.csv"], "--export: expected --video, --video_file or --frames_file"),
        (["--video", "1", "--export", "e.doc"], "--export: expected a file that ends in .png, .ht"),
        (["--weights", "w"], "--weights: expected --video_file with it, found none"),
        (["--video_file", "v", "--data", "d"], "--data: expected none with --video_file, found d"),
        (["--video_file", "v", "--video", "1"], "--video: expected none with --video_file, found"),
        (["--off", "0.6"], "--off: expected at most --on, 0.5, found 0.6"),
        (["--on", "1.5"], r"--on: expected a number in \[0, 1\], found 1.5"),
        (["--video", "1e1", "--timeline", "t.gif"], r"timeline: expected a .png or .html file"),
        (["--top", "0"], "top: expected at least 1, found 0"),
        (["--video_weight", "1.5"], r"video_weight: expected in \[0, 1\], found 1.5"),
        (["--precision", "fp8"], "--precision fp8: expected one of 'fp32', 'bf16', 'fp16', 'int8'"),
        (["--scores", "s.parquet"], "scores: expected the name of an .npz file"),
    ],
)
def test_options_that_cannot_be_carried_out(
    run: Path, tmp_path: Path, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UserError, FileNotFoundError), match=message):
        predict.main(["--run", str(run), *options])
    assert list(tmp_path.iterdir()) == []


def test_data_that_does_not_fit(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    write_records(tmp_path / "a.tfrecord", [encode_video("a", np.zeros(1152), [1])])
    with pytest.raises(UserError, match=r"a\.tfrecord: expected 1024 bytes .*'rgb', found .*mean"):
        main(run, tmp_path / "a.tfrecord", out)
    narrow = FrameSchema(features=(("audio_embedding", 128),), id_key="video_id")
    frames = np.zeros((5, 128), np.uint8)
    write_records(tmp_path / "b.tfrecord", [encode_frames("b", frames, [1], schema=narrow)])
    with pytest.raises(
        UserError,
        match=r"b\.tfrecord: features: expected rgb \(1024\), audio \(128\), found audio_embedding "
        r"\(128\); frame_seconds: expected 1.0, found 0.96 \(expected is what .*run was trained on",
    ):
        main(run, tmp_path / "b.tfrecord", out)
    (tmp_path / "classes.csv").write_text("Index\n6\n")
    with pytest.raises(UserError, match=r"classes\.csv: expected .* the 6 .* found class 6"):
        predict.main(["--run", str(run), "--classes", str(tmp_path / "classes.csv")])


def test_odd_ids_round_trip_or_are_refused(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = np.zeros((5, 1152), np.uint8)
    path, out = tmp_path / "odd.tfrecord", tmp_path / "s.csv"
    # Records of other programs may have ids that `encode_frames` refuses.
    monkeypatch.setattr("pyseg.data.records.writer.why_not_an_id", lambda id: None)
    kept = [
        "a,1", 'b"2"', '"', "c:5", "é\u200d", "x" * 1024, "my video", "50%", "50%25", "%20",
        "c\u00a0", "\u3000全角 ", " ",
    ]  # fmt: skip
    write_records(path, [encode_frames(id, frames, [1]) for id in kept])
    main(run, path, out)
    assert {name for _, names in read_submission(out) for name in names} == {f"{i}:0" for i in kept}
    with out.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert all(len(names.split(" ")) == len(names.split()) == len(kept) for _, names in rows[1:])
    for unfit in ("c\nd", "c\u2028", "c\x85", "c\x00", "c\x1b", ""):
        write_records(path, [encode_frames(id, frames, [1]) for id in ("a", unfit, "b")])
        with pytest.raises(RecordError, match=r"d: record 1 at byte 5925: expected an id"):
            main(run, path, tmp_path / "t.csv")
    main(run, path, tmp_path / "t.csv", "--on_error", "skip")
    assert {name for _, names in read_submission(tmp_path / "t.csv") for name in names} == {
        "a:0",
        "b:0",
    }


def test_a_damaged_record_stops_or_is_left_out(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = tmp_path / "validate0.tfrecord"
    content = bytearray((data / "validate0.tfrecord").read_bytes())
    content[30] ^= 1
    damaged.write_bytes(content)
    words = ["--run", str(run), "--data", str(damaged), "--out", str(tmp_path / "s.csv")]
    with pytest.raises(SystemExit, match="1"):
        _cli.run(lambda: predict.main(words))
    error = capsys.readouterr().err
    assert error.startswith("pyseg: error: ")
    assert "validate0.tfrecord" in error
    predict.main([*words, "--on-error", "skip"])
    assert "records: skipped 1 record" in capsys.readouterr().out
