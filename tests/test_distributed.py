"""Runs of several processes through torchrun: the same numbers as one, stops, and lost processes.

A process takes seconds to import torch, so all are forked from one (`launch_all`), and one run
serves many checks: functions of this file that the processes call, with assertions of their own.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pyseg import _cli, cooccur, distributed, evaluate, metrics, models, predict, train, training
from pyseg.config import StageConfig, TrainConfig
from pyseg.data import Ratings, encode_frames, held_out, write_records
from pyseg.errors import UserError
from pyseg.metrics import (
    GlobalAveragePrecisionAtK,
    HitAt1,
    MeanAveragePrecisionAtK,
    PrecisionAtEqualRecallRate,
    map_at_k_dense,
)
from pyseg.nn import BatchNorm
from pyseg.ops import soft_assign
from pyseg.runs import Run

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="torch without gloo",
)

SHARDS = (12, 12, 7, 14)  # videos in each; one process has two
NAMES = [f"{shard}v{number}" for shard, videos in enumerate(SHARDS) for number in range(videos)]
TINY = {"clusters": 4, "groups": 2, "hidden_size": 8, "reduction": 2}
PASSED = "all checks are made"
NONE = StageConfig(0, 1.0, 6)
COUNTED = ["--num_classes", "4", "--threshold", "0.1"]
CACHED = {
    "overrides": TINY | {"dropout": 0.0},
    "pretrain": NONE,
    "finetune": StageConfig(12, 1e-3, 6, evaluate_every=4),
}
RIDGE = {"recipe": "best", "pretrain": StageConfig(1, 1.0, 6), "finetune": StageConfig(1, 1.0, 6)}
NOISY = {
    "overrides": TINY | {"dropout": 0.2},
    "pretrain": StageConfig(6, 1e-2, 6, noise=0.1, clip_norm=1.0),
    "finetune": StageConfig(9, 1e-2, 6, ema=0.7, noise=0.1, evaluate_every=4),
}


def make_data(folder: Path) -> Path:
    """Four shards of videos with two ratings each."""
    rng = np.random.default_rng(0)
    for shard, videos in enumerate(SHARDS):
        records = []
        for number in range(videos):
            frames = rng.integers(0, 256, (10, 1152), np.uint8)
            scores = rng.integers(0, 2, 2).astype(np.float32)
            ratings = Ratings(np.array([0, 5]), rng.integers(0, 4, 2), scores)
            labels = rng.choice(4, 2, replace=False)
            records.append(encode_frames(f"{shard}v{number}", frames, labels, ratings))
        write_records(folder / f"validate{shard}.tfrecord", records)
    lines = ["Index,Name", *(f"{i},class {i}" for i in range(4))]
    (folder / "vocabulary.csv").write_text("\n".join(lines))
    return folder


def config(data: Path, run: Path, **changes) -> TrainConfig:
    return TrainConfig(data=str(data), run=str(run), device="cpu", **changes)


def log_of(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "examples_per_second"} for line in lines]


class Done(NamedTuple):
    code: int
    out: str
    err: str


LAUNCHED = {"all_checks": 3, "go_on": 3, "fail_in_one": 2, "kill_one": 2}
"""How many processes call which function of this file."""


def launch_all(data: Path, runs: Path) -> None:
    """Launches each of `LAUNCHED` as torchrun does, but with forked processes.

    A run of one process, which serves for comparison, first imports and compiles everything that
    they need. Each agent of torchrun has its own process. Outputs and the agents' exit statuses
    are files in the folder of runs.
    """
    sys.stdout.reconfigure(line_buffering=True)  # no fork prints it again
    train_in_float64(config(data, runs / "one", **CACHED))
    train.train(config(data, runs / "one-ridge", **RIDGE))
    check_metrics()
    for name, processes in LAUNCHED.items():
        agent = os.fork()
        if agent == 0:
            for stream, descriptor in (("out", 1), ("err", 2)):
                os.dup2(os.open(runs / f"{name}.{stream}", os.O_CREAT | os.O_WRONLY), descriptor)
            launch(name, processes, data, runs)
            sys.stdout.flush()
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(agent, 0)[1])
        (runs / f"{name}.code").write_text(str(status))


def launch(name: str, processes: int, data: Path, runs: Path) -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=name,
        max_restarts=0,
        start_method="fork",
    )
    forked = multiprocessing.get_context("fork").Barrier(processes)
    with contextlib.suppress(ChildFailedError):
        elastic_launch(config, _cli.run)(functools.partial(call, forked, name, data, runs))
        return
    sys.exit(1)


def call(forked: Any, name: str, data: Path, runs: Path) -> None:
    """Calls a function of this file once all processes are forked.

    Until then none may connect to the agent: a thread of the agent looks up where from, and if the
    next process were forked at that moment, the C library's resolver would stay locked in it.
    """
    forked.wait(60)
    globals()[name](data, runs)


# ---------------------------------------------------------------- functions of the processes


def all_checks(data: Path, runs: Path) -> None:
    with distributed.session(torch.device("cpu")):
        assert distributed.world_size() == LAUNCHED["all_checks"]
        assert distributed.is_first() == (distributed.rank() == 0)
        check_agreements()
        for unbiased in (False, True):
            for case in range(len(SPLITS)):
                check_batch_norm(case, unbiased)
        check_messages()
        check_towers()
        check_metrics()
        check_feeding(data, runs / "feeding")
        train_in_float64(config(data, runs / "several", **CACHED))
        train.train(config(data, runs / "several-ridge", **RIDGE))
        train.train(config(data, runs / "noisy", **NOISY))
        check_skipping(data, runs / "skipping")
        evaluate.main(["--run", str(runs / "several"), "--part", "all", "--device", "cpu"])
        cooccur.main(["--data", str(data), *COUNTED, "--out", str(runs / "several.npz")])
        check_predicting(scored(data, runs, "several"))
        print(PASSED)
        stop_one(data, runs / "stopped")


def scored(data: Path, runs: Path, name: str) -> list[str]:
    files = ["--out", str(runs / f"{name}.csv"), "--scores", str(runs / f"{name}-scores.npz")]
    options = ["--batch_size", "8", "--top", "20", "--device", "cpu"]
    return ["--run", str(runs / "several"), "--data", str(data), *files, *options]


def train_in_float64(options: TrainConfig) -> None:
    """Trains without gradients that are only rounding errors, which Adam would amplify."""
    with pytest.MonkeyPatch.context() as patch:
        create = models.create
        patch.setattr(models, "create", lambda *args, **more: create(*args, **more).double())
        train.train(options)


def check_agreements() -> None:
    first = distributed.is_first()
    assert distributed.any_of(False, first, not first) == (False, True, True)
    assert distributed.from_first("a" if first else "b") == "a"
    assert distributed.from_all(distributed.rank()) == [0, 1, 2]
    assert distributed.share_of_batch("x", 6) == 2
    with pytest.raises(ValueError, match="x: expected a multiple of the number of processes, 3, "):
        distributed.share_of_batch("x", 5)


# Where the parts of ranks 0 and 1 (of 4 videos) end, and how often each frame counts.
SPLITS = [
    ((1, 3), None),
    ((1, 2), None),
    ((4, 4), None),
    ((2, 3), [[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 1, 0]]),
    ((0, 1), [[2, 0, 1], [3, 1, 0], [0, 0, 0], [0, 0, 4]]),
    ((2, 3), [[0, 0, 0], [0, 0, 0], [1, 0, 1], [1, 1, 1]]),  # no row in rank 0
    ((1, 2), [[0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 0]]),  # one row in all
    ((1, 2), [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]),
]


def check_batch_norm(case: int, unbiased: bool) -> None:
    """Each process's part of the batch gives the results of one process with the whole batch."""
    ends, counted = SPLITS[case]
    torch.manual_seed(case)
    x = torch.randn(4, 3, 8, dtype=torch.float64) * 3 + 100
    direction = torch.randn_like(x)
    counts = None if counted is None else torch.tensor(counted)
    if counts is not None:
        x[counts == 0] += 1e6  # padding may hold anything finite
    bounds = (0, *ends, 4)
    part = slice(*bounds[distributed.rank() : distributed.rank() + 2])

    def results(rows: slice, synchronized: bool) -> list[torch.Tensor]:
        norm = BatchNorm(8, momentum=0.25, unbiased=unbiased, synchronized=synchronized).double()
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(1, 2, 8))
        leaf = x[rows].clone().requires_grad_()
        weights = None if counts is None else counts[rows]
        y = norm(leaf, weights)
        (y * direction[rows]).sum().backward()
        assigned = torch.autograd.grad(
            soft_assign(
                (z := x[rows].clone().requires_grad_()).unflatten(2, (2, 4)),
                torch.ones_like(z[..., :2]),
                norm=norm.deferred(z, weights),
            ).mul(direction[rows].unflatten(2, (2, 4))).sum(),
            [z, norm.weight],
        )  # fmt: skip
        by_weight = [norm.weight.grad, norm.bias.grad, assigned[1]]
        if synchronized:
            for gradient in by_weight:
                torch.distributed.all_reduce(gradient)
        return [y, leaf.grad, assigned[0], *by_weight, *norm.buffers()]

    expected = results(slice(None), synchronized=False)
    expected[:3] = [tensor[part] for tensor in expected[:3]]
    found = results(part, synchronized=True)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=f"{case}: {number}")
    buffers = distributed.from_all([tensor.tolist() for tensor in found[-2:]])
    assert buffers[0] == buffers[1] == buffers[2]


