"""Arrays of all processes of a distributed run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import distributed


def gather(arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Returns the arrays of every process, in the order of ranks.

    Every process of the default group calls it with as many arrays, whose lengths and dtypes may
    differ between processes. Outside of a distributed run it returns the arrays given.

    Args:
        arrays: one-dimensional ones.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return [list(arrays)]
    on_gpu = distributed.get_backend() == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    ranks = distributed.get_world_size()
    kinds = [(array.nbytes, ord(array.dtype.char)) for array in arrays]
    every = torch.empty(ranks, len(arrays), 2, dtype=torch.int64, device=device)
    distributed.all_gather(list(every), torch.tensor(kinds, device=device))
    gathered: list[list[np.ndarray]] = [[] for _ in range(ranks)]
    for array, others in zip(arrays, every.transpose(0, 1).tolist(), strict=True):
        # Bytes, which every backend carries, and from everyone as many as the longest has.
        sent = torch.zeros(max(1, *(size for size, _ in others)), dtype=torch.uint8)
        sent[: array.nbytes] = torch.from_numpy(np.ascontiguousarray(array).view(np.uint8))
        received = sent.new_empty(ranks, len(sent), device=device)
        distributed.all_gather(list(received), sent.to(device))
        for rank, (size, kind) in enumerate(others):
            gathered[rank].append(received[rank, :size].cpu().numpy().view(chr(kind)))
    return gathered
