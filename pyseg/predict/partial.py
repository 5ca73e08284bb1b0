"""A prediction in progress, saved at intervals so that it can be resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyseg._containers import read_arrays
from pyseg._files import atomic_write, write_file
from pyseg.data.segments import SegmentBlock
from pyseg.errors import DataError, UserError
from pyseg.metrics import TopKPerClass
from pyseg.predict.score_file import ScoreFile
from pyseg.submission import segment_id

SAVE_EVERY = 300.0
"""Seconds between saves."""


class PartialPrediction:
    """The segments that have been ranked so far.

    Segments are numbered in the order in which they are read, so that of equal scores the earlier
    segment comes first.

    Args:
        folder: Where the state is saved.
        request: Everything that determines the result; a resumed prediction must have the same.
        num_classes: The number of classes C.
        top: Segments to keep per class.
        scores: The file of all scores, if requested.
        device: Where scores are ranked, see `pyseg.metrics.TopKPerClass`.

    Attributes:
        best: The best segments of each class.
        position: The position to resume reading from.
        videos: The ids of the videos.
        first_segments: The number of each video's first segment.
        first_frames: The frame at which that segment starts.
        num_segments: The number of segments.
        scores: The file of all scores, if requested.
    """

    def __init__(
        self,
        folder: Path,
        request: Mapping[str, Any],
        num_classes: int,
        top: int,
        scores: ScoreFile | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.best = TopKPerClass(num_classes, top, device=device)
        self.position = (0, 0)
        self.videos: list[str] = []
        self.first_segments: list[int] = []
        self.first_frames: list[int] = []
        self.num_segments = 0
        self.scores = scores
        self._device = device
        self._folder = folder
        self._state_file = folder / "state.npz"
        self._request_file = folder / "request.json"
        self._request = json.dumps(request, sort_keys=True, indent=1)
        self._saved = time.monotonic()

    def resume(self) -> bool:
        """Restores the saved state; returns whether there was any.

        Raises:
            pyseg.errors.UserError: It is the state of another request.
            pyseg.errors.DataError: It is damaged.
        """
        digest = self._restore() if self._state_file.is_file() else None
        if self.scores is not None:
            self.scores.truncate(self.num_segments, digest or "")
        return digest is not None

    def _restore(self) -> str:
        """Restores the saved state but for the scores; returns their digest."""
        if self._request_file.read_bytes() != self._request.encode():
            raise UserError(
                f"{self._folder} holds an unfinished prediction with other options, records or "
                "weights: delete it to start anew"
            )
        try:
            arrays = read_arrays(self._state_file)
            self.best = TopKPerClass.from_state(
                {name[4:]: value for name, value in arrays.items() if name.startswith("top.")},
                device=self._device,
            )
            self.position = tuple(arrays["position"].tolist())
            self.num_segments = int(arrays["num_segments"])
            self.videos = arrays["videos"].tobytes().decode().split("\n")[:-1]
            self.first_segments = arrays["firsts"].tolist()
            self.first_frames = arrays["begins"].tolist()
            return str(arrays["scores_digest"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{self._state_file}: expected an unfinished prediction, found: {error}; delete "
                "the folder to start anew"
            ) from error

    def save(self) -> None:
        """Saves the state."""
        self._folder.mkdir(parents=True, exist_ok=True)
        write_file(self._request_file, self._request.encode())
        names = "".join(f"{id}\n" for id in self.videos).encode()
        digest = "" if self.scores is None else self.scores.written()
        arrays: dict[str, Any] = {
            "position": np.array(self.position, np.int64),
            "num_segments": np.array(self.num_segments, np.int64),
            "videos": np.frombuffer(names, np.uint8),
            "firsts": np.array(self.first_segments, np.int64),
            "begins": np.array(self.first_frames, np.int64),
            "scores_digest": np.array(digest),
            **{f"top.{name}": value for name, value in self.best.state().items()},
        }
        with atomic_write(self._state_file) as file:
            np.savez(file, **arrays)
        self._saved = time.monotonic()

    def save_if_due(self) -> None:
        """Saves the state where that was last done `SAVE_EVERY` seconds ago."""
        if time.monotonic() - self._saved > SAVE_EVERY:
            self.save()

    def add(self, block: SegmentBlock, scores: Tensor, candidates: Tensor | None) -> None:
        """Adds the segments of some videos, with their scores as `Scorer.score` returns them."""
        first = self.num_segments
        self.best.update(range(first, first + len(scores)), scores, candidates=candidates)
        self.videos += block.ids
        self.first_segments += (first + block.offsets[:-1]).tolist()
        has_segments = np.diff(block.offsets) > 0
        first_frames = np.zeros(len(has_segments), np.int64)
        first_frames[has_segments] = block.starts[block.offsets[:-1][has_segments]]
        self.first_frames += first_frames.tolist()
        self.num_segments += len(scores)
        self.position = block.position
        if self.scores is not None:
            self.scores.add(scores, candidates)

    def append(self, other: PartialPrediction) -> None:
        """Adds the segments of another process, which read the shards that come next."""
        state = other.best.state()
        state["segment_ids"] = state["segment_ids"].astype(np.int64) + self.num_segments
        self.best.merge(TopKPerClass.from_state(state))
        self.videos += other.videos
        self.first_segments += [self.num_segments + first for first in other.first_segments]
        self.first_frames += other.first_frames
        self.num_segments += other.num_segments
        if self.scores is not None and other.scores is not None:
            self.scores.append(other.scores)

    def segments(self, size: int) -> list[str]:
        """Returns the names of the segments, which have ``size`` frames each, by their numbers."""
        ends = [*self.first_segments[1:], self.num_segments]
        return [
            segment_id(video, frame + size * number)
            for video, first, end, frame in zip(
                self.videos, self.first_segments, ends, self.first_frames, strict=True
            )
            for number in range(end - first)
        ]

    def ranked(self, classes: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the classes, each with the numbers of its best segments, the best first.

        Args:
            classes: The numbers of the C classes.
        """
        best = self.best.finish()
        for row, number in enumerate(classes):
            yield number, best.segment_ids[best.offsets[row] : best.offsets[row + 1]]
