"""Examples and batches.

See :class:`Batch` and :func:`collate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pyseg.errors import ArgumentError, DataError


class Example(NamedTuple):
    """A video or a segment, with its labels or ratings.

    Attributes:
        id: The video's id; for a segment ``"<video id>:<start frame>"``. Always text, as in the
            record: ids such as ``1e10`` and ``0012`` are not numbers.
        frames: (T, N) uint8, quantised as in the record; or float32 (video-level features, T = 1).
        classes: (R,) int64: the labels of a video, or the rated classes of a segment.
        scores: (R,) float32: 1 for labels; the rating, in [0, 1], of a rated class.
    """

    id: str
    frames: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Examples padded to one length; labels or ratings stay ragged.

    Example b rates ``classes[offsets[b]:offsets[b + 1]]``, the layout that
    `pyseg.ops.rated_bce_with_logits` takes.

    Attributes:
        ids: B ids.
        frames: (B, T, N) uint8 or float32, zero past ``num_frames``.
        num_frames: (B,) int64, from 1 to T.
        offsets: (B + 1,) int64.
        classes: (R,) int64.
        scores: (R,) float32.
        position: The reader's position in the data set after this batch; see `pyseg.data.Feed`.

    Example:
        >>> import numpy as np
        >>> frames = np.ones((3, 4), np.uint8)
        >>> example = Example("abcd:5", frames, np.array([2]), np.array([1], np.float32))
        >>> collate([example]).targets(num_classes=4)
        tensor([[0., 0., 1., 0.]])
    """

    ids: list[str]
    frames: Tensor
    num_frames: Tensor
    offsets: Tensor
    classes: Tensor
    scores: Tensor
    position: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Returns the number of examples, B."""
        return len(self.ids)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Frames, num_frames, offsets, classes and scores."""
        return self.frames, self.num_frames, self.offsets, self.classes, self.scores

    def with_tensors(self, *tensors: Tensor) -> Batch:
        """Returns the batch with other `tensors`."""
        frames, num_frames, offsets, classes, scores = tensors
        return Batch(self.ids, frames, num_frames, offsets, classes, scores, self.position)

    def targets(self, num_classes: int) -> Tensor:
        """Returns the scores as a matrix, (B, C) float32: 0 for classes that are not rated.

        Raises:
            ValueError: A class is not in ``[0, num_classes)``.
        """
        targets = self.scores.new_zeros(len(self), num_classes)
        return targets.index_put_(self._positions(num_classes), self.scores)

    def rated(self, num_classes: int) -> Tensor:
        """Returns whether each class is rated (or a label), (B, C) bool.

        Raises:
            ValueError: A class is not in ``[0, num_classes)``.
        """
        rated = torch.zeros(len(self), num_classes, dtype=torch.bool, device=self.classes.device)
        return rated.index_put_(self._positions(num_classes), rated.new_ones(()))

    def check_classes(self, num_classes: int) -> None:
        """Checks that all classes are in ``[0, num_classes)``.

        Raises:
            pyseg.errors.DataError: One is not; the message names the video.
        """
        wrong = (self.classes < 0) | (self.classes >= num_classes)
        if wrong.any():
            first = int(wrong.nonzero()[0])
            row = int(torch.searchsorted(self.offsets, first, right=True)) - 1
            raise DataError(
                f"{self.ids[row]}: expected classes in [0, {num_classes}), found "
                f"{int(self.classes[first])}: num_classes does not fit the data"
            )

    def _positions(self, num_classes: int) -> tuple[Tensor, Tensor]:
        self.check_classes(num_classes)
        rows = torch.repeat_interleave(
            torch.arange(len(self), device=self.offsets.device),
            self.offsets.diff(),
            output_size=len(self.classes),
        )
        return rows, self.classes

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Batch:
        """Returns the batch with its tensors on a device.

        Args:
            device: The target.
            non_blocking: Do not wait for the copy; it has an effect only on pinned memory.
        """
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Returns the batch in page-locked memory, from which a GPU can copy asynchronously.

        A `torch.utils.data.DataLoader` with ``pin_memory=True`` calls this.
        """
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        frames, num_frames, offsets, classes, scores = map(function, self.tensors)
        return Batch(self.ids, frames, num_frames, offsets, classes, scores, self.position)

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns the pickled form, in which a worker process sends it."""
        # A tensor is sent to another process as a file descriptor. Only the frames are worth one:
        # the rest goes through the pipe, so that the limit of open files allows several times as
        # many batches.
        small = self.tensors[1:]
        if self.frames.device.type != "cpu":
            return Batch, (self.ids, self.frames, *small, self.position)
        arrays = [tensor.numpy() for tensor in small]
        return _rebuild, (self.ids, self.frames, arrays, self.position)


