"""What every operator's Python side shares: which kernels there are, dtypes, and autocast."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyseg import _ext

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def has_kernel(tensor: Tensor) -> bool:
    """Returns whether compiled kernels serve the device of `tensor`."""
    device = tensor.device.type
    return (device == "cpu" and _ext.HAS_CPU_OPS) or (device == "cuda" and _ext.HAS_CUDA_OPS)


def allow_tf32(tensor: Tensor) -> bool:
    """Returns whether an op's products of `tensor` may be in TF32, as PyTorch's own may."""
    return tensor.device.type == "cuda" and tensor.dtype == torch.float32 and _tf32_allowed()


def _tf32_allowed() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


# A constant of a compiled graph: torch.compile cannot trace the setting (nor can it be read by its
# old name once it has been set by the new one), but compiles anew where it changes. This is all
# that torch.compiler.assume_constant_result does after importing torch._dynamo, which takes as long
# as importing torch.
_tf32_allowed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which sums over values of `dtype` are kept."""
    return torch.promote_types(dtype, torch.float32)


# Without a unit for matrices an x86 processor is no quicker in bfloat16, whatever instructions it
# has for it: its products reach half the rate of those of float32 (oneDNN, AVX512-BF16).
_SLOW_BFLOAT16 = platform.machine() in ("x86_64", "AMD64") and not (
    torch.cpu._is_amx_tile_supported()
)


def product_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which matrix products of values of `dtype` are best computed.

    That is `dtype`, but float32 for bfloat16 on a CPU that is quicker with it.
    """
    slow = device == "cpu" and dtype == torch.bfloat16 and _SLOW_BFLOAT16
    return torch.float32 if slow else dtype


def in_autocast(tensor: Tensor) -> bool:
    """Returns whether autocast is on for the device of `tensor` (False for anything else)."""
    if not isinstance(tensor, Tensor):
        return False
    device = tensor.device.type
    # Not torch.amp.is_autocast_available(device): torch.compile of torch 2.11 cannot trace it.
    return device in ("cpu", "cuda") and torch.is_autocast_enabled(device)


def to_autocast_dtype(first: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Casts what autocast casts for a matrix product: float tensors of its device, not float64."""
    device = first.device.type
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor.to(dtype)
        if isinstance(tensor, Tensor)
        and tensor.is_floating_point()
        and tensor.dtype != torch.float64
        and tensor.device.type == device
        else tensor
        for tensor in (first, *others)
    )


def check_layout(arguments: dict[str, tuple[Any, str]]) -> None:
    """Raises where an argument is no tensor or has not as many dimensions as its layout names."""
    for name, (tensor, layout) in arguments.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if tensor.dim() != layout.strip("(,)").count(",") + 1:
            raise ValueError(f"{name} must be {layout}, got shape {tuple(tensor.shape)}")


def check_alike(first: tuple[str, Tensor], others: dict[str, Tensor]) -> None:
    """Raises where `first` is not floating, or another dtype or device is not that of `first`."""
    like, base = first
    if base.dtype not in DTYPES:
        raise TypeError(f"{like} must be float32, float64, float16 or bfloat16, got {base.dtype}")
    for name, tensor in others.items():
        if tensor.dtype != base.dtype:
            raise TypeError(
                f"{name} must have the dtype of {like}, {base.dtype}, got {tensor.dtype}"
            )
        check_device(first, name, tensor)


def check_device(first: tuple[str, Tensor], name: str, tensor: Tensor) -> None:
    """Raises where `tensor` is not on the device of `first`."""
    like, base = first
    if tensor.device != base.device:
        raise ValueError(
            f"{name} must be on the device of {like}, {base.device}, got {tensor.device}"
        )


def refuse_double_backward(op: str) -> Callable[..., None]:
    """Returns the gradient formula of a backward op: an error that names the way out."""

    def refuse(ctx: Any, *_: Any) -> None:
        raise RuntimeError(
            f"{op} cannot be differentiated twice: "
            f"use pyseg.ops.{op}_reference for second derivatives"
        )

    return refuse


# torch.library.register_autocast casts to one fixed dtype; users choose theirs.
_LIBRARY = torch.library.Library("pyseg", "FRAGMENT") if _ext.HAS_CPU_OPS else None


def register_autocast(op: str, function: Callable[..., Any]) -> None:
    """Makes `function` what `op` does under autocast, on every device that has kernels."""
    assert _LIBRARY is not None
    for key in ("AutocastCPU", "AutocastCUDA"):
        _LIBRARY.impl(op, function, key)
