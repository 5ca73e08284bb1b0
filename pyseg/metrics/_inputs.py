"""What every metric accepts: arrays or tensors, checked once."""

from __future__ import annotations

import operator
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from pyseg import _threads
from pyseg.errors import ArgumentError

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
        raise ArgumentError(f"{name}: expected {ndim} dimension(s), found shape {array.shape}")
    return array


def as_scores(name: str, values: Array, ndim: int) -> np.ndarray:
    """Returns `values` in float32 or float64; NaN is an error, infinities are ordinary values.

    float32 and narrower floats become float32, everything else float64.
    """
    array = as_array(name, values, ndim)
    narrow = array.dtype.kind == "f" and array.dtype.itemsize <= 4
    array = array.astype(np.float32 if narrow else np.float64, copy=False)
    refuse_nan(name, array)
    return array


def as_integers(name: str, values: Array, ndim: int) -> np.ndarray:
    """Returns `values` in int64; anything but integers (or an empty list) is an error."""
    array = as_array(name, values, ndim)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{name}: expected integers, found dtype {array.dtype}")
    return array.astype(np.int64, copy=False)


def above_zero(array: np.ndarray) -> np.ndarray:
    """Returns where `array` is above 0; `array` itself if it holds bools."""
    return array if array.dtype == bool else array > 0


def refuse_nan(name: str, array: np.ndarray, where: np.ndarray | None = None) -> None:
    """Raises where `array` holds a NaN; with the mask `where`, only at True."""
    if array.dtype.kind != "f" or array.size == 0:
        return
    # The minimum is NaN if any value is: one pass that writes no mask.
    rows = -(-(2**18) // array[0].size)  # enough for a thread
    parts = [(array[begin:end],) for begin, end in _threads.shares(len(array), rows)]
    if not np.isnan(_threads.run_all(np.min, parts)).any():
        return
    nan = np.isnan(array)
    if where is not None:
        nan &= where
    if nan.any():
        place = [int(index) for index in np.unravel_index(nan.argmax(), nan.shape)]
        raise ArgumentError(f"{name}: expected numbers, found NaN at {place}")


def same_shape(name: str, array: np.ndarray, other_name: str, other: np.ndarray) -> None:
    """Raises where two arrays differ in shape."""
    if array.shape != other.shape:
        raise ArgumentError(
            f"{name}: expected shape {other.shape} as {other_name} has, found {array.shape}"
        )


def refuse_outside(name: str, array: np.ndarray) -> None:
    """Raises where a value is not in 0..1; `array` holds no NaN."""
    if array.dtype == bool or array.size == 0:
        return
    for wrong in (array.min(), array.max()):
        if not 0 <= wrong <= 1:
            place = [int(index) for index in np.argwhere(array == wrong)[0]]
            raise ArgumentError(f"{name}: expected values in 0..1, found {wrong} at {place}")


def check_k(k: int) -> None:
    """Raises where `k` is not a positive number."""
    _check_count("k", k)


def check_classes(num_classes: int) -> None:
    """Raises where `num_classes` is not a positive number."""
    _check_count("num_classes", num_classes)


def _check_count(name: str, value: int) -> None:
    try:
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, found {value!r}") from None
    if value < 1:
        raise ArgumentError(f"{name}: expected at least 1, found {value}")
    if value >= 2**63:
        raise ArgumentError(f"{name}: expected less than 2^63, found {value}")
