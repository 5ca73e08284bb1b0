"""Scores of segments, with a run's model and optionally those of whole videos."""

from __future__ import annotations

import functools
import os
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyseg import distributed
from pyseg._copies import Upload
from pyseg._precision import Precision
from pyseg.calibration import Calibration
from pyseg.data import Example, FeatureSet, collate, find_shards
from pyseg.data.collection import find_data
from pyseg.data.formats import frames_like
from pyseg.data.segments import SegmentBlock
from pyseg.errors import DataError, RecordError, UserError
from pyseg.predict.classes import scored_classes
from pyseg.predict.config import PredictConfig
from pyseg.runs import Run, saying_whose
from pyseg.timeline import Rating


def merged(logits: Tensor, videos: Tensor, weight: float, owners: Tensor | None = None) -> Tensor:
    """Returns segments' logits merged with those of their videos, as logarithms of probabilities.

    Args:
        logits: (S, C) of the segments.
        videos: (V, C) of the videos.
        weight: The weight of the videos, in [0, 1].
        owners: (S,) the video of each segment. ``None``: each has its own.
    """
    whole = functional.logsigmoid(videos)
    return (1 - weight) * functional.logsigmoid(logits) + weight * (
        whole if owners is None else whole[owners]
    )


class Scorer:
    """Scores all segments of videos with a run's model.

    Args:
        config: The runs, and how the scores of segments and of whole videos are combined.

    Attributes:
        config: The options.
        device: The device of the models.
        precision: The precision of their products.
        run: The run.
        trained: The options that it was trained with.
        model: Its model.
        shards: The records to score.
        features: Their features, with the length of frames and segments.
        schema: The schema that reads them, with labels or without.
        classes: The C classes to score, and those that the model knows.
        video_run: The run that scores whole videos, if any.
        video_model: Its model.

    Raises:
        pyseg.errors.UserError: A run, a vocabulary or the device does not fit the options.
    """

    def __init__(self, config: PredictConfig) -> None:
        self.config = config
        self.device = distributed.local_device(distributed.pick_device(config.device))
        self.run = Run(config.run)
        self.trained = self.run.config()
        self.run.warn_unfinished()
        self.model = cast(Any, self.run.model().to(self.device))
        with saying_whose(config.data):
            data = find_data(config.data or self.trained.data)
            self.shards = find_shards(data)
        self.features = self._find_features(data)
        self.schema = replace(self.features.schema, labels_key=None)
        self.classes = scored_classes(self.run, self.model, config.classes)
        self._columns = torch.tensor(self.classes.columns(), device=self.device)
        self.video_run: Run | None = None
        self.video_model: nn.Module | None = None
        if config.video_top is not None or config.video_weight > 0:
            self.video_run, self.video_model = self._load_video_model(config.video_run)
            self._max_frames = self.video_run.config().max_frames
        used = nn.ModuleList(filter(None, (self.model, self.video_model)))
        self.precision = Precision.on(self.device, config.precision, config.tf32, used)

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """The map from logits to probabilities, read on first use; without one it is the sigmoid.

        Raises:
            pyseg.errors.DataError: The file is damaged, or of other weights.
        """
        return self.run.calibration(self.model.num_classes) if self.config.calibrate else None

    def _find_features(self, data: str | os.PathLike[str]) -> FeatureSet:
        """Returns the features of the records, which must be those of the run."""
        try:
            return frames_like(
                self.run.features(), self.model.config.level or "frame", data, self.shards
            )
        except RecordError:
            raise
        except DataError as error:
            raise UserError(f"{error} (expected is what {self.run} was trained on)") from error

    def _load_video_model(self, folder: str | None) -> tuple[Run, nn.Module]:
        """Returns the run that scores whole videos, and its model."""
        if not folder:
            return self.run, self.model
        run = Run(folder)
        model = cast(Any, run.model().to(self.device))
        for name in ("feature_sizes", "num_classes"):
            expected, found = getattr(self.model, name), getattr(model, name)
            if expected != found:
                raise UserError(
                    f"--video_run {run}: expected {name} {expected} as {self.run} has, found "
                    f"{found}"
                )
        return run, model

    def rating(self, segment: str, number: int, positive: bool) -> Rating:
        """Returns a rating of a segment of the records.

        Args:
            segment: Its id, "video:frame".
            number: The class.
            positive: Whether the segment shows the class.
        """
        start = int(segment.rpartition(":")[2])
        seconds = self.features.frame_seconds
        end = start + self.features.segment_size
        return Rating(start * seconds, end * seconds, number, positive)

    def send(self, block: SegmentBlock) -> Upload:
        """Starts to copy the frames of a block to the model's device, in any thread."""
        arrays = (block.frames, block.num_frames)
        return Upload(self.device, *map(torch.from_numpy, arrays))

    @torch.inference_mode()
    def logits(self, block: SegmentBlock, sent: Upload | None = None) -> Tensor:
        """Returns the logits of every segment, (S, model's classes), on the model's device.

        Args:
            block: The segments.
            sent: What `send` has returned for them; default: it is called now.
        """
        if not len(block.frames):
            return torch.empty(0, self.model.num_classes, device=self.device)
        frames, num_frames = (sent or self.send(block)).tensors()
        with self.precision.used_on(self.device):
            logits: Tensor = self.model(frames, num_frames).float()
        return logits

    @torch.inference_mode()
    def score(
        self, block: SegmentBlock, sent: Upload | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the scores by which segments are ranked, without waiting for a GPU.

        Args:
            block: The segments.
            sent: See `logits`.

        Returns:
            (S, C) float32 scores of the classes to score: logits or, with a video weight,
            logarithms of the merged probability; and (S, C) bool, the pairs that may be ranked,
            or None where all may; on the model's device.
        """
        scores = self.logits(block, sent)[:, self._columns]
        candidates = None
        if self.video_model is not None:
            videos = self._video_logits(block, self.video_model)
            owned = np.repeat(np.arange(len(block.ids)), np.diff(block.offsets))
            [owners] = Upload(self.device, torch.from_numpy(owned)).tensors()
            if (top := self.config.video_top) is not None:
                best = videos.topk(min(top, videos.shape[1]), dim=1).indices
                among = torch.zeros_like(videos, dtype=torch.bool).scatter_(1, best, True)
                candidates = among[:, self._columns][owners]
            if (weight := self.config.video_weight) > 0:
                scores = merged(scores, videos[:, self._columns], weight, owners)
        return scores, candidates

    def _video_logits(self, block: SegmentBlock, model: nn.Module) -> Tensor:
        """Returns the logits of whole videos, (V, model's classes)."""
        none = np.zeros(0)
        examples = [
            Example(id, video[: self._max_frames], none, none)
            for id, video in zip(block.ids, block.videos, strict=True)
        ]
        batch = collate(examples)
        frames, num_frames = Upload(self.device, batch.frames, batch.num_frames).tensors()
        with self.precision.used_on(self.device):
            logits: Tensor = model(frames, num_frames).float()
        return logits
