"""Checkpoints of a training run: written atomically, the last ones kept.

A checkpoint is a file that `torch.load` reads with ``weights_only=True``: tensors, numbers, text,
and lists and dictionaries of these. A digest of its bytes follows them.
"""

from __future__ import annotations

import hashlib
import io
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyseg._containers import text_error
from pyseg._files import atomic_write
from pyseg.errors import DataError

_NAME = re.compile(r"checkpoint-(\d{9})\.pt")

# The fastest secure digest on processors with instructions for it.
_DIGEST = hashlib.sha256
_MARK = b"pyseg sha256 "


def save_checkpoint(folder: Path, number: int, state: Mapping[str, Any], *, keep: int) -> Path:
    """Writes a checkpoint, then removes all but the last ones.

    The write is atomic; if it fails, the earlier checkpoints stay.

    Args:
        folder: Created if it is missing.
        number: Number of the checkpoint; later ones have larger numbers.
        state: What `load_checkpoint` will return.
        keep: Number of checkpoints to keep, including this one.

    Raises:
        OSError: The checkpoint cannot be written; the message names the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"checkpoint-{number:09d}.pt"
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    try:
        with atomic_write(path) as file:
            content = buffer.getbuffer()
            file.write(content)
            file.write(_MARK + _DIGEST(content).digest())
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
    """Returns the state that was saved, on the CPU.

    Raises:
        pyseg.errors.DataError: The file is no checkpoint, or damaged; the message names it.
        OSError: The file cannot be read.
    """
    data = memoryview(path.read_bytes())
    end = len(data) - len(_MARK) - _DIGEST().digest_size
    if end < 0 or data[end : end + len(_MARK)] != _MARK:
        raise DataError(f"{path}: expected a checkpoint of pyseg, found no digest at its end")
    if _DIGEST(data[:end]).digest() != data[end + len(_MARK) :]:
        raise DataError(f"{path}: expected a checkpoint of pyseg, found a damaged one (its digest)")
    try:
        state = torch.load(io.BytesIO(data[:end]), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything on a foreign file
        reason = text_error(error)
        raise DataError(f"{path}: expected a checkpoint of pyseg, found: {reason}") from error
    if not isinstance(state, dict):
        raise DataError(f"{path}: expected a checkpoint of pyseg, found {type(state).__name__}")
    return state


def load_last_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Returns path and state of the last undamaged checkpoint; None if there are no checkpoints.

    It prints a line about every damaged one after it.

    Raises:
        pyseg.errors.DataError: All are damaged; the message names the last one.
        OSError: A checkpoint cannot be read.
    """
    damaged: list[DataError] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            state = load_checkpoint(path)
        except DataError as error:
            damaged.append(error)
            continue
        for each in damaged:
            print(f"{each}; {path.name} is used instead")
        return path, state
    if damaged:
        raise DataError(f"{damaged[0]}; all before it are damaged too")
    return None


def remove_checkpoints_after(path: Path) -> None:
    """Removes the checkpoints after `path`: damaged ones, which must not count as the last ones."""
    for later in list_checkpoints(path.parent):
        if later.name > path.name:
            later.unlink()


def random_state() -> dict[str, Any]:
    """Returns the state of every random number generator of this process."""
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
    """Restores the state from `random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, key, *rest = state["numpy"]
    np.random.set_state((name, key.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
