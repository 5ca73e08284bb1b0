"""Steps as graphs, with a stand-in for CUDA graphs that calls recorded operators again.

What only a GPU can show is in `test_on_a_gpu`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyseg import models, train, training
from pyseg.config import LossConfig, StageConfig, TrainConfig
from pyseg.data import Batch, Example, Ratings, collate, encode_frames, write_records
from pyseg.labels import LabelCorrelation
from pyseg.ops._dispatch import has_kernel
from pyseg.training import Loss, Optimization, graph

TINY = {"clusters": 4, "groups": 2, "hidden_size": 8, "reduction": 2, "dropout": 0.2}
RATE = 2.0**-7  # float32 holds it and its halves exactly, as the tensor of a graph has to

# Operators whose result waits for values of a GPU, or whose size depends on them.
WAITING = (
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.masked_select",
    "aten.unique",
    "aten._unique",
    "aten.bincount",
    "aten.equal.",
    "aten.is_nonzero",
    "aten.repeat_interleave.Tensor",
)

# What batch normalization overwrites, although its schema does not say so.
UNDECLARED = ("running_mean", "running_var")


class Guard(TorchDispatchMode):
    """Notes what a CUDA graph cannot hold: waiting, sizes from values, copies between devices.

    Args:
        found: Receives the names of operators.
    """

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(func)
        given = kwargs.get("output_size") is not None  # of repeat_interleave
        if name.startswith(WAITING) and not given:
            self.found.append(name)
        if name.startswith("aten.index.") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        ):
            self.found.append(f"{name} by a mask")
        if name.startswith("aten.lift_fresh"):  # torch.tensor(numbers): a copy from the host
            self.found.append(name)
        result = func(*args, **kwargs)
        leaves = tree_leaves((args, kwargs, result))
        if len({leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}) > 1:
            self.found.append(f"{name} between devices")
        return result


class Recording(TorchDispatchMode):
    """Records the operators that a step calls, and can call them again on the same tensors.

    As with a CUDA graph, what Python computed in the step stays as it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []
        self.before: list[tuple[Tensor, Tensor]] = []  # what the step overwrites, and its content

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            writes = argument.alias_info is not None and argument.alias_info.is_write
            if writes or argument.name in UNDECLARED:
                for tensor in tree_leaves(given.get(argument.name)):
                    self.before.append((tensor, tensor.detach().clone()))
        result = func(*args, **kwargs)
        if all(value.alias_info is None for value in func._schema.returns):
            self.calls.append((func, args, kwargs, tree_leaves(result)))
        elif func._schema.is_mutable:  # but no views, which stay where they are
            self.calls.append((func, args, kwargs, []))
        return result

    def undo(self) -> None:
        with torch.no_grad():
            for tensor, content in reversed(self.before):
                tensor.copy_(content)
        self.before.clear()

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, results in self.calls:
            for old, new in zip(results, tree_leaves(func(*args, **kwargs)), strict=False):
                if isinstance(old, Tensor):
                    old.copy_(new)


class StandIn:
    """Records and replays on the CPU, and counts both."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        yield

    @contextlib.contextmanager
    def watch(self) -> Iterator[list[str]]:
        yield []

    def record(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        self.recorded += 1
        random = torch.get_rng_state()
        with Recording() as recording:
            loss = step()
        recording.undo()
        torch.set_rng_state(random)

        def replay() -> None:
            self.replayed += 1
            recording.replay()

        return loss, replay


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The stand-in, which training uses in the test."""
    found = StandIn()
    monkeypatch.setattr(graph, "make_recorder", lambda device: found)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 videos of 6 or 7 frames with very different numbers of labels, and rated segments."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    records = []
    for number in range(24):
        frames = rng.integers(0, 256, (6 + (number % 4 == 0), 1152), np.uint8)
        labels = rng.choice(60, 50 if number % 5 == 0 else 2, replace=False)
        scores = rng.integers(0, 2, 1 + number % 3).astype(np.float32)
        classes = rng.choice(60, len(scores), replace=False)
        rated = Ratings(np.zeros(len(scores), np.int64), classes, scores)
        records.append(encode_frames(f"v{number:03d}", frames, labels, rated))
    write_records(folder / "validate0.tfrecord", records)
    lines = ["Index,Name", *(f"{i},class {i}" for i in range(60))]
    (folder / "vocabulary.csv").write_text("\n".join(lines))
    return folder


