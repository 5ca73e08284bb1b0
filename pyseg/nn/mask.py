"""The mask of the valid frames of a padded batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from pyseg.errors import ArgumentError

Integers: TypeAlias = Tensor | np.ndarray | Sequence[int]


def as_tensor(name: str, values: Tensor | np.ndarray | Sequence[int]) -> Tensor:
    """Returns tensors as they are, and arrays and lists as tensors, without a copy where possible.

    Raises:
        TypeError: `values` is something else, or torch lacks its dtype.
    """
    if isinstance(values, Tensor):
        return values
    if isinstance(values, (np.ndarray, np.generic, list, tuple)):
        try:
            array = np.asarray(values)
            native = array.dtype.newbyteorder("=")
            return torch.from_numpy(np.require(array, native, ["C_CONTIGUOUS", "WRITEABLE"]))
        except (TypeError, ValueError):  # no numbers, or not as many in every row
            pass
    kind = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
    raise TypeError(f"{name}: expected a Tensor or an array of numbers, found {kind}")


def frame_mask(num_frames: Integers, frames: Tensor) -> Tensor:
    """Marks the valid frames of a padded batch.

    T is read from `frames` (the reference code builds its mask for exactly 300 frames).

    Args:
        num_frames: (B,) integers, the number of valid frames of each video, in 1..T; a tensor, an
            array or a list.
        frames: (B, T, N) the padded batch; only its shape and device are used.

    Returns:
        (B, T) bool, True where the frame is valid.

    Raises:
        TypeError: `num_frames` does not hold integers.
        ValueError: `num_frames` has another shape than (B,), or a value outside 1..T. The values
            are checked only if `num_frames` is in host memory and nothing is being traced:
            elsewhere reading them would stall the device. Values beyond T then mean T.

    Example:
        >>> frame_mask(torch.tensor([1, 3]), torch.zeros(2, 3, 8)).tolist()
        [[True, False, False], [True, True, True]]
    """
    num_frames = as_tensor("num_frames", num_frames)
    batch, length = frames.shape[0], frames.shape[1]
    dtype = num_frames.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise TypeError(f"num_frames: expected integers, found {dtype}")
    if dtype in (torch.uint16, torch.uint32, torch.uint64):  # few operators take them
        num_frames = num_frames.long()
    if num_frames.ndim != 1 or num_frames.shape[0] != batch:
        raise ArgumentError(
            f"num_frames: expected shape ({batch},) as frames has {batch} videos, "
            f"found {tuple(num_frames.shape)}"
        )
    if batch and _has_values(num_frames):
        low, high = int(num_frames.min()), int(num_frames.max())
        if low < 1 or high > length:
            raise ArgumentError(
                f"num_frames: expected values in 1..{length} (frames has {length} frames), "
                f"found {low if low < 1 else high}"
            )
    device = frames.device
    return torch.arange(length, device=device) < num_frames.to(device).unsqueeze(1)


def _has_values(num_frames: Tensor) -> bool:
    """Whether the values can be read, without stalling a device."""
    return num_frames.device.type == "cpu" and not torch.compiler.is_compiling()
