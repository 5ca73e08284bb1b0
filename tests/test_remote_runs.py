"""Commands with records at URLs."""

from __future__ import annotations

import functools
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from pyseg import _remote, _urls, calibrate, cooccur, evaluate, models, predict, report, train
from pyseg.calibrate.config import CalibrateConfig
from pyseg.config import StageConfig, TrainConfig, flat_options
from pyseg.data import (
    Feed,
    FrameDataset,
    Ratings,
    encode_frames,
    open_collection,
    read_records,
    write_records,
)
from pyseg.data import __main__ as data_command
from pyseg.data.importing import ImportConfig
from pyseg.errors import RecordError, UserError
from pyseg.evaluate import EvaluateConfig
from pyseg.predict import PredictConfig
from pyseg.rate.config import RateConfig
from pyseg.rate.sources import Records
from pyseg.report import ReportConfig
from pyseg.runs import Run
from pyseg.training import StageRun

QUICK = {
    "model": "linear",
    "pretrain": StageConfig(3, 1e-3, 4),
    "finetune": StageConfig(3, 1e-3, 4),
    "device": "cpu",
    "workers": 0,
}


def memory_fs() -> MemoryFileSystem:
    return fsspec.filesystem("memory")


@pytest.fixture
def memory(clips: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The collection of `clips` in memory."""
    monkeypatch.setattr(_remote, "_files", set())
    for path in clips.iterdir():
        memory_fs().pipe_file(f"/clips/{path.name}", path.read_bytes())
    yield "memory://clips"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def lines(run: Path) -> list[dict[str, object]]:
    """The log of a run, without the time that it took."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if "second" not in key and key != "data"}
        for line in found
    ]


def test_a_collection_is_that_of_the_folder(memory: str, clips: Path) -> None:
    local = open_collection(clips)
    for url in (memory, f"{memory}/", f"{memory}/*.tfrecord", f"{memory}/videos-00000.tfrecord"):
        found = open_collection(url)
        assert found.features == local.features
        assert found.class_names == local.class_names
        assert found.video_paths == (f"{memory}/videos-00000.tfrecord",)
        assert [example.id for example in found.segments("test")] == [
            example.id for example in local.segments("test")
        ]
    assert open_collection(clips, vocabulary=f"{memory}/vocabulary.csv").num_classes == 3


def test_a_long_series_is_searched_in_part(memory, clips, tmp_path, monkeypatch, caplog) -> None:
    """A local one always is in full, as that skips the frames."""
    schema = open_collection(clips).features.schema
    frames = np.zeros((24, 512), np.uint8)
    plain = encode_frames("w00", frames, [0], schema=schema)
    ratings = Ratings(np.array([0]), np.array([0]), np.ones(1, np.float32))
    rated = encode_frames("w01", frames, [0], ratings, schema)
    for name in ("features.json", "vocabulary.csv"):
        (tmp_path / name).write_bytes((clips / name).read_bytes())
    write_records(tmp_path / "a.tfrecord", [plain, rated])
    memory_fs().put(str(tmp_path), "/plain", recursive=True)
    monkeypatch.setattr(sys.modules["pyseg.data.formats"], "_SEARCHED", len(plain))
    for most in (len(plain) + 1, len(plain)):
        monkeypatch.setattr(sys.modules["pyseg.data.formats"], "_LOOKED_INTO", most)
        caplog.clear()
        assert open_collection("memory://plain").has_segments is (most > len(plain))
        assert open_collection(tmp_path).has_segments
        assert ("the rest was not searched" in caplog.text) is (most <= len(plain))
    monkeypatch.setattr(sys.modules["pyseg.data.formats"], "_SEARCHED", 2**30)
    assert open_collection("memory://plain").has_segments


def test_a_run_is_that_on_the_folder(memory, clips, tmp_path, monkeypatch) -> None:
    """Trains, evaluates, predicts, calibrates and counts, from the URL as from the folder."""
    monkeypatch.chdir(tmp_path)
    places = {"local": str(clips), "remote": memory}
    for name, data in places.items():
        train.train(TrainConfig(data, run=name, **QUICK))
        predict.cli.main(["--run", name, "--out", f"{name}.csv"])
        cooccur.main(["--data", data, "--out", f"{name}.npz"])
    evaluate.main(["--run", "local", "--part", "all"])
    evaluate.main(["--run", "remote", "--part", "all"])
    assert lines(tmp_path / "local") == lines(tmp_path / "remote")
    evaluate.main(["--run", "remote", "--submission", "remote.csv"])
    predict.cli.main(["--run", "remote", "--video", "v03", "--export", "remote.json"])
    calibrate.cli.main(["--run", "remote"])
    report.cli.main(["--run", "remote", "--out", "remote.html"])
    for suffix in ("csv", "npz"):
        first, second = (tmp_path / f"{name}.{suffix}" for name in places)
        assert first.read_bytes() == second.read_bytes(), suffix
    assert Run("remote").config().data == memory


