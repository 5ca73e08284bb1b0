"""DBoF against the starter code's formulas, and its draws."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyseg.nn import BagOfFrames, BatchNorm, DBoF, LogisticHead, MixtureOfExperts
from pyseg.nn.dbof import Activation

SIZES = (12, 6)
WIDTH = sum(SIZES)
ACTIVATIONS = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "relu6": lambda x: np.clip(x, 0, 6),
    "relu": lambda x: np.maximum(x, 0),
}


def scramble(module: nn.Module) -> nn.Module:
    """Gives every parameter and buffer distinct values, with negative scales too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            value = torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                value = value.abs() + 0.5
            elif tensor.ndim == 2:
                value /= math.sqrt(tensor.shape[1])
            tensor.copy_(value)
    return module


def make_model(**options: object) -> DBoF:
    arguments = {"feature_sizes": SIZES, "clusters": 20, "hidden_size": 8, "num_samples": 4}
    return scramble(DBoF(5, **(arguments | options)))  # type: ignore[return-value]


def make_frames(batch: int = 3, length: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, length, WIDTH), generator=generator, dtype=torch.uint8)


NUM_FRAMES = torch.tensor([7, 3, 1])


def batch_norm(x: np.ndarray, norm: BatchNorm, training: bool) -> np.ndarray:
    array = {key: value.double().numpy() for key, value in norm.state_dict().items()}
    rows = x.reshape(-1, x.shape[-1])
    mean = rows.mean(0) if training else array["running_mean"]
    var = rows.var(0) if training else array["running_var"]
    return (x - mean) / np.sqrt(var + 1e-3) * array["weight"] + array["bias"]


def hidden_by_hand(model: DBoF, videos: list[np.ndarray], training: bool) -> np.ndarray:
    """The starter code, for videos of dequantised frames, in float64."""
    w = {key: value.double().numpy() for key, value in model.state_dict().items()}
    activate = ACTIVATIONS[model.bag.activation]
    rows, ends = np.concatenate(videos), np.cumsum([len(video) for video in videos])[:-1]
    if model.bag.input_norm is None:
        rows = rows @ w["bag.project.weight"].T + w["bag.bias"]
    else:
        rows = batch_norm(rows, model.bag.input_norm, training)
        rows = batch_norm(rows @ w["bag.project.weight"].T, model.bag.cluster_norm, training)
    pool = np.max if model.bag.pooling == "max" else np.mean
    pooled = np.stack([pool(video, axis=0) for video in np.split(activate(rows), ends)])
    hidden = pooled @ w["hidden.weight"].T
    if model.hidden_norm is None:
        return activate(hidden + w["hidden_bias"])
    return activate(batch_norm(hidden, model.hidden_norm, training))


def dequantized(frames: Tensor) -> np.ndarray:
    return frames.double().numpy() * (4 / 255) + (4 / 512 - 2)


