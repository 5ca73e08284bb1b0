"""Writing records that readers, and protobuf, find as they were."""

from __future__ import annotations

import os
import zlib

import numpy as np
import pytest

from pyseg.data.records import (
    FrameSchema,
    Ratings,
    encode_frames,
    encode_video,
    read_frames,
    read_records,
    read_videos,
    write_records,
)

from .encoding import SMALL, TINY, framed, same, sample_frames


def test_encode_frames_comes_back(engine, tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (300, 1152), dtype=np.uint8)
    ratings = Ratings(
        np.array([0, 295]), np.array([2**40, 0]), np.array([0.25, 1], dtype=np.float32)
    )
    payload = encode_frames(
        "größe", frames, [0, 127, 128, 2**63 - 1], ratings, context={"t": 0.5, "n": -3, "s": "ä"}
    )
    path = tmp_path / "file"
    write_records(path, [payload])
    [record] = read_frames(path, context_keys=["t", "n", "s"])
    assert record.id == "größe"
    assert same(record.frames, frames)
    assert record.labels.tolist() == [0, 127, 128, 2**63 - 1]
    assert same(record.ratings, ratings)
    assert record.context == {"t": 0.5, "n": -3, "s": "ä".encode()}


def test_encode_video_comes_back(engine, tmp_path):
    features = np.random.default_rng(0).normal(size=1152).astype(np.float32)
    features[:3] = np.nan, np.inf, -0.0
    path = tmp_path / "file"
    write_records(path, [encode_video("a", features, []), encode_video("b", features, [3])])
    [block] = read_videos(path)
    assert same(block.features, np.stack([features, features]))
    assert block.label_offsets.tolist() == [0, 0, 1]


def test_what_is_encoded_is_what_protobuf_parses(protobuf):
    frames = np.arange(18, dtype=np.uint8).reshape(2, 9)
    ratings = Ratings(np.array([0]), np.array([7]), np.array([1.0]))
    message = protobuf.SequenceExample.FromString(
        encode_frames("id", frames, [1, 300], ratings, SMALL, context={"x": 1.5})
    )
    context = message.context.feature
    assert context["id"].bytes_list.value == [b"id"]
    assert context["labels"].int64_list.value == [1, 300]
    assert context["segment_start_times"].int64_list.value == [0]
    assert context["segment_end_times"].int64_list.value == [5]
    assert context["segment_labels"].int64_list.value == [7]
    assert context["segment_scores"].float_list.value == [1]
    assert context["x"].float_list.value == [1.5]
    lists = message.feature_lists.feature_list
    assert [f.bytes_list.value[0] for f in lists["rgb"].feature] == [
        b"\0\1\2\3\4\5",
        bytes(range(9, 15)),
    ]
    assert [f.bytes_list.value[0] for f in lists["audio"].feature] == [
        b"\6\7\x08",
        bytes((15, 16, 17)),
    ]
    video = protobuf.Example.FromString(encode_video("v", np.arange(5), [2], TINY))
    assert video.features.feature["mean_audio"].float_list.value == [3, 4]


FRAMES = np.zeros((2, 9), dtype=np.uint8)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda: encode_frames("a", FRAMES.astype(int), [], schema=SMALL),
            "frames: expected uint8",
        ),
        (
            lambda: encode_frames("a", FRAMES[:0], [], schema=SMALL),
            "frames: expected uint8 of shape",
        ),
        (
            lambda: encode_frames("a", FRAMES[0], [], schema=SMALL),
            "frames: expected uint8 of shape",
        ),
        (lambda: encode_frames("a", FRAMES, []), "frames: expected a width of 1152, found 9"),
        (lambda: encode_frames("a", FRAMES, [-1], schema=SMALL), "labels: expected 0 to"),
        (lambda: encode_frames("a", FRAMES, [0.5], schema=SMALL), "labels: expected integers"),
        (lambda: encode_frames("a", FRAMES, 3, schema=SMALL), "labels: expected integers of shape"),
        (
            lambda: encode_frames("a", FRAMES, [], Ratings([0], [1, 2], [1, 1]), SMALL),
            "ratings: expected as many",
        ),
        (
            lambda: encode_frames("a", FRAMES, [], Ratings([0], [1], [np.nan]), SMALL),
            "ratings.scores: expected 0 to 1",
        ),
        (lambda: encode_video("a", np.zeros(4), [], TINY), r"features: expected shape \(5,\)"),
        (
            lambda: encode_frames(
                "a", FRAMES, [1], schema=FrameSchema(SMALL.features, labels_key=None)
            ),
            "labels: expected none",
        ),
        (
            lambda: encode_frames("a", FRAMES, [1], schema=SMALL, context={"labels": 3}),
            "context: expected other features than the record's own, found 'labels'",
        ),
        (
            lambda: encode_frames("a", FRAMES, [], schema=SMALL, context={"segment_labels": 3}),
            "context: expected other features than the record's own, found 'segment_labels'",
        ),
        (
            lambda: encode_frames("a", FRAMES, [], schema=SMALL, context={"x": [1, 2]}),
            r"context\['x'\]: expected text or a finite number, found \[1, 2\]",
        ),
        (
            lambda: encode_frames("a", FRAMES, [], schema=SMALL, segment_ends=[5]),
            "segment_ends: expected none without ratings",
        ),
        (lambda: encode_frames(b"a", FRAMES, [], schema=SMALL), "id: expected text, found b'a'"),
        (lambda: encode_frames("\ud800", FRAMES, [], schema=SMALL), "id: expected a line of text"),
        (lambda: encode_frames("a\nb", FRAMES, [], schema=SMALL), r"id: .* found 'a\\nb'"),
        (lambda: encode_frames("", FRAMES, [], schema=SMALL), "id: expected a line of text"),
        (lambda: encode_video(" a", np.zeros(5), [], TINY), "id: .* white space at its ends"),
        (
            lambda: encode_frames("a", FRAMES, [], schema=SMALL, context={"x": np.inf}),
            r"context\['x'\]: expected text or a finite number, found inf",
        ),
    ],
)
def test_encoders_refuse_what_readers_refuse(call, expected):
    with pytest.raises(ValueError, match=expected):
        call()


def test_writing_is_all_or_nothing(engine, tmp_path):
    path = tmp_path / "file"
    write_records(path, [b"old"])

    def failing():
        yield b"new"
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_records(path, failing())
    with pytest.raises(ValueError, match="records: expected at least one"):
        write_records(path, [])
    assert list(read_records(path)) == [b"old"]
    assert os.listdir(tmp_path) == ["file"]
    for record in ("new", None, 3):
        with pytest.raises(ValueError, match=r"records: expected bytes, found .* in record 1"):
            write_records(path, [b"new", record])
    with pytest.raises(
        FileNotFoundError, match=r"no folder/file: expected a folder .*, found none"
    ):
        write_records(tmp_path / "no folder" / "file", [b"new"])


def test_writing_is_reproducible(engine, tmp_path):
    for name in ("one", "two"):
        write_records(tmp_path / name, sample_frames(), compress=True)
    data = (tmp_path / "one").read_bytes()
    assert data == (tmp_path / "two").read_bytes()
    assert data[:8] == b"\x1f\x8b\x08\x00" + bytes(4)  # no name, no time
    assert zlib.decompress(data, wbits=31) == framed(*sample_frames())
