"""Products with frames that are still bytes: dequantised tile by tile, never as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from pyseg.ops._dispatch import (
    check_layout,
    in_autocast,
    product_dtype,
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

    What :func:`torch.nn.functional.linear` does with ``dequantize(frames, mask)``, but the float
    frames, four times as large as the bytes, exist only a tile at a time, in the backward pass
    too. Autocast's matrix-product dtype applies.

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
    return torch.ops.pyseg.frame_linear.default(frames, mask, weight, bias)


def frame_pool(frames: Tensor, weights: Tensor) -> Tensor:
    """Returns sum_t weights[t] x[t]^T for every video, where x are the dequantised frames.

    What ``weights.mT @ dequantize(frames)`` is, but the float frames exist only a tile at a time.
    Padded frames count with the weights they are given: 0 leaves them out.

    Args:
        frames: (B, T, N) uint8 as stored.
        weights: (B, T, M), of any floating type: that of the result. Autocast's matrix-product
            dtype applies.

    Returns:
        (B, M, N).

    Raises:
        TypeError: an argument is not a tensor, or has a dtype that does not fit.
        ValueError: shapes or devices do not fit together.

    Example:
        >>> import torch, pyseg
        >>> frames = torch.tensor([[[0], [255]]], dtype=torch.uint8)
        >>> pyseg.ops.frame_pool(frames, torch.ones(1, 2, 1)).item()
        0.015625
    """
    if in_autocast(weights):
        (weights,) = to_autocast_dtype(weights)
        with torch.autocast(weights.device.type, enabled=False):
            return frame_pool(frames, weights)
    _check(frames, None)
    check_layout({"weights": (weights, "(B, T, M)")})
    if weights.shape[:2] != frames.shape[:2]:
        raise ValueError(
            f"weights must be (B, T, M) = ({frames.shape[0]}, {frames.shape[1]}, M) to fit frames "
            f"{tuple(frames.shape)}, got {tuple(weights.shape)}"
        )
    _check_device(frames, weights, "weights")
    return torch.ops.pyseg.frame_pool.default(frames, weights)


def _cast(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if bias is None:
        return to_autocast_dtype(weight)[0], None
    weight, bias = to_autocast_dtype(weight, bias)
    return weight, bias


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


def _tiles(count: int, bytes_each: int, device: torch.device) -> Iterator[slice]:
    """Cuts `count` rows, or videos, of `bytes_each` into tiles; each holds at least one."""
    size = max(1, _TILE_BYTES.get(device.type, 2**22) // max(bytes_each, 1))
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


@torch.library.custom_op(
    "pyseg::frame_linear",
    mutates_args=(),
    schema="(Tensor frames, Tensor? mask, Tensor weight, Tensor? bias) -> Tensor",
)
def _linear(frames: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = frames.flatten(0, 1)
    valid = None if mask is None else mask.flatten()
    result = weight.new_empty(rows.shape[0], weight.shape[0])
    dtype = product_dtype(rows.device.type, weight.dtype)
    columns, shift = weight.to(dtype).t(), None if bias is None else bias.to(dtype)
    for tile in _tiles(rows.shape[0], rows.shape[1] * dtype.itemsize, rows.device):
        x = dequantize(rows[tile], None if valid is None else valid[tile], dtype)
        with _product_into(result[tile], dtype) as y:
            if shift is None:
                torch.mm(x, columns, out=y)
            else:
                torch.addmm(shift, x, columns, out=y)
    return result.unflatten(0, frames.shape[:2])


@torch.library.custom_op(
    "pyseg::frame_linear_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor frames, Tensor? mask) -> Tensor",
)
def _linear_backward(grad: Tensor, frames: Tensor, mask: Tensor | None) -> Tensor:
    rows, grad = frames.flatten(0, 1), grad.flatten(0, 1)
    valid = None if mask is None else mask.flatten()
    dtype = product_dtype(rows.device.type, grad.dtype)
    total = grad.new_zeros(grad.shape[1], rows.shape[1], dtype=sum_dtype(grad.dtype))
    for tile in _tiles(rows.shape[0], rows.shape[1] * dtype.itemsize, rows.device):
        x = dequantize(rows[tile], None if valid is None else valid[tile], dtype)
        if dtype == total.dtype:
            total.addmm_(grad[tile].to(dtype).t(), x)
        else:
            total.add_(grad[tile].t() @ x)
    return total.to(grad.dtype)


@torch.library.custom_op(
    "pyseg::frame_pool", mutates_args=(), schema="(Tensor frames, Tensor weights) -> Tensor"
)
def _pool(frames: Tensor, weights: Tensor) -> Tensor:
    batch, length, width = frames.shape
    result = weights.new_empty(batch, weights.shape[2], width)
    dtype = product_dtype(frames.device.type, weights.dtype)
    for tile in _tiles(batch, length * width * dtype.itemsize, frames.device):
        x = dequantize(frames[tile], None, dtype)
        with _product_into(result[tile], dtype) as y:
            torch.bmm(weights[tile].to(dtype).mT, x, out=y)
    return result


@torch.library.custom_op(
    "pyseg::frame_pool_backward", mutates_args=(), schema="(Tensor grad, Tensor frames) -> Tensor"
)
def _pool_backward(grad: Tensor, frames: Tensor) -> Tensor:
    batch, length, width = frames.shape
    result = grad.new_empty(batch, length, grad.shape[1])
    dtype = product_dtype(frames.device.type, grad.dtype)
    for tile in _tiles(batch, length * width * dtype.itemsize, frames.device):
        x = dequantize(frames[tile], None, dtype)
        with _product_into(result[tile], dtype) as y:
            torch.bmm(x, grad[tile].to(dtype).mT, out=y)
    return result


@_linear.register_fake
def _linear_fake(
    frames: Tensor, mask: Tensor | None, weight: Tensor, bias: Tensor | None
) -> Tensor:
    return weight.new_empty(*frames.shape[:2], weight.shape[0])


@_linear_backward.register_fake
def _linear_backward_fake(grad: Tensor, frames: Tensor, mask: Tensor | None) -> Tensor:
    return grad.new_empty(grad.shape[2], frames.shape[2])


@_pool.register_fake
def _pool_fake(frames: Tensor, weights: Tensor) -> Tensor:
    return weights.new_empty(frames.shape[0], weights.shape[2], frames.shape[2])


@_pool_backward.register_fake
def _pool_backward_fake(grad: Tensor, frames: Tensor) -> Tensor:
    return grad.new_empty(frames.shape[0], frames.shape[1], grad.shape[1])


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _linear_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight = bias = None
    if ctx.needs_input_grad[2]:
        weight = torch.ops.pyseg.frame_linear_backward.default(grad, *ctx.saved_tensors)
    if ctx.needs_input_grad[3]:
        bias = grad.sum((0, 1))
    return None, None, weight, bias


def _pool_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _pool_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (frames,) = ctx.saved_tensors
    return None, torch.ops.pyseg.frame_pool_backward.default(grad, frames)


_linear.register_autograd(_linear_gradient, setup_context=_linear_context)
_pool.register_autograd(_pool_gradient, setup_context=_pool_context)
