from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from pyseg import _cli, evaluate, models, predict, report, train
from pyseg.config import (
    LossConfig,
    StageConfig,
    TrainConfig,
    make_parser,
)
from pyseg.data import (
    BackboneInfo,
    FeatureSet,
    Ratings,
    VideoSchema,
    encode_frames,
    encode_video,
    held_out,
    open_collection,
    write_records,
)
from pyseg.data.youtube8m import FRAMES
from pyseg.errors import ArgumentError, DataError, RecordError, UserError
from pyseg.labels import CooccurrenceCounter, LabelCorrelation, embed_labels
from pyseg.runs import Run, open_data
from pyseg.submission import read_submission
from pyseg.train._machine import settle
from pyseg.training import StageRun
from pyseg.training.identity import check_features

CLASSES = 4
QUICK = {"pretrain": StageConfig(3, 1e-3, 8), "finetune": StageConfig(2, 1e-3, 8)}
TINY = {"clusters": 4, "groups": 2, "hidden_size": 8, "reduction": 2}


def write_vocabulary(folder: Path) -> None:
    lines = ["Index,KnowledgeGraphId,Name", *(f"{i},/m/{i},class {i}" for i in range(CLASSES))]
    (folder / "vocabulary.csv").write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def segments_folder(tmp_path_factory) -> Path:
    """40 videos of 12 frames; class c is present where byte c of a frame is 255."""
    folder = tmp_path_factory.mktemp("segments")
    rng = np.random.default_rng(0)
    records = []
    for video in range(40):
        frames = rng.integers(0, 256, (12, 1152), np.uint8)
        label = video % CLASSES
        frames[:, :CLASSES] = 0
        frames[:6, label] = 255
        scores = np.array([1, 0], np.float32)
        ratings = Ratings(np.array([0, 6]), np.array([label, label]), scores)
        records.append(encode_frames(f"v{video:03d}", frames, [label], ratings))
    write_records(folder / "validate0000.tfrecord", records)
    write_vocabulary(folder)
    return folder


@pytest.fixture(scope="module")
def videos_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    records = [
        encode_video(f"v{video:03d}", rng.standard_normal(1152), [video % CLASSES], VideoSchema())
        for video in range(40)
    ]
    write_records(folder / "video0000.tfrecord", records)
    write_vocabulary(folder)
    return folder


def config(data: Path, run: Path, **changes) -> TrainConfig:
    return TrainConfig(data=str(data), run=str(run), overrides=TINY, **(QUICK | changes))


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(segments_folder, tmp_path_factory) -> Path:
    """A run of both stages, to which evaluations may be added."""
    return train.train(config(segments_folder, tmp_path_factory.mktemp("trained") / "run"))


def test_trains_both_stages_and_leaves_a_run(segments_folder, tmp_path, capsys):
    run = train.train(config(segments_folder, tmp_path / "run"))
    assert sorted(path.name for path in run.iterdir()) == [
        "config.yaml", "correlation.npz", "features.json", "metrics.jsonl", "model.json",
        "model.safetensors",
    ]  # fmt: skip
    assert Run(run).features() == FRAMES.features
    assert [line["stage"] for line in log_of(run)] == [
        "pretrain", "evaluate", "finetune", "evaluate"
    ]  # fmt: skip
    printed = capsys.readouterr().out
    assert "MAP@100k" in printed
    assert str(run) in printed
    assert models.load(run).config.class_names == [f"class {i}" for i in range(CLASSES)]


def test_evaluate_gives_the_map_of_training(segments_folder, trained, capsys):
    capsys.readouterr()
    evaluate.main(["--run", str(trained), "--data", str(segments_folder)])
    last, again = log_of(trained)[-2:]
    assert again["map"] == last["map"]
    assert f"{last['map']:.4f}" in capsys.readouterr().out


def test_evaluate_keeps_segments_only_for_other_processes(segments_folder, trained, monkeypatch):
    def refuse(examples):
        raise MemoryError("they are kept")

    monkeypatch.setattr("pyseg.data.datasets.ExampleMemory", refuse)
    arguments = ["--run", str(trained), "--data", str(segments_folder)]
    evaluate.main(arguments)
    last, again = log_of(trained)[-2:]
    assert again["map"] == last["map"]
    with pytest.raises(MemoryError, match="they are kept"):
        evaluate.main([*arguments, "--workers", "1"])


def test_evaluate_reports_data_that_does_not_fit(segments_folder, trained, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "validate0000.tfrecord").symlink_to(segments_folder / "validate0000.tfrecord")
    with pytest.raises(UserError, match=r"other: classes: expected 4, found 3862 \(exp"):
        evaluate.main(["--run", str(trained), "--data", str(other)])


def test_same_seed_gives_same_weights(segments_folder, trained, tmp_path):
    run = train.train(config(segments_folder, tmp_path / "run"))
    first, second = (models.load(folder).state_dict() for folder in (trained, run))
    assert all(torch.equal(first[key], second[key]) for key in first)


