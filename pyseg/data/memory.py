"""Memory that a data set shares with its copies in worker processes.

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
"""The most worker processes of a data set."""

_ERROR_BYTES = 1000


def _shared_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns a tensor that forked processes share, without a file in /dev/shm.

    If processes are not forked, torch moves it there when sending it.
    """
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class Counters:
    """The number of the next pass, and the counts of each worker in its pass.

    Args:
        size: The number of counts per worker.
    """

    def __init__(self, size: int) -> None:
        self.epoch = _shared_zeros((), torch.int64)
        self.counts = _shared_zeros((MOST_WORKERS, size), torch.int64)
        self.errors = _shared_zeros((MOST_WORKERS, _ERROR_BYTES), torch.uint8)

    def write(self, worker: int, counts: list[int], error: str | None) -> None:
        """Stores the counts of a worker in its pass; every worker has its own row."""
        self.counts[worker] = torch.tensor(counts)
        text = (error or "").encode("utf-8", "replace")[:_ERROR_BYTES]
        padded = np.frombuffer(text.ljust(_ERROR_BYTES, b"\0"), np.uint8)
        self.errors.numpy()[worker] = padded

    def clear(self, workers: int) -> None:
        """Resets the counts of workers beyond this number, which an earlier pass may have had."""
        self.counts[workers:] = 0
        self.errors[workers:] = 0

    def copy_counts(self, other: Counters) -> None:
        """Copies the counts of another data set's workers."""
        self.counts.copy_(other.counts)
        self.errors.copy_(other.errors)

    def total(self) -> list[int]:
        """Returns the sums over all workers."""
        totals: list[int] = self.counts.sum(dim=0).tolist()
        return totals

    def error(self) -> str | None:
        """Returns the first skipped error, in the order of the workers."""
        texts = (row.tobytes().rstrip(b"\0") for row in self.errors.numpy())
        return next((text.decode("utf-8", "replace") for text in texts if text), None)


class ExampleMemory:
    """Examples stored by column, with their frames in one contiguous array.

    The columns are tensors, which torch sends to worker processes without a copy.

    Args:
        examples: The shard, the video's id, and the example.
    """

    def __init__(self, examples: Iterable[tuple[str, str, Example]]) -> None:
        self.paths: list[str] = []
        self.videos: list[str] = []
        self.ids: list[str] = []
        frames = np.empty((0, 0), np.uint8)
        lengths, counts = [0], [0]
        classes, scores = [], []
        # An anonymous file in memory grows without a copy. A growing array in the heap may be
        # copied, and the allocator keeps the memory of its old copy (`pyseg._memory`).
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
        """Returns the columns, without arrays: sending a tensor moves it away from its array."""
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

    def count_classes(self, numbers: np.ndarray) -> np.ndarray:
        """Returns how many of some examples have each class, from 0 to the largest class of all."""
        kept = np.zeros(len(self), np.bool_)
        kept[numbers] = True
        chosen = np.repeat(kept, np.diff(self.offsets.numpy()))
        classes = self.classes.numpy()
        return np.bincount(classes[chosen], minlength=int(classes.max(initial=-1)) + 1)

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