def _rebuild(
    ids: list[str], frames: Tensor, small: list[np.ndarray], position: tuple[int, ...]
) -> Batch:
    num_frames, offsets, classes, scores = (torch.from_numpy(array) for array in small)
    return Batch(ids, frames, num_frames, offsets, classes, scores, position)


def collate(examples: Sequence[Example], *, frames: int | None = None) -> Batch:
    """Returns a batch of examples, padded with zeros at the end.

    In a worker of a `torch.utils.data.DataLoader`, frames are written directly into memory shared
    with the parent process.

    Args:
        examples: B examples whose frames have the same width N and dtype.
        frames: T, the length to pad to; default: the longest example's.

    Raises:
        ValueError: There is no example, their widths or dtypes differ, or one has no frame or more
            than ``frames``.

    Example:
        >>> import numpy as np
        >>> none = np.zeros(0)
        >>> batch = collate([Example(name, np.ones((t, 2), np.uint8), none, none)
        ...                  for name, t in (("abcd", 1), ("1e10", 3))])
        >>> batch.frames.shape, batch.num_frames
        (torch.Size([2, 3, 2]), tensor([1, 3]))
    """
    if not examples:
        raise ArgumentError("examples: expected at least one, found none")
    lengths = np.fromiter((len(example.frames) for example in examples), np.int64, len(examples))
    length = int(lengths.max()) if frames is None else frames
    first = examples[0]
    width, dtype = first.frames.shape[1], first.frames.dtype
    for example in examples:
        found = example.frames
        if found.shape[1] != width or found.dtype != dtype:
            raise ArgumentError(
                f"{example.id}: expected frames of width {width} and {dtype}, as those of "
                f"{first.id} in the same batch, found {found.shape[1]} and {found.dtype}"
            )
        if not 1 <= len(found) <= length:
            raise ArgumentError(f"{example.id}: expected 1 to {length} frames, found {len(found)}")
    output = _empty((len(examples), length, width), dtype)
    matrix = output.numpy()
    for row, example in zip(matrix, examples, strict=True):
        row[: len(example.frames)] = example.frames
        row[len(example.frames) :] = 0
    offsets = np.zeros(len(examples) + 1, np.int64)
    np.cumsum([len(example.classes) for example in examples], out=offsets[1:])
    classes = np.concatenate([example.classes for example in examples])
    scores = np.concatenate([example.scores for example in examples])
    if len(classes) != len(scores):
        raise ArgumentError(
            f"scores: expected one per class, found {len(scores)} for {len(classes)}"
        )
    return Batch(
        [example.id for example in examples],
        output,
        torch.from_numpy(lengths),
        torch.from_numpy(offsets),
        torch.from_numpy(classes.astype(np.int64, copy=False)),
        torch.from_numpy(scores.astype(np.float32, copy=False)),
    )


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
    kind = torch.from_numpy(np.empty(0, dtype)).dtype
    if torch.utils.data.get_worker_info() is None:
        return torch.empty(shape, dtype=kind)
    # As torch's own default_collate does: share_memory_() afterwards would copy the batch.
    storage = torch.UntypedStorage._new_shared(int(np.prod(shape)) * dtype.itemsize)
    return torch.empty(0, dtype=kind).set_(storage).view(shape)
