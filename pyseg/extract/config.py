"""The options of ``python -m pyseg.extract``."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyseg import _cli
from pyseg.data.annotations import AnnotationFormat, ElanClasses
from pyseg.data.importing import frames_of_a_segment
from pyseg.errors import ArgumentError


@dataclass
class ExtractConfig:
    """Which videos to compute features of, with which network, and where to write them.

    Args:
        videos: Videos as files, folders or globs; a folder stands for its files that end as videos
            do, such as .mp4, .mkv, .mov, .webm, .avi or .ts.
        backbone: The network: network.onnx, network.pt2, timm:NAME, open_clip:NAME,
            transformers:FOLDER, youtube8m or module:factory.
        out: The folder to write, which ``--data`` of the other commands takes.
        weights: The network's weights, where the backbone needs a file of them; random: those of
            an untrained network, for trials.
        fps: Frames a second of which features are computed.
        segment_seconds: The length of a segment, the unit of ratings and predictions.
        max_seconds: Leave out what comes after so many seconds of a video, as YouTube-8M does after
            360; default: nothing.
        ratings: Rated intervals: a file, a folder or a glob, in the formats that `python -m
            pyseg.data import` reads, such as a table video,start,end,class,score.
        labels: The labels of whole videos: a table video,class.
        complete: Classes, as a,b or all, of which every segment without an interval is rated 0 in
            videos with any rating; may be repeated, for names with commas; default: what nobody
            rated stays unrated.
        format: The format of --ratings; default: each file's content decides.
        annotation_fps: Frames a second of the videos; Label Studio counts frames.
        elan_classes: Whether ELAN's tiers or the values of its annotations are the classes.
        like: A run's folder or a collection, whose ranges the features get, so that the run can
            predict the videos; network, --fps and --segment_seconds must be the same.
        processes: Videos worked on at the same time, each by a process of its own; default: one for
            every 4 cores; 0: one video at a time, in this process.
        batch_size: Frames that the network gets at once.
        fast: Do not decode frames that no other frame needs: about a quarter less time, but
            features may be those of a neighboring frame.
        keep_parts: Keep the features of every video in full precision in <out>/parts, so that the
            same command with more videos computes only theirs.
        device: The device, as "cpu" or "cuda"; default: a GPU if there is one.

    Raises:
        ValueError: A value is out of its range.
    """

    videos: list[str]
    backbone: str
    out: str
    weights: str | None = None
    fps: float = 1.0
    segment_seconds: float = 5.0
    max_seconds: float | None = None
    ratings: str | None = None
    labels: str | None = None
    complete: list[str] = field(default_factory=list, metadata={"repeated": True})
    format: AnnotationFormat | None = None
    annotation_fps: float | None = None
    elan_classes: ElanClasses = "tiers"
    like: str | None = None
    processes: int | None = None
    batch_size: int = 32
    fast: bool = False
    keep_parts: bool = True
    device: str | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        _cli.check_range("fps", self.fps, 0, 1000)
        _ = self.segment_size
        _cli.check_above("max_seconds", self.max_seconds, 0)
        _cli.check_above("annotation_fps", self.annotation_fps, 0)
        _cli.check_range("processes", self.processes, 0, 1024)
        _cli.check_range("batch_size", self.batch_size, 1, _cli.MOST_EXAMPLES)
        if self.complete and self.ratings is None:
            raise ArgumentError("complete: expected --ratings with it, found none")

    @property
    def segment_size(self) -> int:
        """The number of frames of a segment."""
        return frames_of_a_segment(self.fps, self.segment_seconds)