def test_a_run_resumes_on_the_same_data_only(memory, clips, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    train.train(TrainConfig(memory, run="whole", **QUICK))

    def stop(self: StageRun) -> None:
        if self.stage.name == "finetune" and self.step == 2:
            self.save()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pyseg.training.StageRun._save_if_due", stop)
        with pytest.raises(KeyboardInterrupt):
            train.train(TrainConfig(memory, run="run", **QUICK))
    shard, data = f"{memory}/videos-00000.tfrecord", (clips / "videos-00000.tfrecord").read_bytes()
    write_records(tmp_path / "other", list(read_records(shard))[:-1])
    memory_fs().pipe_file(shard, (tmp_path / "other").read_bytes())
    with pytest.raises(
        UserError, match=r"shards: videos-00000.tfrecord: expected .* bytes, digest"
    ):
        train.train(TrainConfig(resume="run"))
    memory_fs().pipe_file(shard, data)
    train.train(TrainConfig(resume="run"))
    first, second = (models.load(folder).state_dict() for folder in ("whole", "run"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_collection_is_rated(memory, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    table = "video,start,end,class,score\nv00,0,3,Dog,1\nv00,0,3,Bird,1\n"
    (tmp_path / "ratings.csv").write_text(table)
    words = ["import", "--features", memory, "--ratings", "ratings.csv", "--out", "rated"]
    data_command.main(words)
    assert open_collection("rated").class_names == ["Dog", "Cat", "Car", "Bird"]


def test_questions_about_records(memory, clips) -> None:
    found, local = Records.read(memory), Records.read(str(clips))
    assert (found.ids, found.names, found.ratings) == (local.ids, local.names, local.ratings)


@pytest.fixture
def served(clips: Path) -> Iterator[str]:
    """Host and port of a server of `clips`."""
    handler = functools.partial(Quiet, directory=str(clips))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("scheme", ["file", "simplecache::file", "http"])
def test_workers_read_and_resume(clips, served, scheme, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(fsspec.config.conf, "simplecache", {"cache_storage": str(tmp_path)})
    place = f"{scheme}://{f'ann:pw@{served}' if scheme == 'http' else clips}"
    features = open_collection(clips).features

    def feed(data: str, state: object = None) -> Feed:
        options = {"shuffle": True, "repeat": True, "buffer": 5}
        dataset = FrameDataset(data, features.schema, **options)
        return Feed(dataset, 4, workers=2, state=state)  # type: ignore[arg-type]

    local, remote = feed(str(clips)), feed(place)
    for _ in range(5):
        assert next(local).ids == next(remote).ids
    assert next(feed(place, remote.state())).ids == next(local).ids


@pytest.mark.parametrize("option", ["run", "init", "resume"])
def test_a_run_is_local(option: str, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"run|init.* expected a local path, found .*URL"):
        train.main([f"--{option}", "s3://b/x"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (predict.cli.main, ["--run", "run", "--out"]),
        (predict.cli.main, ["--run", "run", "--video", "v", "--export"]),
        (cooccur.main, ["--data", "memory://b", "--out"]),
        (data_command.main, ["import", "--features", "f", "--ratings", "r", "--out"]),
    ],
)
def test_outputs_are_local(main, words, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{words[-1]} s3://b/x.csv: expected a local path"):
        main([*words, "s3://b/x.csv"])
    assert list(tmp_path.iterdir()) == []


def test_a_run_stores_no_secrets(served, tmp_path, monkeypatch, capsys) -> None:
    """Neither what is printed nor what is stored has the password."""
    monkeypatch.chdir(tmp_path)
    data = f"http://ann:hunter2@{served}/"
    quick = ["--model", "linear", "--stage", "pretrain", "--pretrain.steps", "2"]
    train.main(["--data", data, "--run", "run", *quick])
    again = "evaluate again: python -m pyseg.evaluate --run run --data URL; URL is http://***@"
    assert again in (printed := capsys.readouterr().out)
    evaluate.main(["--run", "run", "--data", data])
    with pytest.raises(UserError, match="expected a checkpoint, found none"):  # the same data
        train.main(["--resume", "run", "--data", data])
    monkeypatch.setattr(_urls, "_users", {})  # as in a process of its own
    monkeypatch.setattr(_urls, "_urls", {})
    with pytest.raises(UserError, match=r"found them hidden, .*: give the whole URL again"):
        evaluate.main(["--run", "run"])
    assert Run("run").config().data == f"http://***@{served}/"
    stored = b"".join(path.read_bytes() for path in Path("run").rglob("*") if path.is_file())
    assert b"hunter2" not in stored
    assert "hunter2" not in printed + "".join(capsys.readouterr())
    assert "hunter2" not in str(flat_options(TrainConfig(data)))


def test_a_signed_vocabulary_is_given_again(served, clips, tmp_path, monkeypatch, capsys) -> None:
    """Every command that opens the run's data takes it, and without it says so."""
    monkeypatch.chdir(tmp_path)
    name, signed = (f"http://{served}/vocabulary.csv?sig={sig}" for sig in ("***", "hunter2"))
    quick = ["--model", "linear", "--stage", "pretrain", "--pretrain.steps", "2"]
    train.main(["--data", str(clips), "--vocabulary", signed, "--run", "run", *quick])
    printed = capsys.readouterr().out
    again = f"pyseg.evaluate --run run --vocabulary URL; URL is {name} with its password"
    assert again in printed
    predict.cli.main(["--run", "run"])
    commands = [
        (evaluate.main, ["--run", "run"]),
        (evaluate.main, ["--run", "run", "--submission", "submission.csv"]),
        (calibrate.cli.main, ["--run", "run"]),
        (report.cli.main, ["--run", "run"]),
    ]
    for main, words in commands:
        for vocabulary in (signed, str(clips / "vocabulary.csv")):
            monkeypatch.setattr(_urls, "_urls", {})  # as in a process of its own
            main([*words, "--vocabulary", vocabulary])
    assert "again, with --vocabulary" not in Path("run/report.html").read_text()
    monkeypatch.setattr(_urls, "_urls", {})
    for main, words in commands[:-1]:
        with pytest.raises(UserError, match=r"\?sig=\*\*\*: .* again, with --vocabulary$"):
            main(words)
    report.cli.main(["--run", "run"])
    assert "again, with --vocabulary" in Path("run/report.html").read_text()
    predict.cli.main(["--run", "run", "--video", "v03"])
    assert "hunter2" not in printed + "".join(capsys.readouterr())


def test_a_follow_up_names_all_that_is_hidden(tmp_path) -> None:
    run = Run(tmp_path)
    urls = {name: f"https://ann:pw@host/{name}" for name in ("data", "labels", "vocabulary")}
    run.write_config(TrainConfig(**urls))
    hidden = ", then ".join(f"https://***@host/{name}" for name in urls)
    assert run.how_to_resume == (
        f"python -m pyseg.train --resume {run} --data URL --labels URL --vocabulary URL continues; "
        f"URL is {hidden} with its password or signature, which is not stored"
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_a_server_that_fails_during_training(workers, served, tmp_path, monkeypatch) -> None:
    """The error is one line, and says how to continue, as after Ctrl-C."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_remote, "_PAUSE", 0.0)
    monkeypatch.setattr(Quiet, "failing", failing := threading.Event())
    monkeypatch.setattr("pyseg.training.StageRun._save_if_due", lambda _: failing.set())
    options = {**QUICK, "pretrain": StageConfig(1000, 1e-3, 4), "workers": workers}
    with pytest.raises(RecordError) as raised:
        train.train(TrainConfig(f"http://ann:pw@{served}/", run="run", **options))
    assert str(raised.value) == (
        f"http://***@{served}/videos-00000.tfrecord: reading failed: the server {served} answered "
        "with the status 503 (Service Unavailable); python -m pyseg.train --resume run --data URL "
        f"continues; URL is http://***@{served}/ with its password or signature, which is not "
        "stored"
    )
    failing.clear()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    data = f"http://ann:pw@{served}/"
    train.main(["--resume", "run", "--data", data, "--pretrain.steps", "3"])
    assert not Run("run").is_unfinished


@pytest.mark.parametrize(
    "make",
    [
        TrainConfig,
        EvaluateConfig,
        functools.partial(PredictConfig, "run"),
        functools.partial(cooccur.CooccurConfig, "out"),
        functools.partial(RateConfig, out="out"),
        functools.partial(ReportConfig, ["run"]),
        functools.partial(CalibrateConfig, "run"),
        lambda data: ImportConfig(features=data, out="out"),
    ],
)
def test_options_have_no_secrets(make) -> None:
    assert "hunter2" not in str(make(data="https://ann:hunter2@host/a?sig=hunter2"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    failing: ClassVar[threading.Event] = threading.Event()

    def log_message(self, *_: object) -> None:
        pass

    def send_head(self) -> Any:
        if not self.failing.is_set():
            return super().send_head()
        self.send_error(503)
        return None