def plain(
    path: Path,
    count: int,
    rated: int = 0,
    damaged: int | None = None,
    ids: Sequence[str] = tuple(f"v{k:03d}" for k in range(1000)),
) -> Path:
    """Writes videos v000, v001, ... and damages one; the first ones have rated segments."""
    rating = Ratings(np.array([0, 5]), np.array([1, 1]), np.array([1, 0], np.float32))
    frames = np.ones((12, 1152), np.uint8)
    records = [
        encode_frames(ids[k], frames, [k % CLASSES], rating if k < rated else None)
        for k in range(count)
    ]
    write_records(path, records)
    if damaged is not None:
        data = bytearray(path.read_bytes())
        data[len(data) // count * damaged + 500] ^= 1
        path.write_bytes(data)
    write_vocabulary(path.parent)
    return path


ONE = {"pretrain": StageConfig(1, 1e-3, 8), "finetune": StageConfig(1, 1e-3, 8)}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rated", [0, 3])
def test_all_of_few_videos_may_be_held_out_or_none(tmp_path, count, rated):
    data = plain(tmp_path / "a.tfrecord", count, rated)
    for seed in range(60):
        options = config(data, tmp_path / "run", seed=seed)
        held = {held_out(f"v{k:03d}", 0.2, seed) for k in range(count)}
        options, collection, blind = train.hold_out(options, open_data(options))
        assert bool(blind) == (len(held) == 1)
        assert ("as there are so few videos" in blind) == (held == {True})
        assert options.test_fraction == collection.test_fraction == 0.2 * (held != {True})


def test_a_seed_is_named_that_holds_something_out(tmp_path, capsys):
    ids = [f"film {k}" for k in range(1, 13)]
    assert not any(held_out(id, 0.2, 0) for id in ids)
    data = plain(tmp_path / "a.tfrecord", 12, 12, ids=ids)
    options = config(data, tmp_path / "run")
    blind = train.hold_out(options, open_data(options))[2]
    advice = r"training without evaluation; --seed (\d+) holds out 2 of 12 videos$"
    seed = int(re.search(advice, blind)[1])
    assert sum(held_out(id, 0.2, seed) for id in ids) == 2
    options = replace(options, seed=seed)
    assert train.hold_out(options, open_data(options))[2] == ""
    patient = replace(
        options, seed=0, finetune=replace(options.finetune, evaluate_every=1, patience=1)
    )
    with pytest.raises(UserError, match=f"found none .*--seed 0.; --seed {seed} holds out 2 of 12"):
        train.hold_out(patient, open_data(patient))


def test_one_video_trains(tmp_path, capsys):
    data = plain(tmp_path / "a.tfrecord", 1, 1)
    seed = next(seed for seed in range(100) if held_out("v000", 0.2, seed))
    run = train.train(config(data, tmp_path / "run", **ONE, seed=seed))
    assert "no rated segment is held out" in capsys.readouterr().out
    assert [line["stage"] for line in log_of(run)] == ["pretrain", "finetune"]
    assert Run(run).config().test_fraction == 0


def test_an_empty_held_out_part_is_reported_at_the_start(tmp_path, capsys):
    data = plain(tmp_path / "a.tfrecord", 30, 30)
    stages = {"pretrain": StageConfig(2, 1e-3, 8, evaluate_every=1)}
    run = train.train(config(data, tmp_path / "run", **ONE | stages, test_fraction=0.0))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == (
        "data: no rated segment is held out (--test_fraction 0 --seed 0): training without "
        "evaluation, whatever evaluate_every says"
    )
    assert not any(line["stage"] == "evaluate" for line in log_of(run))
    with pytest.raises(UserError, match="trained on all with --test_fraction 0: name --data"):
        evaluate.main(["--run", str(run)])
    patient = {"finetune": StageConfig(2, 1e-3, 8, evaluate_every=1, patience=3)}
    for changes, message in (
        ({"final_fit": True}, "--final_fit: expected a rated segment that is held out"),
        (patient, "--finetune.patience 3: expected a rated segment that is held out"),
        ({"test_fraction": 1.0}, "--test_fraction 1 --seed 0: expected videos to train on"),
    ):
        asked = config(data, tmp_path / "no", **{**ONE, "test_fraction": 0.0, **changes})
        with pytest.raises(UserError, match=message):
            train.train(asked)
    assert not (tmp_path / "no").exists()


def test_ratings_of_held_out_videos_only_are_reported_at_the_start(tmp_path):
    data = plain(tmp_path / "a.tfrecord", 10, 1)
    seed = next(seed for seed in range(100) if held_out("v000", 0.2, seed))
    with pytest.raises(UserError, match="expected rated segments to train on"):
        train.train(config(data, tmp_path / "run", **ONE, seed=seed))
    assert not (tmp_path / "run").exists()
    train.train(config(data, tmp_path / "run", **ONE, seed=seed, stage="pretrain"))


def test_a_run_without_evaluation_resumes(tmp_path, monkeypatch, capsys):
    data = plain(tmp_path / "a.tfrecord", 20)
    options = {"pretrain": StageConfig(4, 1e-3, 8), "test_fraction": 0.0, "checkpoint_steps": 1}
    whole = train.train(config(data, tmp_path / "whole", **options))
    # The device comes first: that this run has ended matters only where it can be trained.
    with pytest.raises(UserError, match="--device nowhere: expected a device"):
        train.main(["--resume", str(whole), "--device", "nowhere"])

    def stop(self, *_):
        if self.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pyseg.training.StageRun._save_if_due", stop)
        patch.setattr("pyseg.training.StageRun._report", lambda self: 0.0)
        with pytest.raises(KeyboardInterrupt):
            train.train(config(data, tmp_path / "run", **options))
    evaluate.main(["--run", str(tmp_path / "run"), "--part", "all"])
    assert "its training has not ended: python -m pyseg.train --res" in capsys.readouterr().out
    run = train.train(TrainConfig(resume=str(tmp_path / "run")))
    evaluate.main(["--run", str(run), "--part", "all"])
    assert "its training has not ended" not in capsys.readouterr().out
    first, second = (models.load(folder).state_dict() for folder in (whole, run))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("rated", [0, 30])
def test_damaged_records_are_skipped_and_counted(tmp_path, capsys, rated):
    data = plain(tmp_path / "a.tfrecord", 30, rated, damaged=7)
    with pytest.raises(RecordError, match="record 7"):
        train.train(config(data, tmp_path / "run", pretrain=StageConfig(9, 1e-3, 8)))
    steps = {"pretrain": StageConfig(9, 1e-3, 8), "on_error": "skip"}
    run = train.train(config(data, tmp_path / "run2", **steps))
    message = f"skipped 1 record (the first: {data}: record 7 at byte"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if message in line] == (
        ["label correlation", "pretrain", "finetune"] if rated else ["pretrain"]
    )
    evaluate.main(["--run", str(run), "--part", "all"])  # the run's own way
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("records: skipped 1 record")
    assert ("58 ratings" if rated else "29 videos") in lines[1]
    with pytest.raises(RecordError, match="record 7"):
        evaluate.main(["--run", str(run), "--part", "all", "--on_error", "raise"])


