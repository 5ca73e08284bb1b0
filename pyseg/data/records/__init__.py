"""Reading and writing YouTube-8M records: TFRecord files of tf.Example and tf.SequenceExample.

Three kinds of files are read: frame-level features, frame-level features with rated segments, and
video-level mean features, plain or gzip-compressed (recognised by content). Neither TensorFlow nor
protobuf is needed. The native module `pyseg._records` does the work; where it is not built,
`pyseg.data.records.reference` does, with the same results and the same errors.

The checksums of every record are verified, and bad input is an error that names the file, the
record, its place, and what was expected and found (`RecordError`). Known faults of the public data
are repaired and counted instead (`ReadReport`): see `Ratings`. A record may have 256 MiB, 64 hours
of frames, or as much as the environment variable `PYSEG_MAX_RECORD_BYTES` says; a longer one is
refused before memory is allocated for it.

Example:
    >>> import os, tempfile
    >>> import numpy as np
    >>> frames = np.zeros((3, 1152), dtype=np.uint8)  # 3 seconds of rgb (1024) and audio (128)
    >>> path = os.path.join(tempfile.mkdtemp(), "train0000.tfrecord")
    >>> write_records(path, [encode_frames("06xy", frames, labels=[3, 12])])
    1
    >>> for record in read_frames(path):
    ...     print(record.id, record.frames.shape, record.labels)
    06xy (3, 1152) [ 3 12]
"""

from pyseg.data.records.reader import PathLike, read_frames, read_records, read_videos
from pyseg.data.records.report import (
    OnError,
    ReadReport,
    RecordWarning,
    check_on_error,
    without_record_warnings,
)
from pyseg.data.records.schema import (
    FrameRecord,
    FrameSchema,
    Ratings,
    VideoRecords,
    VideoSchema,
    is_line_of_text,
    why_not_an_id,
)
from pyseg.data.records.sniffing import (
    FeatureKind,
    RecordKind,
    find_features,
    is_record_file,
    sniff,
)
from pyseg.data.records.writer import encode_frames, encode_video, write_records
from pyseg.errors import RecordError

__all__ = [
    "FeatureKind",
    "FrameRecord",
    "FrameSchema",
    "OnError",
    "PathLike",
    "Ratings",
    "ReadReport",
    "RecordError",
    "RecordKind",
    "RecordWarning",
    "VideoRecords",
    "VideoSchema",
    "check_on_error",
    "encode_frames",
    "encode_video",
    "find_features",
    "is_line_of_text",
    "is_record_file",
    "read_frames",
    "read_records",
    "read_videos",
    "sniff",
    "why_not_an_id",
    "without_record_warnings",
    "write_records",
]
