"""FrameClassifier: the preparation of frames that all classifiers share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyseg.nn import FrameClassifier, dropout

SIZES = (12, 6)


class Probe(FrameClassifier):
    """Records its arguments, and classifies by the sum over the valid frames."""

    reads_bytes = True

    def __init__(self, num_classes: int = 3, **options: object) -> None:
        super().__init__(num_classes, **({"feature_sizes": SIZES} | options))
        self.linear = nn.Linear(sum(self.feature_sizes), num_classes)

    def classify(self, x: Tensor, mask: Tensor | None) -> Tensor:
        self.given = x, mask
        x = self.normalization(x, mask, dtype=self.linear.weight.dtype)
        return self.linear(x.sum(1))


def make_frames(batch: int = 3, length: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = batch, length, sum(SIZES)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


NUM_FRAMES = torch.tensor([5, 3, 1])
MASK = torch.arange(5) < NUM_FRAMES[:, None]
EIGENVALUES = torch.linspace(3, 0.1, 12)
MEAN, DEVIATION = torch.linspace(-1, 1, 18), torch.linspace(0.5, 2, 18)
CONVENTIONS = [
    {"normalization": "dequantize"},
    {"normalization": "l2"},
    {"normalization": "unwhiten", "eigenvalues": EIGENVALUES},
    {"normalization": "raw"},
    {"normalization": "standardize", "mean": MEAN, "deviation": DEVIATION},
]


def test_forward_is_classify_of_prepare() -> None:
    model = Probe(normalization="l2")
    frames = make_frames()
    logits = model(frames, NUM_FRAMES)
    x, mask = model.given
    assert torch.equal(mask, MASK)
    torch.testing.assert_close(x, model.normalization(frames, MASK))
    torch.testing.assert_close(logits, model.classify(*model.prepare(frames, NUM_FRAMES)))


@pytest.mark.parametrize("training", [False, True])
def test_bytes_stay_bytes_without_noise(training: bool) -> None:
    frames = make_frames()
    x, mask = Probe().train(training).prepare(frames, NUM_FRAMES)
    assert x is frames
    assert torch.equal(mask, MASK)
    for options in CONVENTIONS[1:]:
        kept = Probe(**options).prepare(frames, NUM_FRAMES)[0] is frames
        assert kept == (options["normalization"] == "standardize")


def test_a_classifier_gets_values_unless_it_reads_bytes() -> None:
    class Values(Probe):
        reads_bytes = FrameClassifier.reads_bytes

    for options in CONVENTIONS:
        assert Values(**options).prepare(make_frames(), NUM_FRAMES)[0].is_floating_point()


def test_without_counts_every_frame_is_valid() -> None:
    for frames in (make_frames(), make_frames() / 255):
        x, mask = Probe().prepare(frames, None)
        assert mask is None
        assert torch.equal(x, frames)


@pytest.mark.parametrize("frames", [np.array, np.asfortranarray, lambda x: x[:, ::-1][:, ::-1]])
@pytest.mark.parametrize(
    "num_frames", [list, tuple, np.array, lambda n: np.array(n, ">i2"), torch.tensor]
)
def test_arrays_and_lists_are_taken_like_tensors(frames: Callable, num_frames: Callable) -> None:
    model = Probe().eval()
    array = frames(make_frames().numpy())
    array.flags.writeable = False
    counts = NUM_FRAMES.tolist()
    assert torch.equal(model(array, num_frames(counts)), model(make_frames(), NUM_FRAMES))
    floats = array / np.float32(255)
    assert torch.equal(model(floats), model(torch.from_numpy(floats)))


@pytest.mark.parametrize("value", ["text", None, 3, {1: 2}, [[1], [2, 3]], np.array(["a"])])
def test_errors_name_what_is_not_an_array(value: object) -> None:
    with pytest.raises(TypeError, match=r"frames: expected a Tensor or an array of numbers, found"):
        Probe()(value)
    if value is not None:
        with pytest.raises(TypeError, match=r"num_frames: expected a Tensor or an array of num"):
            Probe()(make_frames(), value)


@pytest.mark.parametrize("options", CONVENTIONS, ids=lambda options: options["normalization"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_floats_that_are_bytes_are_refused(options: dict, dtype: torch.dtype) -> None:
    model, frames = Probe(**options), make_frames().to(dtype)
    right = frames / 64 - 2
    right[1, 3:] = 255.0  # padding may hold anything
    model(right, NUM_FRAMES)
    if options["normalization"] == "raw":
        model(frames, NUM_FRAMES)
        return
    for wrong in (frames, frames.numpy() if dtype != torch.bfloat16 else frames, -frames):
        with pytest.raises(ValueError, match=r"frames: expected bytes .* found 2\d\d$"):
            model(wrong, NUM_FRAMES)
    with torch.device("meta"):
        assert Probe(**options)(frames.to("meta")).shape == (3, 3)


@pytest.mark.parametrize("options", CONVENTIONS, ids=lambda options: options["normalization"])
def test_noise_comes_after_normalization_and_spares_padding(options: dict) -> None:
    """Bytes become floats for it; padding stays that of the convention."""
    torch.manual_seed(0)
    model = Probe(noise=0.5, **options)
    frames = make_frames()
    x, mask = model.prepare(frames, NUM_FRAMES)
    added = x - model.normalization(frames, mask)
    assert (added[~mask] == 0).all()
    noise = added[mask]
    assert (noise.abs() > 1e-4).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert noise[noise.abs() > 1e-4].std().item() == pytest.approx(0.5, abs=0.15)


def test_noise_only_in_training_and_with_a_positive_sigma() -> None:
    frames = make_frames()
    model = Probe(noise=0.5)
    assert model.prepare(frames, NUM_FRAMES)[0].dtype == torch.float32
    assert model.eval().prepare(frames, NUM_FRAMES)[0] is frames
    assert torch.equal(model(frames, NUM_FRAMES), model(frames, NUM_FRAMES))
    model = Probe()
    assert torch.equal(model(frames, NUM_FRAMES), model(frames, NUM_FRAMES))
    model.noise.sigma = 0.5  # as for fine-tuning
    assert not torch.equal(model(frames, NUM_FRAMES), model(frames, NUM_FRAMES))
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        results.append(model(frames, NUM_FRAMES))
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_frames_take_the_dtype_of_the_weights(dtype: torch.dtype) -> None:
    model = Probe(noise=0.1).to(dtype)
    for frames in (make_frames(), make_frames() / 64 - 2, make_frames().double() / 64 - 2):
        assert model.prepare(frames, NUM_FRAMES)[0].dtype == dtype
        assert model(frames, NUM_FRAMES).dtype == dtype


def test_autocast_leaves_the_frames_alone() -> None:
    """Reduced precision is for products: noise of 0.1 on frames in -2..2 would lose half of it."""
    model = Probe(noise=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.prepare(make_frames(), NUM_FRAMES)[0].dtype == torch.float32
        assert model(make_frames(), NUM_FRAMES).dtype == torch.bfloat16


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_compiles_whole(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(dropout, "_in_lanes", lambda x, levels: False)  # as while tracing
    model = Probe(noise=noise)
    step = torch.compile(model.prepare, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (5, 7):
        frames = make_frames(3, length)
        torch.manual_seed(0)
        expected = model.prepare(frames, NUM_FRAMES)
        torch.manual_seed(0)
        torch.testing.assert_close(step(frames, NUM_FRAMES), expected)


def test_bad_input() -> None:
    model = Probe()
    with pytest.raises(ValueError, match=r"frames: expected .* 18\).*12 \+ 6; found \(1, 2, 17\)"):
        model(torch.zeros(1, 2, 17), torch.tensor([2]))
    with pytest.raises(TypeError, match=r"frames: expected uint8 or floating, found torch\.int32"):
        model(make_frames().int(), NUM_FRAMES)
    with pytest.raises(TypeError, match=r"num_frames: expected integers, found torch\.float32"):
        model(make_frames(), NUM_FRAMES.float())
    with pytest.raises(ValueError, match=r"num_frames: expected shape \(3,\).*, found \(2,\)"):
        model(make_frames(), NUM_FRAMES[:2])
    for wrong in (0, 6):
        with pytest.raises(ValueError, match=rf"num_frames: expected .* 1\.\.5 .* found {wrong}"):
            model(make_frames(), torch.tensor([5, wrong, 1]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes: expected at least 1, found 0"),
        ({"feature_sizes": ()}, r"feature_sizes: expected positive widths, found \(\)"),
        ({"feature_sizes": (4, 0)}, r"feature_sizes: expected positive widths, found \(4, 0\)"),
        ({"noise": -1.0}, r"noise: expected a finite number of at least 0, found -1\.0"),
        ({"normalization": "none"}, "normalization: expected one of .*; found 'none'"),
        ({"normalization": "unwhiten"}, "eigenvalues: expected them with .* 'unwhiten'"),
        ({"normalization": "standardize"}, "mean: expected them with .* 'standardize'"),
        ({"ranges": [[0, 1]]}, "ranges: expected one for each of 2 features, found 1"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Probe(**options)


def test_subclasses_must_implement_classify() -> None:
    class Nothing(FrameClassifier):
        pass

    with pytest.raises(NotImplementedError):
        Nothing(2).classify(make_frames(), None)


def test_a_first_prediction_imports_no_compiler(python) -> None:
    """torch._dynamo and sympy, which PyTorch imports when asked the wrong way, take seconds."""
    program = (
        "import sys, torch, pyseg\n"
        "model = pyseg.models.create('nextvlad-small', num_classes=3).eval()\n"
        "frames = torch.zeros(1, 5, sum(model.feature_sizes), dtype=torch.uint8)\n"
        "model(frames)\n"
        "pyseg.ops.gru_recurrence(torch.ones(1, 2, 6), torch.ones(6, 2), torch.ones(6))\n"
        "imported = {'torch._dynamo', 'sympy'} & sys.modules.keys()\n"
        "assert not imported, imported\n"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