def config(data: Path, run: Path, **changes) -> TrainConfig:
    options = {
        "overrides": TINY,
        "pretrain": StageConfig(20, RATE, 3, noise=0.1, clip_norm=1.0, warmup_steps=2),
        "finetune": StageConfig(
            7, RATE, 4, schedule="step", decay=0.5, decay_examples=8, ema=0.75, l2=0.01
        ),
        "loss": LossConfig(threshold=0.0),
        **changes,
    }
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
def ordinary(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ordinary steps."""
    return train.train(config(data, tmp_path_factory.mktemp("runs") / "ordinary"))


def test_the_numbers_are_those_of_ordinary_steps(data, ordinary, tmp_path, recorder) -> None:
    """Two lengths, ratings that outgrow the graph, rates that change, noise, an average."""
    run = train.train(config(data, tmp_path / "run"))
    assert_same_run(run, ordinary)
    assert recorder.recorded >= 4  # two lengths, one of them again for more ratings; segments
    assert recorder.replayed > 10


@pytest.mark.parametrize("later", ["graphs", "ordinary"])
def test_a_resumed_run_ends_the_same(
    data, ordinary, tmp_path, recorder, monkeypatch, later: str
) -> None:
    """It stops when both stages have replayed steps; its first steps are ordinary ones again."""
    optimise = training.StageRun._take_step

    def stop(self, batch: Batch) -> Tensor:
        if self.stage.name == "finetune" and self.step == 5:
            raise KeyboardInterrupt
        return optimise(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(training.StageRun, "_take_step", stop)
        with pytest.raises(KeyboardInterrupt):
            train.train(config(data, tmp_path / "run", checkpoint_steps=5))
    assert recorder.replayed
    if later == "ordinary":
        monkeypatch.setattr(graph, "make_recorder", lambda device: None)
    train.train(TrainConfig(resume=str(tmp_path / "run")))
    assert_same_run(tmp_path / "run", ordinary)


def batch_of(length: int, ratings: int = 1) -> Batch:
    classes = np.arange(ratings)
    return collate([Example("v", np.full((length, 2), length, np.uint8), classes, classes / 100)])


def sums(*tensors: Tensor) -> Tensor:
    """A step whose loss tells batches apart."""
    frames, num_frames, offsets, _, scores = tensors
    used = torch.arange(len(scores)) < offsets[-1]
    return frames.sum() + 1000 * num_frames.sum() + torch.where(used, scores, 0.0).sum()


def test_each_length_has_a_graph(capsys) -> None:
    recorder = StandIn()
    steps = graph.GraphedSteps(sums, recorder)
    for number in range(4 * graph.MOST_GRAPHS + 12):
        batch = batch_of(1 + number % (graph.MOST_GRAPHS + 1))
        assert steps(batch) == sums(*batch.tensors)
    assert recorder.recorded == graph.MOST_GRAPHS
    assert capsys.readouterr().out == (
        "CUDA graphs: 8 lengths of batches have one, others take ordinary steps; --pad_frames "
        "gives all batches one length\n"
    )


def test_more_ratings_have_the_step_recorded_again() -> None:
    recorder = StandIn()
    steps = graph.GraphedSteps(sums, recorder)
    recorded = []
    for ratings in (1, 1, 1, 1, 64, 65, 2, 128, 129):
        batch = batch_of(3, ratings)
        assert steps(batch) == sums(*batch.tensors)
        recorded.append(recorder.recorded)
    assert recorded == [0, 0, 0, 1, 1, 2, 2, 2, 3]


def test_losses_outlive_the_next_step() -> None:
    steps = graph.GraphedSteps(sums, StandIn())
    losses = [steps(batch_of(2, ratings)) for ratings in (1, 1, 1, 1, 2, 3)]
    assert losses[-3:] == [sums(*batch_of(2, ratings).tensors) for ratings in (1, 2, 3)]


def test_a_step_that_waits_is_not_recorded(monkeypatch, capsys) -> None:
    recorder = StandIn()
    monkeypatch.setattr(recorder, "watch", lambda: contextlib.nullcontext(["loss.py:3: waits"]))
    steps = graph.GraphedSteps(sums, recorder)
    for _ in range(6):
        assert steps(batch_of(2)) == sums(*batch_of(2).tensors)
    assert recorder.recorded == 0
    line = "CUDA graphs: the step waits for the GPU: loss.py:3: waits; steps are ordinary ones\n"
    assert capsys.readouterr().out == line


def test_an_error_of_the_recording_leaves_ordinary_steps(
    data, ordinary, tmp_path, recorder, monkeypatch, capsys
) -> None:
    def fail(step: Callable[[], Tensor]) -> None:
        try:
            raise NotImplementedError("no such operation\nwhile recording")
        finally:
            raise RuntimeError("the recording is invalid")

    monkeypatch.setattr(recorder, "record", fail)
    assert_same_run(train.train(config(data, tmp_path / "run")), ordinary)
    line = (
        "CUDA graphs: the step cannot be recorded: NotImplementedError: no such operation; steps "
        "are ordinary ones\n"
    )
    assert capsys.readouterr().out.count(line) == 2  # once in each stage


class Own(nn.Module):
    """Of a user."""


class OwnLoss(Loss):
    """Likewise; it has the attribute from its base."""


@pytest.mark.parametrize(
    ("options", "loss", "expected"),
    [
        ({}, Loss(), None),
        ({"precision": "bf16"}, Loss(), None),
        ({"compile": True}, Loss(), "with --compile"),
        ({"precision": "fp16"}, Loss(), "with --precision fp16"),
        ({"on_nan": "skip"}, Loss(), "with --on_nan skip"),
        ({}, nn.BCELoss(), "BCELoss does not say that it takes spare ratings"),
        ({"cuda_graph": True}, nn.BCELoss(), "BCELoss does not say that it takes spare ratings"),
        ({}, OwnLoss(), "OwnLoss is not of pyseg, and may not fit: try --cuda_graph"),
        ({"cuda_graph": True}, OwnLoss(), None),
    ],
)
def test_what_cannot_be_recorded(options, loss, expected) -> None:
    model = models.create("mlp", num_classes=3)
    assert graph.why_not(TrainConfig(**options), model, loss) == expected


def test_a_model_of_a_user_is_only_tried_on_request() -> None:
    model = nn.Sequential(nn.Linear(1, 1), Own())
    assert graph.why_not(TrainConfig(), model, Loss()) == (
        "Own is not of pyseg, and may not fit: try --cuda_graph"
    )
    assert graph.why_not(TrainConfig(cuda_graph=True), model, Loss()) is None


def test_a_line_says_why_there_are_none(data, tmp_path, capsys, monkeypatch) -> None:
    short = {"pretrain": StageConfig(1, RATE, 4), "finetune": StageConfig(0, RATE)}
    both = short | {"finetune": StageConfig(1, RATE, 4)}
    train.train(config(data, tmp_path / "asked", cuda_graph=True, **both))
    assert capsys.readouterr().out.count("CUDA graphs: none on cpu\n") == 1
    train.train(config(data, tmp_path / "default", **short))
    assert "CUDA graphs" not in capsys.readouterr().out
    monkeypatch.setattr(graph, "make_recorder", lambda device: StandIn())
    train.train(config(data, tmp_path / "skip", on_nan="skip", **short))
    assert "CUDA graphs: none: with --on_nan skip\n" in capsys.readouterr().out
    train.train(config(data, tmp_path / "off", on_nan="skip", cuda_graph=False, **short))
    assert "CUDA graphs" not in capsys.readouterr().out


def on_meta(name: str, **overrides) -> nn.Module:
    """A model on the device "meta", where code takes the ways of a GPU, and no value exists."""
    with torch.device("meta"):
        return models.create(name, num_classes=10, **overrides)


def ratings_on(device: str, batch: int, room: int) -> tuple[Tensor, Tensor, Tensor]:
    offsets = torch.zeros(batch + 1, dtype=torch.int64, device=device)
    classes = torch.zeros(room, dtype=torch.int64, device=device)
    return offsets, classes, torch.zeros(room, device=device)


# Together they have every part of every preset.
PRESETS = ("dbof", "dbof-gcn", "linear", "mixture", "mlp", "paper-mixture")


@pytest.fixture
def meta_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets code that is written for a GPU run on meta tensors."""
    autocast, init = torch.autocast, torch.optim.Adam.__init__

    def of_cpu(device: str, *args, **kwargs):
        return autocast("cpu" if device == "meta" else device, *args, **kwargs)

    def unfused(self, *args, fused: bool, **kwargs) -> None:
        init(self, *args, foreach=True, **kwargs)  # the fused one takes no meta tensors

    monkeypatch.setattr(torch, "autocast", of_cpu)
    monkeypatch.setattr(torch.optim.Adam, "__init__", unfused)
    adam = sys.modules["torch.optim.adam"]  # torch.optim deletes its name
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda **_: ["meta"])