def test_learns(segments_folder, tmp_path):
    run = train.train(
        config(
            segments_folder,
            tmp_path / "run",
            pretrain=StageConfig(0, 1e-3),
            finetune=StageConfig(60, 1e-2, 16),
        )
    )
    evaluate.main(["--run", str(run), "--part", "train"])
    *_, held_out, on_train = log_of(run)
    assert on_train["rated"] + held_out["rated"] == 80
    assert on_train["map"] > 0.9


def test_trains_a_mixture_with_the_losses_of_its_branches(segments_folder, tmp_path):
    run = train.train(
        TrainConfig(
            data=str(segments_folder),
            run=str(tmp_path / "run"),
            model="paper-mixture",
            overrides=TINY | {"gru_size": 8, "attention_size": 4, "distillation": 0.5},
            **QUICK,
        )
    )
    model = models.load(run)
    assert (len(model.branches), model.distillation) == (4, 0.5)
    # The losses of the mix and of four branches, each about ln 2 for each of the classes.
    pretrain = log_of(run)[0]
    assert pretrain["loss"] > 4 * CLASSES * np.log(2)


def test_video_level_data_skips_fine_tuning(videos_folder, tmp_path, capsys):
    run = train.train(config(videos_folder, tmp_path / "run"))
    assert [line["stage"] for line in log_of(run)] == ["pretrain", "evaluate"]
    assert "GAP@20" in capsys.readouterr().out


def test_config_round_trips_through_the_run_folder(segments_folder, tmp_path):
    written = config(segments_folder, tmp_path / "run", seed=3, test_fraction=0.25)
    here = {"precision": "fp32", "tf32": False, "workers": 0}  # the defaults of a CPU
    assert Run(train.train(written)).config() == replace(written, **here)


@pytest.mark.parametrize(
    ("capability", "cores", "processes", "expected"),
    [
        ((9, 0), 16, 1, ("bf16", True, 8)),
        ((9, 0), 16, 4, ("bf16", True, 3)),
        ((7, 5), 4, 8, ("fp32", True, 1)),
    ],
)
def test_defaults_of_a_gpu(monkeypatch, capability, cores, processes, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    gpu = torch.device("cuda")
    found = settle(TrainConfig(), gpu)
    assert (found.precision, found.tf32, found.workers) == expected
    assert settle(found, torch.device("cpu")) == found  # a run that resumes elsewhere
    given = TrainConfig(precision="fp32", tf32=False, workers=0)
    assert settle(given, gpu) == given


def test_int8_is_for_predictions_only() -> None:
    with pytest.raises(ArgumentError, match="precision: expected one of fp32, bf16, fp16 or None"):
        TrainConfig(precision=cast(Any, "int8"))


@pytest.mark.parametrize("pads", [False, True])
def test_frames_are_padded_on_request(segments_folder, tmp_path, monkeypatch, pads):
    shapes, optimise = [], StageRun._take_step

    def noted(self, batch):
        shapes.append((self.stage.name, batch.frames.shape[1]))
        return optimise(self, batch)

    monkeypatch.setattr(StageRun, "_take_step", noted)
    short = {"pretrain": StageConfig(1, 1e-3, 4), "finetune": StageConfig(1, 1e-3, 4)}
    train.train(config(segments_folder, tmp_path / "run", max_frames=50, pad_frames=pads, **short))
    assert shapes == [("pretrain", 50 if pads else 12), ("finetune", 5)]


def test_print_config_is_read_back(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        train.main(["--print_config", "--pretrain.steps", "7", "--overrides.clusters", "8"])
    assert stop.value.code == 0
    path = tmp_path / "config.yaml"
    path.write_text(capsys.readouterr().out)
    read = _cli.parse(make_parser(), TrainConfig, ["--config", str(path)])
    assert (read.pretrain.steps, read.overrides) == (7, {"clusters": 8})
    assert read.finetune == TrainConfig().finetune


def test_a_start_that_was_killed_is_no_run(segments_folder, tmp_path):
    """The files are those that a process killed before it had written config.yaml leaves."""
    options = config(segments_folder, tmp_path / "run", finetune=StageConfig(0, 1.0))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "features.json").touch()
    with pytest.raises(UserError, match="exists already"):
        train.train(options)
    (tmp_path / "run" / ".lock").touch()
    assert Run(train.train(options)).features().features


def test_a_run_is_never_overwritten(tmp_path, monkeypatch):
    """This is reported before the data is opened, which can take minutes."""
    monkeypatch.setattr(train, "open_data", None)
    file = tmp_path / "kept"
    file.touch()
    with pytest.raises(UserError, match=r"--run .* exists already .*: name another, or delete it$"):
        train.train(config(tmp_path, tmp_path))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").touch()
    with pytest.raises(UserError, match=r"or delete it$"):  # it has failed, or has ended
        train.train(config(tmp_path, folder))
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "checkpoint-000000001.pt").touch()
    with pytest.raises(UserError, match=r"or delete it; --resume .*/run continues it$"):
        train.train(config(tmp_path, folder))
    for run in (file, file / "run"):
        with pytest.raises(UserError, match=r"--run .*: expected a folder, found a file .*kept$"):
            train.train(config(tmp_path, run))
    with pytest.raises(UserError, match="--run /proc/run: the folder /proc cannot be written to"):
        train.train(config(tmp_path, Path("/proc/run")))


