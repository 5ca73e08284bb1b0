"""Gathering of arrays over the processes of a distributed run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import distributed


def gather(arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Returns the arrays of every process, in the order of ranks.

    Every process of the default group must call it with the same number of arrays; their lengths
    and dtypes may differ. Outside of a distributed run it returns the arrays given.

    Args:
        arrays: one-dimensional arrays.
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
        # Every backend carries bytes; all_gather needs equal sizes, so all pad to the longest.
        sent = torch.zeros(max(1, *(size for size, _ in others)), dtype=torch.uint8)
        sent[: array.nbytes] = torch.from_numpy(np.ascontiguousarray(array).view(np.uint8))
        received = sent.new_empty(ranks, len(sent), device=device)
        distributed.all_gather(list(received), sent.to(device))
        for rank, (size, kind) in enumerate(others):
            gathered[rank].append(received[rank, :size].cpu().numpy().view(chr(kind)))
    return gathered
