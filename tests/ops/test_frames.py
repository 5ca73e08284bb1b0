"""frame_linear and frame_pool against dequantising all frames first."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pyseg import _ext
from pyseg.ops import (
    _dispatch,
    frame_linear,
    frame_linear_reference,
    frame_pool,
    frame_pool_reference,
    frames,
)

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
GROUPS, SIZE = 2, 5  # G and F of the pooling; K is M


def make_frames(shape: tuple[int, ...], device: str) -> tuple[Tensor, Tensor]:
    """Returns bytes (a slice of wider rows, as a feature is) and a mask."""
    batch, length, size, _ = shape
    random = torch.Generator().manual_seed(0)
    wide = torch.randint(0, 256, (batch, length, size + 4), generator=random, dtype=torch.uint8)
    mask = torch.rand(batch, length, generator=random) < 0.7
    return wide.to(device)[..., 2 : size + 2], mask.to(device)


def make(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Returns frames, mask, weight and bias."""
    *_, size, columns = shape
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(columns, size, generator=random, dtype=torch.float64)
    bias = torch.randn(columns, generator=random, dtype=torch.float64)
    values = [tensor.to(device, dtype).requires_grad_() for tensor in (weight, bias)]
    return *make_frames(shape, device), *values


def make_pool(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[Tensor, ...]:
    """Returns frames, weights and maps."""
    batch, length, size, clusters = shape
    random = torch.Generator().manual_seed(1)
    weights = torch.rand(batch, length, GROUPS, clusters, generator=random, dtype=torch.float64)
    maps = torch.randn(GROUPS, SIZE, size, generator=random, dtype=torch.float64)
    values = [tensor.to(device, dtype).requires_grad_() for tensor in (weights, maps)]
    return make_frames(shape, device)[0], *values


def pooled_by_hand(x: Tensor, weights: Tensor, maps: Tensor) -> Tensor:
    """Returns sums and masses side by side, with the frames mapped before pooling."""
    mapped = torch.einsum("gfn,btn->btgf", maps, x)
    sums = torch.einsum("btgk,btgf->bfk", weights, mapped)
    return torch.cat((sums.flatten(), weights.sum(1).flatten()))


def pooled(function, x: Tensor, weights: Tensor, maps: Tensor) -> Tensor:
    """Returns sums and masses of `function` side by side, in the dtype of the sums."""
    sums, mass = function(x, weights, maps)
    assert mass.dtype == torch.promote_types(weights.dtype, torch.float32)
    return torch.cat((sums.mT.flatten(), mass.flatten().to(sums.dtype)))


def dequantized(x: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    x = (x.double() * (4 / 255) + (4 / 512 - 2)).to(dtype)
    return x if mask is None else x.where(mask.unsqueeze(-1), 0.0)


@pytest.fixture(params=["one tile", "a row each", "some rows"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Runs a test with tiles of several sizes; returns every tile made."""
    limit = {"one tile": 2**22, "a row each": 1, "some rows": 600}[request.param]
    monkeypatch.setattr(frames, "_TILE_BYTES", {"cpu": limit, "cuda": limit})
    monkeypatch.setattr(frames, "_POOLED_BYTES", {"cpu": 2 * limit, "cuda": 2 * limit})
    made: list[Tensor] = []

    def recording(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def dequantize(*arguments: Tensor) -> Tensor:
            made.append(original(*arguments))
            return made[-1]

        return dequantize

    monkeypatch.setattr(frames, "dequantize", recording(frames.dequantize))
    if _ext.HAS_CPU_OPS:
        direct = recording(frames._DEQUANTIZE.call_directly)
        monkeypatch.setattr(frames._DEQUANTIZE, "call_directly", direct)
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
def test_linear(
    device: str, shape: tuple[int, ...], dtype: torch.dtype, tiles: list[Tensor]
) -> None:
    x, mask, weight, bias = make(shape, dtype, device)
    for valid, shift in ((mask, bias), (None, bias), (mask, None)):
        compare(
            lambda v=valid, s=shift: frame_linear(x, v, weight, s),
            lambda v=valid, s=shift: functional.linear(dequantized(x, v, dtype), weight, s),
            [weight] if shift is None else [weight, shift],
            dtype,
        )
    assert tiles or not x.numel()
    for tile in tiles:
        assert tile.nbytes <= max(frames._TILE_BYTES[device], tile[:1].nbytes)


@pytest.mark.parametrize("floating", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("device", DEVICES)
def test_pool(
    device: str, shape: tuple[int, ...], dtype: torch.dtype, floating: bool, tiles: list[Tensor]
) -> None:
    """Values and gradients, for floating frames too, a few videos at a time."""
    x, weights, maps = make_pool(shape, dtype, device)
    leaves = [weights, maps]
    wide = dequantized(x, None, dtype)
    if floating:
        x = wide = wide.requires_grad_()
        leaves.append(x)
    for reference in (pooled_by_hand, lambda *a: pooled(frame_pool_reference, *a)):
        compare(
            lambda: pooled(frame_pool, x, weights, maps),
            lambda r=reference: r(wide, weights, maps),
            leaves,
            dtype,
        )
    assert (len(tiles) > 0) == (shape[0] > 0 and not floating)
    pooled_values = weights.shape[2:].numel() * shape[2]  # of a video
    for tile in tiles:
        pooled_bytes = pooled_values * tile.element_size()
        assert len(tile) <= max(1, frames._POOLED_BYTES[device] // pooled_bytes)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_dequantize(device: str, given: bool, dtype: torch.dtype) -> None:
    """One rounding of the exact value, in the kernel and without it; 0 on padding."""
    for shape in ((3, 9, 16, 1), (3, 9, 45, 1), (0, 9, 16, 1), (2, 3, 0, 1)):
        x, mask = make_frames(shape, device)
        rows = make_dequantization(shape[2], (-1.0, 4.0))[-1].to(device) if given else None
        exact = x.double() * (4 / 255) + (4 / 512 - 2)
        if rows is not None:
            exact = (x.double() - rows[0]) * rows[1] + rows[2]
        exact = exact.where(mask.unsqueeze(-1), 0.0)
        for some in (x, x.transpose(0, 1).contiguous().transpose(0, 1), x[:, :, ::2].mT.mT):
            kept = exact if some.shape == x.shape else exact[:, :, ::2]
            columns = rows if rows is None or some.shape == x.shape else rows[:, ::2]
            for function in (frames.dequantize, frames.dequantize_reference):
                found = function(some, mask, dtype, columns)
                assert (found.dtype, found.shape) == (dtype, some.shape)
                error = (found.double() - kept).abs()
                unit = torch.finfo(dtype).eps / 2
                noise = 1e-6 if dtype != torch.float64 else 1e-15
                assert (error <= unit * kept.abs() + noise * (1 + kept.abs())).all()
                assert (found[~mask] == 0).all()


def test_dequantize_is_more_exact_than_arithmetic_in_16_bits() -> None:
    """Bytes around the middle stand for the smallest values: byte 128 for 0.0157."""
    x = torch.arange(96, 160, dtype=torch.uint8).view(1, 1, -1)
    exact = x.double() * (4 / 255) + (4 / 512 - 2)
    once = exact.float().bfloat16().double()
    found = frames.dequantize(x, None, torch.bfloat16).double()
    in_16_bits = x.bfloat16().mul_(4 / 255).add_(4 / 512 - 2).double()
    error, allowed, old = ((each - exact).square().mean().sqrt() for each in (
        found, once, in_16_bits
    ))  # fmt: skip
    assert error <= 2 * allowed < old / 2
    assert found[0, 0, 32] == 0.015625


RANGES = {"small": (-0.2, 0.3), "wide": (0.0, 30.0)}


def make_dequantization(width: int, limits: tuple[float, float]) -> tuple[Tensor, ...]:
    """Returns mean and deviation of each column, far from the middle of the range; and the rows."""
    low, high = limits
    step, start = (high - low) / 255, low + (high - low) / 512
    mean = torch.linspace(low, high, width, dtype=torch.float64)
    deviation = torch.linspace(step, (high - low) / 3, width, dtype=torch.float64)
    zero_point = ((mean - start) / step).round().clamp(0, 255)
    rows = zero_point, step / deviation, (start + zero_point * step - mean) / deviation
    return mean, deviation, torch.stack(rows)


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [512, 640])
@pytest.mark.parametrize("device", DEVICES)
def test_bytes_with_a_dequantization_of_their_own(
    device: str, width: int, dtype: torch.dtype, name: str
) -> None:
    """Values and gradients are at most twice as far from the truth as plain PyTorch's."""
    low, high = RANGES[name]
    mean, deviation, rows = make_dequantization(width, RANGES[name])
    q, mask, weight, bias = make((3, 20, width, 7), dtype, device)
    _, weights, maps = make_pool((3, 20, width, 3), dtype, device)
    rows = rows.to(device)
    exact = q.cpu().double() * (high - low) / 255 + low + (high - low) / 512

    def normalized(kind: torch.dtype) -> Tensor:
        return ((exact.to(kind) - mean.to(kind)) / deviation.to(kind)).to(device)

    leaves = [weight, bias, weights, maps]
    double = [leaf.detach().double().requires_grad_() for leaf in leaves]
    inner = torch.promote_types(dtype, torch.float32)

    def plain(kind: torch.dtype, given: list[Tensor]) -> list[Tensor]:
        x = normalized(kind).to(given[0].dtype)
        w, b, u, m = given
        first = functional.linear(x.where(mask.unsqueeze(-1), 0.0), w, b)
        return [first, pooled(frame_pool, x, u, m)]

    fused = [
        frame_linear(q, mask, weight, bias, rows),
        pooled(lambda *given: frame_pool(*given, rows), q, weights, maps),
    ]
    results = []
    for outputs, given in (
        (fused, leaves),
        (plain(inner, leaves), leaves),
        (plain(torch.float64, double), double),
    ):
        loss = sum(
            (output * torch.linspace(-1, 1, output.numel(), device=device).view(output.shape)).sum()
            for output in outputs
        )
        results.append([*outputs, *torch.autograd.grad(loss, given)])
    for own, other, truth in zip(*results, strict=True):
        truth = truth.detach()
        error, allowed = ((x.detach() - truth).norm() / truth.norm() for x in (own, other))
        assert error <= 2 * allowed + 1e-12, (own.shape, error, allowed)
    reference = frame_linear_reference(q, mask, weight, bias, rows).detach()
    atol = 0.02 * reference.abs().max().item()
    torch.testing.assert_close(fused[0].detach(), reference, rtol=0.02, atol=atol)


def test_the_dequantization_has_no_gradient() -> None:
    x, mask, weight, bias = make((2, 5, 6, 3), torch.float64, "cpu")
    _, weights, maps = make_pool((2, 5, 6, 3), torch.float64, "cpu")
    rows = make_dequantization(6, (0.0, 1.0))[-1].requires_grad_()
    for result in (
        frame_linear(x, mask, weight, bias, rows),
        frame_pool(x, weights, maps, rows)[0],
    ):
        with pytest.raises(RuntimeError, match="has no gradient of the dequantization: use"):
            result.sum().backward()
    for reference in (
        frame_linear_reference(x, mask, weight, bias, rows),
        frame_pool_reference(x, weights, maps, rows)[0],
    ):
        reference.sum().backward()
    assert rows.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"dequantization: expected shape \(3, N\) = \(3, 6\)"):
        frame_linear(x, mask, weight, bias, rows[:, :5])
    for function in (frame_linear, frame_linear_reference):
        with pytest.raises(
            ValueError, match=r"dequantization: expected shape \(3, N\), found \(2, 6\)"
        ):
            function(x, mask, weight, bias, rows[:2])


def test_references_take_bytes() -> None:
    x, mask, weight, bias = make((2, 5, 6, 3), torch.float64, "cpu")
    _, weights, maps = make_pool((2, 5, 6, 3), torch.float64, "cpu")
    for function, reference, arguments in (
        (frame_linear, frame_linear_reference, (x, mask, weight, bias)),
        (frame_linear, frame_linear_reference, (x, None, weight)),
        (frame_pool, frame_pool_reference, (x, weights, maps)),
    ):
        torch.testing.assert_close(function(*arguments), reference(*arguments))


def test_pool_takes_the_frames_in_another_dtype() -> None:
    x, weights, maps = make_pool((2, 5, 6, 3), torch.float64, "cpu")
    x = dequantized(x, None, torch.float32).requires_grad_()
    sums, _ = frame_pool(x, weights, maps)
    assert sums.dtype == torch.float64
    (grad,) = torch.autograd.grad(sums.sum(), x)
    expected = torch.einsum("btgk,gfn->btn", weights, maps)
    torch.testing.assert_close(grad, expected.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pool_keeps_the_order_of_weights_by_cluster(dtype: torch.dtype, tiles: list) -> None:
    """Nothing is copied, and the gradient has the strides of the weights, in a graph too."""
    x, weights, maps = make_pool((3, 40, 16, 7), dtype, "cpu")
    columns = weights.detach().mT.contiguous().mT
    assert frames._columns(columns, dtype).data_ptr() == columns.data_ptr()
    results = []
    for some in (columns.requires_grad_(), weights):
        sums, mass = frame_pool(x, some, maps)
        loss = sums.square().sum() + mass.square().sum()
        results.append((sums, mass, *torch.autograd.grad(loss, (some, maps))))
        assert mass.is_contiguous()
        assert results[-1][2].stride() == some.stride()
    torch.testing.assert_close(*results)


def test_pool_gives_the_requested_gradients_only() -> None:
    x, weights, maps = make_pool((2, 5, 6, 3), torch.float64, "cpu")
    x = dequantized(x, None, torch.float64)
    everything = [x, weights, maps]
    for wanted in ([0], [1], [2], [0, 2], [1, 2]):
        arguments = [t.detach().requires_grad_(i in wanted) for i, t in enumerate(everything)]
        leaves = [arguments[i] for i in wanted]
        for part in (0, 1):  # the sums alone, then the masses alone, which depend only on `weights`
            own, other = (f(*arguments)[part] for f in (frame_pool, frame_pool_reference))
            if not own.requires_grad or (part == 1 and 1 not in wanted):
                continue
            torch.testing.assert_close(
                torch.autograd.grad(own.square().sum(), leaves, materialize_grads=True),
                torch.autograd.grad(other.square().sum(), leaves, materialize_grads=True),
            )


def test_pooled_frames_are_saved_for_a_gradient_only() -> None:
    x, weights, maps = make_pool((2, 5, 6, 3), torch.float32, "cpu")
    for keep in (False, True):
        *_, kept = torch.ops.pyseg.frame_pool(x, weights.detach(), maps.detach(), keep)
        assert kept.shape == (2 * keep, GROUPS * 3, 6)
    with torch.no_grad():
        sums, _ = frame_pool(x, weights, maps)
    torch.testing.assert_close(sums, frame_pool(x, weights, maps)[0])


@pytest.mark.parametrize("slow", [True, False])
def test_bfloat16_is_accurate_whatever_dtype_is_faster(
    slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dispatch, "_SLOW_BFLOAT16", slow)
    monkeypatch.setattr(frames, "_TILE_BYTES", {"cpu": 600})
    monkeypatch.setattr(frames, "_POOLED_BYTES", {"cpu": 600})
    x, mask, weight, bias = make((3, 40, 16, 7), torch.bfloat16, "cpu")
    _, weights, maps = make_pool((3, 40, 16, 7), torch.bfloat16, "cpu")
    leaves = [weight, bias, weights, maps]
    exact = [tensor.detach().double().requires_grad_() for tensor in leaves]
    wide = dequantized(x, mask, torch.float64)
    for found, expected, own, other in (
        (
            frame_linear(x, mask, weight, bias),
            functional.linear(wide, *exact[:2]),
            leaves[:2],
            exact[:2],
        ),
        (
            pooled(frame_pool, x, weights, maps),
            pooled_by_hand(dequantized(x, None, torch.float64), *exact[2:]),
            leaves[2:],
            exact[2:],
        ),
    ):
        direction = torch.linspace(-1, 1, found.numel()).reshape(found.shape).bfloat16()
        gradients = torch.autograd.grad(found, own, direction)
        references = torch.autograd.grad(expected, other, direction.double())
        for a, b in zip((found, *gradients), (expected, *references), strict=True):
            assert a.dtype == torch.bfloat16
            worst = (a.double() - b).abs().max() / b.abs().max()
            # One rounding of the result; with bfloat16 products also that of the operands.
            assert worst < (2**-8 if slow else 2**-5)


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck_and_opcheck(device: str) -> None:
    x, mask, weight, bias = make((2, 5, 6, 3), torch.float64, device)
    _, weights, maps = make_pool((2, 5, 6, 3), torch.float64, device)
    wide = dequantized(x, None, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda w, b: frame_linear(x, mask, w, b), (weight, bias))
    assert torch.autograd.gradcheck(lambda w, m: frame_pool(x, w, m), (weights, maps))
    assert torch.autograd.gradcheck(frame_pool, (wide, weights, maps))
    linear, pool = torch.ops.pyseg.frame_linear, torch.ops.pyseg.frame_pool
    for grad in (False, True):
        values = [t.detach().requires_grad_(grad) for t in (weight, bias, weights, maps)]
        for valid in (mask, None):
            torch.library.opcheck(linear, (x, valid, *values[:2]))
        permuted = [t.detach().mT.contiguous().mT.requires_grad_(grad) for t in (wide, values[2])]
        for some in ((x, values[2]), (x, permuted[1]), permuted):
            torch.library.opcheck(pool, (*some, values[3], grad))
    by_cluster = weights.detach().mT.contiguous().mT.requires_grad_()
    assert torch.autograd.gradcheck(lambda w, m: frame_pool(x, w, m), (by_cluster, maps))
    torch.library.opcheck(pool, (x, by_cluster, maps, True))
    if device == "cuda" or _ext.HAS_CPU_OPS:
        rows = make_dequantization(6, (0.0, 1.0))[-1].to(device)
        torch.library.opcheck(torch.ops.pyseg.dequantize, (x, mask, rows, torch.float64))
        torch.library.opcheck(torch.ops.pyseg.dequantize, (x, None, None, torch.bfloat16))
    gradient = torch.rand(2, 5, 3, device=device)
    torch.library.opcheck(torch.ops.pyseg.frame_linear_backward, (gradient, x, mask))
    sums, mass, kept = (t.detach() for t in pool(wide, weights, maps, True))
    for some in (weights.detach(), by_cluster.detach()):
        arguments = (sums, mass, wide.detach(), some, maps.detach(), kept)
        for needed in ([True, True, True], [False, True, False], [False, False, True]):
            torch.library.opcheck(torch.ops.pyseg.frame_pool_backward, (*arguments, needed))


def test_pool_cannot_be_differentiated_twice() -> None:
    x, weights, maps = make_pool((2, 5, 6, 3), torch.float64, "cpu")
    sums, _ = frame_pool(x, weights, maps)
    (grad,) = torch.autograd.grad(sums.square().sum(), weights, create_graph=True)
    with pytest.raises(RuntimeError, match=r"frame_pool cannot be .* use .*frame_pool_reference"):
        grad.sum().backward()


@pytest.mark.parametrize("device", DEVICES)
def test_compiles_whole_for_any_number_of_frames(device: str) -> None:
    def step(x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, maps: Tensor) -> Tensor:
        weights = frame_linear(x, mask, weight, bias)
        sums, mass = frame_pool(x, weights.unflatten(2, (GROUPS, -1)), maps)
        return sums.sum() + mass.square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    dtype = torch.float64
    for shape in ((2, 5, 6, 4), (3, 9, 6, 4), (4, 7, 6, 4)):
        arguments = *make(shape, dtype, device), make_pool(shape, dtype, device)[2]
        leaves = list(arguments[2:])
        for a, b in zip(
            *(torch.autograd.grad(f(*arguments), leaves) for f in (compiled, step)),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast(device: str) -> None:
    x, mask, weight, bias = make((2, 5, 6, 3), torch.float32, device)
    _, weights, maps = make_pool((2, 5, 6, 3), torch.float32, device)
    with torch.autocast(device, torch.bfloat16):
        sums, mass = frame_pool(x, weights, maps)
        results = frame_linear(x, mask, weight, bias), sums
    for result in results:
        assert result.dtype == torch.bfloat16
    assert mass.dtype == torch.float32
    total = sum(r.float().sum() for r in (*results, mass))
    gradients = torch.autograd.grad(total, [weight, bias, weights, maps])
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


def test_error_texts() -> None:
    x, mask, weight, bias = make((2, 5, 6, 3), torch.float32, "cpu")
    _, weights, maps = make_pool((2, 5, 6, 3), torch.float32, "cpu")
    with pytest.raises(TypeError, match=r"frames: expected uint8, found torch\.float32"):
        frame_linear(x.float(), mask, weight)
    with pytest.raises(
        ValueError, match=r"mask: expected shape \(B, T\) = \(2, 5\) .*found \(2, 4\)"
    ):
        frame_linear(x, mask[:, 1:], weight)
    with pytest.raises(TypeError, match=r"mask: expected bool, found torch\.float32"):
        frame_linear(x, mask.float(), weight)
    with pytest.raises(
        ValueError, match=r"weight: expected shape \(M, N\) = \(M, 6\) .*found \(3, 5\)"
    ):
        frame_linear(x, mask, weight[:, 1:])
    with pytest.raises(TypeError, match=r"weight: expected float32, .*, found torch\.int64"):
        frame_linear(x, mask, weight.long())
    with pytest.raises(ValueError, match=r"bias: expected shape \(M,\) = \(3,\) .*found \(2,\)"):
        frame_linear(x, mask, weight, bias[1:])
    for function in (frame_pool, frame_pool_reference):
        with pytest.raises(
            TypeError, match=r"frames: expected uint8 or floating, found torch\.int32"
        ):
            function(x.int(), weights, maps)
        with pytest.raises(ValueError, match=r"frames: expected shape \(B, T, N\), found \(5, 6\)"):
            function(x[0], weights, maps)
        text = r"weights: expected shape \(B, T, G, K\) = \(2, 5, G, K\) .*\(2, 4, 2, 3\)"
        with pytest.raises(ValueError, match=text):
            function(x, weights[:, 1:], maps)
        text = "weights: expected the device of frames, cpu, found meta"
        with pytest.raises(ValueError, match=text):
            function(x, weights.to("meta"), maps)
        with pytest.raises(TypeError, match="weights: expected a Tensor, found list"):
            function(x, [1.0], maps)
        with pytest.raises(TypeError, match=r"maps: expected torch\.float32 to fit weights, found"):
            function(x, weights, maps.double())
        for wrong in (maps[1:], maps[..., 1:]):
            text = r"maps: expected shape \(G, F, N\) = \(2, F, 6\) to fit \w+ .*found \("
            with pytest.raises(ValueError, match=text):
                function(x, weights, wrong)