def test_a_run_of_mean_features_that_meets_frames(videos_folder, segments_folder, tmp_path, capsys):
    run = train.train(config(videos_folder, tmp_path / "run"))
    options = ["--run", str(run), "--data", str(segments_folder)]
    capsys.readouterr()
    evaluate.main(options)
    predict.main([*options, "--out", str(tmp_path / "s.csv")])
    message = f"{run} was trained on mean features of whole videos; {segments_folder} has frames\n"
    assert capsys.readouterr().out.count(message) == 2
    evaluate.main(options[:2])
    assert "was trained on" not in capsys.readouterr().out
    assert Run(run).features().features == (("mean_rgb", 1024), ("mean_audio", 128))


def test_features_that_a_file_describes(clips: Path, tmp_path, capsys) -> None:
    """512 values at 2 frames a second, in segments of 3 seconds: no command assumes others."""
    stages = {"pretrain": StageConfig(10, 1e-2, 8), "finetune": StageConfig(20, 1e-2, 8)}
    folder = tmp_path / "run"
    run = train.train(TrainConfig(str(clips), model="linear", run=str(folder), **stages))
    features = open_collection(clips).features
    assert Run(run).features() == features
    assert (features.feature_sizes, features.segment_seconds) == ((512,), 3.0)
    model = Run(run).model()
    assert model.normalization.convention == "standardize"
    assert model.normalization.ranges == ((-0.5, 3.5),)
    videos = open_collection(clips).videos("train")
    values = np.concatenate([features.dequantize(video.frames) for video in videos])
    np.testing.assert_allclose(model.normalization.mean, values.mean(0), rtol=1e-5)
    assert log_of(run)[-1]["map"] == 1.0
    evaluate.main(["--run", str(run)])
    assert log_of(run)[-1]["map"] == 1.0
    predict.main(["--run", str(run), "--out", str(tmp_path / "s.csv")])
    _, ranked = next(read_submission(tmp_path / "s.csv"))
    assert {int(segment.rpartition(":")[2]) for segment in ranked} == {0, 6, 12, 18}
    capsys.readouterr()
    timeline = tmp_path / "t.png"
    predict.main(["--run", str(run), "--video", "v03", "--timeline", str(timeline)])
    assert re.search(r"0:06 to 0:\d\d  0.\d\d  Dog", capsys.readouterr().out)  # from frame 12: 6 s
    report.main(["--run", str(run), "--out", str(tmp_path / "r.html")])
    assert "Scores over time" in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("convention", ["dequantize", "l2"])
def test_options_choose_the_normalization_of_described_features(clips, tmp_path, convention):
    overrides = {"normalization": convention}
    options = {"model": "mlp", "overrides": {**overrides, "hidden_size": 4}, **ONE}
    run = Run(train.train(TrainConfig(str(clips), run=str(tmp_path / "r"), **options)))
    assert run.model().normalization.convention == convention
    assert run.model().normalization.ranges == run.features().ranges


def test_a_model_without_ranges_is_refused(clips, tmp_path, monkeypatch) -> None:
    options = models.options("mlp")
    monkeypatch.setattr(models, "options", lambda *_, **__: sorted({*options} - {"ranges"}))
    with pytest.raises(UserError, match=r"--model mlp: expected a model that takes ranges"):
        train.train(TrainConfig(str(clips), model="mlp", run=str(tmp_path / "r"), **ONE))


CHANGES = [
    ({"frame_seconds": 1.0}, r"frame_seconds: expected 0\.5, found 1\.0"),
    ({"segment_size": 4}, r"segment_size: expected 6, found 4"),
    ({"ranges": ((0.0, 1.0),)}, r"ranges: expected clip from -0\.5 to 3\.5, found clip from 0\.0"),
    ({"features": (("dino", 512),)}, r"features: expected clip \(512\), found dino \(512\)"),
    (
        {"backbone": BackboneInfo("b", "1" * 64, {})},
        r"backbone: expected b \(digest 0{12}\), found b \(digest 1{12}\)",
    ),
]


@pytest.mark.parametrize(("changes", "message"), CHANGES, ids=[next(iter(c)) for c, _ in CHANGES])
def test_features_of_other_data_are_named(clips: Path, tmp_path, changes, message: str) -> None:
    """By evaluate, predict and a resumed run."""
    trained = replace(
        open_collection(clips).features, backbone=BackboneInfo("b", "0" * 64, {"size": 224})
    )
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    config = TrainConfig(str(clips), model="mlp", run=str(run))
    run.write_config(config)
    trained.write(run.features_file)
    model = models.create("mlp", num_classes=3, feature_sizes=(512,), hidden_size=4)
    models.save(model, run.folder)
    other = tmp_path / "other"
    other.mkdir()
    found = replace(trained, **changes)
    frames = np.zeros((12, 512), np.uint8)
    write_records(other / "a.tfrecord", [encode_frames("a", frames, [1], schema=found.schema)])
    (other / "vocabulary.csv").write_text((clips / "vocabulary.csv").read_text())
    found.write(other / "features.json")
    options = ["--run", str(run), "--data", str(other)]
    with pytest.raises(UserError, match=f"{message}.*expected is what .*run was trained on"):
        evaluate.main(options)
    with pytest.raises(UserError, match=f"{message}.*expected is what .*run was trained on"):
        predict.main([*options, "--out", str(tmp_path / "s.csv")])
    assert not (tmp_path / "s.csv").exists()
    with pytest.raises(UserError, match=f"^--resume run: {message}.*, as the run has"):
        check_features("--resume run", trained, open_collection(other).features)