@pytest.mark.parametrize(
    ("name", "kernels"),
    [*((name, True) for name in PRESETS), ("paper-mixture", False), ("dbof-gcn", False)],
)
def test_nothing_in_a_step_waits(name: str, kernels: bool, meta_is_a_gpu, monkeypatch) -> None:
    if kernels:  # in place, as its users have imported it
        monkeypatch.setattr(has_kernel, "__code__", (lambda tensor: True).__code__)
    model = on_meta(name)
    model.noise.sigma = 0.1
    options = StageConfig(1, RATE, 4, clip_norm=1.0, ema=0.9, l2=1e-5)
    empty = torch.zeros(11, device="meta", dtype=torch.int64), *ratings_on("meta", 0, 3)[1:]
    loss = Loss(2.5, 0.1, LabelCorrelation(*empty), 0.5)
    optimization = Optimization(model, loss, options, TrainConfig())
    frames = torch.zeros(4, 5, 1152, dtype=torch.uint8, device="meta")
    num_frames = torch.ones(4, dtype=torch.int64, device="meta")
    batch = (frames, num_frames, *ratings_on("meta", 4, 64))
    optimization.keep_rate_on_device()
    optimization.step(*batch)  # makes the optimizer's state
    found: list[str] = []
    with Guard(found):
        optimization.step(*batch)
    assert not found


