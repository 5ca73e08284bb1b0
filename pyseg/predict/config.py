"""The options of ``python -m pyseg.predict``."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyseg import _cli
from pyseg.data.records import OnError
from pyseg.errors import ArgumentError
from pyseg.submission import TOP


@dataclass
class PredictConfig:
    """What to score, with which model, and where to write the result.

    Args:
        run: The run folder that `pyseg.train` wrote.
        data: Records as a folder, glob or file, labeled or not; default: the run's training data.
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
        video: Draw the timeline of the video with this id; no submission is written.
        timeline: The .png or .html file of the timeline.
        timeline_classes: Classes with the highest scores to draw.
        batch_size: Segments scored at once.
        on_error: "raise" at a damaged record, or "skip" and report it.
        device: The device, as "cpu" or "cuda"; default: a GPU if there is one.

    Raises:
        ValueError: A value is out of its range.
    """

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
    timeline: str | None = None
    timeline_classes: int = 8
    batch_size: int = 512
    on_error: OnError = "raise"
    device: str | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("top", "video_top", "timeline_classes"):
            _cli.check_range(name, getattr(self, name), 1)
        _cli.check_range("batch_size", self.batch_size, 1, _cli.MOST_EXAMPLES)
        if not 0.0 <= self.video_weight <= 1.0:
            raise ArgumentError(f"video_weight: expected in [0, 1], found {self.video_weight}")
        if self.scores is not None and not self.scores.endswith(".npz"):
            raise ArgumentError(f"scores: expected the name of an .npz file, found {self.scores}")
        if (self.video is None) != (self.timeline is None):
            given, other = ("video", "timeline")[:: 1 if self.timeline is None else -1]
            raise ArgumentError(f"{given}: expected --{other} with it, found none")
        if self.timeline is not None and not self.timeline.endswith((".png", ".html")):
            raise ArgumentError(f"timeline: expected a .png or .html file, found {self.timeline}")
