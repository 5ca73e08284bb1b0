"""The training loop: stopping, being killed, resuming, schedules, averages, early stopping."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pyseg import models, train, training
from pyseg._files import sole_owner
from pyseg.checkpoint import list_checkpoints
from pyseg.config import LossConfig, StageConfig, TrainConfig
from pyseg.data import Batch, Example, Ratings, collate, encode_frames, write_records
from pyseg.errors import DataError, UserError
from pyseg.labels import LabelCorrelation
from pyseg.results import RatedResult
from pyseg.runs import Run, open_data

TINY = {"clusters": 4, "groups": 2, "hidden_size": 8, "reduction": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of 12 videos; every second one has two ratings."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for shard in range(3):
        records = []
        for number in range(12):
            frames = rng.integers(0, 256, (10, 1152), np.uint8)
            scores = rng.integers(0, 2, 2).astype(np.float32)
            ratings = Ratings(np.array([0, 5]), rng.integers(0, 4, 2), scores)
            labels = rng.choice(4, 2, replace=False)
            rated = ratings if number % 2 else None
            records.append(encode_frames(f"{shard}v{number}", frames, labels, rated))
        write_records(folder / f"validate{shard}.tfrecord", records)
    lines = ["Index,Name", *(f"{i},class {i}" for i in range(4))]
    (folder / "vocabulary.csv").write_text("\n".join(lines))
    return folder


STAGES = {
    "pretrain": StageConfig(7, 1e-2, 6, noise=0.1, clip_norm=1.0),
    "finetune": StageConfig(
        9, 1e-2, 5, schedule="cosine", warmup_steps=2, ema=0.7, evaluate_every=4, noise=0.1
    ),
}


def config(data: Path, run: Path, **changes) -> TrainConfig:
    options = {"overrides": TINY | {"dropout": 0.2}, "checkpoint_steps": 2, **STAGES, **changes}
    options.setdefault("loss", LossConfig(absent_evidence=0.5))
    return TrainConfig(data=str(data), run=str(run), **options)


def log_of(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "examples_per_second"} for line in lines]


def assert_same_run(run: Path, other: Path) -> None:
    left, right = (models.load(folder).state_dict() for folder in (run, other))
    for key, value in left.items():
        assert torch.equal(value, right[key]), key
    assert log_of(run) == log_of(other)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    return train.train(config(data, tmp_path_factory.mktemp("runs") / "whole"))


def test_nothing_is_left_of_checkpoints(whole: Path) -> None:
    assert not Run(whole).checkpoints_folder.exists()
    with pytest.raises(UserError) as refused:
        train.main(["--resume", str(whole)])
    assert str(refused.value) == (
        f"--resume {whole}: expected a checkpoint, found none: its training has ended, or they "
        f"were removed; python -m pyseg.evaluate --run {whole} evaluates it; python -m "
        f"pyseg.train --config {whole}/config.yaml with --run NEW_FOLDER and more "
        "--pretrain.steps or --finetune.steps trains longer, from the start"
    )


def test_a_run_that_failed_at_its_start(whole: Path, tmp_path: Path) -> None:
    failed = Path(shutil.copytree(whole, tmp_path / "failed"))
    (failed / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"failed before the first one: delete the folder, and"):
        train.main(["--resume", str(failed)])


def test_requests_to_stop_and_resuming(
    data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, ctrl_c: None
) -> None:
    """Stops at every third step, in both stages, with a worker that has read ahead."""
    run = tmp_path / "run"
    step = training.StageRun._take_step
    taken = []

    def optimise(self, batch):
        taken.append((self.stage.name, self.step))
        if len(taken) % 3 == 0:
            os.kill(os.getpid(), signal.SIGTERM if len(taken) % 2 else signal.SIGINT)
        return step(self, batch)

    monkeypatch.setattr(training.StageRun, "_take_step", optimise)
    with pytest.raises(KeyboardInterrupt):
        train.train(config(data, run, workers=1))  # reads the same as none, but ahead
    printed = capsys.readouterr().out
    assert f"stopped at pretrain, step 3: python -m pyseg.train --resume {run} continues" in printed
    for _ in range(20):
        try:
            train.main(["--resume", str(run)])
            break
        except KeyboardInterrupt:
            assert list_checkpoints(Run(run).checkpoints_folder)
    assert "continuing from finetune, step 8" in capsys.readouterr().out
    assert taken == [("pretrain", n) for n in range(7)] + [("finetune", n) for n in range(9)]
    assert_same_run(run, whole)


DRIVER = """
    import os, signal, sys, torch
    sys.stdout.reconfigure(line_buffering=True)  # a killed child loses its buffered output
    from pathlib import Path
    from pyseg import _files, checkpoint, train, training
    sys.path.insert(0, {tests!r})
    from test_training import config

    torch.set_num_threads(1)

    def in_child(function):
        pid = os.fork()
        if pid == 0:
            function()
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def kill(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def run_to(place, count):
        '''Trains, and is killed at a step, or in the middle of writing a checkpoint.'''
        seen = []
        if place == "step":
            plain = training.StageRun._take_step
            def optimise(self, batch):
                seen.append(1)
                return kill() if len(seen) == count else plain(self, batch)
            training.StageRun._take_step = optimise
        else:
            plain = checkpoint.atomic_write
            def written(path):
                seen.append(1)
                if len(seen) == count:
                    os.fsync = kill  # what was written lies there, under another name
                return plain(path)
            checkpoint.atomic_write = written
        run = Path(sys.argv[2])
        if run.exists():
            train.main(["--resume", str(run)])
        else:
            train.train(config(Path(sys.argv[1]), run))

    # The whole run imports and compiles once what all children need.
    train.train(config(Path(sys.argv[1]), Path(sys.argv[3])))
    for place, count in [("step", 4), ("write", 3), ("step", 2), ("write", 2), ("step", 5)]:
        code = in_child(lambda: run_to(place, count))
        assert code == -signal.SIGKILL, code
        print("killed at", place, count, flush=True)
    assert in_child(lambda: run_to("step", 10**9)) == 0
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_killed_runs_end_with_the_same_weights(data: Path, tmp_path: Path, python) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    source = textwrap.dedent(DRIVER).format(tests=str(Path(__file__).parent))
    done = python("-c", source, str(data), str(run), str(whole))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("killed at") == 5
    assert "continuing from finetune" in done.stdout
    # Leftovers of a killed write are removed with the folder.
    assert not Run(run).checkpoints_folder.exists()
    assert_same_run(run, whole)


GROUP = """
    import os, subprocess, sys, time, torch
    from pathlib import Path
    from pyseg import _cli, evaluate, train, training
    from pyseg.data.loading import _Loader
    sys.path.insert(0, {tests!r})
    from test_training import config, living

    torch.set_num_threads(1)
    data, runs = Path(sys.argv[1]), Path(sys.argv[2])

    def end_group():
        assert len(living(os.getpid())) > 1, "no worker to end"
        subprocess.run(["kill", "-TERM", "--", f"-{{os.getpid()}}"])  # workers obey their parent
        time.sleep(0.5)  # so that the end of a worker is noticed

    def train_with(workers):
        plain = training.StageRun._take_step
        def step(self, batch):
            if self.step == 3:
                end_group()
            return plain(self, batch)
        training.StageRun._take_step = step
        train.train(config(data, runs / str(workers), workers=workers, checkpoint_steps=100))

    def evaluate_with(workers):
        plain = _Loader.__iter__
        def batches(self):
            for batch in plain(self):
                end_group()
                yield batch
        _Loader.__iter__ = batches
        evaluate.main(["--run", sys.argv[3], "--workers", str(workers), "--device", "cpu"])

    for function, workers in [(train_with, 1), (train_with, 2), (evaluate_with, 1)]:
        group = os.fork()
        if group == 0:
            os.setpgid(0, 0)
            _cli.run(lambda: function(workers))
            sys.exit(0)
        status = os.waitpid(group, 0)[1]
        until = time.monotonic() + 20
        while living(group) and time.monotonic() < until:
            time.sleep(0.1)
        code, left = os.waitstatus_to_exitcode(status), living(group)
        print(f"{{function.__name__}} {{workers}}: {{code}}, {{len(left)}} left", flush=True)
"""


def living(group: int) -> list[int]:
    """Returns the processes of a group that have not ended."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, _, its_group = file.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(file.parent.name))
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="/proc lists the processes")
def test_workers_outlive_a_request_to_stop_of_all_processes(
    data: Path, whole: Path, tmp_path: Path, python
) -> None:
    """As of ``timeout`` and batch systems; where nobody handles it, all end at once."""
    source = textwrap.dedent(GROUP).format(tests=str(Path(__file__).parent))
    done = python("-c", source, str(data), str(tmp_path), str(whole))
    assert done.returncode == 0, done.stdout + done.stderr
    ends = re.findall(r"^(\w+_with.*)$", done.stdout, re.M)
    expected = ["train_with 1: 143, 0 left", "train_with 2: 143, 0 left"]
    assert ends == [*expected, "evaluate_with 1: -15, 0 left"], done.stdout + done.stderr
    for workers in ("1", "2"):
        stopped = (
            f"stopped at pretrain, step 4: python -m pyseg.train --resume {tmp_path}/{workers} "
        )
        assert stopped in done.stdout
        names = [path.name for path in list_checkpoints(Run(tmp_path / workers).checkpoints_folder)]
        assert "checkpoint-000000004.pt" in names


def test_checkpoints_hold_everything(data: Path, tmp_path: Path, monkeypatch) -> None:
    kept = []
    save = training.trainer.save_checkpoint

    def saved(folder, number, state, *, keep):
        path = save(folder, number, state, keep=keep)
        kept.append((number, [p.name for p in list_checkpoints(folder)]))
        return path

    monkeypatch.setattr("pyseg.training.trainer.save_checkpoint", saved)
    train.train(config(data, tmp_path / "run", keep_checkpoints=3, checkpoint_steps=3))
    assert [number for number, _ in kept] == [0, 3, 6, 7, 10, 13]
    assert all(len(names) <= 3 for _, names in kept)
    assert kept[-1][1] == [f"checkpoint-{n:09d}.pt" for n in (7, 10, 13)]


def stop_at(stage: str, step: int, data: Path, run: Path) -> Path:
    optimise = training.StageRun._take_step

    def interrupted(self, batch):
        if (self.stage.name, self.step) == (stage, step):
            raise KeyboardInterrupt
        return optimise(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.StageRun, "_take_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.train(config(data, run))
    return run


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stops at the fifth step of pretraining, with the checkpoints of steps 2 and 4."""
    return stop_at("pretrain", 4, data, tmp_path_factory.mktemp("runs") / "stopped")


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 16
    path.write_bytes(content)


def content_of(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_damaged_checkpoint_gives_way_to_the_one_before(copy: Path, whole: Path, capsys) -> None:
    first, last = list_checkpoints(Run(copy).checkpoints_folder)
    flip(last)
    train.main(["--resume", str(copy)])
    [message] = (line for line in capsys.readouterr().out.splitlines() if "used instead" in line)
    assert f"{last}: expected a checkpoint of pyseg, found a damaged one" in message
    assert message.endswith(f"; {first.name} is used instead")
    assert_same_run(copy, whole)


def test_a_missing_log_is_reported(data: Path, tmp_path: Path, capsys) -> None:
    run = stop_at("finetune", 2, data, tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    capsys.readouterr()
    train.main(["--resume", str(run)])
    message = f"{run}/metrics.jsonl: lines of the steps before are missing\n"
    assert capsys.readouterr().out.count(message) == 1


def test_all_checkpoints_are_damaged(copy: Path) -> None:
    for path in list_checkpoints(Run(copy).checkpoints_folder):
        flip(path)
    before = content_of(copy)
    with pytest.raises(DataError, match=r"checkpoint-000000004\.pt: .* all before it are damaged"):
        train.main(["--resume", str(copy)])
    assert content_of(copy) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seed", "9"], "--resume .*: --seed 9: expected 0, as the run has"),
        (["--data", "no/such"], "--data no/such: expected .*, as the run has"),
        (["--finetune.learning_rate=0.5"], "--finetune.learning_rate 0.5: expected 0.01, as"),
        (["--overrides.hidden_size=16"], "--overrides.hidden_size 16: expected 8, as the run has"),
        (["--overrides.expansion=1"], "--overrides.expansion 1: expected none, as the run has"),
        (["--pretrain.steps", "4"], "--pretrain.steps 4: expected more than the 4 steps that"),
    ],
)
def test_options_that_a_run_cannot_change(copy: Path, options: list[str], message: str) -> None:
    before = content_of(copy)
    with pytest.raises(UserError, match=message):
        train.main(["--resume", str(copy), *options])
    assert content_of(copy) == before


def test_an_edited_seed_is_noticed(copy: Path) -> None:
    path = copy / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("\nseed: 0\n", "\nseed: 1\n"))
    assert path.read_text() != text
    with pytest.raises(UserError, match=r"config\.yaml: seed 1: expected 0, as the run has"):
        train.main(["--resume", str(copy)])


