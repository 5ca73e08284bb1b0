"""Products with frames that may still be bytes: dequantised tile by tile, never as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyseg.ops._dispatch import (
    check_layout,
    check_tensors,
    define,
    in_autocast,
    product_dtype,
    refuse_double_backward,
    register_autograd,
    register_fake,
    sum_dtype,
    to_autocast_dtype,
)

# YouTube-8M stores a feature x in [-2, 2] as a byte; the starter code's utils.py reads it back as
# q * (range / 255) + (range / 512 + min). The offset is not half a bin of 4/255, but it is what all
# public models were trained with.
SCALE = 4.0 / 255.0
OFFSET = 4.0 / 512.0 - 2.0

# Bytes of a dequantised tile: small beside the frames, but large enough that the products, which
# read the whole weight for every tile, lose at most a few per cent.
_TILE_BYTES = {"cpu": 2**22, "cuda": 2**26}

# Bytes of the pooled frames of the videos that `frame_pool` treats at a time. With more of them the
# gradient, which is as large and not kept, would be fresh memory; with fewer the products are slow.
_POOLED_BYTES = {"cpu": 2**25, "cuda": 2**28}


def dequantize(frames: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Returns x = frames * 4/255 + (4/512 - 2) in `dtype`, 0 where `mask` is False.

    Args:
        frames: (..., N) uint8.
        mask: (...) bool, True where the frame is valid. ``None``: all frames are.
        dtype: of the result; a floating type.

    Returns:
        (..., N).
    """
    x = frames.to(dtype)  # a copy, so the arithmetic may be in place
    x.mul_(SCALE).add_(OFFSET)
    return x if mask is None else x.mul_(mask.unsqueeze(-1))


