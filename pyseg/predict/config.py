"""The options of ``python -m pyseg.predict``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from pyseg import _cli
from pyseg._precision import PrecisionName
from pyseg.data.records import OnError
from pyseg.errors import ArgumentError
from pyseg.submission import TOP
from pyseg.timeline import exports
from pyseg.timeline.events import ON

PLACE = "{video}"
"""Stands for the name of a video file in the names of files to write."""


@dataclass
class PredictConfig:
    """What to score, with which model, and where to write the result.

    Args:
        run: The run folder that `pyseg.train` wrote.
        data: Records as a folder, glob, file or URL, labeled or not; default: the run's training
            data.
        out: The submission file to write.
        classes: A vocabulary of the classes to write: its column Index, as in
            segment_vocabulary.csv; default: the rated classes of the run's training data.
        top: Segments per class, at most.
        skip_ends: Leave out a video's first 6 and last 2 segments; YouTube-8M's raters were never
            shown them.
        scores: An .npz file for the scores that rank all segments: "segments" (S,), "classes" (C,)
            and "scores" (S, C).
        video_top: Rank only the N best classes of each whole video.
        video_weight: Rank by p(segment)^(1 - w) * p(video)^w instead of p(segment).
        video_run: The run that scores whole videos; default: --run.
        video: Show when classes occur in the video with this id; no submission is written.
        video_file: Show when classes occur in these videos: files, folders or globs, from which the
            run's backbone computes the features; no submission is written. Takes several, and may
            be given several times.
        frames_file: Show when classes occur in the frames of this file: an .npy file (T, N), or an
            .npz file with an array (T, width) for each feature, of uint8 as stored or of values.
        timeline: A .png or .html file with the scores over time, of the best classes; {video} in
            its name stands for that of the video file.
        timeline_classes: Classes with the highest scores to draw.
        export: A file with the events or scores of all classes; the suffix is the format: .csv,
            .json, .parquet, .vtt, .srt, .txt (Audacity), .eaf (ELAN), .ffmetadata (chapters), .png
            or .html. May be given several times; {video} in its name stands for that of the video
            file.
        calibrate: Use the calibration of the run, if pyseg.calibrate has written one: its
            probabilities as scores, and its thresholds of classes.
        on: The score that an event reaches; default: the class's calibrated threshold, or 0.5.
        off: The score below which an event ends; default: 0.7 of --on.
        backbone: The network that computes the features of --video_file; default: that of the
            training data. It must have the same weights.
        weights: Its file of weights; default: the one that the training data were extracted with.
        batch_size: Segments scored at once.
        on_error: "raise" at a damaged record or video file, or "skip" and report it.
        device: The device, as "cpu" or "cuda"; default: a GPU if there is one.
        precision: Mixed precision: automatic, with "bf16" or "fp16"; "fp32" is none. "int8", on a
            CPU, lets the large layers multiply 8-bit integers, if it is faster with them. The
            default is "bf16" on a GPU and "fp32" on a CPU, whatever the run was trained with.
        tf32: Let a GPU round the inputs of float32 products to TF32; default: unless --precision
            fp32 is given.

    Raises:
        ValueError: A value is out of its range.
    """

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "What to score": ("run", "data", "classes", "on_error"),
        "A submission": (
            "out",
            "top",
            "skip_ends",
            "scores",
            "video_top",
            "video_weight",
            "video_run",
        ),
        "One video": (
            "video",
            "video_file",
            "frames_file",
            "timeline",
            "timeline_classes",
            "export",
            "calibrate",
            "on",
            "off",
            "backbone",
            "weights",
        ),
        "Computing": ("batch_size", "device", "precision", "tf32"),
    }

    run: str
    data: str | None = None
    out: str = "submission.csv"
    classes: str | None = None
    top: int = TOP
    skip_ends: bool = False
    scores: str | None = None
    video_top: int | None = None
    video_weight: float = 0.0
    video_run: str | None = None
    video: str | None = field(default=None, metadata={"word": True})
    video_file: list[str] = field(default_factory=list, metadata={"repeated": True})
    frames_file: str | None = field(default=None, metadata={"word": True})
    timeline: str | None = None
    timeline_classes: int = 8
    export: list[str] = field(default_factory=list, metadata={"repeated": True})
    calibrate: bool = True
    on: float | None = None
    off: float | None = None
    backbone: str | None = None
    weights: str | None = None
    batch_size: int = 512
    on_error: OnError = "raise"
    device: str | None = None
    precision: PrecisionName | None = None
    tf32: bool | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        _cli.hide_secrets(self)
        for name in ("top", "video_top", "timeline_classes"):
            _cli.check_range(name, getattr(self, name), 1)
        _cli.check_range("batch_size", self.batch_size, 1, _cli.MOST_EXAMPLES)
        if not 0.0 <= self.video_weight <= 1.0:
            raise ArgumentError(f"video_weight: expected in [0, 1], found {self.video_weight}")
        if self.scores is not None and not self.scores.endswith(".npz"):
            raise ArgumentError(f"scores: expected the name of an .npz file, found {self.scores}")
        self._check_times()

    def _check_times(self) -> None:
        """Checks the options of scores over time."""
        _cli.check_range("on", self.on, 0, 1)
        _cli.check_range("off", self.off, 0, 1)
        most = ON if self.on is None else self.on  # a calibrated threshold is not above it
        if self.off is not None and self.off > most:
            raise ArgumentError(f"off: expected at most --on, {most:g}, found {self.off:g}")
        if self.timeline is not None and not self.timeline.endswith((".png", ".html")):
            raise ArgumentError(f"timeline: expected a .png or .html file, found {self.timeline}")
        for path in self.export:
            exports.suffix(path, "export")
            if self.export.count(path) > 1:
                raise ArgumentError(f"export: expected each file once, found {path} again")
        self._check_source()

    def _check_source(self) -> None:
        """Checks that the options fit the source of scores over time: records or a file."""
        given = [name for name in self.GROUPS["One video"] if getattr(self, name) not in (None, [])]
        files = [name for name in ("video_file", "frames_file") if name in given]
        if files:
            others = [*files[1:], "video", "data", "scores"]
            for name in others:
                if (value := getattr(self, name)) is not None:
                    raise ArgumentError(f"{name}: expected none with --{files[0]}, found {value}")
        outputs = [name for name in ("timeline", "export") if name in given]
        if self.is_of_one_video and self.out != PredictConfig.out:
            source = files[0] if files else "video"
            raise ArgumentError(f"out: expected no submission with --{source}, found {self.out}")
        if not self.is_of_one_video and outputs:
            raise ArgumentError(
                f"{outputs[0]}: expected --video, --video_file or --frames_file with it, found none"
            )
        for name in ("backbone", "weights"):
            if name in given and "video_file" not in given:
                raise ArgumentError(f"{name}: expected --video_file with it, found none")

    @property
    def is_of_one_video(self) -> bool:
        """Whether the scores of single videos over time are wanted, instead of a submission."""
        return self.video is not None or self.is_of_files

    @property
    def is_of_files(self) -> bool:
        """Whether files are scored instead of records."""
        return bool(self.video_file) or self.frames_file is not None

    def for_video(self, name: str) -> PredictConfig:
        """Returns the options for a video file, with its name in those of the files to write."""
        timeline = self.timeline and self.timeline.replace(PLACE, name)
        export = [path.replace(PLACE, name) for path in self.export]
        return replace(self, timeline=timeline, export=export)