def test_predict_on_records_that_nothing_describes(clips: Path, tmp_path) -> None:
    """Unlabelled records, whose features are called as those of the run."""
    run = train.train(TrainConfig(str(clips), model="linear", run=str(tmp_path / "run"), **ONE))
    schema = replace(Run(run).features().schema, labels_key=None)
    frames = np.zeros((8, 512), np.uint8)
    write_records(tmp_path / "a.tfrecord", [encode_frames("a", frames, [], schema=schema)])
    options = ["--run", str(run), "--data", str(tmp_path / "a.tfrecord")]
    predict.main([*options, "--out", str(tmp_path / "s.csv")])
    assert "a:6" in (tmp_path / "s.csv").read_text()
    Run(run).features_file.unlink()
    with pytest.raises(UserError, match=r"features\.json: expected the features of the run's data"):
        predict.main([*options, "--out", str(tmp_path / "s.csv")])


def test_a_run_of_described_features_resumes(clips: Path, tmp_path, monkeypatch) -> None:
    """With the mean and deviation of the checkpoint, and not on other features."""
    data = tmp_path / "data"
    shutil.copytree(clips, data)
    options = {
        "model": "linear",
        "pretrain": StageConfig(4, 1e-3, 8),
        "finetune": StageConfig(0, 1e-3),
        "checkpoint_steps": 1,
    }
    whole = train.train(TrainConfig(str(data), run=str(tmp_path / "whole"), **options))

    def stop(self, *_):
        if self.step == 2:
            self.save()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pyseg.training.StageRun._save_if_due", stop)
        with pytest.raises(KeyboardInterrupt):
            train.train(TrainConfig(str(data), run=str(tmp_path / "run"), **options))
    described = FeatureSet.read(data / "features.json")
    replace(described, frame_seconds=1.0).write(data / "features.json")
    with pytest.raises(UserError, match=r"--resume .*run: frame_seconds: expected 0\.5,"):
        train.train(TrainConfig(resume=str(tmp_path / "run")))
    described.write(data / "features.json")
    run = train.train(TrainConfig(resume=str(tmp_path / "run")))
    first, second = (models.load(folder).state_dict() for folder in (whole, run))
    assert first["normalization.mean"].any()
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_default_run_folders_are_numbered(segments_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [
        train.train(TrainConfig(data=str(segments_folder), overrides=TINY, **QUICK)).name
        for _ in range(2)
    ]
    assert names == ["youtube8m-nextvlad-small-1", "youtube8m-nextvlad-small-2"]


def test_unknown_model_and_override_are_reported(segments_folder, tmp_path):
    with pytest.raises(UserError, match="nextvlad-smal"):
        train.train(config(segments_folder, tmp_path / "run", model="nextvlad-smal"))
    with pytest.raises(UserError, match="cluster"):
        train.train(
            TrainConfig(data=str(segments_folder), run=str(tmp_path / "r"), overrides={"k": 1})
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--pretrain.steps", "-1"], "steps: expected at least 0, found -1"),
        (["--finetune.batch_size", "0"], "batch_size: expected at least 1, found 0"),
        (["--pretrain.learning_rate", "0"], "learning_rate: expected above 0, found 0"),
        (["--max_frames", "0"], "--max_frames: expected at least 1, found 0"),
        (["--seed", "-1"], "--seed: expected at least 0, found -1"),
        (["--test_fraction", "1.5"], r"--test_fraction: expected a number in \[0, 1\], found 1.5"),
        (["--device", "nowhere"], "--device nowhere: expected a device that torch has here, such"),
    ],
)
def test_options_out_of_range_are_reported(segments_folder, tmp_path, arguments, text):
    run = tmp_path / "run"
    with pytest.raises(UserError, match=text):
        train.main(["--data", str(segments_folder), "--run", str(run), *arguments])
    assert not run.exists()


def test_reverse_whitening_is_saved_with_the_model(segments_folder, tmp_path):
    path = tmp_path / "eigenvals.npy"
    np.save(path, np.linspace(2, 1, 2048, dtype=np.float32).reshape(-1, 1))
    written = config(segments_folder, tmp_path / "run", eigenvalues=str(path))
    written.overrides = {**TINY, "normalization": "unwhiten"}
    model = models.load(train.train(written))
    assert model.normalization.convention == "unwhiten"
    assert model.normalization.eigenvalues[0] == 2


def test_eigenvalues_are_never_unpickled(segments_folder, tmp_path):
    path = tmp_path / "eigenvals.npy"
    np.save(path, np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"eigenvals\.npy: expected a NumPy file, found"):
        train.train(config(segments_folder, tmp_path / "run", eigenvalues=str(path)))


def test_a_loss_that_is_not_finite_stops(segments_folder, tmp_path):
    stage = StageConfig(3, 1e38, 8)
    with pytest.raises(UserError, match=r"pretrain: the loss is (nan|inf)"):
        train.train(config(segments_folder, tmp_path / "run", pretrain=stage))


