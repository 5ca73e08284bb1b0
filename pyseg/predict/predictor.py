"""Scores of a video over time, from its frames' features or its file; see `Predictor`."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pyseg import distributed
from pyseg._containers import read_arrays, read_named_arrays
from pyseg._precision import Precision, PrecisionName
from pyseg._progress import Progress
from pyseg._text import counted
from pyseg.backbones import Backbone, find_backbone, make_backbone
from pyseg.data import BackboneInfo, FeatureSet
from pyseg.errors import ArgumentError, DataError, UserError
from pyseg.extract import extract_features
from pyseg.predict.classes import event_thresholds, probabilities, scored_classes
from pyseg.runs import Run
from pyseg.timeline import Timeline

Frames = np.ndarray | Tensor | str | os.PathLike[str]


def read_frames(path: str | os.PathLike[str], features: FeatureSet) -> np.ndarray:
    """Reads the features of a video's frames from a NumPy file.

    Args:
        path: An .npy file of one array, or an .npz file with one for each feature, by name.
        features: The features.

    Returns:
        (T, N), the features side by side. Their number and type are checked by whoever uses them.

    Raises:
        pyseg.errors.DataError: The file is damaged or of another kind, an array is missing, or the
            arrays do not fit each other; the message names the file.
        OSError: The file cannot be read.
    """
    arrays = read_arrays(path)
    if "" in arrays:
        return arrays[""]
    names = [name for name, _ in features.features]
    parts = read_named_arrays(path, names)
    expected = [(len(parts[0]), width) for width in features.feature_sizes] if parts[0].ndim else []
    if [part.shape for part in parts] != expected or len({part.dtype for part in parts}) > 1:
        found = ", ".join(f"{n} {p.dtype}{p.shape}" for n, p in zip(names, parts, strict=True))
        wanted = ", ".join(f"{name} (T, {width})" for name, width in features.features)
        raise DataError(f"{os.fspath(path)}: expected arrays {wanted} of one type, found {found}")
    return np.concatenate(parts, axis=1)


class Predictor:
    """Scores videos with a run's model; `pyseg.load` makes one.

    A window of the run's segment length slides over the frames, one frame at a time. The score at a
    time is the mean of the windows that cover it (`Timeline.averaged`).

    Args:
        run: The run folder that `pyseg.train` wrote.
        classes: A vocabulary of the classes to score; default: the rated ones of the run's training
            data, or all if none were.
        backbone: The network that computes the features of video files; default: the one that
            computed those of the training data.
        weights: Its file of weights; default: the one that the training data were extracted with.
        batch_size: Windows scored at once.
        calibrate: Whether to use the run's calibration, if `pyseg.calibrate` wrote one.
        device: The device, as "cpu" or "cuda"; default: a GPU if there is one.
        precision: "fp32"; "bf16" or "fp16" is mixed precision; "int8", on a CPU, lets large layers
            multiply 8-bit integers. Default: "bf16" on a GPU, "fp32" on a CPU.
        tf32: Whether a GPU may round the inputs of float32 products to TF32; default: unless
            `precision` is "fp32".

    Attributes:
        run: The run.
        model: Its model, in eval mode.
        features: The features of the frames that it takes.
        class_names: The C names of the classes; their numbers where the run knows no names.
        device: The device of the model.
        calibration: What makes probabilities and thresholds of the model's logits; None: the
            sigmoid, and the default threshold.

    Raises:
        pyseg.errors.UserError: The folder is not a run, its model takes no frames, or there is no
            such device.
        pyseg.errors.DataError: A file of the run is damaged.

    Example:
        A model that was not trained, for frames of 4 values a second:

        >>> import pyseg, tempfile
        >>> from pyseg import models
        >>> from pyseg.data import FeatureSet
        >>> folder = tempfile.mkdtemp()
        >>> clip = FeatureSet((("clip", 4),), segment_size=3)
        >>> clip.write(folder + "/features.json")
        >>> model = models.create("mlp", num_classes=2, feature_sizes=clip.feature_sizes)
        >>> models.save(model, folder, class_names=["cat", "dog"])
        >>> predictor = pyseg.load(folder, device="cpu")
        >>> timeline = predictor.predict(np.zeros((20, 4), np.float32))
        >>> timeline.scores.shape, timeline.starts[:3].tolist(), timeline.duration
        ((18, 2), [0.0, 1.0, 2.0], 20.0)
    """

    def __init__(
        self,
        run: str | os.PathLike[str],
        *,
        classes: str | None = None,
        backbone: str | None = None,
        weights: str | None = None,
        batch_size: int = 512,
        calibrate: bool = True,
        device: str | None = None,
        precision: PrecisionName | None = None,
        tf32: bool | None = None,
    ) -> None:
        self.device = distributed.local_device(distributed.pick_device(device))
        self.run = Run(run)
        model = cast(Any, self.run.model().to(self.device))
        self._precision = Precision.on(self.device, precision, tf32, model)
        if model.config.level == "video":
            raise UserError(
                f"{run}: expected a run that was trained on frames, found one that was trained on "
                "mean features of whole videos"
            )
        self.model = model
        self.features: FeatureSet = self.run.features()
        self.calibration = self.run.calibration(model.num_classes) if calibrate else None
        self._classes = scored_classes(self.run, model, classes)
        self.class_names: Sequence[str] = tuple(self._classes.names())
        self._backbone, self._weights, self._batch_size = backbone, weights, batch_size

    def __repr__(self) -> str:
        """Says what it scores, in one line."""
        widths = ", ".join(f"{name} ({width})" for name, width in self.features.features)
        classes = counted(len(self.class_names), "class")
        return f"Predictor({str(self.run)!r}: {classes}, frames of {widths})"

    @functools.cached_property
    def backbone(self) -> Backbone:
        """The network that computes the features of video files, loaded on first use.

        Raises:
            pyseg.errors.ArgumentError: There is no such network, or its weights are missing; the
                message names the argument, ``backbone`` or ``weights``.
            pyseg.errors.UserError: The run does not know its backbone, or a package is missing.
            pyseg.errors.MissingFileError: Its file is not where it was.
            pyseg.errors.DataError: A file is damaged, or of another network.
        """
        made = self.features.backbone
        if made is None and self._backbone is None:
            raise UserError(
                f"{self.run.features_file}: expected the backbone that computed the features, "
                "found none: name it, or predict from frames"
            )
        name = self._backbone or find_backbone(cast(BackboneInfo, made))
        weights = self._weights
        if weights is None and made is not None and made.weights is not None:
            there = os.path.exists(made.weights) or not os.path.isabs(made.weights)
            weights = made.weights if there else None
        return make_backbone(name, weights, device=self.device)

    def extract(self, path: str | os.PathLike[str]) -> np.ndarray:
        """Returns the features of a video file as the model's training data stored them.

        Returns:
            (T, N) uint8, a row for each frame.

        Raises:
            pyseg.errors.ArgumentError: The backbone is not the one of the training data.
            pyseg.errors.DataError: The file holds no video that can be decoded; the message names
                it.
            OSError: The file cannot be read.
        """
        features = self.features
        if features.backbone is None:  # what the user names is all that is known
            features = replace(features, backbone=self.backbone.description)
        return extract_features(path, self.backbone, features)

    def predict(self, video: Frames, *, title: str | None = None) -> Timeline:
        """Returns the scores of a video over time.

        Args:
            video: A video file; or its frames (T, N), an array, a tensor or an .npy or .npz file:
                uint8 as the training data store them, or floating values as the network computes
                them. N is the width of `features`, T at least 1.
            title: The title of the timeline; default: the file's name without its suffix.

        Returns:
            A timeline of T - size + 1 windows, where size is the segment length in frames; of a
            single shorter one if T < size.

        Raises:
            pyseg.errors.ArgumentError: The frames have another shape or type, there is none, or a
                value is not finite; or see `extract`.
            pyseg.errors.DataError: See `extract`.
            OSError: The file cannot be read.
        """
        if isinstance(video, np.ndarray | Tensor):
            frames, path = self._checked(video), None
        elif isinstance(video, str | os.PathLike) and Path(video).suffix in (".npy", ".npz"):
            title = title or Path(video).stem
            frames, path = self._checked(read_frames(video, self.features)), None
        elif isinstance(video, str | os.PathLike):
            path = os.fspath(video)
            frames = torch.from_numpy(self.extract(path))
            if not len(frames):
                raise DataError(f"{path}: expected frames, found none")
        else:
            raise ArgumentError(
                "video: expected an array or tensor of frames, or the path of a video; found "
                f"{type(video).__name__}"
            )
        size, seconds = self.features.segment_size, self.features.frame_seconds
        windows = frames.unfold(0, min(size, len(frames)), 1).transpose(1, 2)
        starts = np.arange(len(windows))
        if title is None:
            title = Path(path).stem if path is not None else "frames"
        return Timeline(
            title=title,
            starts=starts * seconds,
            ends=(starts + windows.shape[1]) * seconds,
            scores=self._scores(windows),
            names=self.class_names,
            numbers=self._classes.numbers,
            video=path,
            segment_seconds=self.features.segment_seconds,
            on=event_thresholds(self.calibration, self._classes.columns()),
        )

    def _checked(self, given: np.ndarray | Tensor) -> Tensor:
        """Checks frames that a user passes."""
        if isinstance(given, np.ndarray):  # torch takes neither other byte orders nor strides < 0
            given = np.ascontiguousarray(given, given.dtype.newbyteorder("="))
        try:
            frames = torch.as_tensor(given)
        except TypeError as error:
            raise ArgumentError(_wrong_type(given)) from error
        width = sum(self.features.feature_sizes)
        if frames.ndim != 2 or frames.shape[1] != width or not len(frames):
            raise ArgumentError(
                f"video: expected frames of shape (T, {width}) with T of at least 1, found "
                f"{tuple(frames.shape)}"
            )
        if frames.is_floating_point():
            if not bool(frames.isfinite().all()):
                raise ArgumentError("video: expected finite values, found NaN or infinite ones")
        elif frames.dtype != torch.uint8:
            raise ArgumentError(_wrong_type(given))
        return frames.detach()

    @torch.inference_mode()
    def _scores(self, windows: Tensor) -> np.ndarray:
        """Returns the probabilities (S, C) of windows (S, size, N)."""
        columns = torch.tensor(self._classes.columns(), device=self.device)
        scores = np.empty((len(windows), len(columns)), np.float32)
        with (
            self._precision.used_on(self.device),
            Progress("predict", "windows", len(windows)) as bar,
        ):
            for first in range(0, len(windows), self._batch_size):
                batch = windows[first : first + self._batch_size].contiguous().to(self.device)
                found = probabilities(self.model(batch).float(), self.calibration)
                scores[first : first + len(batch)] = found[:, columns].cpu().numpy()
                bar.update(len(batch))
        return scores


def _wrong_type(frames: np.ndarray | Tensor) -> str:
    """Returns the message about frames whose type is neither uint8 nor floating."""
    kind = str(frames.dtype).removeprefix("torch.")
    text = f"video: expected frames of uint8 or floating values, found {kind}"
    if not kind.startswith(("int", "uint")):
        return text
    # Whole numbers may be either, and each would give scores.
    uint8, float32 = (
        (f".astype(np.{name})" if isinstance(frames, np.ndarray) else f".to(torch.{name})")
        for name in ("uint8", "float32")
    )
    return (
        f"{text}: convert them with {uint8} if they are bytes as the training data store them, "
        f"with {float32} if they are what the network computes"
    )
