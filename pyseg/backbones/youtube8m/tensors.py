"""Named tensors in files of users, and how modules get them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pyseg._containers import read_arrays, text_error
from pyseg.backbones.module import read_weights
from pyseg.errors import DataError


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Returns the named tensors in a file.

    Nothing in the file is executed: of a state dict that torch saved, only tensors, NumPy arrays,
    plain values and containers of these are read.

    Args:
        path: ``.safetensors``, ``.npz``, or else a state dict saved by torch.

    Raises:
        pyseg.errors.DataError: The file is of another kind or damaged; the message names it.
        OSError: The file cannot be read.
    """
    name = os.fspath(path)
    suffix = Path(path).suffix
    if suffix == ".npz":
        state: Any = read_arrays(path)
    elif suffix == ".safetensors":
        state = read_weights(name)
    else:
        state = _read_state_dict(name)
    if not isinstance(state, Mapping):
        raise DataError(f"{name}: expected named tensors, found {type(state).__name__}")
    tensors = {str(key): _tensor(value) for key, value in state.items()}
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}


def _tensor(value: object) -> Tensor | None:
    """Returns a tensor or an array of numbers as an ordinary tensor; None: it is something else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        return torch.from_numpy(value.astype(np.float64))
    if not isinstance(value, Tensor):
        return None
    ordinary = value.layout == torch.strided and value.device.type == "cpu"
    return value.detach() if ordinary and not value.is_quantized else None


def _read_state_dict(name: str) -> Any:
    with open(name, "rb") as file:
        try:
            with torch.serialization.safe_globals(_numpy_globals()):
                return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises anything on a foreign file
            reason = text_error(error)
            raise DataError(f"{name}: expected a state dict, found: {reason}") from error


def _numpy_globals() -> list[Any]:
    """Returns what NumPy arrays in a state dict are made with, under its old and new names."""
    reconstruct = np.empty(0).__reduce__()[0]
    names = (f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core"))
    dtypes = [type(np.dtype(kind)) for kind in (np.float32, np.float64)]
    return [*((reconstruct, name) for name in names), np.ndarray, np.dtype, *dtypes]


def load(module: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Gives a module's parameters and buffers the values of tensors; others are ignored.

    Args:
        module: The module, which may be on the device "meta"; its batch norms' counters become 0.
        tensors: The tensors by the names that `module` gives them.
        name: The file's name in errors.

    Raises:
        pyseg.errors.DataError: One is missing, has another shape, or a value that is not finite.
    """
    state = {}
    for key, expected in module.state_dict().items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros((), dtype=torch.long)
            continue
        found = tensors.get(key)
        if found is None:
            raise DataError(f"{name}: expected the tensor {key}, found none of this name")
        if found.shape != expected.shape:
            raise DataError(
                f"{name}: {key}: expected shape {tuple(expected.shape)}, found {tuple(found.shape)}"
            )
        if not found.is_floating_point() or not found.isfinite().all():
            raise DataError(f"{name}: {key}: expected finite numbers, found others")
        # Copied, since a file's tensors have any strides and alignment.
        state[key] = found.to(torch.float32).clone(memory_format=torch.contiguous_format)
    module.load_state_dict(state, assign=True)