def test_an_interrupted_run_keeps_its_weights(segments_folder, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "evaluate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.train(config(segments_folder, tmp_path / "run"))
    models.load(tmp_path / "run")


def test_a_label_beyond_the_vocabulary_is_a_line(tmp_path):
    frames = np.ones((2, 1152), np.uint8)
    write_records(tmp_path / "validate0000.tfrecord", [encode_frames("v1", frames, [CLASSES])])
    write_vocabulary(tmp_path)
    with pytest.raises(DataError, match=r"v1: expected classes in \[0, 4\), found 4"):
        train.train(config(tmp_path, tmp_path / "run", test_fraction=0.0))


@pytest.fixture(scope="module")
def pairs_folder(tmp_path_factory) -> Path:
    """Labels 0 and 1 always occur together in training videos, 0 and 2 in held-out ones."""
    folder = tmp_path_factory.mktemp("pairs")
    frames = np.ones((6, 1152), np.uint8)
    ratings = Ratings(np.array([0]), np.array([0]), np.array([1.0], np.float32))
    names = [f"v{video:03d}" for video in range(40)]
    records = [
        encode_frames(name, frames, [0, 2 if held_out(name) else 1], ratings) for name in names
    ]
    write_records(folder / "validate0000.tfrecord", records)
    write_vocabulary(folder)
    return folder


def test_correlation_of_the_training_videos_alone(pairs_folder, tmp_path, capsys):
    loss = LossConfig(correlation="auto")
    run = train.train(config(pairs_folder, tmp_path / "run", loss=loss))
    kept = LabelCorrelation.load(run / "correlation.npz")
    assert kept.related(0) == [(1, 1.0)]  # and not 2, which only held-out videos have
    assert kept.related(2) == []
    assert (
        "label correlation: 2 relations of the training videos' labels" in capsys.readouterr().out
    )
    assert Run(run).config().loss == loss


def test_prior_of_the_correlation(tmp_path):
    lists = SimpleNamespace(num_classes=3, label_lists=lambda *_: [([0, 2, 3, 4], [0, 1, 0, 2])])
    found = train.label_correlation(LossConfig(threshold=0.0, prior=2.0), lists)
    assert found.related(1) == [(0, pytest.approx((1 + 2 * 2 / 3) / 3))]
    for given in (2.0, "fit"):
        Run(tmp_path).write_config(TrainConfig(loss=LossConfig(prior=given)))
        assert Run(tmp_path).config().loss.prior == given


def test_correlation_of_a_file(pairs_folder, tmp_path, capsys):
    path = tmp_path / "correlation.npz"
    offsets = torch.tensor([0, 1, 1, 1, 1])
    LabelCorrelation(offsets, torch.tensor([3]), torch.tensor([0.7])).save(path)
    loss = LossConfig(correlation=str(path))
    run = train.train(config(pairs_folder, tmp_path / "run", loss=loss))
    assert LabelCorrelation.load(run / "correlation.npz").related(0) == [(3, pytest.approx(0.7))]
    printed = capsys.readouterr().out
    assert f"label correlation: 1 relation of {path}" in printed
    assert "of the others" not in printed
    full = torch.tensor([n for row in range(4) for n in range(4) if n != row])
    LabelCorrelation(torch.arange(5) * 3, full, torch.full((12,), 0.75)).save(path)
    train.train(config(pairs_folder, tmp_path / "full", loss=loss))
    told = "where one class is, it expects 75% of the others; if segments have fewer, as they are"
    assert f"label correlation: {told}" in capsys.readouterr().out
    LabelCorrelation(torch.tensor([0, 0]), torch.zeros(0).long(), torch.zeros(0)).save(path)
    with pytest.raises(UserError, match="expected 4 classes, as the data has, found 1"):
        train.train(config(pairs_folder, tmp_path / "other", loss=loss))
    path.write_bytes(b"something else")
    with pytest.raises(DataError, match=r"correlation\.npz: expected"):
        train.train(config(pairs_folder, tmp_path / "other", loss=loss))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"--loss.correlation {path}: no such file"):
        train.train(config(pairs_folder, tmp_path / "other", loss=loss))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rated_weight": -1.0}, "rated_weight: expected at least 0, found -1.0"),
        ({"unrated_weight": float("nan")}, "unrated_weight: expected at least 0, found nan"),
        ({"threshold": 1.5}, r"threshold: expected a number in \[0, 1\], found 1.5"),
        ({"min_support": 0}, "min_support: expected at least 1, found 0"),
        ({"prior": -1.0}, "prior: expected at least 0, found -1.0"),
        ({"absent_evidence": -0.1}, r"absent_evidence: expected a number in \[0, 1\], found -0.1"),
    ],
)
def test_options_of_the_loss(options, text):
    with pytest.raises(ValueError, match=text):
        LossConfig(**options)


def test_bad_data_is_one_line(tmp_path, python):
    (tmp_path / "train0000.tfrecord").write_bytes(b"no records at all, but some text")
    done = python("-m", "pyseg.train", "--data", str(tmp_path))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("pyseg: error: ")
    assert "train0000.tfrecord" in last
    assert "Traceback" not in done.stderr


def test_evaluate_without_a_run(tmp_path):
    with pytest.raises(UserError, match=r"^\S+ is not a run folder: it has no config\.yaml$"):
        evaluate.main(["--run", str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "metric", "count", "number"),
    [("audioset", "map", "rated", 4010), ("yt8m", "gap", "examples", 1537)],
)
def test_trains_and_evaluates_on_real_data(shared, tmp_path, name, metric, count, number):
    run, data = str(tmp_path / "run"), str(shared / "data" / name)
    steps = ["--pretrain.steps", "5", "--finetune.steps", "5"]
    train.main(["--data", data, "--run", run, *steps, "--overrides", json.dumps(TINY)])
    evaluate.main(["--run", run, "--data", data])
    last, again = log_of(tmp_path / "run")[-2:]
    assert again[count] == number
    assert again[metric] == last[metric]
    assert 0 < again[metric] < 1


