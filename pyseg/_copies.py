"""Copies between the host and a GPU, which the GPU makes while it computes something else.

Both kinds start at once, on a stream of their own, and from or to page-locked memory; whoever asks
for the result waits. Tensors of the host are not copied.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Upload:
    """Tensors of the host on their way to a device.

    A thread that reads may start it and another compute with the result.

    Args:
        device: The device.
        tensors: Tensors of the host, which must not change.

    Example:
        >>> Upload(torch.device("cpu"), torch.ones(2)).tensors()
        [tensor([1., 1.])]
    """

    def __init__(self, device: torch.device, *tensors: Tensor) -> None:
        self._device = device
        self._tensors = list(tensors)
        self._copied: Any = None
        if device.type == "cuda":
            # The allocator of page-locked memory keeps it until the copy is done.
            pinned = [x if x.is_pinned() else x.pin_memory() for x in tensors]
            stream = _stream(device, "up")
            with torch.cuda.stream(stream):
                self._tensors = [x.to(device, non_blocking=True) for x in pinned]
                self._copied = stream.record_event()

    def tensors(self) -> list[Tensor]:
        """Returns the tensors on the device, for which its current stream will wait."""
        if self._copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(self._copied)
            for tensor in self._tensors:
                tensor.record_stream(stream)  # its memory is free once the stream has used it
        return self._tensors


class Download:
    """A tensor on its way to the host.

    Args:
        tensor: On any device; must not change.

    Example:
        >>> Download(torch.ones(2)).array()
        array([1., 1.], dtype=float32)
    """

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor
        self._copied: Any = None
        if tensor.is_cuda:
            stream = _stream(tensor.device, "down")
            stream.wait_stream(torch.cuda.current_stream(tensor.device))
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            with torch.cuda.stream(stream):
                self._host.copy_(tensor, non_blocking=True)
                self._copied = stream.record_event()
            tensor.record_stream(stream)

    def array(self) -> np.ndarray:
        """Returns the tensor as an array, after waiting for it."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host.numpy()


@functools.cache
def _stream(device: torch.device, direction: str) -> Any:
    return torch.cuda.Stream(device)
