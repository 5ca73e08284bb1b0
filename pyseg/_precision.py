"""The precision of a model: the options ``precision`` and ``tf32``, and their defaults."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from pyseg._int8 import has_fast_int8, has_large_layer, int8_products
from pyseg.errors import ArgumentError

MixedPrecisionName = Literal["fp32", "bf16", "fp16"]
"""The values of the option ``precision`` of training."""

PrecisionName = Literal["fp32", "bf16", "fp16", "int8"]
"""The values of the option ``precision`` of everything else."""

_LOG = logging.getLogger("pyseg")

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """The precision of a model's products.

    Attributes:
        name: "bf16" or "fp16" is torch's automatic mixed precision; "fp32" is none. "int8", only on
            a CPU and without gradients, is float32 but for large linear layers, which multiply
            8-bit integers (`pyseg._int8`).
        tf32: Whether products of float32 may round their inputs to TF32, which only a GPU does.

    Example:
        >>> Precision.on(torch.device("cpu")), Precision.on(torch.device("cuda"))
        (Precision(name='fp32', tf32=False), Precision(name='bf16', tf32=True))
        >>> with Precision("bf16").used_on(torch.device("cpu")):
        ...     (torch.ones(1, 2) @ torch.ones(2, 1)).dtype
        torch.bfloat16
    """

    name: PrecisionName = "fp32"
    tf32: bool = False

    @classmethod
    def on(
        cls,
        device: torch.device,
        name: PrecisionName | None = None,
        tf32: bool | None = None,
        model: nn.Module | None = None,
    ) -> Precision:
        """Returns the precision that options mean on a device.

        Args:
            device: The device.
            name: The option ``precision``; default: "bf16" on a GPU, "fp32" on a CPU and on GPUs
                before compute capability 8.0, which have no bfloat16 products. "int8" becomes
                "fp32" on a processor that is no faster with it, and a log line says so.
            tf32: The option ``tf32``, which has no effect on a CPU; default: on a GPU, unless
                "fp32" is asked for.
            model: The model that is to use it, if known: "int8" becomes "fp32" for one without a
                large layer, and a log line says so.

        Raises:
            ValueError: An option has another value, or "int8" is asked for on a GPU.
        """
        if name is not None and name not in get_args(PrecisionName):
            known = ", ".join(get_args(PrecisionName))
            raise ArgumentError(f"precision: expected one of {known} or None; found {name!r}")
        if tf32 is not None and not isinstance(tf32, bool):
            raise ArgumentError(f"tf32: expected True, False or None; found {tf32!r}")
        if name == "int8":
            if device.type != "cpu":
                raise ArgumentError(
                    "precision: expected one of fp32, bf16, fp16 or None on a GPU; found 'int8', "
                    "which is for a CPU"
                )
            name = _int8_or_fp32()
            if name == "int8" and model is not None and not has_large_layer(model):
                name = "fp32"
                _LOG.warning(
                    "precision int8: expected a model with a layer of many weights, found none "
                    "that is faster with it; float32 is used"
                )
        if tf32 is None:
            tf32 = device.type == "cuda" and name != "fp32"
        return cls(name or ("bf16" if _has_bfloat16(device) else "fp32"), tf32)

    @property
    def dtype(self) -> torch.dtype | None:
        """The dtype of mixed precision; None: there is none."""
        return _DTYPES.get(self.name)

    @contextlib.contextmanager
    def used_on(self, device: torch.device) -> Iterator[None]:
        """Lets forward passes on a device compute in this precision.

        Autocast is that of this thread; whether TF32 is allowed is a setting of the process, which
        is restored afterwards. Weights are cast once while the context lasts, so it should enclose
        many batches; training has to leave `autocast` at every step, as weights change.
        """
        int8 = int8_products(self.name == "int8")
        with allow_tf32(self.tf32), self.autocast(device), int8:
            yield

    def autocast(self, device: torch.device) -> torch.autocast:
        """Returns the context of mixed precision alone, without TF32."""
        return torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None)


@contextlib.contextmanager
def allow_tf32(allowed: bool) -> Iterator[None]:
    """Sets whether a GPU may round the inputs of float32 products to TF32, and restores it.

    That is so in matrix products and in cuDNN, where PyTorch allows it by default.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    found = matmul.fp32_precision
    try:
        before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:  # the caller has set the newer names, after which the older have no value
        matmul.fp32_precision = "tf32" if allowed else "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = found
        return
    # The older name of the first sets both, the newer would set itself alone.
    if (found == "tf32") != allowed:
        torch.set_float32_matmul_precision("high" if allowed else "highest")
    cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        if (found == "tf32") != allowed:
            torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]


@functools.cache
def _int8_or_fp32() -> PrecisionName:
    if has_fast_int8():
        return "int8"
    _LOG.warning(
        "precision int8: expected a processor that multiplies 8-bit integers exactly and fast "
        "(VNNI or AMX), found another; float32 is used"
    )
    return "fp32"


def _has_bfloat16(device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    return not torch.cuda.is_available() or torch.cuda.get_device_capability(device) >= (8, 0)