@pytest.mark.parametrize("correlation", ["none", "auto"])
def test_a_label_graph_starts_as_the_correlation_of_the_loss(pairs_folder, tmp_path, correlation):
    gcn = TINY | {"head": "gcn", "node_size": 4, "gcn_size": 4}
    nodes = np.arange(CLASSES * 3, dtype=np.float32).reshape(CLASSES, 3)
    np.save(tmp_path / "nodes.npy", nodes)
    options = {"node_features": str(tmp_path / "nodes.npy")}
    none = {stage: StageConfig(0, 1.0) for stage in QUICK}
    run = train.train(
        replace(
            config(pairs_folder, tmp_path / "run", loss=LossConfig(correlation=correlation)),
            overrides=gcn,
            **options,
            **none,
        )
    )
    head = models.load(run).head
    graph = torch.eye(CLASSES)
    if correlation == "auto":
        graph = graph + LabelCorrelation.load(run / "correlation.npz").dense()
        assert len(graph.nonzero()) > CLASSES
    torch.testing.assert_close(head.graph.weight.detach(), graph / graph.sum(1, keepdim=True))
    assert np.array_equal(head.nodes.detach().numpy(), nodes)


def test_node_features_of_the_training_videos(tmp_path, monkeypatch):
    """They and the correlation are of one count, from which the graph may take less."""
    frames = np.ones((6, 1152), np.uint8)
    lists = [[0, 1], [0, 1], [0, 2], [3]]
    records = [encode_frames(f"v{video:03d}", frames, lists[video % 4]) for video in range(40)]
    write_records(tmp_path / "train0000.tfrecord", records)
    write_vocabulary(tmp_path)
    counts = []
    count = CooccurrenceCounter.finish
    monkeypatch.setattr(
        CooccurrenceCounter, "finish", lambda self: (counts.append(count(self)), counts[-1])[1]
    )
    none = {stage: StageConfig(0, 1.0) for stage in QUICK}
    gcn = {"head": "gcn", "node_size": 3, "gcn_size": 4, "sparse_graph": True}
    loss = LossConfig(correlation="auto", threshold=0.0)
    options = {"node_features": "auto", "graph_threshold": 0.5, "loss": loss, **none}
    made = replace(config(tmp_path, tmp_path / "run", **options), overrides=TINY | gcn)
    head = models.load(train.train(made)).head
    assert len(counts) == 1
    assert torch.equal(head.nodes.detach(), embed_labels(counts[0], 3))
    assert len(head.graph.values) == 3 + CLASSES  # not that of label 2, given label 0
    more = replace(made, run=str(tmp_path / "more"), overrides=TINY | gcn | {"node_size": 9})
    head = models.load(train.train(more)).head
    assert head.nodes.shape == (CLASSES, CLASSES)  # there are no more dimensions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"--node_features auto: expected a model with a label graph .*, found nextvlad-small"),
        ({"head": "gcn", "node_size": 0}, r"--overrides\.node_size: expected at least 1, found 0"),
        ({"head": "gcn", "node_size": "a"}, r"--overrides\.node_size: .*found 'a'"),
    ],
)
def test_node_features_that_cannot_be(pairs_folder, tmp_path, changes, message):
    options = replace(config(pairs_folder, tmp_path / "run"), overrides=TINY | changes)
    with pytest.raises(UserError, match=message):
        train.train(replace(options, node_features="auto"))
    assert not (tmp_path / "run").exists()


def test_stages_apart_and_weights_of_another_run(segments_folder, tmp_path, capsys):
    first = train.train(config(segments_folder, tmp_path / "a", stage="pretrain"))
    assert [line["stage"] for line in log_of(first)] == ["pretrain", "evaluate"]
    assert not (first / "correlation.npz").exists()  # it would be unused
    none = StageConfig(0, 1.0)
    options = {"stage": "finetune", "init": str(first), "seed": 5}
    same = train.train(config(segments_folder, tmp_path / "b", finetune=none, **options))
    states = [models.load(run).state_dict() for run in (first, same)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    second = train.train(config(segments_folder, tmp_path / "c", **options))
    assert [line["stage"] for line in log_of(second)] == ["finetune", "evaluate"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"init": "nowhere"}, "--init nowhere: .*model.json: no such file"),
        ({"init": "run", "overrides": TINY | {"clusters": 6}}, r"--init .*run: .*expected shape"),
        ({"init": "run", "overrides": TINY | {"head": "moe"}}, r"--init .*run: head.*found"),
    ],
)
def test_weights_that_do_not_fit(segments_folder, tmp_path, options, message):
    none = {stage: StageConfig(0, 1.0) for stage in QUICK}
    run = train.train(config(segments_folder, tmp_path / "run", **none))
    if options["init"] == "run":
        options = options | {"init": str(run)}
    overrides = options.pop("overrides", TINY)
    other = replace(config(segments_folder, tmp_path / "other", **options), overrides=overrides)
    with pytest.raises(UserError, match=message):
        train.train(other)
    assert not (tmp_path / "other").exists()