def test_options_that_a_run_can_change(copy: Path, whole: Path, tmp_path: Path, capsys) -> None:
    """More steps, other intervals, and a copy of the run to resume in."""
    before, other = content_of(copy), tmp_path / "other"
    options = ["--run", str(other), "--finetune.steps", "11", "--checkpoint-steps", "50"]
    train.main(["--resume", str(copy), "--seed", "0", *options])
    printed = capsys.readouterr().out
    assert "--finetune.steps 11, 9 before\n" in printed
    assert "--checkpoint_steps 50, 2 before\n" in printed
    assert "finetune: 11 steps of 5" in printed
    assert content_of(copy) == before
    kept = Run(other).config()
    assert (kept.run, kept.resume) == (str(other), None)
    assert (kept.finetune.steps, kept.checkpoint_steps) == (11, 50)
    assert log_of(other)[:2] == log_of(whole)[:2]  # pretraining is what it was
    assert not Run(other).checkpoints_folder.exists()
    assert not list(other.glob(".*"))


@pytest.mark.parametrize("change", ["record", "names", "correlation"])
def test_other_data_are_noticed(
    copy: Path, data: Path, tmp_path: Path, monkeypatch, change: str
) -> None:
    other = Path(shutil.copytree(data, tmp_path / "data"))
    config = replace(Run(copy).config(), data=str(other))
    message = "the data of pretrain: shards: validate1.tfrecord: expected .* bytes, .*, found "
    if change == "record":
        shutil.copy(other / "validate2.tfrecord", other / "validate1.tfrecord")
    elif change == "names":
        table = other / "vocabulary.csv"
        table.write_text(table.read_text().replace("class 2", "class two"))
        message = "the model's class_names: expected .*, as the run has"
    else:
        monkeypatch.setattr("pyseg.train._stages.label_correlation", lambda *_: None)
        message = "the data of finetune: correlation: expected .*, as the run had, found none"
    collection = open_data(config)
    with pytest.raises(UserError, match=message):
        train.train(TrainConfig(resume=str(copy)), collection)