OPTIONS = [
    {},
    {"activation": "relu6", "pooling": "average"},
    {"activation": "relu", "batch_norm": False},
    {"pooling": "average", "batch_norm": False},
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_every_frame_is_used_in_eval_mode(options: dict, as_bytes: bool, grad: bool) -> None:
    model = make_model(**options).double().eval()
    frames = make_frames()
    videos = [dequantized(video[:n]) for video, n in zip(frames, NUM_FRAMES, strict=True)]
    hidden = torch.from_numpy(hidden_by_hand(model, videos, training=False))
    given = frames if as_bytes else torch.from_numpy(dequantized(frames))
    with torch.set_grad_enabled(grad):
        found = model(given, NUM_FRAMES)
    torch.testing.assert_close(found, model.head(hidden), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("samples", [4, 9])
def test_training_is_the_starter_code_on_the_frames_drawn(
    options: dict, as_bytes: bool, samples: int
) -> None:
    """Also for videos with fewer frames than draws, each of which is projected only once."""
    generator = torch.Generator().manual_seed(3)
    model = make_model(num_samples=samples, generator=generator, **options).double()
    frames = make_frames()
    u = torch.rand(3, samples, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = dequantized(frames)
    videos = [x[b][(u[b].numpy() * n.item()).astype(int)] for b, n in enumerate(NUM_FRAMES)]
    hidden = torch.from_numpy(hidden_by_hand(model, videos, training=True))
    found = model(frames if as_bytes else torch.from_numpy(x), NUM_FRAMES)
    torch.testing.assert_close(found, model.head(hidden), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("options", OPTIONS)
def test_counting_draws_is_gathering_them(options: dict) -> None:
    """Values, gradients and running statistics: padding the batch beyond the draws gathers."""
    results = []
    for extra in (0, 5):
        model = make_model(num_samples=9, batch_norm_momentum=0.5, **options).double()
        frames = nn.functional.pad(make_frames(), (0, 0, 0, extra), value=99)
        torch.manual_seed(0)
        logits = model(frames, NUM_FRAMES)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters()), *model.buffers()])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def frames_that_count(model: DBoF, frames: Tensor, num_frames: Tensor) -> Tensor:
    """(B, T): whether a frame enters the prediction."""
    x = (frames / 64 - 2).requires_grad_()
    model(x, num_frames).sum().backward()
    return x.grad.abs().sum(-1) > 0


def test_draws_have_the_starter_codes_statistics() -> None:
    """Uniform draws with replacement from the video's own frames, or consecutive frames."""
    torch.manual_seed(0)
    frames, num_frames = make_frames(2, 6).repeat(600, 1, 1), torch.tensor([6, 2]).repeat(600)
    drawn = {}
    for sampling, samples in (("random-frames", 1), ("random-sequence", 3)):
        model = make_model(
            sampling=sampling, num_samples=samples, pooling="average", every_frame=False
        ).eval()
        drawn[sampling] = frames_that_count(model, frames, num_frames).unflatten(0, (600, 2))
    rates = drawn["random-frames"].float().mean(0)
    assert (rates[0] - 1 / 6).abs().max() < 0.06
    assert (rates[1, :2] - 1 / 2).abs().max() < 0.08
    assert (rates[1, 2:] == 0).all()
    runs = {tuple(row) for row in drawn["random-sequence"][:, 0].int().tolist()}
    assert runs == {(1, 1, 1, 0, 0, 0), (0, 1, 1, 1, 0, 0), (0, 0, 1, 1, 1, 0), (0, 0, 0, 1, 1, 1)}
    assert {tuple(row) for row in drawn["random-sequence"][:, 1].int().tolist()} == {
        (1, 1, 0, 0, 0, 0)  # a short video is taken whole
    }


def test_predictions_are_repeatable_by_default() -> None:
    frames = make_frames()
    model = make_model().eval()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert torch.equal(model(frames, NUM_FRAMES), model(frames, NUM_FRAMES))
    assert torch.equal(torch.get_rng_state(), state)
    drawing = make_model(every_frame=False).eval()
    assert not torch.equal(drawing(frames, NUM_FRAMES), drawing(frames, NUM_FRAMES))
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(drawing(frames, NUM_FRAMES))
    assert torch.equal(*results)
    drawing.generator = torch.Generator().manual_seed(5)
    state = torch.get_rng_state()
    first = drawing(frames, NUM_FRAMES)
    drawing.generator.manual_seed(5)
    assert torch.equal(drawing(frames, NUM_FRAMES), first)
    assert torch.equal(torch.get_rng_state(), state)
    model.train()
    assert not torch.equal(model(frames, NUM_FRAMES), model(frames, NUM_FRAMES))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("training", [False, True])
def test_garbage_in_padding_changes_nothing(options: dict, training: bool) -> None:
    frames = make_frames()
    padded = torch.arange(7) >= NUM_FRAMES[:, None]
    models = [make_model(**options).train(training) for _ in range(2)]
    results = []
    for model, value in zip(models, (3, 200), strict=True):
        changed = frames.clone()
        changed[padded] = value
        torch.manual_seed(0)
        logits = model(changed, NUM_FRAMES)
        logits.square().sum().backward()
        results.append([logits, *(p.grad for p in model.parameters()), *model.buffers()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "options", [*OPTIONS, *({"every_frame": False, "num_samples": n} for n in (4, 9))]
)
@pytest.mark.parametrize("training", [False, True])
def test_a_video_without_frames_is_a_finite_constant(options: dict, training: bool) -> None:
    """On a GPU counts are not checked, so 0 must be harmless."""
    mask = torch.arange(7) < torch.tensor([[0], [5], [0]])
    results = []
    for value in (3, 200):
        model = make_model(**options).train(training)
        frames = make_frames()
        frames[~mask] = value
        torch.manual_seed(0)
        logits = model.classify(frames, mask)
        logits.square().sum().backward()
        assert logits.isfinite().all()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        assert all(b.isfinite().all() for b in model.buffers())
        torch.testing.assert_close(logits[0], logits[2])
        results.append(logits)
    assert torch.equal(*results)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_empty_batches(shape: tuple[int, int], training: bool) -> None:
    logits = make_model().train(training)(make_frames(*shape))
    assert logits.shape == (shape[0], 5)
    assert logits.isfinite().all()


def test_one_video_can_be_trained_on() -> None:
    """The last batch of an epoch may hold one video, of one frame."""
    model = make_model()
    model(make_frames(1, 1), torch.tensor([1])).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert all(b.isfinite().all() for b in model.buffers())


def test_folded_weights_are_formed_once_and_follow_the_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bag = make_model().bag.eval()
    frames = make_frames()
    formed = []
    original = bag._fold
    monkeypatch.setattr(bag, "_fold", lambda: (formed.append(1), original())[1])

    def check(times: int) -> None:
        formed.clear()
        with torch.no_grad():
            found = bag(frames)
        assert len(formed) == times
        torch.testing.assert_close(found, bag(frames).detach())

    check(1)
    check(0)
    bag.input_norm.running_mean += 1
    check(1)
    with torch.no_grad():
        bag.project.weight.mul_(2)
    check(1)
    assert copy.deepcopy(bag)._cache is None


def test_parameters_and_constants_are_the_starter_codes() -> None:
    """Unbiased running variances, slim's constants, no bias beside a batch norm."""
    with torch.device("meta"):
        model = DBoF(10)
    shapes = {key: tuple(value.shape) for key, value in model.named_parameters()}
    assert shapes == {
        "bag.project.weight": (8192, 1152),
        **{f"bag.input_norm.{name}": (1152,) for name in ("weight", "bias")},
        **{f"bag.cluster_norm.{name}": (8192,) for name in ("weight", "bias")},
        "hidden.weight": (1024, 8192),
        **{f"hidden_norm.{name}": (1024,) for name in ("weight", "bias")},
        "head.gates.weight": (30, 1024),
        "head.experts.weight": (20, 1024),
        "head.experts.bias": (20,),
    }
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    assert [(n.eps, n.momentum, n.unbiased) for n in norms] == [(1e-3, 0.001, True)] * 3
    assert (model.num_samples, model.sampling, model.every_frame) == (30, "random-frames", True)
    assert (model.bag.activation, model.bag.pooling) == ("sigmoid", "max")


def test_initialization() -> None:
    torch.manual_seed(0)
    model = DBoF(10, feature_sizes=(100,), clusters=2000, hidden_size=500, batch_norm=False)
    for tensor, std in (
        (model.bag.project.weight, 1 / math.sqrt(100)),
        (model.bag.bias, 1 / math.sqrt(100)),
        (model.hidden.weight, 1 / math.sqrt(2000)),
        (model.hidden_bias, 0.01),
    ):
        assert tensor.std().item() == pytest.approx(std, rel=0.1)
    assert not any(isinstance(module, BatchNorm) for module in model.modules())


def test_any_head() -> None:
    model = make_model(head=LogisticHead)
    assert isinstance(model.head, LogisticHead)
    model = make_model(head=partial(MixtureOfExperts, mixtures=4))
    assert model.head.mixtures == 4
    assert model.eval()(make_frames(), NUM_FRAMES).shape == (3, 5)


@pytest.mark.parametrize("activation", ["sigmoid", "relu6", "relu"])
@pytest.mark.parametrize("pooling", ["max", "average"])
def test_bfloat16_autocast(activation: Activation, pooling: str) -> None:
    """Folded or not, and over 300 frames."""
    frames = make_frames(4, 300)
    num_frames = torch.tensor([300, 1, 7, 150])
    model = make_model(activation=activation, pooling=pooling, every_frame=True)
    exact = copy.deepcopy(model).double().eval()(frames, num_frames)
    model.eval()
    for grad in (False, True):
        with torch.set_grad_enabled(grad), torch.autocast("cpu", torch.bfloat16):
            logits = model(frames, num_frames)
        error = (logits.double() - exact).norm() / exact.norm()
        assert error < 0.05
    logits.float().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("training", "options"),
    [
        (True, {"sampling": "random-sequence"}),
        (False, {"pooling": "average"}),
    ],
)
def test_compiles_whole_for_any_batch_and_length(training: bool, options: dict) -> None:
    torch._dynamo.reset()
    model = make_model(feature_sizes=(WIDTH,), **options).train(training)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for index, (batch, length) in enumerate(((4, 6), (3, 5))):
        frames, num_frames = make_frames(batch, length), torch.arange(batch) % length + 1
        torch.manual_seed(0)
        expected = model(frames, num_frames)
        torch.manual_seed(0)
        with torch._dynamo.config.patch(error_on_recompile=index > 0):
            torch.testing.assert_close(compiled(frames, num_frames), expected)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_same_on_a_gpu() -> None:
    frames = make_frames()
    expected, model = make_model().eval(), make_model().eval().cuda()
    logits = model(frames.cuda(), NUM_FRAMES.cuda())
    torch.testing.assert_close(logits.cpu(), expected(frames, NUM_FRAMES), rtol=1e-3, atol=1e-4)
    model.train()(frames.cuda(), NUM_FRAMES.cuda()).sum().backward()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clusters": 0}, "clusters: expected at least 1, found 0"),
        ({"hidden_size": 0}, "hidden_size: expected at least 1, found 0"),
        ({"num_samples": 0}, "num_samples: expected at least 1, found 0"),
        ({"activation": "tanh"}, "activation: expected one of sigmoid, relu6, relu; found 'tanh'"),
        ({"pooling": "sum"}, "pooling: expected one of max, average; found 'sum'"),
        ({"sampling": "all"}, "sampling: expected one of random-frames, .*; found 'all'"),
        ({"num_classes": 0}, "num_classes: expected at least 1, found 0"),
    ],
)
def test_bad_arguments(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DBoF(**({"num_classes": 2, "feature_sizes": (4,)} | options))


def test_bag_is_a_layer_of_its_own() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x = torch.randn(2, 3, 4)
    bag = BagOfFrames(4, clusters=6, activation="relu").eval()
    torch.testing.assert_close(bag(x[:, :1], mask[:, :1]), bag(x[:, :1]))
    torch.testing.assert_close(bag(x, mask)[1], bag(x[1:, :1])[0])
    with pytest.raises(ValueError, match="feature_size: expected at least 1, found 0"):
        BagOfFrames(0, 2)
