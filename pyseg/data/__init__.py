"""Reading videos and rated segments: records, data sets, batches, and collections of them."""

from pyseg._sampling import sample_random_frames, sample_random_sequence
from pyseg.data.audioset import StrongSegmentDataset
from pyseg.data.batch import Batch, Example, collate
from pyseg.data.collection import Collection, open_collection
from pyseg.data.datasets import FrameDataset, RecordDataset, SegmentDataset, VideoDataset
from pyseg.data.feed import Feed
from pyseg.data.hashing import held_out
from pyseg.data.incomplete import IncompleteVideoDataset
from pyseg.data.label_lists import LabelLists, read_label_records, read_label_table
from pyseg.data.loading import loader
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
from pyseg.data.shards import find_shards
from pyseg.errors import DataError, RecordError

__all__ = [
    "Batch",
    "Collection",
    "DataError",
    "Example",
    "Feed",
    "FrameDataset",
    "FrameRecord",
    "FrameSchema",
    "IncompleteVideoDataset",
    "LabelLists",
    "Ratings",
    "ReadReport",
    "RecordDataset",
    "RecordError",
    "RecordWarning",
    "SegmentDataset",
    "StrongSegmentDataset",
    "VideoDataset",
    "VideoRecords",
    "VideoSchema",
    "collate",
    "encode_frames",
    "encode_video",
    "find_shards",
    "held_out",
    "loader",
    "open_collection",
    "read_frames",
    "read_label_records",
    "read_label_table",
    "read_records",
    "read_videos",
    "sample_random_frames",
    "sample_random_sequence",
    "sniff",
    "write_records",
]