def check_messages() -> None:
    """A batch norm sends one message forward, and one backward."""
    norm, x = BatchNorm(2), torch.randn(3, 2, requires_grad=True)
    with torch.profiler.profile(acc_events=True) as profile:
        norm(x).square().sum().backward()
    sent = [event.name for event in profile.events() if event.name.startswith("c10d::")]
    assert sent == ["c10d::allgather_", "c10d::allreduce_"], sent


def check_towers() -> None:
    """Without synchronisation, and in eval mode, a process uses its own rows only."""
    x = torch.arange(6.0).reshape(3, 2) + 10 * distributed.rank()
    norm = BatchNorm(2, momentum=1.0, synchronized=False)
    norm(x)
    torch.testing.assert_close(norm.running_mean, x.mean(0))
    norm = BatchNorm(2).eval()
    if distributed.is_first():  # no other process takes part
        norm(x)


@contextlib.contextmanager
def each_step(before, *, learns: bool = True):
    """Calls ``before`` with the stage and the batch of each step, or with `learns` off, only it."""
    optimise = training.StageRun._take_step

    def patched(self, batch):
        before(self, batch)
        return optimise(self, batch) if learns else torch.zeros(())

    training.StageRun._take_step = patched
    try:
        yield
    finally:
        training.StageRun._take_step = optimise


