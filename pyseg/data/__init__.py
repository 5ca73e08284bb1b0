"""Reading videos and rated segments: records, data sets, batches, and collections of them."""

from pathlib import Path

from pyseg._sampling import sample_random_frames, sample_random_sequence
from pyseg.data import audioset, described, youtube8m
from pyseg.data.annotations import Annotations, Interval, read_annotations
from pyseg.data.audioset import StrongSegmentDataset
from pyseg.data.batch import Batch, Example, collate
from pyseg.data.collection import Collection, open_collection, open_records, register_source
from pyseg.data.datasets import FrameDataset, RecordDataset, SegmentDataset, VideoDataset
from pyseg.data.features import BackboneInfo, FeatureSet
from pyseg.data.feed import Feed
from pyseg.data.formats import Format, Found, OpenOptions, formats, register_format
from pyseg.data.hashing import held_out
from pyseg.data.importing import ImportReport, import_features
from pyseg.data.incomplete import IncompleteVideoDataset
from pyseg.data.label_lists import LabelLists, read_label_records, read_label_table
from pyseg.data.loading import loader
from pyseg.data.moments import frame_moments
from pyseg.data.records import (
    FrameRecord,
    FrameSchema,
    Ratings,
    ReadReport,
    RecordWarning,
    VideoRecords,
    VideoSchema,
    encode_frames,
    encode_video,
    read_frames,
    read_records,
    read_videos,
    sniff,
    write_records,
)
from pyseg.data.rerating import rate_collection
from pyseg.data.shards import find_shards
from pyseg.data.writing import SourceVideo, Stored, WriteReport, write_collection
from pyseg.errors import DataError, RecordError


def _make_sample() -> Path:
    from pyseg.data.sample import make_sample  # late: `python -m` imports it itself

    return make_sample()


# The order of registration: of several formats that match a file, the last one is used.
for format in (youtube8m.VIDEOS, youtube8m.FRAMES, audioset.FORMAT, described.FORMAT):
    register_format(format)
register_source("sample", _make_sample)

__all__ = [
    "Annotations",
    "BackboneInfo",
    "Batch",
    "Collection",
    "DataError",
    "Example",
    "FeatureSet",
    "Feed",
    "Format",
    "Found",
    "FrameDataset",
    "FrameRecord",
    "FrameSchema",
    "ImportReport",
    "IncompleteVideoDataset",
    "Interval",
    "LabelLists",
    "OpenOptions",
    "Ratings",
    "ReadReport",
    "RecordDataset",
    "RecordError",
    "RecordWarning",
    "SegmentDataset",
    "SourceVideo",
    "Stored",
    "StrongSegmentDataset",
    "VideoDataset",
    "VideoRecords",
    "VideoSchema",
    "WriteReport",
    "collate",
    "encode_frames",
    "encode_video",
    "find_shards",
    "formats",
    "frame_moments",
    "held_out",
    "import_features",
    "loader",
    "open_collection",
    "open_records",
    "rate_collection",
    "read_annotations",
    "read_frames",
    "read_label_records",
    "read_label_table",
    "read_records",
    "read_videos",
    "register_format",
    "register_source",
    "sample_random_frames",
    "sample_random_sequence",
    "sniff",
    "write_collection",
    "write_records",
]
