"""frame_linear and frame_pool against dequantising everything first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pyseg.ops import _dispatch, frame_linear, frame_pool, frames

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
        ],
    ),
]
SHAPES = [(2, 5, 6, 3), (1, 1, 1, 1), (3, 40, 16, 7), (0, 5, 6, 3), (2, 0, 6, 3)]  # B, T, N, M


def make(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Returns frames (a part of wider ones, as a feature is), mask, weight, bias and weights."""
    batch, length, size, columns = shape
    random = torch.Generator().manual_seed(0)
    wide = torch.randint(0, 256, (batch, length, size + 4), generator=random, dtype=torch.uint8)
    mask = torch.rand(batch, length, generator=random) < 0.7
    weight = torch.randn(columns, size, generator=random, dtype=torch.float64)
    bias = torch.randn(columns, generator=random, dtype=torch.float64)
    weights = torch.rand(batch, length, columns, generator=random, dtype=torch.float64)
    values = [tensor.to(device, dtype).requires_grad_() for tensor in (weight, bias, weights)]
    return wide.to(device)[..., 2 : size + 2], mask.to(device), *values


def dequantized(x: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    x = (x.double() * (4 / 255) + (4 / 512 - 2)).to(dtype)
    return x if mask is None else x.where(mask.unsqueeze(-1), 0.0)


@pytest.fixture(params=["one tile", "a row each", "some rows"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Runs a test with tiles of several sizes; returns the bytes of all that are made."""
    limit = {"one tile": 2**22, "a row each": 1, "some rows": 600}[request.param]
    monkeypatch.setattr(frames, "_TILE_BYTES", {"cpu": limit, "cuda": limit})
    made: list[int] = []
    original = frames.dequantize

    def dequantize(*arguments: Tensor) -> Tensor:
        x = original(*arguments)
        row = x.shape[1:].numel() * x.element_size()
        assert x.nbytes <= max(limit, row)
        made.append(x.nbytes)
        return x

    monkeypatch.setattr(frames, "dequantize", dequantize)
    return made


def compare(function, reference, leaves: list[Tensor], dtype: torch.dtype) -> None:
    results = []
    for each in (function, reference):
        result = each()
        direction = torch.linspace(-1, 1, result.numel(), dtype=dtype, device=result.device)
        grads = torch.autograd.grad(result, leaves, direction.reshape(result.shape))
        results.append((result, *grads))
    tolerance = {torch.bfloat16: 2e-2, torch.float32: 1e-5}.get(dtype, 1e-12)
    for a, b in zip(*results, strict=True):
        assert a.dtype == dtype
        scale = b.detach().abs().max() if b.numel() else 0.0
        torch.testing.assert_close(a, b, rtol=tolerance, atol=float(tolerance * scale))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("device", DEVICES)
def test_linear(device: str, shape: tuple[int, ...], dtype: torch.dtype, tiles: list[int]) -> None:
    x, mask, weight, bias, _ = make(shape, dtype, device)
    for valid, shift in ((mask, bias), (None, bias), (mask, None)):
        compare(
            lambda v=valid, s=shift: frame_linear(x, v, weight, s),
            lambda v=valid, s=shift: functional.linear(dequantized(x, v, dtype), weight, s),
            [weight] if shift is None else [weight, shift],
            dtype,
        )
    assert (len(tiles) > 0) == (x.numel() > 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("device", DEVICES)
def test_pool(device: str, shape: tuple[int, ...], dtype: torch.dtype, tiles: list[int]) -> None:
    x, *_, weights = make(shape, dtype, device)
    compare(
        lambda: frame_pool(x, weights),
        lambda: weights.mT @ dequantized(x, None, dtype),
        [weights],
        dtype,
    )
    assert (len(tiles) > 0) == (shape[0] > 0)


@pytest.mark.parametrize("slow", [True, False])
def test_bfloat16_is_as_good_whatever_the_processor_is_quick_in(
    slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dispatch, "_SLOW_BFLOAT16", slow)
    monkeypatch.setattr(frames, "_TILE_BYTES", {"cpu": 600})
    x, mask, weight, bias, weights = make((3, 40, 16, 7), torch.bfloat16, "cpu")
    exact = [tensor.detach().double().requires_grad_() for tensor in (weight, bias, weights)]
    wide = dequantized(x, mask, torch.float64)
    for found, expected, own, other in (
        (
            frame_linear(x, mask, weight, bias),
            functional.linear(wide, *exact[:2]),
            [weight, bias],
            exact[:2],
        ),
        (
            frame_pool(x, weights),
            exact[2].mT @ dequantized(x, None, torch.float64),
            [weights],
            exact[2:],
        ),
    ):
        direction = torch.linspace(-1, 1, found.numel()).reshape(found.shape).bfloat16()
        gradients = torch.autograd.grad(found, own, direction)
        references = torch.autograd.grad(expected, other, direction.double())
        for a, b in zip((found, *gradients), (expected, *references), strict=True):
            assert a.dtype == torch.bfloat16
            worst = (a.double() - b).abs().max() / b.abs().max()
            # One rounding of the result; that of the frames too where they are bfloat16.
            assert worst < (2**-8 if slow else 2**-6)


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck_and_opcheck(device: str) -> None:
    x, mask, weight, bias, weights = make((2, 5, 6, 3), torch.float64, device)
    assert torch.autograd.gradcheck(lambda w, b: frame_linear(x, mask, w, b), (weight, bias))
    assert torch.autograd.gradcheck(lambda w: frame_pool(x, w), (weights,))
    for grad in (False, True):
        values = [tensor.detach().requires_grad_(grad) for tensor in (weight, bias, weights)]
        for valid in (mask, None):
            torch.library.opcheck(torch.ops.pyseg.frame_linear, (x, valid, *values[:2]))
        torch.library.opcheck(torch.ops.pyseg.frame_pool, (x, values[2]))
    gradient = torch.rand(2, 5, 3, device=device)
    torch.library.opcheck(torch.ops.pyseg.frame_linear_backward, (gradient, x, mask))
    torch.library.opcheck(
        torch.ops.pyseg.frame_pool_backward, (torch.rand_like(weights.mT @ x.double()), x)
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("device", DEVICES)
def test_compiles_whole_for_any_number_of_frames(device: str) -> None:
    def step(x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weights = frame_linear(x, mask, weight, bias)
        return frame_pool(x, weights)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for shape in ((2, 5, 6, 3), (3, 9, 6, 3), (4, 7, 6, 3)):
        arguments = make(shape, torch.float32, device)[:4]
        leaves = list(arguments[2:])
        for a, b in zip(
            *(torch.autograd.grad(f(*arguments).sum(), leaves) for f in (compiled, step)),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast(device: str) -> None:
    x, mask, weight, bias, weights = make((2, 5, 6, 3), torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        results = frame_linear(x, mask, weight, bias), frame_pool(x, weights)
    for result in results:
        assert result.dtype == torch.bfloat16
    gradients = torch.autograd.grad(sum(r.float().sum() for r in results), [weight, bias, weights])
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


def test_error_texts() -> None:
    x, mask, weight, bias, weights = make((2, 5, 6, 3), torch.float32, "cpu")
    with pytest.raises(TypeError, match=r"frames must be uint8, got torch\.float32"):
        frame_linear(x.float(), mask, weight)
    with pytest.raises(ValueError, match=r"frames must be \(B, T, N\), got shape \(5, 6\)"):
        frame_pool(x[0], weights)
    with pytest.raises(ValueError, match=r"mask must be \(B, T\) = \(2, 5\) .*got \(2, 4\)"):
        frame_linear(x, mask[:, 1:], weight)
    with pytest.raises(TypeError, match=r"mask must be bool, got torch\.float32"):
        frame_linear(x, mask.float(), weight)
    with pytest.raises(ValueError, match=r"weight must be \(M, N\) = \(M, 6\) .*got \(3, 5\)"):
        frame_linear(x, mask, weight[:, 1:])
    with pytest.raises(TypeError, match=r"weight must be floating, got torch\.int64"):
        frame_linear(x, mask, weight.long())
    with pytest.raises(ValueError, match=r"bias must be \(M,\) = \(3,\) .*got \(2,\) of"):
        frame_linear(x, mask, weight, bias[1:])
    with pytest.raises(
        ValueError, match=r"weights must be \(B, T, M\) = \(2, 5, M\) .*\(2, 4, 3\)"
    ):
        frame_pool(x, weights[:, 1:])
    with pytest.raises(ValueError, match="weights must be on the device of frames, cpu, got meta"):
        frame_pool(x, weights.to("meta"))
    with pytest.raises(TypeError, match="weights must be a Tensor, got list"):
        frame_pool(x, [1.0])
