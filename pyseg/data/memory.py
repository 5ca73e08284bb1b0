"""What a data set and its copies in worker processes have in common: memory that they share.

See :class:`Counters` and :class:`ExampleMemory`.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyseg.data.batch import Example

MOST_WORKERS = 128
"""The most processes that can read a data set ahead."""

_ERROR_BYTES = 1000


def _shared_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns a tensor that forked processes have in common, without a file in /dev/shm.

    Where processes are not forked, torch moves it there when it is sent to one.
    """
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class Counters:
    """The number of the next pass, and what each worker has counted in its pass.

    Args:
        size: How many numbers a worker counts.
    """

    def __init__(self, size: int) -> None:
        self.epoch = _shared_zeros((), torch.int64)
        self.counts = _shared_zeros((MOST_WORKERS, size), torch.int64)
        self.errors = _shared_zeros((MOST_WORKERS, _ERROR_BYTES), torch.uint8)

    def write(self, worker: int, counts: list[int], error: str | None) -> None:
        """Stores what a worker has counted in its pass; every worker has a row to itself."""
        self.counts[worker] = torch.tensor(counts)
        text = (error or "").encode("utf-8", "replace")[:_ERROR_BYTES]
        padded = np.frombuffer(text.ljust(_ERROR_BYTES, b"\0"), np.uint8)
        self.errors.numpy()[worker] = padded

    def clear(self, workers: int) -> None:
        """Forgets what more workers than these may have counted before."""
        self.counts[workers:] = 0
        self.errors[workers:] = 0

    def copy_counts(self, other: Counters) -> None:
        """Takes over what the workers of another data set have counted."""
        self.counts.copy_(other.counts)
        self.errors.copy_(other.errors)

    def total(self) -> list[int]:
        """Returns the numbers of all workers together."""
        totals: list[int] = self.counts.sum(dim=0).tolist()
        return totals

    def error(self) -> str | None:
        """Returns the first error that was skipped, in the order of the workers."""
        texts = (row.tobytes().rstrip(b"\0") for row in self.errors.numpy())
        return next((text.decode("utf-8", "replace") for text in texts if text), None)


class ExampleMemory:
    """Examples held column by column, their frames in one contiguous array.

    The columns are tensors, because torch sends those to worker processes without a copy.

    Args:
        examples: Shard, id of the video, and example.
    """

    def __init__(self, examples: Iterable[tuple[str, str, Example]]) -> None:
        self.paths: list[str] = []
        self.videos: list[str] = []
        self.ids: list[str] = []
        frames = np.empty((0, 0), np.uint8)
        lengths, counts = [0], [0]
        classes, scores = [], []
        # A file that is nowhere but in memory grows without a copy. An array in the heap may be
        # copied as it grows, and what it leaves behind is kept (`pyseg._memory`).
        with os.fdopen(os.memfd_create("pyseg"), "wb") as file:
            for path, video, example in examples:
                frames = np.ascontiguousarray(example.frames)
                file.write(frames.data)
                lengths.append(len(frames))
                counts.append(len(example.classes))
                self.paths.append(path)
                self.videos.append(video)
                self.ids.append(example.id)
                classes.append(example.classes)
                scores.append(example.scores)
            file.flush()
            if sum(lengths):
                mapped = mmap.mmap(file.fileno(), 0)
                frames = np.frombuffer(mapped, frames.dtype).reshape(-1, frames.shape[1])
        self.frames = torch.from_numpy(frames)
        self.frame_offsets = torch.from_numpy(np.cumsum(lengths, dtype=np.int64))
        self.offsets = torch.from_numpy(np.cumsum(counts, dtype=np.int64))
        self.classes = torch.from_numpy(np.concatenate([np.empty(0, np.int64), *classes]))
        self.scores = torch.from_numpy(np.concatenate([np.empty(0, np.float32), *scores]))
        self._arrays: list[np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Returns the columns; sending a tensor moves it, and an array of it has the old memory."""
        self._arrays = None
        return self.__dict__

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.ids)

    def __getitem__(self, number: int) -> Example:
        """Returns an example, whose arrays are read-only views."""
        if self._arrays is None:
            columns = self.frame_offsets, self.offsets, self.frames, self.classes, self.scores
            self._arrays = [_frozen(tensor) for tensor in columns]
        frame_offsets, offsets, frames, classes, scores = self._arrays
        first, last = frame_offsets[number : number + 2].tolist()
        begin, end = offsets[number : number + 2].tolist()
        return Example(self.ids[number], frames[first:last], classes[begin:end], scores[begin:end])

    def fingerprint(self, numbers: np.ndarray) -> str:
        """Returns a digest of the ids of some examples, and of all classes and scores."""
        ids = "\n".join(self.ids[number] for number in numbers)
        digest = hashlib.sha256(ids.encode("utf-8", "surrogateescape"))
        for tensor in (self.offsets, self.classes, self.scores):
            digest.update(tensor.numpy().tobytes())
        return digest.hexdigest()[:16]


def _frozen(tensor: Tensor) -> np.ndarray:
    array = tensor.numpy()
    array.flags.writeable = False
    return array