def check_feeding(data: Path, run: Path) -> None:
    """A stream of frames gives every example once per pass, in one of the processes."""
    own: list[tuple[int, str]] = []
    trained = sorted(name for name in NAMES if not held_out(name))

    def note(_, batch) -> None:  # of one example
        own.append((batch.position.epoch, batch.ids[0]))

    with each_step(note, learns=False):
        stage = StageConfig(2 * len(trained) // 3 + 2, 1e-3, 3)
        train.train(config(data, run, overrides=TINY, pretrain=stage, finetune=NONE))
    parts = distributed.from_all(own)
    for epoch in (0, 1):
        passes = [[id for number, id in part if number == epoch] for part in parts]
        assert sorted(itertools.chain(*passes)) == trained


def check_skipping(data: Path, run: Path) -> None:
    """A loss that is not finite in one process is skipped in all, and its examples are named."""
    forward = training.Step.forward
    count = itertools.count()

    def broken(self, *arguments):
        loss = forward(self, *arguments)
        return loss * float("nan") if next(count) == 1 and distributed.rank() == 1 else loss

    training.Step.forward = broken
    own: list[list[str]] = []
    stages = {"pretrain": NONE, "finetune": StageConfig(3, 1e-3, 6)}
    try:
        with each_step(lambda _, batch: own.append(batch.ids)):
            train.train(config(data, run, overrides=TINY, **stages, on_nan="skip"))
    finally:
        training.Step.forward = forward
    [skipped] = [line for line in log_of(run) if line.get("skipped")]
    ids = distributed.from_all(own)[1][1]
    assert (skipped["step"], skipped["ids"]) == (2, ids)


def check_predicting(arguments: list[str]) -> None:
    """An interrupted prediction resumes."""

    @contextlib.contextmanager
    def at_once():
        yield lambda: True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cli, "stop_requests", at_once)
        with pytest.raises(KeyboardInterrupt):
            predict.main(arguments)
    predict.main(arguments)


