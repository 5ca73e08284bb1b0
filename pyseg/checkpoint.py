"""Checkpoints of a training run: complete, written whole, the last ones kept.

A checkpoint is a file that `torch.load` reads with ``weights_only=True``: tensors, numbers, text,
and lists and dictionaries of these.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyseg._files import written_whole
from pyseg.errors import DataError

_NAME = re.compile(r"checkpoint-(\d{9})\.pt")


def save_checkpoint(folder: Path, number: int, state: Mapping[str, Any], *, keep: int) -> Path:
    """Writes a checkpoint, then removes all but the last ones.

    The file appears when it is on disk as a whole; where it cannot be written, those before it are
    still there.

    Args:
        folder: Created if it is not there.
        number: Of the checkpoint; later ones have larger numbers.
        state: What `load_checkpoint` returns.
        keep: How many to leave, this one included.

    Raises:
        OSError: It cannot be written; the message names the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint-{number:09d}.pt"
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    try:
        with written_whole(path) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        raise OSError(
            error.errno, f"the checkpoint cannot be written: {error.strerror or error}", str(path)
        ) from error
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints in a folder, the last one last."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Returns what `save_checkpoint` was given, on the CPU.

    Raises:
        ValueError: The file is no checkpoint; the message names it.
        OSError: It cannot be read.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # whatever a damaged file leads torch to
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"{path}: expected a checkpoint of pyseg, found: {told[0]}") from error
    if not isinstance(state, dict):
        raise DataError(f"{path}: expected a checkpoint of pyseg, found {type(state).__name__}")
    return state


def random_state() -> dict[str, Any]:
    """Returns the state of every source of random numbers of this process."""
    version, numbers, gauss = random.getstate()
    name, key, *rest = np.random.get_state(legacy=True)
    state = {
        "torch": torch.get_rng_state(),
        "python": [version, list(numbers), gauss],
        "numpy": [str(name), torch.from_numpy(np.asarray(key).astype(np.int64)), *rest],
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any]) -> None:
    """Restores what `random_state` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, key, *rest = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
