"""FrameNormalization: the conventions, and padding in each."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyseg.nn import FrameNormalization

SIZES = (6, 3)
EIGENVALUES = torch.linspace(4.0, 0.25, 6)
CONVENTIONS = ["dequantize", "l2", "unwhiten", "raw"]


def make(convention: str) -> FrameNormalization:
    return FrameNormalization(convention, SIZES, EIGENVALUES if convention == "unwhiten" else None)


def dequantized(q: torch.Tensor) -> torch.Tensor:
    return q.double() * (4 / 255) + (4 / 512 - 2)


def expected(convention: str, x: torch.Tensor) -> torch.Tensor:
    """The valid frames of a floating input, in float64."""
    x = x.double()
    if convention == "l2":
        return x / x.square().sum(-1, keepdim=True).clamp(min=1e-12).sqrt()
    if convention == "unwhiten":
        scale = EIGENVALUES.double().sqrt() + 1e-4
        return torch.cat(((x[..., :6] - 4 / 512) * scale, x[..., 6:]), -1)
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


@pytest.mark.parametrize(
    ("convention", "eigenvalues", "message"),
    [
        ("whiten", None, "normalization: expected one of dequantize, l2, unwhiten, raw"),
        ("unwhiten", None, "eigenvalues: expected them with the normalization 'unwhiten'"),
        ("l2", [1.0] * 6, "eigenvalues: expected none with the normalization 'l2'"),
        ("unwhiten", [1.0] * 5, "eigenvalues: expected at least 6 values .*, found 5"),
        ("unwhiten", [-1.0] * 6, "eigenvalues: expected finite numbers >= 0"),
        ("unwhiten", [float("nan")] * 6, "eigenvalues: expected finite numbers >= 0"),
    ],
)
def test_bad_arguments(convention: str, eigenvalues: list | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrameNormalization(convention, SIZES, eigenvalues)


def test_bad_input() -> None:
    normalize = FrameNormalization("dequantize", SIZES)
    with pytest.raises(ValueError, match=r"frames: expected .* 9\).* 6 \+ 3; found \(1, 2, 8\)"):
        normalize(torch.zeros(1, 2, 8))
    with pytest.raises(TypeError, match=r"frames: expected uint8 or floating, found torch.int64"):
        normalize(torch.zeros(1, 2, 9, dtype=torch.int64))