def check_metrics() -> None:
    """Metrics of rows in several processes are those of all rows."""
    rng = np.random.default_rng(5)
    # Few distinct scores, so that ranks decide.
    scores = rng.integers(0, 6, (40, 3)) / 8
    labels, rated = rng.random((40, 3)) < 0.4, rng.random((40, 3)) < 0.8
    first = distributed.is_first()
    assert GlobalAveragePrecisionAtK(3).compute() == 0.0  # of no row at all
    expected = map_at_k_dense(scores, labels, rated, k=7)
    for ends in ((0, 0), (0, 40), (13, 13), (13, 30), (40, 40)):
        bounds = (0, *ends[: distributed.world_size() - 1], 40)
        part = slice(*bounds[distributed.rank() : distributed.rank() + 2])
        own = scores[part].astype(np.float32) if first else scores[part]  # the same values
        best = MeanAveragePrecisionAtK(3, k=7)
        gap, hit, perr = (
            GlobalAveragePrecisionAtK(3, k=3),
            HitAt1(3),
            PrecisionAtEqualRecallRate(3),
        )
        if len(own):  # a process without rows makes no update at all
            best.update_dense(own, labels[part], rated[part])
            for metric in (gap, hit, perr):
                metric.update(own, labels[part])
        for _ in range(2):
            found = best.compute()
            for name in ("per_class", "positives", "rated"):
                np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert gap.compute() == metrics.gap_at_k(scores, labels, k=3)
        assert hit.compute() == metrics.hit_at_1(scores, labels)
        assert perr.compute() == metrics.perr(scores, labels)


def stop_one(data: Path, run: Path) -> None:
    """Asks one process to stop in a step; the others learn it from that one after the step."""

    def stop(stage, _) -> None:
        if os.environ["RANK"] == "1" and stage.stage.name == "finetune" and stage.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with each_step(stop), pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.stages, "CHECK_SECONDS", 0.0)
        train.train(config(data, run, **NOISY))


def go_on(_: Path, runs: Path) -> None:
    train.main(["--resume", str(runs / "stopped")])


def fail_in_one(data: Path, runs: Path) -> None:
    def fail(stage, _) -> None:
        if os.environ["RANK"] == "1" and stage.step == 3:
            raise UserError("something is wrong here")

    with each_step(fail):
        train.train(config(data, runs / "failed", **CACHED))


def kill_one(data: Path, runs: Path) -> None:
    def kill(stage, _) -> None:
        if os.environ["RANK"] == "1" and stage.step == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    fit = training.Trainer.fit

    def slow_to_end(self, *arguments):
        try:
            return fit(self, *arguments)
        finally:
            time.sleep(1)  # until torchrun has noticed too, and signals the others

    training.Trainer.fit = slow_to_end
    with each_step(kill):
        train.train(config(data, runs / "lost", **CACHED))


# ------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory, python) -> Path:
    """The results of the processes, which make all checks, train, and are stopped in training."""
    folder = tmp_path_factory.mktemp("runs")
    source = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_distributed as t; t.launch_all(*map(t.Path, sys.argv[1:]))"
    )
    done = python("-c", source, str(data), str(folder), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done
    checked = outcome(folder, "all_checks")
    assert PASSED in checked.out.splitlines(), checked.out + checked.err
    return folder


def outcome(runs: Path, name: str) -> Done:
    code, out, err = ((runs / f"{name}.{kind}").read_text() for kind in ("code", "out", "err"))
    return Done(int(code), out, err)


def test_several_processes_train_like_one(runs: Path) -> None:
    expected, found = log_of(runs / "one"), log_of(runs / "several")[:-1]
    assert [line["stage"] for line in found] == [line["stage"] for line in expected]
    for line, other in zip(found, expected, strict=True):
        for key in line.keys() & {"step", "loss", "rated", "positives"}:
            assert line[key] == pytest.approx(other[key], rel=1e-6), key
    left, right = (load_file(runs / run / models.WEIGHTS) for run in ("several", "one"))
    for key, value in left.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, right[key], rtol=1e-7, atol=1e-7, msg=key)
    # Evaluation by itself, of the same weights.
    evaluate.main(["--run", str(runs / "several"), "--part", "all", "--device", "cpu"])
    *_, of_several, of_one = log_of(runs / "several")
    assert of_several == of_one
    assert of_one["rated"] == 2 * len(NAMES)


def test_several_processes_solve_like_one(runs: Path) -> None:
    expected, found = log_of(runs / "one-ridge"), log_of(runs / "several-ridge")
    assert [line.get("examples") for line in found] == [line.get("examples") for line in expected]
    left, right = (load_file(runs / run / models.WEIGHTS) for run in ("several-ridge", "one-ridge"))
    for key, value in left.items():
        torch.testing.assert_close(value, right[key], rtol=1e-5, atol=1e-6, msg=key)