def test_another_number_of_threads_is_reported(copy: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(training.StageRun, "_take_step", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.main(["--resume", str(copy), "--workers", "1"])
    printed = capsys.readouterr().out
    assert re.search(r"(?m)^threads: 64, \d+ before: the weights will not be, to the", printed)
    assert "workers: 1, 0 before: the weights will not be, to the bit" in printed


def test_one_process_at_a_time(copy: Path) -> None:
    reader, writer = os.pipe()
    owner = os.fork()
    if owner == 0:
        try:
            with sole_owner(copy):
                os.write(writer, b"owned")
                signal.pause()
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 5) == b"owned"
        before = content_of(copy)
        with pytest.raises(UserError, match=f"at work there .process {owner} on .*; nothing"):
            train.main(["--resume", str(copy)])
    finally:
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        os.close(reader)
    assert content_of(copy) == before
    assert (copy / ".lock").exists()  # but not held
    with sole_owner(copy):
        pass
    assert not (copy / ".lock").exists()


def test_a_worker_that_is_killed(copy: Path, monkeypatch) -> None:
    step = training.StageRun._take_step

    def optimise(self, batch):
        for child in multiprocessing.active_children():
            child.kill()
        return step(self, batch)

    monkeypatch.setattr(training.StageRun, "_take_step", optimise)
    again = f"python -m pyseg.train --resume {copy} continues"
    with pytest.raises(UserError, match=f"a process that reads the data .*; {again}"):
        train.main(["--resume", str(copy), "--workers", "1", "--pretrain.steps", "1000"])


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_learning_rates() -> None:
    step = StageConfig(10, 2.0, 8, schedule="step", decay=0.5, decay_examples=20)
    assert [step.learning_rate_at(n) for n in (0, 2, 3, 5, 8)] == [2, 2, 1, 0.5, 0.25]
    cosine = StageConfig(12, 1.0, schedule="cosine", warmup_steps=2)
    rates = [cosine.learning_rate_at(n) for n in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))
    assert StageConfig(5, 3.0).learning_rate_at(4) == 3.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema": 1.0}, r"ema: expected a number in \[0, 1\), found 1.0"),
        ({"patience": 2}, "patience: expected evaluate_every with it"),
        ({"clip_norm": 0.0}, "clip_norm: expected above 0, found 0.0"),
        ({"warmup_steps": -1}, "warmup_steps: expected at least 0, found -1"),
        ({"noise": float("nan")}, "noise: expected at least 0.0, found nan"),
        ({"learning_rate": float("inf")}, "learning_rate: expected above 0, found inf"),
    ],
)
def test_options_out_of_range(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StageConfig(**{"steps": 1, "learning_rate": 1.0} | options)


def test_the_best_weights_are_kept(data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Evaluations give 0.5, 0.7, 0.6, 0.6: training stops, and the second one's weights stay."""
    values = iter([0.1, 0.5, 0.7, 0.6, 0.6, 0.9])
    seen = {}

    def evaluate(model, *_, **__):
        value = next(values)
        seen[value] = {k: v.clone() for k, v in model.state_dict().items()}
        return RatedResult(value, 0.0, classes=1, all_classes=1, rated=1, positives=1)

    monkeypatch.setattr(train, "evaluate", evaluate)
    stage = StageConfig(30, 1e-2, 5, evaluate_every=2, patience=2)
    run = train.train(config(data, tmp_path / "run", finetune=stage))
    printed = capsys.readouterr().out
    assert "finetune: stopped early, at step 8" in printed
    assert "after finetune: the weights of step 4 are kept" in printed
    state = models.load(run).state_dict()
    assert all(torch.equal(state[key], value) for key, value in seen[0.7].items())


def test_a_final_fit_on_everything(data: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """From the weights before fine-tuning, for the best number of steps; resumes like any stage."""
    values = iter([0.1, 0.5, 0.7, 0.6, 0.6])
    before, seen = {}, []

    def evaluate(model, *_, **__):
        value = next(values)
        if value == 0.1:
            before.update({k: v.clone() for k, v in model.state_dict().items()})
        return RatedResult(value, 0.0, classes=1, all_classes=1, rated=1, positives=1)

    monkeypatch.setattr(train, "evaluate", evaluate)
    optimise = training.StageRun._take_step

    def recorded(self, batch):
        if self.stage.name == "finetune" and self.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.stage.name == "final":
            if self.step == 0:
                state = self.model.state_dict()
                assert all(torch.equal(state[key], value) for key, value in before.items())
            seen.extend(id.partition(":")[0] for id in batch.ids)
            if self.step == 2 and len(seen) == 15:
                os.kill(os.getpid(), signal.SIGTERM)
        return optimise(self, batch)

    monkeypatch.setattr(training.StageRun, "_take_step", recorded)
    stage = StageConfig(30, 1e-2, 5, evaluate_every=2, patience=2)
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train.train(config(data, run, finetune=stage, final_fit=True))
    with pytest.raises(KeyboardInterrupt):
        train.main(["--resume", str(run)])
    train.main(["--resume", str(run)])
    printed = capsys.readouterr().out
    assert "continuing from finetune, step 2" in printed
    assert "after finetune: the weights of step 4 are kept" in printed
    assert "continuing from final, step 3" in printed
    assert "final: 4 steps of 5" in printed
    assert len(seen) == 20
    state, start = models.load(run).state_dict(), models.load(Run(run).pretrained_folder)
    assert all(torch.equal(start.state_dict()[key], value) for key, value in before.items())
    assert not torch.equal(state["head.linear.weight"], before["head.linear.weight"])
    assert log_of(run)[-1]["stage"] == "final"
    with pytest.raises(ValueError, match="final_fit: expected fine-tuning with it, found none"):
        config(data, run, stage="pretrain", final_fit=True)


def test_average_of_weights(data: Path, tmp_path: Path, monkeypatch) -> None:
    """What is saved is the exponential moving average; batch norm's statistics are the latest."""
    steps = []
    optimise = training.StageRun._take_step

    def recorded(self, batch):
        loss = optimise(self, batch)
        steps.append({k: v.detach().clone() for k, v in self.model.state_dict().items()})
        return loss

    monkeypatch.setattr(training.StageRun, "_take_step", recorded)
    stages = {"pretrain": StageConfig(4, 1e-2, 6, ema=0.5), "finetune": StageConfig(0, 1.0)}
    run = train.train(config(data, tmp_path / "run", **stages))
    state = models.load(run).state_dict()
    key = "head.linear.weight"
    average = steps[0][key]
    for step in steps[1:]:
        average = 0.5 * average + 0.5 * step[key]
    torch.testing.assert_close(state[key], average)
    assert torch.equal(state["hidden_norm.running_mean"], steps[-1]["hidden_norm.running_mean"])


def test_losses_that_are_not_finite_are_skipped(
    data: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    count = iter(range(10**6))

    def loss_of(self, *arguments):
        loss = plain(self, *arguments)
        return loss * float("nan") if next(count) in (2, 3) else loss

    plain = training.Step.forward
    monkeypatch.setattr(training.Step, "forward", loss_of)
    options = {"pretrain": StageConfig(6, 1e-2, 6), "finetune": StageConfig(0, 1.0)}
    run = train.train(config(data, tmp_path / "run", on_nan="skip", **options))
    assert "pretrain: 2 batches skipped" in capsys.readouterr().out
    skipped = [line for line in log_of(run) if line.get("skipped")]
    assert [line["step"] for line in skipped] == [3, 4]
    assert all(len(line["ids"]) == 5 for line in skipped)
    assert all(v.isfinite().all() for v in models.load(run).state_dict().values())


def test_weights_of_a_failed_step_are_never_saved(data: Path, tmp_path: Path, monkeypatch) -> None:
    """Steps 1 to 3 are good, the fourth is not; a checkpoint every second step."""
    count = iter(range(10**6))

    def loss_of(self, *arguments):
        loss = plain(self, *arguments)
        return loss * float("nan") if next(count) == 3 else loss

    plain = training.Step.forward
    monkeypatch.setattr(training.Step, "forward", loss_of)
    with pytest.raises(UserError, match="pretrain: the loss is nan at step 4, for the examples"):
        train.train(config(data, tmp_path / "run"))
    kept = list_checkpoints(Run(tmp_path / "run").checkpoints_folder)
    assert [path.stem[-1] for path in kept] == ["0", "2"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision(data: Path, tmp_path: Path, precision: str) -> None:
    run = train.train(config(data, tmp_path / "run", precision=precision))
    state = models.load(run).state_dict()
    assert all(v.isfinite().all() and v.dtype == torch.float32 for v in state.values())


def test_noise_is_that_of_the_stage(data: Path, tmp_path: Path, monkeypatch) -> None:
    sigmas = []
    optimise = training.StageRun._take_step

    def recorded(self, batch):
        sigmas.append((self.stage.name, self.model.noise.sigma))
        return optimise(self, batch)

    monkeypatch.setattr(training.StageRun, "_take_step", recorded)
    stages = {"pretrain": StageConfig(2, 1e-3, 6), "finetune": StageConfig(1, 1e-3, 6, noise=0.3)}
    train.train(config(data, tmp_path / "run", **stages))
    assert sigmas == [("pretrain", 0.0)] * 2 + [("finetune", 0.3)]


@pytest.mark.parametrize(("seconds", "asked"), [(0.001, [1, 11, 21]), (0.4, [1, 3, 5, 7, 9, 11])])
def test_processes_ask_each_other_once_a_second(monkeypatch, seconds: float, asked: list) -> None:
    """And at least every ten steps, as a launcher does not wait long for them to stop."""
    found: list[int] = []
    options = TrainConfig()
    trainer = SimpleNamespace(config=options)
    stage = SimpleNamespace(trainer=trainer, saved_at=time.monotonic(), stopped=lambda: False)
    stage.next_check = 0

    def any_of(*flags: bool) -> tuple[bool, ...]:
        found.append(stage.step)
        return flags

    distributed = training.stages.distributed
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "from_first", lambda value: value)
    monkeypatch.setattr(distributed, "any_of", any_of)
    for step in range(1, asked[-1] + 2):
        stage.step, stage.seconds = step, step * seconds
        training.StageRun._save_if_due(stage)
    assert found == asked


class FailureError(Exception):
    pass


def test_numbers_for_tensorboard(data: Path, tmp_path: Path, monkeypatch) -> None:
    """Those of metrics.jsonl, over the steps of all stages, without repeats after a failure."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard"
    )
    monkeypatch.setattr("pyseg.training.stages.LOG_EVERY", 2)
    optimise = training.StageRun._take_step

    def fail(self, batch):  # after step 6 was logged, with step 5 as the last checkpoint
        if self.stage.name == "finetune" and self.step == 6:
            raise FailureError
        return optimise(self, batch)

    run = tmp_path / "run"
    repeated = []

    @training.register_tracker("recorded")
    class Recorded:
        def start(self, folder: Path, options: dict) -> None:
            repeated.append((folder, options["finetune.steps"]))

        def log(self, stage: str, step: int, values: dict) -> None:
            repeated.append((stage, step, sorted(values)))

        def finish(self) -> None:
            repeated.append("finished")

    options = config(data, run, checkpoint_steps=5, tensorboard=True, tracker=["recorded"])
    monkeypatch.setattr(training.StageRun, "_take_step", fail)
    with pytest.raises(FailureError):
        train.train(options)
    monkeypatch.setattr(training.StageRun, "_take_step", optimise)
    train.main(["--resume", str(run)])
    expected: dict[str, dict[int, float]] = {}
    before = {"pretrain": 0, "finetune": STAGES["pretrain"].steps}
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        step = before[line.get("after", line["stage"])] + line["step"]
        for name in line.keys() - {"stage", "step", "after"}:
            expected.setdefault(f"{line['stage']}/{name}", {})[step] = line[name]
    assert list(expected["finetune/learning_rate"]) == [9, 11, 13, 15, 16]
    assert list(expected["evaluate/map"]) == [7, 11, 15, 16]
    assert repeated.count((run, STAGES["finetune"].steps)) == repeated.count("finished") == 2
    assert repeated[-1] == "finished"
    names = ["examples_per_second", "learning_rate", "loss"]
    assert repeated.count(("finetune", 13, names)) == 2  # step 6, logged before the failure too
    assert repeated.count(("finetune", 11, names)) == 1
    events = accumulator.EventAccumulator(str(Run(run).tensorboard_folder)).Reload()
    assert set(events.Tags()["scalars"]) == set(expected)
    for tag, values in expected.items():
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert found == [(step, pytest.approx(value)) for step, value in values.items()], tag


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("pyseg.distributed.is_first", lambda: False)
    log = training.Log(Run(tmp_path), [training.make_tracker("tensorboard")])
    log.write("pretrain", step=1, loss=0.5)
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_missing_tensorboard_is_reported_at_the_start(
    data: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"--tracker tensorboard needs .*pip .*\[tensorboard\]'"):
        train.train(config(data, tmp_path / "run", tensorboard=True))
    assert list(tmp_path.iterdir()) == []


def ratings(loss: training.Loss, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    return loss(logits, batch.offsets, batch.classes, batch.scores)


def test_loss_is_summed_over_classes_and_averaged_over_the_batch():
    # The reference's learning rates belong to a sum over the classes.
    frames = np.zeros((1, 2), np.uint8)
    examples = [
        Example("a", frames, np.array([0, 2]), np.array([1.0, 0.0], np.float32)),
        Example("b", frames, np.array([1]), np.array([1.0], np.float32)),
    ]
    logits = torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.0, -3.0]], dtype=torch.float64)
    targets = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    p = logits.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).sum() / 2
    torch.testing.assert_close(ratings(training.Loss(), logits, collate(examples)), expected)


def test_loss_has_the_papers_weights_and_targets():
    frames = np.zeros((1, 2), np.uint8)
    batch = collate(
        [
            Example("a", frames, np.array([0]), np.array([1.0], np.float32)),
            Example("b", frames, np.array([2]), np.array([0.0], np.float32)),
        ]
    )
    correlation = LabelCorrelation(torch.tensor([0, 1, 1, 1]), torch.tensor([1]), torch.ones(1))
    logits = torch.zeros(2, 3, requires_grad=True)
    ratings(training.Loss(2.5, 0.1, correlation), logits, batch).backward()
    expected = torch.tensor([[-1.25, -0.05, 0.05], [0.05, 0.05, 1.25]]) / 2
    torch.testing.assert_close(logits.grad, expected)