def frame_linear(
    frames: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Returns x W^T + b for every frame, where x are the dequantised frames, 0 on padding.

    What :func:`torch.nn.functional.linear` does with the float frames, but these, four times as
    large as the bytes, exist only a tile at a time, in the backward pass too. Autocast's
    matrix-product dtype applies. Forward-mode derivatives are refused, use
    :func:`frame_linear_reference` for them.

    Args:
        frames: (B, T, N) uint8 as stored.
        mask: (B, T) bool, True where the frame is valid. ``None``: all frames are.
        weight: (M, N), of any floating type: that of the result.
        bias: (M,), of the same type.

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
    if in_autocast(weight):
        weight, bias = _cast(weight, bias)
        with torch.autocast(weight.device.type, enabled=False):
            return frame_linear(frames, mask, weight, bias)
    _check_linear(frames, mask, weight, bias)
    return torch.ops.pyseg.frame_linear.default(frames, mask, weight, bias)


def frame_linear_reference(
    frames: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Returns what :func:`frame_linear` returns, in plain PyTorch.

    Example:
        >>> import torch, pyseg
        >>> frames = torch.tensor([[[0, 255]]], dtype=torch.uint8)
        >>> pyseg.ops.frame_linear_reference(frames, None, torch.tensor([[1.0, 1.0]])).item()
        0.015625
    """
    _check_linear(frames, mask, weight, bias)
    return torch.nn.functional.linear(dequantize(frames, mask, weight.dtype), weight, bias)


def _check_linear(frames: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None) -> None:
    _check(frames, mask)
    check_layout({"weight": (weight, "(M, N)")})
    if weight.shape[1] != frames.shape[2]:
        raise ValueError(
            f"weight must be (M, N) = (M, {frames.shape[2]}) to fit frames "
            f"{tuple(frames.shape)}, got {tuple(weight.shape)}"
        )
    if bias is not None and (bias.shape != weight.shape[:1] or bias.dtype != weight.dtype):
        raise ValueError(
            f"bias must be (M,) = {tuple(weight.shape[:1])} of {weight.dtype} to fit weight, "
            f"got {tuple(bias.shape)} of {bias.dtype}"
        )
    _check_device(frames, weight, "weight")


def _check_linear_backward(grad: Tensor, frames: Tensor, mask: Tensor | None) -> None:
    _check(frames, mask)
    check_layout({"grad": (grad, "(B, T, M)")})
    _check_device(frames, grad, "grad")
    check_tensors(grad, {"grad": (grad, (*frames.shape[:2], grad.shape[2]))})


def frame_pool(frames: Tensor, weights: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns weighted sums over the frames of every video, mapped to other features.

    .. math::
        s_{bkf} = \sum_{tgn} w_{btgk} M_{gfn} x_{btn}, \qquad m_{bgk} = \sum_t w_{btgk}

    That is what remains of aggregating M_g x with the weights w where the mapped frames, (B, T, G,
    F), are not wanted: frames are pooled first and mapped afterwards, which is less work once a
    video has more frames than there are clusters. Bytes are dequantised a few videos at a time, as
    by :func:`frame_linear`. The pooled frames, (B, K*G, N), are kept for the gradient of `maps`;
    theirs exists for a few videos at a time. Second derivatives and forward-mode ones are refused,
    use :func:`frame_pool_reference` for them.

    Args:
        frames: (B, T, N) uint8 as stored, or floating and dequantised. Padded frames count with the
            weights they are given: 0 leaves them out.
        weights: (B, T, G, K), of any floating type: that of the sums. Autocast's matrix-product
            dtype applies.
        maps: (G, F, N), of the same type.

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
    if in_autocast(weights):
        weights, maps = to_autocast_dtype(weights, maps)
        with torch.autocast(weights.device.type, enabled=False):
            return frame_pool(frames, weights, maps)
    _check_pool(frames, weights, maps)
    tensors = (frames, weights, maps)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    sums, mass, _ = torch.ops.pyseg.frame_pool.default(*tensors, keep)
    return sums, mass


def frame_pool_reference(frames: Tensor, weights: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Returns what :func:`frame_pool` returns, in plain PyTorch.

    Example:
        >>> import torch, pyseg
        >>> frames = torch.tensor([[[0], [255]]], dtype=torch.uint8)
        >>> weights, maps = torch.ones(1, 2, 1, 1), torch.ones(1, 1, 1)
        >>> pyseg.ops.frame_pool_reference(frames, weights, maps)[0].item()
        0.015625
    """
    _check_pool(frames, weights, maps)
    pooled = torch.einsum("btgk,btn->bgkn", weights, _floating(frames, weights.dtype))
    mass = weights.sum(1, dtype=sum_dtype(weights.dtype))
    return torch.einsum("bgkn,gfn->bkf", pooled, maps), mass


def _cast(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if bias is None:
        return to_autocast_dtype(weight)[0], None
    weight, bias = to_autocast_dtype(weight, bias)
    return weight, bias


def _check_pool(frames: Tensor, weights: Tensor, maps: Tensor) -> None:
    check_layout({"frames": (frames, "(B, T, N)"), "weights": (weights, "(B, T, G, K)")})
    check_layout({"maps": (maps, "(G, F, N)")})
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise TypeError(f"frames must be uint8 or floating, got {frames.dtype}")
    batch, length, width = frames.shape
    if weights.shape[:2] != (batch, length):
        raise ValueError(
            f"weights must be (B, T, G, K) = ({batch}, {length}, G, K) to fit frames "
            f"{tuple(frames.shape)}, got {tuple(weights.shape)}"
        )
    if maps.shape[0] != weights.shape[2] or maps.shape[2] != width or maps.dtype != weights.dtype:
        raise ValueError(
            f"maps must be (G, F, N) = ({weights.shape[2]}, F, {width}) of {weights.dtype} to fit "
            f"weights and frames, got {tuple(maps.shape)} of {maps.dtype}"
        )
    _check_device(frames, weights, "weights")
    _check_device(frames, maps, "maps")


def _check(frames: Tensor, mask: Tensor | None) -> None:
    check_layout({"frames": (frames, "(B, T, N)")})
    if frames.dtype != torch.uint8:
        raise TypeError(f"frames must be uint8, got {frames.dtype}")
    if mask is None:
        return
    check_layout({"mask": (mask, "(B, T)")})
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}")
    if mask.shape != frames.shape[:2]:
        raise ValueError(
            f"mask must be (B, T) = {tuple(frames.shape[:2])} to fit frames "
            f"{tuple(frames.shape)}, got {tuple(mask.shape)}"
        )


def _check_device(frames: Tensor, tensor: Tensor, name: str) -> None:
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be floating, got {tensor.dtype}")
    if tensor.device != frames.device:
        raise ValueError(
            f"{name} must be on the device of frames, {frames.device}, got {tensor.device}"
        )


def _tiles(
    count: int, bytes_each: int, device: torch.device, limits: dict[str, int]
) -> Iterator[slice]:
    """Cuts `count` rows, or videos, of `bytes_each` into tiles; each holds at least one."""
    size = max(1, limits.get(device.type, limits["cpu"]) // max(bytes_each, 1))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@contextlib.contextmanager
def _product_into(result: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yields where a product of `dtype` is to be written; what is there then is the result."""
    if result.dtype == dtype:
        yield result
    else:
        product = torch.empty_like(result, dtype=dtype)
        yield product
        result.copy_(product)


@define(
    "frame_linear",
    "(Tensor frames, Tensor? mask, Tensor weight, Tensor? bias) -> Tensor",
)
def _linear(frames: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    _check_linear(frames, mask, weight, bias)
    result = weight.new_empty(*frames.shape[:2], weight.shape[0])
    if not result.numel():  # however many frames
        return result
    rows, products = frames.flatten(0, 1), result.flatten(0, 1)
    valid = None if mask is None else mask.flatten()
    dtype = product_dtype(rows.device.type, weight.dtype)
    columns, shift = weight.to(dtype).t(), None if bias is None else bias.to(dtype)
    for tile in _tiles(rows.shape[0], rows.shape[1] * dtype.itemsize, rows.device, _TILE_BYTES):
        x = dequantize(rows[tile], None if valid is None else valid[tile], dtype)
        with _product_into(products[tile], dtype) as y:
            if shift is None:
                torch.mm(x, columns, out=y)
            else:
                torch.addmm(shift, x, columns, out=y)
    return result


@define(
    "frame_linear_backward",
    "(Tensor grad, Tensor frames, Tensor? mask) -> Tensor",
)
def _linear_backward(grad: Tensor, frames: Tensor, mask: Tensor | None) -> Tensor:
    _check_linear_backward(grad, frames, mask)
    total = grad.new_zeros(grad.shape[2], frames.shape[2], dtype=sum_dtype(grad.dtype))
    if not total.numel():
        return total.to(grad.dtype)
    rows, grad = frames.flatten(0, 1), grad.flatten(0, 1)
    valid = None if mask is None else mask.flatten()
    dtype = product_dtype(rows.device.type, grad.dtype)
    for tile in _tiles(rows.shape[0], rows.shape[1] * dtype.itemsize, rows.device, _TILE_BYTES):
        x = dequantize(rows[tile], None if valid is None else valid[tile], dtype)
        if dtype == total.dtype:
            total.addmm_(grad[tile].to(dtype).t(), x)
        else:
            total.add_(grad[tile].t() @ x)
    return total.to(grad.dtype)


@define(
    "frame_pool",
    "(Tensor frames, Tensor weights, Tensor maps, bool keep) -> (Tensor, Tensor, Tensor)",
)
def _pool(
    frames: Tensor, weights: Tensor, maps: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    sums, mass, kept = _pool_results(frames, weights, maps, keep)
    if not (sums.numel() or mass.numel() or kept.numel()):  # however many videos
        return sums, mass, kept
    groups, _, width = maps.shape
    dtype = product_dtype(frames.device.type, weights.dtype)
    rows = maps.to(dtype).transpose(1, 2).flatten(0, 1)  # (G*N, F)
    tiles = _pooled_tiles(weights, width, dtype)
    direct = keep and kept.dtype == dtype  # where they are kept products can be written too
    scratch = kept if direct else _pooled_scratch(tiles, kept, dtype)
    for videos in tiles:
        torch.sum(weights[videos], 1, dtype=mass.dtype, out=mass[videos])
        pooled = kept[videos] if direct else scratch[: videos.stop - videos.start]
        columns, x = _columns(weights[videos], dtype), _floating(frames[videos], dtype)
        torch.bmm(columns.mT, x, out=pooled)
        if keep and not direct:
            kept[videos] = pooled
        with _product_into(sums[videos].flatten(0, 1), dtype) as y:
            torch.mm(pooled.view(-1, groups * width), rows, out=y)
    return sums, mass, kept


@define(
    "frame_pool_backward",
    (
        "(Tensor grad, Tensor grad_mass, Tensor frames, Tensor weights, Tensor maps, Tensor kept, "
        "bool[3] needed) -> (Tensor, Tensor, Tensor)"
    ),
)
def _pool_backward(
    grad: Tensor,
    grad_mass: Tensor,
    frames: Tensor,
    weights: Tensor,
    maps: Tensor,
    kept: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    grad_frames, grad_weights, grad_maps = results = _pool_backward_results(
        grad, grad_mass, frames, weights, maps, kept, needed
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
        inner = scratch[: videos.stop - videos.start]  # the gradient of what is pooled
        torch.mm(grad[clusters], rows, out=inner.view(-1, groups * width))
        if needed[0]:
            with _product_into(grad_frames[videos], dtype) as y:
                torch.bmm(_columns(weights[videos], dtype), inner, out=y)
        if needed[1]:
            product = torch.bmm(_floating(frames[videos], dtype), inner.mT)
            product = product.unflatten(2, (-1, groups)).transpose(2, 3)
            torch.add(product, grad_mass[videos].unsqueeze(1), out=grad_weights[videos])
    return grad_frames, grad_weights, grad_maps


def _pool_results(
    frames: Tensor, weights: Tensor, maps: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns memory for what `_pool` returns."""
    _check_pool(frames, weights, maps)
    batch, _, groups, clusters = weights.shape
    return (
        weights.new_empty(batch, clusters, maps.shape[1]),
        weights.new_empty(batch, groups, clusters, dtype=sum_dtype(weights.dtype)),
        weights.new_empty(batch if keep else 0, clusters * groups, frames.shape[2]),
    )


def _pooled_tiles(weights: Tensor, width: int, dtype: torch.dtype) -> list[slice]:
    """Cuts the videos of a batch into those that are pooled at a time."""
    batch, _, groups, clusters = weights.shape
    each = groups * clusters * width * dtype.itemsize
    return list(_tiles(batch, each, weights.device, _POOLED_BYTES))


def _pooled_scratch(tiles: list[slice], kept: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns memory for the pooled frames of one of the tiles, of which the first is largest."""
    return kept.new_empty(tiles[0].stop if tiles else 0, *kept.shape[1:], dtype=dtype)


def _columns(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns (B, T, K*G): pooled with it, the rows (b, k) are those of one matrix."""
    columns = weights.new_empty(weights.mT.shape, dtype=dtype)
    return columns.copy_(weights.mT).flatten(2)


def _floating(frames: Tensor, dtype: torch.dtype) -> Tensor:
    return frames.to(dtype) if frames.is_floating_point() else dequantize(frames, None, dtype)


def _pool_backward_results(
    grad: Tensor,
    grad_mass: Tensor,
    frames: Tensor,
    weights: Tensor,
    maps: Tensor,
    kept: Tensor,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns memory for the gradients that are needed, nothing for the others."""
    _check_pool(frames, weights, maps)
    if needed[0] and not frames.is_floating_point():
        raise TypeError(f"frames must be floating to have a gradient, got {frames.dtype}")
    batch, _, groups, clusters = weights.shape
    check_tensors(weights, {"grad": (grad, (batch, clusters, maps.shape[1]))})
    mass = weights.new_empty(0, dtype=sum_dtype(weights.dtype))
    check_tensors(mass, {"grad_mass": (grad_mass, (batch, groups, clusters))})
    if needed[2]:
        check_tensors(weights, {"kept": (kept, (batch, clusters * groups, frames.shape[2]))})
    return (
        frames.new_empty(frames.shape if needed[0] else 0),
        weights.new_empty(weights.shape if needed[1] else 0),
        maps.new_empty(maps.shape if needed[2] else 0),
    )


def _linear_fake(
    frames: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None
) -> Tensor:
    _check_linear(frames, mask, weight, bias)
    return weight.new_empty(*frames.shape[:2], weight.shape[0])


def _linear_backward_fake(grad: Tensor, frames: Tensor, mask: Tensor | None) -> Tensor:
    _check_linear_backward(grad, frames, mask)
    return grad.new_empty(grad.shape[2], frames.shape[2])


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _linear_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight = bias = None
    if ctx.needs_input_grad[2]:
        weight = torch.ops.pyseg.frame_linear_backward.default(grad, *ctx.saved_tensors)
    if ctx.needs_input_grad[3]:
        bias = grad.sum((0, 1))
    return None, None, weight, bias


def _linear_twice_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _linear_twice(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return torch.ops.pyseg.frame_linear.default(*ctx.saved_tensors, grad, None), None, None


def _pool_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)  # or autograd fills zeros as large as the pooled frames
    ctx.save_for_backward(*inputs[:3], output[2])


def _pool_gradient(
    ctx: Any, grad: Tensor | None, grad_mass: Tensor | None, _: None
) -> tuple[Tensor | None, ...]:
    _, weights, maps, _ = ctx.saved_tensors
    batch, _, groups, clusters = weights.shape
    if grad is None:
        grad = weights.new_zeros(batch, clusters, maps.shape[1])
    if grad_mass is None:
        grad_mass = weights.new_zeros(batch, groups, clusters, dtype=sum_dtype(weights.dtype))
    needed = list(ctx.needs_input_grad[:3])
    backward = torch.ops.pyseg.frame_pool_backward.default
    found = backward(grad, grad_mass, *ctx.saved_tensors, needed)
    return *(g if wanted else None for g, wanted in zip(found, needed, strict=True)), None


register_fake("frame_linear", _linear_fake)
register_fake("frame_linear_backward", _linear_backward_fake)
register_fake("frame_pool", _pool_results)
register_fake("frame_pool_backward", _pool_backward_results)
register_autograd("frame_linear", _linear_gradient, _linear_context)
register_autograd("frame_linear_backward", _linear_twice, _linear_twice_context)
register_autograd("frame_pool", _pool_gradient, _pool_context)
register_autograd("frame_pool_backward", refuse_double_backward("frame_pool"))
