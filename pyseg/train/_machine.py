"""Options that the machine decides."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import cast

import torch

from pyseg._precision import MixedPrecisionName, Precision
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
        >>> found = settle(TrainConfig(), torch.device("cpu"))
        >>> found.precision, found.tf32, found.workers
        ('fp32', False, 0)
    """
    workers = config.workers
    if workers is None:
        workers = _workers() if device.type == "cuda" else 0
    used = Precision.on(device, config.precision, config.tf32)
    precision = cast(MixedPrecisionName, used.name)
    return replace(config, workers=workers, precision=precision, tf32=used.tf32)


def _workers() -> int:
    """Returns how many processes read ahead for each process that trains on a GPU."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's, on this machine
    return min(_MOST_WORKERS, max(1, len(os.sched_getaffinity(0)) // processes - 1))