def test_the_guard_finds_what_waits() -> None:
    """Each of these is an error in a CUDA graph."""
    x = torch.arange(4.0)
    for waits in (
        lambda: x.sum().item(),
        lambda: bool((x > 1).any()),
        lambda: x.nonzero(),
        lambda: x[x > 1],
        lambda: torch.masked_select(x, x > 1),
        lambda: torch.unique(x),
        lambda: torch.repeat_interleave(x, torch.tensor([1, 2, 0, 1])),
        lambda: torch.tensor([1.0, 2.0]),
        lambda: x.to("meta"),
        lambda: torch.zeros(4, device="meta").copy_(x),
    ):
        found: list[str] = []
        with Guard(found):
            waits()
        assert found, waits


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(data, tmp_path, monkeypatch) -> None:
    """Real graphs have the losses of ordinary steps, and a stopped run goes on with them."""
    replays = 0
    call = graph._Graph.__call__

    def counted(self, batch: Batch) -> Tensor:
        nonlocal replays
        replays += 1
        return call(self, batch)

    monkeypatch.setattr(graph._Graph, "__call__", counted)
    options = {"device": "cuda", "precision": "fp32", "tf32": False, "workers": 0}
    ordinary = train.train(config(data, tmp_path / "ordinary", cuda_graph=False, **options))
    assert not replays
    recorded = train.train(config(data, tmp_path / "recorded", **options))
    assert replays > 10
    for line, other in zip(log_of(recorded), log_of(ordinary), strict=True):
        if "loss" in line:
            assert line["loss"] == pytest.approx(other["loss"], rel=1e-3)
    left, right = (models.load(folder).state_dict() for folder in (recorded, ordinary))
    for key, value in left.items():
        torch.testing.assert_close(value, right[key], rtol=1e-2, atol=1e-3, msg=key)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_failed_recording_on_a_gpu_changes_nothing(capsys) -> None:
    """Random numbers too go on as in ordinary steps."""

    def step(*tensors: Tensor) -> Tensor:
        loss = torch.rand((), device="cuda")
        if torch.cuda.is_current_stream_capturing():
            loss.item()
        return loss

    recorder = graph.CudaRecorder(torch.device("cuda"))
    steps, batch = graph.GraphedSteps(step, recorder), batch_of(3).to("cuda")
    torch.manual_seed(0)
    with steps.stream():
        found = [steps(batch).item() for _ in range(6)]
    torch.manual_seed(0)
    assert found == [step().item() for _ in range(6)]
    assert "the step cannot be recorded" in capsys.readouterr().out
