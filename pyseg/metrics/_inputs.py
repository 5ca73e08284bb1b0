"""What every metric accepts: arrays or tensors, checked once."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

Array: TypeAlias = ArrayLike | Tensor


def as_array(name: str, values: Array, ndim: int) -> np.ndarray:
    """Returns `values` as a NumPy array with `ndim` dimensions, without a copy where possible."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        if values.dtype == torch.bfloat16:  # NumPy has none; float32 holds every value
            values = values.float()
        array = values.numpy()
    else:
        array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name}: expected numbers, found dtype {array.dtype}")
    if array.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimension(s), found shape {array.shape}")
    return array


def as_scores(name: str, values: Array, ndim: int) -> np.ndarray:
    """Returns `values` in float64; NaN is an error, infinities are ordinary values."""
    array = as_array(name, values, ndim)
    refuse_nan(name, array)
    return array.astype(np.float64, copy=False)


def as_integers(name: str, values: Array, ndim: int) -> np.ndarray:
    """Returns `values` in int64; anything but integers is an error (an empty list is none)."""
    array = as_array(name, values, ndim)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name}: expected integers, found dtype {array.dtype}")
    return array.astype(np.int64, copy=False)


def refuse_nan(name: str, array: np.ndarray) -> None:
    """Raises where there is a NaN."""
    if array.dtype.kind == "f" and np.isnan(array).any():
        place = tuple(int(i) for i in np.argwhere(np.isnan(array))[0])
        raise ValueError(f"{name}: expected numbers, found NaN at {list(place)}")


def same_shape(name: str, array: np.ndarray, other_name: str, other: np.ndarray) -> None:
    """Raises where two arrays differ in shape."""
    if array.shape != other.shape:
        raise ValueError(
            f"{name}: expected shape {other.shape} as {other_name} has, found {array.shape}"
        )


def check_k(k: int) -> None:
    """Raises where `k` is not a positive number."""
    if k < 1:
        raise ValueError(f"k: expected at least 1, found {k}")
