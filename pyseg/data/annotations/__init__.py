"""What people said about videos: files of rated intervals, and the segments that these rate.

See :func:`read_annotations`, :func:`rate_segments` and :class:`Annotations`.
"""

from pyseg.data.annotations.answers import Answer, Settled, settle
from pyseg.data.annotations.covering import SegmentRatings, rate_segments
from pyseg.data.annotations.elan import ElanClasses
from pyseg.data.annotations.interval import AnnotationFile, Interval, merge_events
from pyseg.data.annotations.names import VideoNames
from pyseg.data.annotations.ratings import Annotations
from pyseg.data.annotations.reading import AnnotationFormat, read_annotations

__all__ = [
    "AnnotationFile",
    "AnnotationFormat",
    "Annotations",
    "Answer",
    "ElanClasses",
    "Interval",
    "SegmentRatings",
    "Settled",
    "VideoNames",
    "merge_events",
    "rate_segments",
    "read_annotations",
    "settle",
]
