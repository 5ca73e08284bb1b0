"""Products with frames that may be bytes, which are dequantised tile by tile."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pyseg.ops._dispatch import as_dtype, has_kernel, is_reference, product_dtype, sum_dtype
from pyseg.ops._op import (
    SUMS,
    Argument,
    Op,
    check_dtype,
    is_any_autocast_enabled,
    is_plain,
    misfit,
    wants_gradient,
)

# YouTube-8M stores a feature x in [-2, 2] as a byte; the starter code's utils.py dequantises it as
# q * (range / 255) + (range / 512 + min). The offset is not half a bin of 4/255, but all public
# models were trained with it. Bytes that stand for other values bring their own `dequantization`.
RANGE = (-2.0, 2.0)

Limit = TypeVar("Limit", float, npt.NDArray[Any])


def values_of_bytes(low: Limit, high: Limit) -> tuple[Limit, Limit]:
    """Returns scale and offset of the values that bytes stand for: q * scale + offset.

    Args:
        low: The least value of the range, or an array of them.
        high: The greatest one.
    """
    return (high - low) / 255.0, low + (high - low) / 512.0


SCALE, OFFSET = values_of_bytes(*RANGE)

# Bytes of a dequantised tile: small compared with the frames, but large enough that the products,
# which read the whole weight for every tile, lose at most a few per cent.
_TILE_BYTES = {"cpu": 2**22, "cuda": 2**26}

# Bytes of the pooled frames that `frame_pool` processes at a time. With more, their temporary
# gradient of the same size would be newly allocated memory; with fewer the products are slow.
_POOLED_BYTES = {"cpu": 2**25, "cuda": 2**28}


_BYTES = {
    "frames": Argument("(B, T, N)", "uint8"),
    "mask": Argument("(B, T)", "bool", optional=True),
}
_DEQUANTIZATION = {"dequantization": Argument("(3, N)", "floating", optional=True)}
_DEQUANTIZE = Op("dequantize")
_LINEAR = Op(
    "frame_linear",
    "(Tensor frames, Tensor? mask, Tensor weight, Tensor? bias, Tensor? dequantization=None) -> "
    "Tensor",
    **_BYTES,
    weight=Argument("(M, N)"),
    bias=Argument("(M,)", optional=True),
    **_DEQUANTIZATION,
)
_LINEAR_BACKWARD = Op(
    "frame_linear_backward",
    "(Tensor grad, Tensor frames, Tensor? mask, Tensor? dequantization=None) -> Tensor",
    grad=Argument("(B, T, M)"),
    **_BYTES,
    **_DEQUANTIZATION,
)
_POOLED = {
    "frames": Argument("(B, T, N)", "uint8 or floating"),
    "weights": Argument("(B, T, G, K)"),
    "maps": Argument("(G, F, N)"),
}
_POOL = Op(
    "frame_pool",
    "(Tensor frames, Tensor weights, Tensor maps, bool keep, Tensor? dequantization=None) -> "
    "(Tensor sums, Tensor mass, Tensor kept)",
    **_POOLED,
    **_DEQUANTIZATION,
)
_POOL_BACKWARD = Op(
    "frame_pool_backward",
    "(Tensor grad, Tensor grad_mass, Tensor frames, Tensor weights, Tensor maps, Tensor kept, "
    "bool[3] needed, Tensor? dequantization=None) -> (Tensor frames, Tensor weights, Tensor maps)",
    grad=Argument("(B, K, F)"),
    grad_mass=Argument("(B, G, K)", SUMS),
    **_POOLED,
    **_DEQUANTIZATION,
)


def dequantize(
    frames: Tensor,
    mask: Tensor | None,
    dtype: torch.dtype,
    dequantization: Tensor | None = None,
) -> Tensor:
    """Returns the values that bytes stand for in `dtype`, 0 where `mask` is False.

    They are computed in float32, or float64 for float64, and rounded once: in 16 bits the sum of
    scaled byte and offset would cancel most digits of values near 0.

    Args:
        frames: (..., N) uint8.
        mask: (...) bool, True where the frame is valid. ``None``: all frames are.
        dtype: of the result; float32, float64, float16 or bfloat16.
        dequantization: (3, N), floating: zero points z (whole numbers in 0..255), scales s and
            offsets o. A byte q of column n stands for (q - z[n]) * s[n] + o[n]. The difference is
            exact, so that no digits cancel where z is near the mean of the bytes. ``None``: it
            stands for q * 4/255 + (4/512 - 2).

    Returns:
        (..., N).
    """
    if not has_kernel(frames) or wants_gradient(dequantization):
        return dequantize_reference(frames, mask, dtype, dequantization)
    rows = None if dequantization is None else as_dtype(dequantization, sum_dtype(dtype))
    return _DEQUANTIZE(frames, mask, rows, dtype)


def dequantize_reference(
    frames: Tensor,
    mask: Tensor | None,
    dtype: torch.dtype,
    dequantization: Tensor | None = None,
) -> Tensor:
    """Returns what :func:`dequantize` returns, in plain PyTorch."""
    inner = sum_dtype(dtype)
    x = frames.to(inner)  # a copy, so that the arithmetic may be in place
    if dequantization is None:
        x.mul_(SCALE).add_(OFFSET)
    else:
        zero_point, scale, offset = dequantization.to(inner).unbind()
        x = torch.addcmul(offset, x.sub_(zero_point), scale)
    return (x if mask is None else x.masked_fill_(~mask.unsqueeze(-1), 0.0)).to(dtype)


@_DEQUANTIZE.fake
def _dequantize_fake(
    frames: Tensor, mask: Tensor | None, dequantization: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return frames.new_empty(frames.shape, dtype=dtype)


def frame_linear(
    frames: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    dequantization: Tensor | None = None,
) -> Tensor:
    """Returns x W^T + b for every frame, where x are the dequantised frames, 0 on padding.

    It equals :func:`torch.nn.functional.linear` of the float frames, but these, four times as large
    as the bytes, exist only one tile at a time, also in the backward pass; frames that fit one tile
    are kept for it. Autocast's matrix-product dtype applies. For forward-mode derivatives, which
    raise an error, use :func:`frame_linear_reference`.

    Args:
        frames: (B, T, N) uint8 as stored.
        mask: (B, T) bool, True where the frame is valid. ``None``: all frames are.
        weight: (M, N), of any floating type: that of the result.
        bias: (M,), of the same type.
        dequantization: (3, N), floating: what bytes stand for, (q - z) * s + o with zero points z
            (whole numbers in 0..255), scales s and offsets o. It has no gradient. ``None``: values
            in [-2, 2], as those of YouTube-8M.

    Returns:
        (B, T, M).

    Raises:
        TypeError: an argument is not a tensor, or has a dtype that does not fit.
        ValueError: shapes or devices do not fit together.

    Example:
        >>> import torch, pyseg
        >>> frames = torch.tensor([[[0, 255], [9, 9]]], dtype=torch.uint8)
        >>> mask = torch.tensor([[True, False]])
        >>> pyseg.ops.frame_linear(frames, mask, torch.tensor([[1.0, 1.0]])).flatten().tolist()
        [0.015625, 0.0]
    """
    tensors = frames, mask, weight, bias, dequantization
    # Without autocast not even its wrapper is called: few frames take less time than it.
    if is_plain(tensors) and not is_any_autocast_enabled():
        product = _one_product(*tensors)
        if product is not None:
            return product
    return _cast_linear(*tensors)


@_LINEAR.autocast()
def _cast_linear(
    frames: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    dequantization: Tensor | None,
) -> Tensor:
    tensors = frames, mask, weight, bias, dequantization
    product = _one_product(*tensors) if is_plain(tensors) else None
    if product is not None:
        return product
    if is_reference():
        return frame_linear_reference(*tensors)
    _LINEAR.check(*tensors)
    return _LINEAR(*tensors)


def _one_product(
    frames: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    dequantization: Tensor | None,
) -> Tensor | None:
    """Returns PyTorch's own product of frames that are dequantised before, if they fit one tile.

    Else, or where arguments do not fit, ``None``. To check those as `Op.check` does takes longer
    than the dequantisation of a few frames. So this checks no more than what neither its kernel nor
    PyTorch's product would refuse.
    """
    if not has_kernel(frames) or frames.ndim != 3 or weight.ndim != 2:
        return None
    if bias is not None and (bias.ndim != 1 or bias.numel() != weight.size(0)):
        return None
    wanted = dtype = weight.dtype
    if dtype == torch.bfloat16:
        dtype = product_dtype(frames.device.type, dtype)
    if not is_one_tile(dtype, frames):
        return None
    if dequantization is not None:
        if wants_gradient(dequantization) or not dequantization.is_floating_point():
            return None
        dequantization = as_dtype(dequantization, sum_dtype(dtype))
    try:
        x = _DEQUANTIZE.call_directly(frames, mask, dequantization, dtype)
        if dtype == wanted:
            return functional.linear(x, weight, bias)
        shift = None if bias is None else bias.to(dtype)
        return functional.linear(x, weight.to(dtype), shift).to(wanted)
    except RuntimeError:  # of the kernel or of PyTorch: arguments that do not fit have our own
        _LINEAR.check(frames, mask, weight, bias, dequantization)
        raise


def frame_linear_reference(
    frames: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None = None,
    dequantization: Tensor | None = None,
) -> Tensor:
    """Returns what :func:`frame_linear` returns, in plain PyTorch.

    Example:
        >>> import torch, pyseg
        >>> frames = torch.tensor([[[0, 255]]], dtype=torch.uint8)
        >>> pyseg.ops.frame_linear_reference(frames, None, torch.tensor([[1.0, 1.0]])).item()
        0.015625
    """
    _LINEAR.check(frames, mask, weight, bias, dequantization)
    x = dequantize_reference(frames, mask, weight.dtype, dequantization)
    return functional.linear(x, weight, bias)


@_POOL.autocast()
def frame_pool(
    frames: Tensor, weights: Tensor, maps: Tensor, dequantization: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    r"""Returns weighted sums over the frames of every video, mapped to other features.

    .. math::
        s_{bkf} = \sum_{tgn} w_{btgk} M_{gfn} x_{btn}, \qquad m_{bgk} = \sum_t w_{btgk}

    It aggregates the mapped frames M_g x with the weights w, without storing the mapped frames,
    (B, T, G, F): frames are pooled first and mapped afterwards, which is less work if a video has
    more frames than there are clusters. Bytes are dequantised a few videos at a time, as by
    :func:`frame_linear`. The pooled frames, (B, K*G, N), are saved for the gradient of `maps`;
    their own gradient exists for a few videos at a time. For second and forward-mode derivatives,
    which raise an error, use :func:`frame_pool_reference`.

    Args:
        frames: (B, T, N) uint8 as stored, or floating and dequantised. Padded frames count with the
            weights they are given: 0 leaves them out.
        weights: (B, T, G, K), of any floating type: that of the sums. Autocast's matrix-product
            dtype applies. Nothing is copied where they are a view of (B, T, K, G), as `soft_assign`
            returns them by cluster; their gradient then is one too.
        maps: (G, F, N), of the same type.
        dequantization: what bytes stand for, see :func:`frame_linear`; floating frames need none.

    Returns:
        The sums s, (B, K, F), and the masses m, (B, G, K), which are float64 for float64 and
        float32 otherwise.

    Raises:
        TypeError: an argument is not a tensor, or has a dtype that does not fit.
        ValueError: shapes or devices do not fit together.

    Example:
        >>> import torch, pyseg
        >>> frames = torch.tensor([[[0.0], [3.0]]])
        >>> sums, mass = pyseg.ops.frame_pool(frames, torch.ones(1, 2, 1, 1), torch.ones(1, 1, 1))
        >>> sums.item(), mass.item()
        (3.0, 2.0)
    """
    tensors = frames, weights, maps
    if is_reference():
        return frame_pool_reference(*tensors, dequantization)
    _POOL.check(*tensors, dequantization)
    keep = wants_gradient(*tensors)
    sums, mass, _ = _POOL(*tensors, keep, dequantization)
    return sums, mass


def frame_pool_reference(
    frames: Tensor, weights: Tensor, maps: Tensor, dequantization: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Returns what :func:`frame_pool` returns, in plain PyTorch.

    Example:
        >>> import torch, pyseg
        >>> frames = torch.tensor([[[0], [255]]], dtype=torch.uint8)
        >>> weights, maps = torch.ones(1, 2, 1, 1), torch.ones(1, 1, 1)
        >>> pyseg.ops.frame_pool_reference(frames, weights, maps)[0].item()
        0.015625
    """
    _POOL.check(frames, weights, maps, dequantization)
    x = frames.to(weights.dtype)
    if not frames.is_floating_point():
        x = dequantize_reference(frames, None, weights.dtype, dequantization)
    pooled = torch.einsum("btgk,btn->bgkn", weights, x)
    mass = weights.sum(1, dtype=sum_dtype(weights.dtype))
    return torch.einsum("bgkn,gfn->bkf", pooled, maps), mass