def test_a_run_without_its_features_says_how_to_write_them(segments_folder, tmp_path, monkeypatch):
    """As runs of versions before features.json are."""
    none = {stage: StageConfig(0, 1.0) for stage in QUICK}
    run = Run(train.train(config(segments_folder, tmp_path / "a run's", **none)))
    content = run.features_file.read_bytes()
    run.features_file.unlink()
    with pytest.raises(UserError, match=r"features\.json: .* no such file: train again") as told:
        predict.main(["--run", str(run), "--out", str(tmp_path / "out.csv")])
    command = shlex.split(str(told.value).partition("from the same data: ")[2])
    assert command[:2] == ["python", "-c"]
    exec(command[2], {})
    assert run.features_file.read_bytes() == content
    run.config_file.unlink()
    run.features_file.unlink()
    with pytest.raises(UserError, match=r"or write a pyseg\.data\.FeatureSet there$"):
        run.features()


def test_fine_tuning_needs_rated_segments(videos_folder, tmp_path):
    with pytest.raises(UserError, match="--stage finetune: the data has no rated segments"):
        train.train(config(videos_folder, tmp_path / "run", stage="finetune"))


def test_recipes_are_defaults(segments_folder, tmp_path, capsys):
    """Given options override the recipe in any position; a run's options are read back equal."""
    arguments = ["--finetune.steps", "7", "--recipe", "paper", "--model", "nextvlad1"]
    with pytest.raises(SystemExit):
        train.main([*arguments, "--print_config"])
    printed = tmp_path / "config.yaml"
    printed.write_text(capsys.readouterr().out)
    found = _cli.read_config(make_parser(), TrainConfig, printed)
    assert (found.recipe, found.model, found.finetune.steps) == ("paper", "nextvlad1", 7)
    assert (found.pretrain.steps, found.pretrain.learning_rate) == (200_000, 2e-4)
    assert (found.finetune.learning_rate, found.finetune.noise) == (1e-5, 0.1)
    assert (found.pretrain.batch_size, found.finetune.batch_size) == (80, 80)
    assert (found.loss.rated_weight, found.loss.unrated_weight) == (2.5, 0.1)
    assert (found.loss.correlation, found.loss.threshold) == ("auto", 0.5)
    for options, model, solver in (
        ([], "ridge", "ridge"),  # the recipe's preset has defaults of its own
        (["--model", "mlp"], "mlp", "gradient"),
        (["--solver", "gradient"], "ridge", "gradient"),
    ):
        with pytest.raises(SystemExit):
            train.main(["--recipe", "best", *options, "--print_config"])
        printed.write_text(capsys.readouterr().out)
        found = _cli.read_config(make_parser(), TrainConfig, printed)
        assert (found.model, found.solver, found.loss.threshold) == (model, solver, 0.0)
        assert found == train.parse_options(["--recipe", "best", *options])
    with pytest.raises(UserError, match="--recipe papers: expected one of"):
        train.main(["--recipe", "papers"])


def test_a_preset_has_defaults(capsys, tmp_path):
    """Those of a recipe, and given ones, take precedence."""
    linear = TrainConfig(model="linear")
    assert (linear.finetune.learning_rate, linear.finetune.schedule) == (0.03, "cosine")
    assert (linear.pretrain.l2, linear.finetune.l2) == (1e-3, 0.02)
    assert TrainConfig().finetune.l2 == 0
    assert TrainConfig(model="linear", recipe="paper").finetune.l2 == 1e-5
    given = StageConfig(10, 0.5)
    assert TrainConfig(model="linear", finetune=given).finetune == given
    with pytest.raises(SystemExit):
        train.main(["--model", "linear", "--finetune.l2", "0.25", "--print_config"])
    printed = tmp_path / "config.yaml"
    printed.write_text(capsys.readouterr().out)
    found = _cli.read_config(make_parser(), TrainConfig, printed)
    assert (found.finetune.l2, found.finetune.learning_rate) == (0.25, 0.03)


def test_few_ratings_suggest_a_linear_model(segments_folder, tmp_path, capsys, monkeypatch):
    """The fixture has two ratings of one class in each of 40 videos."""
    rows = (
        ("mlp", 50, CLASSES + 1, "--model linear"),
        ("mlp", 50, CLASSES, "--recipe best"),
        ("mlp", 2, CLASSES, None),
        ("ridge", 50, CLASSES, None),
    )
    for number, (model, few, many, suggested) in enumerate(rows):
        monkeypatch.setattr(train, "FEW_RATINGS", few)
        monkeypatch.setattr(train, "MANY_CLASSES", many)
        written = config(segments_folder, tmp_path / str(number), model=model)
        written.overrides = {"hidden_size": 4} if model == "mlp" else {}
        train.train(written)
        line = f"ratings a class; with so few, {suggested} is often as good\n"
        printed = capsys.readouterr().out
        assert line in printed if suggested else "with so few" not in printed


def test_copies_are_trained_together(segments_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [f"--overrides.{key}={value}" for key, value in TINY.items()]
    steps = ["--pretrain.steps", "2", "--finetune.steps", "2"]
    name = ["--model", "nextvlad-small", "--copies", "3"]
    train.main(["--data", str(segments_folder), "--recipe", "best", *name, *options, *steps])
    assert "model: 3 x nextvlad-small, " in capsys.readouterr().out
    run = tmp_path / "runs/youtube8m-3xnextvlad-small-1"
    model = models.load(run)
    assert model.distillation == 9.0
    assert [branch.branches[0].clusters for branch in model.branches] == [TINY["clusters"]] * 3
    weights = [branch.hidden.weight for branch in model.branches]
    assert not torch.equal(weights[0], weights[1])
    assert Run(run).config().copies == 3
    with pytest.raises(ValueError, match="copies: expected at least 1, found 0"):
        TrainConfig(copies=0)
    mixture = config(segments_folder, tmp_path / "other", model="3nextvlad-same", copies=2)
    with pytest.raises(UserError, match="--copies 2: 3nextvlad-same is a mixture already, ex"):
        train.train(mixture)
