"""FrameNormalization: the conventions, and padding in each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pyseg.data import FeatureSet
from pyseg.nn import FrameNormalization
from pyseg.ops.frames import dequantize

SIZES = (6, 3)
EIGENVALUES = torch.linspace(4.0, 0.25, 6)
MEAN, DEVIATION = torch.linspace(-1.0, 1.0, 9), torch.linspace(0.5, 2.0, 9)
TENSORS = {
    "unwhiten": {"eigenvalues": EIGENVALUES},
    "standardize": {"mean": MEAN, "deviation": DEVIATION},
}
CONVENTIONS = ["dequantize", "l2", "unwhiten", "raw", "standardize"]
RANGES = [((-2.0, 2.0), (-2.0, 2.0)), ((-0.2, 0.3), (0.0, 30.0)), ((-7.5, -7.0), (-1e-3, 1e4))]


def make(convention: str, **options: Any) -> FrameNormalization:
    return FrameNormalization(convention, SIZES, **(TENSORS.get(convention, {}) | options))


def dequantized(q: torch.Tensor, ranges: Any = RANGES[0]) -> torch.Tensor:
    low, high = (
        torch.tensor(ranges, dtype=torch.float64).repeat_interleave(torch.tensor(SIZES), dim=0).T
    )
    return q.double() * (high - low) / 255 + low + (high - low) / 512


def expected(convention: str, x: torch.Tensor) -> torch.Tensor:
    """The valid frames of a floating input, in float64."""
    x = x.double()
    if convention == "l2":
        return x / x.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
    if convention == "unwhiten":
        scale = EIGENVALUES.double().sqrt() + 1e-4
        return torch.cat(((x[..., :6] - 4 / 512) * scale, x[..., 6:]), -1)
    if convention == "standardize":
        return (x - MEAN.double()) / DEVIATION.double()
    return x


def padding(convention: str) -> torch.Tensor:
    row = torch.zeros(9, dtype=torch.float64)
    if convention == "unwhiten":
        row[:6] = -4 / 512 * (EIGENVALUES.double().sqrt() + 1e-4)
    return row


def test_dequantizes_as_the_starter_code() -> None:
    q = torch.arange(256, dtype=torch.uint8).reshape(1, 256, 1)
    x = FrameNormalization("dequantize", (1,))(q).flatten()
    reference = np.arange(256).astype(np.float32) * np.float32(4 / 255) + np.float32(4 / 512 - 2)
    np.testing.assert_allclose(x.numpy(), reference, atol=2.5e-7, rtol=0)
    assert x[0] == -1.9921875
    assert x[255] == 2.0078125


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("garbage", ["bytes", "numbers", "nan"])
def test_valid_frames_and_padding(convention: str, garbage: str) -> None:
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (2, 4, 9), dtype=torch.uint8)
    mask = torch.tensor([[True, True, True, True], [True, False, False, False]])
    if garbage == "bytes":
        inputs = frames
        x = frames.double() if convention == "raw" else dequantized(frames)
    else:
        inputs = dequantized(frames).float()
        x = inputs.clone()
        inputs[~mask] = 1e30 if garbage == "numbers" else float("nan")
    y = make(convention)(inputs, mask)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y[mask].double(), expected(convention, x)[mask], rtol=0, atol=3e-6)
    row = padding(convention)
    torch.testing.assert_close(y[~mask].double(), row.expand(3, 9), rtol=0, atol=1e-8)
    if convention != "unwhiten":
        assert (y[~mask] == 0).all()


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_without_a_mask_all_frames_are_valid(convention: str) -> None:
    frames = torch.randint(0, 256, (2, 4, 9), dtype=torch.uint8)
    mask = torch.ones(2, 4, dtype=torch.bool)
    normalize = make(convention)
    assert torch.equal(normalize(frames), normalize(frames, mask))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_input_is_left_alone(convention: str) -> None:
    frames = torch.randn(1, 2, 9)
    before = frames.clone()
    make(convention)(frames, torch.tensor([[True, False]]))
    assert torch.equal(frames, before)


def test_l2_of_a_zero_frame_is_zero_and_differentiable() -> None:
    frames = torch.zeros(1, 1, 9, requires_grad=True)
    y = make("l2")(frames)
    y.sum().backward()
    assert (y == 0).all()
    assert frames.grad.isfinite().all()


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_garbage_has_no_gradient(convention: str) -> None:
    frames = torch.randn(1, 2, 9)
    frames[0, 1] = float("nan")
    frames.requires_grad_()
    make(convention)(frames, torch.tensor([[True, False]])).square().sum().backward()
    assert frames.grad[0, 0].isfinite().all()
    assert (frames.grad[0, 1] == 0).all()


def test_dtype_follows_the_model() -> None:
    frames = torch.randint(0, 256, (1, 2, 9), dtype=torch.uint8)
    for dtype in (torch.float64, torch.bfloat16):
        for convention in CONVENTIONS:
            assert make(convention)(frames, dtype=dtype).dtype == dtype


def test_eigenvalues_are_saved_and_cut_to_the_first_feature() -> None:
    column = torch.linspace(4.0, 0.1, 20).reshape(20, 1)
    for values in (column, column.numpy(), column.flatten().tolist()):
        normalize = FrameNormalization("unwhiten", SIZES, values)
        torch.testing.assert_close(normalize.state_dict()["eigenvalues"], column.flatten()[:6])
    assert not FrameNormalization("dequantize", SIZES).state_dict()


@pytest.mark.parametrize("ranges", RANGES)
def test_bytes_stand_for_the_values_of_a_feature_set(ranges: Any) -> None:
    q = torch.randint(0, 256, (3, 5, 9), dtype=torch.uint8)
    stored = FeatureSet((("a", 6), ("b", 3)), ranges=ranges)
    for dtype, digits in ((torch.float64, 1e-15), (torch.float32, 3e-7)):
        x = make("dequantize", ranges=[list(pair) for pair in ranges])(q, dtype=dtype)
        largest = max(abs(limit) for pair in ranges for limit in pair)
        for other in (dequantized(q, ranges), torch.from_numpy(stored.dequantize(q.numpy()))):
            tolerance = digits if other.dtype == torch.float64 else 3e-7
            torch.testing.assert_close(x.double(), other.double(), rtol=0, atol=tolerance * largest)
    if ranges == RANGES[0]:
        assert torch.equal(x, dequantize(q, None, torch.float32))


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_convention_takes_ranges(convention: str) -> None:
    """Bytes are what their values are; `unwhiten` removes half a step of the first range."""
    q = torch.randint(0, 256, (2, 4, 9), dtype=torch.uint8)
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    normalize = make(convention, ranges=RANGES[1])
    if convention == "raw":
        assert torch.equal(normalize(q), q.float())
        return
    x = dequantized(q, RANGES[1])
    torch.testing.assert_close(normalize(q, mask), normalize(x.float(), mask), rtol=1e-5, atol=1e-5)
    if convention == "unwhiten":
        x = x + (4 - 0.5) / 512  # `expected` removes that of [-2, 2]
        x[..., 6:] -= (4 - 0.5) / 512
    torch.testing.assert_close(normalize(q).double(), expected(convention, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mean", [0.05, 15.0, 29.9])
def test_nothing_cancels_far_from_the_mean(mean: float, dtype: torch.dtype) -> None:
    """The error is at most that of plain float32, then rounded once."""
    torch.manual_seed(0)
    features = FeatureSet((("a", 6), ("b", 3)), ranges=((0.0, 30.0), (0.0, 30.0)))
    values = (torch.randn(4, 50, 9) * 0.15 + mean).clamp(0, 30)
    q = torch.from_numpy(features.quantize(values.reshape(200, 9).numpy())[0]).view(4, 50, 9)
    center, deviation = torch.full((9,), mean), torch.full((9,), 0.15)
    normalize = make("standardize", ranges=features.ranges, mean=center, deviation=deviation)
    exact = (dequantized(q, features.ranges) - center.double()) / deviation.double()
    plain = (dequantized(q, features.ranges).float() - center) / deviation
    error = (normalize(q, dtype=dtype).double() - exact).square().mean().sqrt()
    assert error <= 2 * (plain.to(dtype).double() - exact).square().mean().sqrt()
    values = normalize(dequantized(q, features.ranges).float(), dtype=dtype)
    torch.testing.assert_close(values, plain.to(dtype), rtol=1e-6, atol=1e-6)


def test_constant_dimensions_are_centred_only() -> None:
    mean = torch.tensor([3.0, -4.0, 0.0, 8.0, 5.0, 0, 0, 0, 0])
    deviation = torch.tensor([0.0, 1e-7, 1e-13, 7e-6, 2.0, 1, 1, 1, 1])
    normalize = make("standardize", mean=mean, deviation=deviation, ranges=[(0, 9), (0, 9)])
    y = normalize(mean + torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0]).expand(1, 1, 9))
    assert y.flatten()[:5].tolist() == [0.5, 0.5, 0.5, 0.5, 0.25]
    q = torch.full((1, 1, 9), 100, dtype=torch.uint8)
    torch.testing.assert_close(normalize(q), normalize(dequantized(q, [(0, 9), (0, 9)]).float()))


def test_mean_and_deviation_stay_in_float32() -> None:
    normalize = make("standardize", mean=MEAN + 100, ranges=[(90, 110), (90, 110)])
    expected = normalize.state_dict()
    q = torch.randint(0, 256, (1, 2, 9), dtype=torch.uint8)
    y = normalize(q)
    for cast in (torch.bfloat16, torch.float16):
        normalize = normalize.to(cast)
        assert normalize.state_dict().keys() == {"mean", "deviation"}
        assert all(torch.equal(value, expected[key]) for key, value in normalize.named_buffers())
        torch.testing.assert_close(normalize(q, dtype=cast), y.to(cast), rtol=0.02, atol=0.02)
    assert normalize.double().mean.dtype == torch.float64
    assert normalize.to("meta").deviation.is_meta


@pytest.mark.parametrize(
    ("ranges", "wrong", "limits"),
    [(((-0.2, 0.3), (0.0, 30.0)), 150.0, r"0\.\.30"), (((0.0, 1.0),) * 2, 5.0, r"0\.\.1")],
)
def test_floats_far_outside_of_the_ranges_are_refused(
    ranges: Any, wrong: float, limits: str
) -> None:
    normalize = make("standardize", ranges=ranges)
    frames = torch.full((1, 2, 9), ranges[0][0])
    normalize(frames)
    for value in (wrong, -wrong):
        frames[0, 0, 8] = value
        with pytest.raises(ValueError, match=rf"already, in about {limits}, .* found {wrong:g}$"):
            normalize(frames)
        normalize(frames, torch.tensor([[False, True]]))


@pytest.mark.parametrize(
    ("convention", "options", "message"),
    [
        ("whiten", {}, "normalization: expected one of dequantize, l2, unwhiten, raw, standardize"),
        ("unwhiten", {}, "eigenvalues: expected them with the normalization 'unwhiten'"),
        ("l2", {"eigenvalues": [1.0] * 6}, "eigenvalues: expected none with the normalization"),
        ("unwhiten", {"eigenvalues": [1.0] * 5}, "eigenvalues: expected at least 6 .*, found 5"),
        ("unwhiten", {"eigenvalues": [-1.0] * 6}, "eigenvalues: expected finite numbers >= 0"),
        ("unwhiten", {"eigenvalues": [float("nan")] * 6}, "eigenvalues: expected finite numbers"),
        ("standardize", {"deviation": [1.0] * 9}, "mean: expected them with .* 'standardize'"),
        ("standardize", {"mean": [1.0] * 9}, "deviation: expected them with .* 'standardize'"),
        ("dequantize", {"mean": [1.0] * 9}, "mean: expected none with the normalization 'dequan"),
        (
            "standardize",
            {"mean": [1.0] * 9, "deviation": [1.0] * 10},
            r"deviation: expected exactly 9 values \(the width of a frame\), found 10",
        ),
        (
            "standardize",
            {"mean": [1.0] * 9, "deviation": [-1.0] * 9},
            "deviation: expected finite numbers >= 0",
        ),
        (
            "standardize",
            {"mean": [float("inf")] * 9, "deviation": [1.0] * 9},
            "mean: expected finite numbers$",
        ),
        ("l2", {"ranges": [(0, 1)]}, "ranges: expected one for each of 2 features, found 1"),
        ("l2", {"ranges": [(0, 1), (1, 1)]}, "ranges: expected finite low < high, found 1, 1"),
        ("l2", {"ranges": [(0, 1), (0, float("inf"))]}, "ranges: .* low < high, found 0, inf"),
        ("l2", {"ranges": [0, 1]}, r"ranges: expected \(low, high\) of each feature, found \[0, 1"),
        ("l2", {"ranges": "no"}, r"ranges: expected \(low, high\) of each feature, found 'no'"),
    ],
)
def test_bad_arguments(convention: str, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrameNormalization(convention, SIZES, **options)


def test_bad_input() -> None:
    normalize = FrameNormalization("dequantize", SIZES)
    with pytest.raises(ValueError, match=r"frames: expected .* 9\).* 6 \+ 3; found \(1, 2, 8\)"):
        normalize(torch.zeros(1, 2, 8))
    with pytest.raises(TypeError, match=r"frames: expected uint8 or floating, found torch.int64"):
        normalize(torch.zeros(1, 2, 9, dtype=torch.int64))


def test_dequantization_is_computed_once_until_the_buffers_change() -> None:
    normalize = make("standardize").train()
    frames = torch.zeros(1, 1, 9, dtype=torch.uint8)
    first = normalize.dequantization(frames)
    assert normalize.dequantization(frames) is first
    normalize.mean.add_(0.25)
    moved = normalize.dequantization(frames)
    fresh = make("standardize", mean=MEAN + 0.25).dequantization(frames)
    assert not torch.equal(moved, first)
    assert torch.equal(moved, fresh)
