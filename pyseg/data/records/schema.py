"""The names of records' features, and the decoded records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pyseg.errors import ArgumentError

LONGEST_ID = 1024  # bytes
# Control characters, surrogates, line and paragraph separators.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
RATING_KEYS = (
    "segment_start_times",
    "segment_end_times",
    "segment_labels",
    "segment_scores",
)


def is_line_of_text(text: str) -> bool:
    r"""Returns whether a text fits on one line of a text file and is not empty.

    It must not have line breaks, other control characters, or surrogates, which stand for bytes
    that are not UTF-8.

    Example:
        >>> [is_line_of_text(text) for text in ("06xy", "my video, 2", "", "a\tb", "a\x00")]
        [True, True, False, False, False]
    """
    return bool(text) and not _UNPRINTABLE.search(text)


def why_not_an_id(id: object) -> str | None:
    r"""Returns why a value cannot be written as an id; None: it can.

    An id is a line of text of at most 1,024 bytes in UTF-8 that neither begins nor ends with white
    space. Records of other programs may have other ids, and are read.

    Example:
        >>> why_not_an_id("my video, 2") is None
        True
        >>> why_not_an_id("two\nlines")
        "expected a line of text without control characters, found 'two\\nlines'"
    """
    if not isinstance(id, str):
        return f"expected text, found {id!r}"
    if not is_line_of_text(id):
        shown = id if len(id) <= 60 else id[:60] + "..."
        return f"expected a line of text without control characters, found {shown!r}"
    if len(id.encode()) > LONGEST_ID:
        return f"expected at most {LONGEST_ID} bytes, found {len(id.encode())}"
    if id != id.strip():
        return f"expected text without white space at its ends, found {id!r}"
    return None


@dataclass(frozen=True)
class FrameSchema:
    """The names of the features of frame-level records.

    The default is YouTube-8M's. AudioSet's embeddings, for example, are
    `FrameSchema(features=(("audio_embedding", 128),), id_key="video_id")`.

    Attributes:
        features: Name and bytes per frame of each feature list, in the order of the output.
        id_key: Context feature with the id (text).
        labels_key: Context feature with the class numbers, which a record may lack
            (`ReadReport.unlabelled`); None to read no labels.
        segment_size: Frames of a rated segment.

    Example:
        >>> FrameSchema().width
        1152
    """

    features: tuple[tuple[str, int], ...] = (("rgb", 1024), ("audio", 128))
    id_key: str = "id"
    labels_key: str | None = "labels"
    segment_size: int = 5

    def __post_init__(self) -> None:
        """Checks the values."""
        _check_schema(self.features, self.id_key, self.labels_key)
        if self.segment_size < 1:
            raise ArgumentError(
                f"segment_size: expected at least 1 frame, found {self.segment_size}"
            )

    @property
    def width(self) -> int:
        """Bytes per frame, of all features together."""
        return sum(width for _, width in self.features)


@dataclass(frozen=True)
class VideoSchema:
    """The names of the features of video-level records; the defaults are YouTube-8M's.

    Attributes:
        features: Name and number of values of each float feature, in the order of the output; none
            to read only ids and labels, also of frame-level records.
        id_key: Feature with the id (text).
        labels_key: Feature with the class numbers, which a record may lack
            (`ReadReport.unlabelled`); None to read no labels.

    Example:
        >>> VideoSchema().width
        1152
    """

    features: tuple[tuple[str, int], ...] = (("mean_rgb", 1024), ("mean_audio", 128))
    id_key: str = "id"
    labels_key: str | None = "labels"

    def __post_init__(self) -> None:
        """Checks the values."""
        _check_schema(self.features, self.id_key, self.labels_key, fewest=0)

    @property
    def width(self) -> int:
        """Number of values of all features together."""
        return sum(width for _, width in self.features)


def _check_schema(
    features: Sequence[tuple[str, int]], id_key: str, labels_key: str | None, fewest: int = 1
) -> None:
    names = [name for name, _ in features]
    wide = all(1 <= width < 2**31 for _, width in features)
    if len(names) < fewest or len(set(names)) != len(names) or not wide:
        raise ArgumentError(
            f"features: expected different names, each with a width of at least 1, found {features}"
        )
    if not id_key or labels_key == "":
        raise ArgumentError(
            f"id_key and labels_key: expected names, found {id_key!r} and {labels_key!r}"
        )


class Ratings(NamedTuple):
    """The rated segments of a video: R pairs of a segment and a class, with their scores.

    They are clean: segments that start past the last frame are dropped, and of several ratings of
    the same segment and class the last one is kept, in the place of the first (as by the reader
    published with YouTube-8M). A segment that the end of the video cuts short is kept.

    Attributes:
        starts: (R,) int64, frame at which the segment starts.
        classes: (R,) int64, class number.
        scores: (R,) float32, 0 to 1.
    """

    starts: npt.NDArray[np.int64]
    classes: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]


class FrameRecord(NamedTuple):
    """A frame-level record.

    Attributes:
        id: Id of the video.
        frames: (T, width) uint8, T >= 1: the quantised features of each frame, with several
            feature lists concatenated in the order of the schema.
        labels: (L,) int64, class numbers of the video, as stored.
        ratings: The rated segments; None where the record has none of the `segment_*` features.
        context: The values of the `context_keys`.
    """

    id: str
    frames: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]
    ratings: Ratings | None
    context: dict[str, float | int | bytes]


class VideoRecords(NamedTuple):
    """A block of n video-level records, column by column.

    Attributes:
        ids: n ids.
        features: (n, width) float32, with several features concatenated in the order of the schema.
        label_offsets: (n + 1,) int64; the classes of video i are
            `labels[label_offsets[i]:label_offsets[i + 1]]`.
        labels: int64, class numbers of all videos.
    """

    ids: list[str]
    features: npt.NDArray[np.float32]
    label_offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
