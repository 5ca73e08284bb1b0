"""Which kernels are available, and the dtypes in which operators and modules compute."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator

import torch
from torch import Tensor

from pyseg import _ext

_plain = False  # whether `plain_operators` is active


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Lets every operator be its reference, which makes programs that need no pyseg to run.

    It is for tracing. What other threads compute meanwhile is the same, but slower.
    """
    global _plain
    before, _plain = _plain, True
    try:
        yield
    finally:
        _plain = before


def is_reference() -> bool:
    """Returns whether operators are their references, see `plain_operators`."""
    return _plain


def has_kernel(tensor: Tensor) -> bool:
    """Returns whether compiled kernels support the device of `tensor`, and may run."""
    if _plain:
        return False
    return (tensor.is_cpu and _ext.HAS_CPU_OPS) or (tensor.is_cuda and _ext.HAS_CUDA_OPS)


def allow_tf32(tensor: Tensor) -> bool:
    """Returns whether an op may round `tensor` to TF32 in products, as PyTorch's own ops may."""
    return tensor.is_cuda and tensor.dtype == torch.float32 and _tf32_allowed()


def _tf32_allowed() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


# A constant of a compiled graph: torch.compile cannot trace the setting (nor can its old name be
# read after the new one was set), but recompiles when it changes. This is all that
# torch.compiler.assume_constant_result does after importing torch._dynamo, which takes as long as
# importing torch.
_tf32_allowed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def is_captured(device: torch.device) -> bool:
    """Returns whether a CUDA graph is being recorded, which has to own the memory it reads."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def as_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns `tensor` in `dtype`; if it has it, without the call that finds that out."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of sums over values of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


# Without a matrix unit an x86 processor gains nothing from bfloat16, even with instructions for it:
# products run at half the rate of float32 (oneDNN, AVX512-BF16).
_SLOW_BFLOAT16 = platform.machine() in ("x86_64", "AMD64") and not (
    torch.cpu._is_amx_tile_supported()
)


def product_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """Returns the fastest dtype for matrix products of values of `dtype`.

    That is `dtype`, but float32 for bfloat16 on a CPU that computes it faster.
    """
    slow = device == "cpu" and dtype == torch.bfloat16 and _SLOW_BFLOAT16
    return torch.float32 if slow else dtype
