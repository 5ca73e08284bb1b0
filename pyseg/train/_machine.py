"""Options that the machine decides."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from pyseg.config import TrainConfig

_MOST_WORKERS = 8  # of a process, by default: more only compete for the cores


def settle(config: TrainConfig, device: torch.device) -> TrainConfig:
    """Returns the options with values for those that the device of training decides.

    Options that are given stay. The values are those of the first machine: the run folder stores
    them, so that a run resumes with them on any other.

    Args:
        config: The options.
        device: The device of training.

    Example:
        >>> found = settle(TrainConfig(tf32=True), torch.device("cpu"))
        >>> found.precision, found.tf32, found.workers
        ('fp32', True, 0)
    """
    on_gpu = device.type == "cuda"
    if config.workers is None:
        config = replace(config, workers=_workers() if on_gpu else 0)
    if config.precision is None:
        # Before compute capability 8.0, bfloat16 products are emulated.
        fast = on_gpu and torch.cuda.get_device_capability(device) >= (8, 0)
        config = replace(config, precision="bf16" if fast else "fp32")
    if config.tf32 is None:
        config = replace(config, tf32=on_gpu)
    return config


def _workers() -> int:
    """Returns how many processes read ahead for each process that trains on a GPU."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's, on this machine
    return min(_MOST_WORKERS, max(1, len(os.sched_getaffinity(0)) // processes - 1))
