"""Batches for training, with a position that can be saved and resumed.

See :class:`Feed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pyseg._copies import Upload
from pyseg.data.batch import Batch
from pyseg.data.datasets import RecordDataset
from pyseg.data.loading import loader
from pyseg.data.stream import Position, Start
from pyseg.errors import ArgumentError


class Feed(Iterator[Batch]):
    """The endless batches of a data set, with a position that can be saved and resumed.

    A feed made with the `state` of another starts with exactly the batch that the other would have
    returned next, even if the other's workers had read further ahead. With another number of
    workers, examples that are not in memory have another order: then the next pass begins.

    On a GPU, `read_ahead` starts the copy of the next batch, on a stream of its own, while the GPU
    computes with the last one.

    Args:
        dataset: With ``repeat=True``.
        batch_size: Examples per batch (on every rank).
        workers: Processes that read ahead; 0 reads in this process.
        frames: The length to pad to; default: the longest of each batch (`collate`).
        num_classes: The number of classes that batches are checked for; default: no check.
        device: The device of the batches; default: the CPU.
        state: The `state` of a feed of a data set with the same options; default: the beginning.

    Raises:
        ValueError: The data set does not repeat, or `state` does not fit the other arguments.

    Example:
        >>> from pyseg.data import SegmentDataset
        >>> from pyseg.data.sample import make_sample
        >>> dataset = SegmentDataset(make_sample() / "validate", shuffle=True, repeat=True)
        >>> feed = Feed(dataset, batch_size=8)
        >>> for _ in range(3):
        ...     _ = next(feed)
        >>> next(Feed(dataset, batch_size=8, state=feed.state())).ids == next(feed).ids
        True
    """

    def __init__(
        self,
        dataset: RecordDataset,
        batch_size: int,
        *,
        workers: int = 0,
        frames: int | None = None,
        num_classes: int | None = None,
        device: torch.device | str = "cpu",
        state: Mapping[str, Any] | None = None,
    ) -> None:
        if not dataset.repeat:
            raise ArgumentError("dataset: expected one with repeat=True, found repeat=False")
        rank, world_size = dataset.group()
        self._options = {
            "batch_size": batch_size,
            "workers": None if dataset.cached else workers,
            "rank": rank,
            "world_size": world_size,
        }
        self._batches = 0
        self._positions: list[Position] = []
        if not dataset.cached:
            self._positions = [Position(dataset.epoch)] * max(workers, 1)
        if state is not None:
            for name, value in self._options.items():
                if state[name] != value and (name != "workers" or None in (value, state[name])):
                    raise ArgumentError(f"{name}: expected {state[name]}, as before; found {value}")
            self._batches = int(state["batches"])
            before = [Position(*position) for position in state["positions"]]
            if len(before) == len(self._positions):
                self._positions = before
            else:
                following = max(position.epoch for position in before) + 1
                self._positions = [Position(following)] * len(self._positions)
        start = Start(self._batches, tuple(self._positions))
        self._num_classes = num_classes
        self._device = torch.device(device)
        self._sent: tuple[Batch, Upload] | None = None  # the next batch, on its way to a GPU
        self._iterator = iter(
            loader(
                dataset,
                batch_size,
                workers=workers,
                frames=frames,
                pin_memory=self._device.type == "cuda",
                start=start,
            )
        )

    def __next__(self) -> Batch:
        """Returns the next batch; there is none only if the data set has no example.

        Raises:
            pyseg.errors.DataError: A class is out of range; the message names the video.
        """
        self.read_ahead()
        if self._sent is None:
            batch = self._read().to(self._device)
        else:
            (batch, upload), self._sent = self._sent, None
            batch = batch.with_tensors(*upload.tensors())
        if self._positions:
            self._positions[self._batches % len(self._positions)] = Position(*batch.position)
        self._batches += 1
        return batch

    def read_ahead(self) -> None:
        """Reads the next batch and starts its copy to a GPU, unless that is done already.

        It does nothing on other devices. The error of a batch is raised here.
        """
        if self._device.type == "cuda" and self._sent is None:
            batch = self._read()
            self._sent = batch, Upload(self._device, *batch.tensors)

    def _read(self) -> Batch:
        """Returns the next batch in host memory, where checking it waits for no GPU."""
        batch = next(self._iterator)
        if self._num_classes is not None:
            batch.check_classes(self._num_classes)
        return batch

    def state(self) -> dict[str, Any]:
        """Returns the position after the last batch, as numbers, text and lists."""
        positions = [list(position) for position in self._positions]
        return {**self._options, "batches": self._batches, "positions": positions}