def test_several_processes_count_like_one(data: Path, runs: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "one.npz"
    cooccur.main(["--data", str(data), *COUNTED, "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()[:-1]
    assert lines[0] == f"videos: {len(NAMES)}, left out: 0"
    assert "\n".join(lines) in outcome(runs, "all_checks").out
    assert out.read_bytes() == (runs / "several.npz").read_bytes()


def test_several_processes_predict_like_one(data: Path, runs: Path, capsys) -> None:
    predict.main(scored(data, runs, "one"))
    assert (runs / "one.csv").read_text() == (runs / "several.csv").read_text()
    counts = capsys.readouterr().out.splitlines()[0].split(", ")[:2]
    printed = outcome(runs, "all_checks").out
    assert ", ".join(counts) in printed
    assert printed.count("stopped after ") == printed.count("continuing from ") == 1
    with np.load(runs / "one-scores.npz") as one, np.load(runs / "several-scores.npz") as several:
        assert len(one["segments"]) == 2 * len(NAMES)
        assert one["segments"].tolist() == several["segments"].tolist()
        np.testing.assert_allclose(one["scores"], several["scores"], rtol=1e-4, atol=1e-5)
    assert not (runs / "several.csv.partial").exists()


def test_one_process_prints(runs: Path) -> None:
    lines = outcome(runs, "all_checks").out.splitlines()
    assert sum(line.startswith("run folder: ") for line in lines) == 5
    assert not Run(runs / "several").checkpoints_folder.exists()


def test_a_stop_in_one_process_stops_all_and_resumes(runs: Path) -> None:
    run = runs / "stopped"
    assert outcome(runs, "all_checks").err.count("pyseg: interrupted") == 1
    torchrun = "torchrun --nproc_per_node=3 -m pyseg.train --"
    stopped = f"stopped at finetune, step 3: {torchrun} --resume {run} continues"
    assert stopped in outcome(runs, "all_checks").out
    done = outcome(runs, "go_on")
    assert done.code == 0, done.out + done.err
    assert "continuing from finetune, step 3" in done.out
    left, right = (models.load(folder).state_dict() for folder in (run, runs / "noisy"))
    for key, value in left.items():
        assert torch.equal(value, right[key]), key
    assert log_of(run) == log_of(runs / "noisy")


@pytest.mark.parametrize(
    ("function", "rank", "text"),
    [
        ("fail_in_one", 1, "something is wrong here"),
        ("kill_one", 0, "another process is lost: "),
    ],
)
def test_a_lost_process_ends_the_run(runs: Path, function: str, rank: int, text: str) -> None:
    done = outcome(runs, function)
    assert done.code != 0
    [message] = [line for line in done.err.splitlines() if line.startswith("pyseg: ")]
    assert message.startswith(f"pyseg: error (rank {rank}): {text}")


def test_as_many_processes_resume(runs: Path) -> None:
    """README's command; all other processes here are forked."""
    run = runs / "failed"
    with pytest.raises(UserError, match=r"expected 2 processes, as before; found 1: torchrun "):
        train.main(["--resume", str(run)])
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "pyseg.train", "--", "--resume", str(run)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("continuing from finetune, step ") == 1
    assert (run / models.WEIGHTS).is_file()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_no_thread_outlives_the_session() -> None:
    """One that still needs the GIL when Python ends would abort the process."""
    program = """
        from pathlib import Path
        import torch
        from pyseg import distributed

        def threads():
            return [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]

        distributed._launched = lambda: True
        with distributed.session(torch.device("cpu")):
            step = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
            step(torch.ones(1)).backward()
            assert any("gloo" in name for name in threads()), threads()
        del step
        assert not any("gloo" in name for name in threads()), threads()
    """
    launched = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], env=os.environ | launched, check=True
    )


def test_alone() -> None:
    """Without torchrun there is one process, which does not communicate."""
    device = torch.device("cpu")
    with distributed.session(device):
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert distributed.any_of(True, False) == (True, False)
        assert distributed.from_first(3) == 3
        assert distributed.from_all(3) == [3]
        assert distributed.local_device(device) == device
        module = torch.nn.Linear(1, 1)
        assert distributed.parallel(module) is module


@pytest.mark.parametrize("name", ["CUDA", "cuda:x", "cpu:0:1", "tpu", "meta", 0])
def test_no_device(name: Any) -> None:
    with pytest.raises(UserError, match=f"--device {name}: expected a device"):
        distributed.pick_device(name)