def is_one_tile(dtype: torch.dtype, frames: Tensor) -> bool:
    """Whether PyTorch's own product of all frames, dequantised in `dtype`, replaces the operator.

    It does so where all tensors are such that `is_plain`; what intercepts operators, as a compiler
    does, gets the operator.
    """
    return frames.numel() * dtype.itemsize <= _TILE_BYTES["cuda" if frames.is_cuda else "cpu"]


def _tiles(
    count: int, bytes_each: int, device: torch.device, limits: dict[str, int]
) -> Iterator[slice]:
    """Cuts `count` rows, or videos, of `bytes_each` into tiles; each holds at least one."""
    size = max(1, limits.get(device.type, limits["cpu"]) // max(bytes_each, 1))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@contextlib.contextmanager
def _product_into(result: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yields the tensor to write a product of `dtype` to, and then copies it to the result."""
    if result.dtype == dtype:
        yield result
    else:
        product = torch.empty_like(result, dtype=dtype)
        yield product
        result.copy_(product)


@_LINEAR.kernel
def _linear(
    frames: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    dequantization: Tensor | None = None,
) -> Tensor:
    result = _linear_result(frames, mask, weight, bias, dequantization)
    if not result.numel():  # empty, even with frames
        return result
    rows, products = frames.flatten(0, 1), result.flatten(0, 1)
    valid = None if mask is None else mask.flatten()
    dtype = product_dtype(rows.device.type, weight.dtype)
    columns, shift = weight.to(dtype).t(), None if bias is None else bias.to(dtype)
    for tile in _tiles(rows.shape[0], rows.shape[1] * dtype.itemsize, rows.device, _TILE_BYTES):
        kept = None if valid is None else valid[tile]
        x = dequantize(rows[tile], kept, dtype, dequantization)
        with _product_into(products[tile], dtype) as y:
            if shift is None:
                torch.mm(x, columns, out=y)
            else:
                torch.addmm(shift, x, columns, out=y)
    return result


@_LINEAR_BACKWARD.kernel
def _linear_backward(
    grad: Tensor, frames: Tensor, mask: Tensor | None, dequantization: Tensor | None = None
) -> Tensor:
    _LINEAR_BACKWARD.check(grad, frames, mask, dequantization)
    total = grad.new_zeros(grad.shape[2], frames.shape[2], dtype=sum_dtype(grad.dtype))
    if not total.numel():
        return total.to(grad.dtype)
    rows, grad = frames.flatten(0, 1), grad.flatten(0, 1)
    valid = None if mask is None else mask.flatten()
    dtype = product_dtype(rows.device.type, grad.dtype)
    for tile in _tiles(rows.shape[0], rows.shape[1] * dtype.itemsize, rows.device, _TILE_BYTES):
        kept = None if valid is None else valid[tile]
        x = dequantize(rows[tile], kept, dtype, dequantization)
        if dtype == total.dtype:
            total.addmm_(grad[tile].to(dtype).t(), x)
        else:
            total.add_(grad[tile].t() @ x)
    return total.to(grad.dtype)


@_POOL.kernel
def _pool(
    frames: Tensor,
    weights: Tensor,
    maps: Tensor,
    keep: bool,
    dequantization: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    sums, mass, kept = _pool_results(frames, weights, maps, keep, dequantization)
    if not (sums.numel() or mass.numel() or kept.numel()):  # empty, even with videos
        return sums, mass, kept
    groups, _, width = maps.shape
    dtype = product_dtype(frames.device.type, weights.dtype)
    rows = maps.to(dtype).transpose(1, 2).flatten(0, 1)  # (G*N, F)
    tiles = _pooled_tiles(weights, width, dtype)
    direct = keep and kept.dtype == dtype  # saved tensors can receive the products too
    scratch = kept if direct else _pooled_scratch(tiles, kept, dtype)
    for videos in tiles:
        columns = _columns(weights[videos], dtype)
        mass[videos] = columns.sum(1, dtype=mass.dtype).unflatten(1, (-1, groups)).mT
        pooled = kept[videos] if direct else scratch[: videos.stop - videos.start]
        x = _floating(frames[videos], dtype, dequantization)
        torch.bmm(columns.mT, x, out=pooled)
        if keep and not direct:
            kept[videos] = pooled
        with _product_into(sums[videos].flatten(0, 1), dtype) as y:
            torch.mm(pooled.view(-1, groups * width), rows, out=y)
    return sums, mass, kept


@_POOL_BACKWARD.kernel
def _pool_backward(
    grad: Tensor,
    grad_mass: Tensor,
    frames: Tensor,
    weights: Tensor,
    maps: Tensor,
    kept: Tensor,
    needed: list[bool],
    dequantization: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_frames, grad_weights, grad_maps = results = _pool_backward_results(
        grad, grad_mass, frames, weights, maps, kept, needed, dequantization
    )
    if not any(result.numel() for result in results):
        return results
    groups, _, width = maps.shape
    dtype = product_dtype(frames.device.type, weights.dtype)
    grad = grad.to(dtype).flatten(0, 1)  # (B*K, F)
    if needed[2]:
        pooled = kept.reshape(-1, groups, width)
        for group in range(groups):
            with _product_into(grad_maps[group], dtype) as y:
                torch.mm(grad.t(), pooled[:, group].to(dtype), out=y)
    if not (needed[0] or needed[1]):
        return grad_frames, grad_weights, grad_maps
    rows = maps.to(dtype).transpose(0, 1).flatten(1)  # (F, G*N)
    tiles = _pooled_tiles(weights, width, dtype)
    scratch = _pooled_scratch(tiles, kept, dtype)
    for videos in tiles:
        clusters = slice(videos.start * weights.shape[3], videos.stop * weights.shape[3])
        inner = scratch[: videos.stop - videos.start]  # the gradient of the pooled frames
        torch.mm(grad[clusters], rows, out=inner.view(-1, groups * width))
        if needed[0]:
            with _product_into(grad_frames[videos], dtype) as y:
                torch.bmm(_columns(weights[videos], dtype), inner, out=y)
        if needed[1]:
            product = torch.bmm(_floating(frames[videos], dtype, dequantization), inner.mT)
            product = product.unflatten(2, (-1, groups)).mT
            torch.add(product, grad_mass[videos].unsqueeze(1), out=grad_weights[videos])
    return grad_frames, grad_weights, grad_maps


@_POOL.fake
def _pool_results(
    frames: Tensor,
    weights: Tensor,
    maps: Tensor,
    keep: bool,
    dequantization: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns memory for the results of `_pool`."""
    _POOL.check(frames, weights, maps, dequantization)
    batch, _, groups, clusters = weights.shape
    return (
        weights.new_empty(batch, clusters, maps.shape[1]),
        weights.new_empty(batch, groups, clusters, dtype=sum_dtype(weights.dtype)),
        weights.new_empty(batch if keep else 0, clusters * groups, frames.shape[2]),
    )


def _pooled_tiles(weights: Tensor, width: int, dtype: torch.dtype) -> list[slice]:
    """Cuts the videos of a batch into tiles to pool at a time."""
    batch, _, groups, clusters = weights.shape
    each = groups * clusters * width * dtype.itemsize
    return list(_tiles(batch, each, weights.device, _POOLED_BYTES))


def _pooled_scratch(tiles: list[slice], kept: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns memory for the pooled frames of any tile, of which the first is the largest."""
    return kept.new_empty(tiles[0].stop if tiles else 0, *kept.shape[1:], dtype=dtype)


def _columns(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns weights (B, T, K*G): pooling with them gives rows (b, k) of one matrix.

    Weights that `soft_assign` has written by cluster are in this order.
    """
    columns = weights.mT
    if columns.dtype != dtype or not columns.is_contiguous():
        columns = columns.new_empty(columns.shape, dtype=dtype).copy_(columns)
    return columns.flatten(2)


def _floating(frames: Tensor, dtype: torch.dtype, dequantization: Tensor | None) -> Tensor:
    if frames.is_floating_point():
        return frames.to(dtype)
    return dequantize(frames, None, dtype, dequantization)


@_POOL_BACKWARD.fake
def _pool_backward_results(
    grad: Tensor,
    grad_mass: Tensor,
    frames: Tensor,
    weights: Tensor,
    maps: Tensor,
    kept: Tensor,
    needed: list[bool],
    dequantization: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns memory for the required gradients, empty tensors for the others."""
    sizes = _POOL_BACKWARD.check(grad, grad_mass, frames, weights, maps, dequantization)
    if needed[0] and not frames.is_floating_point():
        raise TypeError(f"frames: expected floating to have a gradient, found {frames.dtype}")
    if needed[2]:
        shape = sizes["B"], sizes["K"] * sizes["G"], sizes["N"]
        check_dtype("kept", kept, "weights", weights)
        if kept.shape != shape:
            raise misfit("kept", "(B, K*G, N)", shape, kept, "weights", weights)
    return (
        frames.new_empty(frames.shape if needed[0] else 0),
        torch.empty_like(weights) if needed[1] else weights.new_empty(0),
        maps.new_empty(maps.shape if needed[2] else 0),
    )


@_LINEAR.fake
def _linear_result(
    frames: Tensor,
    mask: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    dequantization: Tensor | None = None,
) -> Tensor:
    """Returns memory for the result of `_linear`."""
    _LINEAR.check(frames, mask, weight, bias, dequantization)
    return weight.new_empty(*frames.shape[:2], weight.shape[0])


@_LINEAR_BACKWARD.fake
def _linear_backward_fake(
    grad: Tensor, frames: Tensor, mask: Tensor | None, dequantization: Tensor | None = None
) -> Tensor:
    _LINEAR_BACKWARD.check(grad, frames, mask, dequantization)
    return grad.new_empty(grad.shape[2], frames.shape[2])


_REFUSED = {"dequantization": "the dequantization"}


@_DEQUANTIZE.gradient("", refused=_REFUSED)
def _dequantize_gradient(grad: Tensor, *, needed: dict[str, bool]) -> dict[str, Tensor | None]:
    return {}


@_LINEAR.gradient("frames mask dequantization", refused=_REFUSED)
def _linear_gradient(
    grad: Tensor, *, needed: dict[str, bool], **saved: Tensor
) -> dict[str, Tensor | None]:
    weight = bias = None
    if needed["weight"]:
        weight = _LINEAR_BACKWARD(grad, **saved)
    if needed["bias"]:
        bias = grad.sum((0, 1))
    return {"weight": weight, "bias": bias}


@_LINEAR_BACKWARD.gradient("frames mask dequantization", refused=_REFUSED)
def _linear_twice(
    grad: Tensor,
    *,
    needed: dict[str, bool],
    frames: Tensor,
    mask: Tensor | None,
    dequantization: Tensor | None,
) -> dict[str, Tensor]:
    return {"grad": _LINEAR(frames, mask, grad, None, dequantization)}


@_POOL.gradient("frames weights maps kept dequantization", constant="kept", refused=_REFUSED)
def _pool_gradient(
    grad: Tensor | None, grad_mass: Tensor | None, *, needed: dict[str, bool], **saved: Tensor
) -> dict[str, Tensor]:
    weights, maps = saved["weights"], saved["maps"]
    batch, _, groups, clusters = weights.shape
    if grad is None:
        grad = weights.new_zeros(batch, clusters, maps.shape[1])
    if grad_mass is None:
        grad_mass = weights.new_zeros(batch, groups, clusters, dtype=sum_dtype(weights.dtype))
    wanted = [needed[name] for name in _POOLED]
    return dict(zip(_POOLED, _POOL_BACKWARD(grad, grad_mass, **saved, needed=wanted), strict=True))


_POOL_BACKWARD.refuse_gradient()
