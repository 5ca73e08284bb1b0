"""Reading frames and videos: what they hold, and what is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from pyseg.data.records import (
    FrameSchema,
    ReadReport,
    RecordError,
    RecordWarning,
    VideoSchema,
    encode_frames,
    encode_video,
    read_frames,
    read_records,
    read_videos,
    write_records,
)
from pyseg.errors import ArgumentError

from .encoding import (
    AUDIOSET,
    SMALL,
    TINY,
    bytes_list,
    feature_map,
    field,
    float_list,
    frame_parts,
    framed,
    int_list,
    outcome,
    rated_parts,
    same,
    sample_frames,
    sequence,
    video_parts,
)


def test_frames(engine, write):
    context, lists = frame_parts(3)
    [record] = read_frames(write(framed(sequence(context, lists))), SMALL)
    assert record.id == "06xy"
    assert record.frames.dtype == np.uint8
    assert record.frames.tolist() == [
        [*range(6 * t, 6 * t + 6), *range(3 * t, 3 * t + 3)] for t in range(3)
    ]
    assert record.frames.flags.writeable
    assert record.frames.flags.c_contiguous
    assert record.labels.dtype == np.int64
    assert record.labels.tolist() == [4, 9]
    assert record.ratings is None
    assert record.context == {}


def test_frames_are_neither_padded_nor_dequantised(engine, write):
    """Pitfall 5: padding is for later, after dequantisation."""
    frames = np.arange(4 * 1152, dtype=np.uint32).astype(np.uint8).reshape(4, 1152)
    [record] = read_frames(write(framed(encode_frames("a", frames, []))))
    assert same(record.frames, frames)


@pytest.mark.parametrize("length", [1, 2, 3, 1000])
def test_max_frames(engine, write, length):
    payload = sequence(*rated_parts([0, 1, 2], [1, 1, 1], [1, 1, 1], frames=3))
    [record] = read_frames(write(framed(payload)), SMALL, max_frames=length, report=ReadReport())
    assert len(record.frames) == min(3, length)
    assert record.ratings.starts.tolist() == [0, 1, 2][:length]


@pytest.mark.parametrize("name", ["0012", "1e10", "-Nan", "True", "", "größe", "\U0001f3a5"])
def test_ids_stay_text(engine, write, name):
    """Pitfall 34."""
    context, lists = frame_parts()
    context["id"] = bytes_list(name.encode())
    [record] = read_frames(write(framed(sequence(context, lists))), SMALL)
    assert same(record.id, name)


def test_context_keys(engine, write):
    context, lists = frame_parts()
    context["start"] = float_list(0.1)
    context["n"] = int_list(-(2**63))
    context["url"] = bytes_list(b"\xff\x00")
    path = write(framed(sequence(context, lists)))
    [record] = read_frames(path, SMALL, context_keys=["url", "start", "n", "id"])
    expected = {"url": b"\xff\x00", "start": float(np.float32(0.1)), "n": -(2**63), "id": b"06xy"}
    assert record.context == expected
    assert [type(value) for value in record.context.values()] == [bytes, float, int, bytes]
    with pytest.raises(RecordError, match="expected context feature 'end', found context feat"):
        list(read_frames(path, SMALL, context_keys=["end"]))
    with pytest.raises(RecordError, match="expected 1 value in context feature 'labels', found 2"):
        list(read_frames(path, SMALL, context_keys=["labels"]))


def test_records_without_labels(engine, write):
    context, lists = frame_parts()
    labelled = sequence(context, lists)
    empty = sequence({**context, "labels": int_list()}, lists)
    nothing = sequence({**context, "labels": b""}, lists)
    del context["labels"]
    path = write(framed(labelled, sequence(context, lists), empty, nothing))
    report = ReadReport()
    assert [r.labels.tolist() for r in read_frames(path, SMALL, report=report)] == [
        [4, 9],
        [],
        [],
        [],
    ]
    assert report == ReadReport(records=4, unlabelled=2)
    with pytest.warns(RecordWarning, match=rf"^{path}: found 2 records without labels$"):
        list(read_frames(path, SMALL))
    report = ReadReport()
    for record in read_frames(path, FrameSchema(SMALL.features, labels_key=None), report=report):
        assert same(record.labels, np.zeros(0, dtype=np.int64))
    assert report == ReadReport(records=4)


def test_videos_without_labels(engine, write):
    parts = video_parts()
    labelled = field(1, feature_map(parts))
    del parts["labels"]
    path = write(framed(labelled, field(1, feature_map(parts)), labelled))
    report = ReadReport()
    for schema in (TINY, VideoSchema(features=())):
        [videos] = read_videos(path, schema, report=report)
        assert videos.label_offsets.tolist() == [0, 2, 2, 4]
    assert report == ReadReport(records=6, unlabelled=2)


@pytest.mark.parametrize("letter", ["a", "ä"])
def test_bound_of_an_id(engine, write, letter):
    longest = letter * (1024 // len(letter.encode()))
    schema = FrameSchema(SMALL.features, labels_key=None)
    path = write(framed(spoil(id=bytes_list(longest.encode())), spoil(id=bytes_list(bytes(1025)))))
    found, error = outcome(read_frames, path, schema)
    assert [record.id for record in found] == [longest]
    assert "record 1 at byte" in error
    assert error.endswith("expected at most 1024 bytes in context feature 'id', found 1025")
    encode_video(longest, np.zeros(5), [], TINY)
    with pytest.raises(ArgumentError, match=r"^id: expected at most 1024 bytes, found"):
        encode_video(longest + "a", np.zeros(5), [], TINY)
    with pytest.raises(ArgumentError, match=r"^id: expected at most 1024 bytes, found"):
        encode_frames(longest + "a", np.zeros((1, 9), np.uint8), [], None, SMALL)


def test_many_large_records_keep_apart(engine, tmp_path):
    """Memory of dropped frames is handed on: never while somebody holds them."""
    rng = np.random.default_rng(0)
    originals = [rng.integers(0, 256, (100 + i % 7, 1152), dtype=np.uint8) for i in range(30)]
    path = tmp_path / "file"
    write_records(path, [encode_frames(str(i), x, []) for i, x in enumerate(originals)])
    for _ in range(2):
        kept = [record.frames for record in read_frames(path)]
        assert all(map(same, kept, originals))
        part = kept[3][5:, 7:]
        del kept
        for record, original in zip(read_frames(path), originals, strict=True):
            assert same(record.frames, original)
            record.frames[:] = 0
        assert (part == originals[3][5:, 7:]).all()


def spoil(**changes):
    """A good record of SMALL with these context features or feature lists replaced, or removed."""
    context, lists = frame_parts(2)
    for name, value in changes.items():
        target = lists if name in ("rgb", "audio") else context
        if value is None:
            del target[name]
        else:
            target[name] = value
    return sequence(context, lists)


BAD_FRAMES = {
    "no id": (
        spoil(id=None),
        "expected context feature 'id', found context features: 'labels';"
        " feature lists: 'audio', 'rgb'",
    ),
    "id of kind nothing": (
        spoil(id=b""),
        "expected context feature 'id', found context features: 'id', 'labels'",
    ),
    "id is a number": (
        spoil(id=int_list(7)),
        "expected bytes in context feature 'id', found int64",
    ),
    "two ids": (
        spoil(id=bytes_list(b"a", b"b")),
        "expected 1 value in context feature 'id', found 2",
    ),
    "id is not text": (
        spoil(id=bytes_list(b"a\xff'\\b")),
        r"expected UTF-8 text in context feature 'id', found 'a\xff\x27\x5cb'",
    ),
    "labels are floats": (
        spoil(labels=float_list(1)),
        "expected int64 in context feature 'labels', found float",
    ),
    "negative label": (
        spoil(labels=int_list(1, -3)),
        "expected numbers of at least 0 in context feature 'labels', found -3",
    ),
    "no rgb": (
        spoil(rgb=None),
        "expected feature list 'rgb', found context features: 'id', 'labels';"
        " feature lists: 'audio'",
    ),
    "no lists": (
        spoil(rgb=None, audio=None),
        "found context features: 'id', 'labels'; feature lists: none",
    ),
    "no frames": (spoil(rgb=[], audio=[]), "expected at least 1 frame in feature list 'rgb', foun"),
    "fewer audio frames": (
        spoil(audio=[bytes_list(b"123")]),
        "expected as many frames in feature list 'audio' as in 'rgb' (2), found 1",
    ),
    "more audio frames": (
        spoil(audio=[bytes_list(b"123")] * 3),
        "expected as many frames in feature list 'audio' as in 'rgb' (2), found 3",
    ),
    "narrow frame": (
        spoil(audio=[bytes_list(b"123"), bytes_list(b"12")]),
        "expected 3 bytes in frame 1 of feature list 'audio', found 2",
    ),
    "frame of floats": (
        spoil(rgb=[float_list(*range(6))]),
        "expected bytes in frame 0 of feature list 'rgb', found float",
    ),
    "empty frame": (
        spoil(rgb=[b""]),
        "expected bytes in frame 0 of feature list 'rgb', found noth",
    ),
    "frame of two strings": (
        spoil(rgb=[bytes_list(b"123456", b"123456")]),
        "expected 1 value in frame 0 of feature list 'rgb', found 2",
    ),
    "start without class": (
        spoil(segment_start_times=int_list(0), segment_scores=float_list(1)),
        "expected context feature 'segment_labels', found context features: 'id', 'labels',"
        " 'segment_scores', 'segment_start_times'",
    ),
    "scores only": (
        spoil(segment_scores=float_list(1)),
        "expected context feature 'segment_start_times', found",
    ),
    "empty record": (
        b"",
        "expected context feature 'id', found context features: none; feature lists: none",
    ),
    "cut in a message": (
        spoil()[:-1],
        "malformed protobuf at byte 38 of the record: expected 62 bytes, found 61 to the end of"
        " their message",
    ),
    "many features": (
        sequence({f"f{i:02}": int_list(i) for i in range(12)}, {}),
        "found context features: 'f00', 'f01', 'f02', 'f03', 'f04', 'f05', 'f06', 'f07', 'f08',"
        " 'f09', ...; feature lists: none",
    ),
    "field 0": (b"\x02\x00", "malformed protobuf at byte 0 of the record: expected a field number"),
    "wire type 7": (b"\x1f", "byte 0 of the record: expected a wire type from 0 to 5, found 7"),
    "endless varint": (b"\x80" * 12, "expected a varint of at most 64 bits, found a longer one"),
    "varint of 65 bits": (
        b"\x18" + b"\xff" * 9 + b"\x02",
        "byte 1 of the record: expected a varint of at most 64 bits, found a longer one",
    ),
    "tag of 33 bits": (b"\x8a\x80\x80\x80\x10", "to 536870911, found 536870913"),
    "varint cut": (b"\x18\x80", "byte 1 of the record: expected a varint, found the end of its m"),
    "fixed64 cut": (b"\x19\x00", "byte 1 of the record: expected 8 bytes, found 1 to the end of t"),
    "fixed32 cut": (b"\x1d\x00", "byte 1 of the record: expected 4 bytes, found 1 to the end of t"),
    "group that ends only": (b"\x1c", "expected a field, found the end of group 3"),
    "group that ends another": (
        b"\x1b\x24",
        "byte 1 of the record: expected a field, found the en",
    ),
    "group without end": (b"\x1b", "expected a varint, found the end of its message"),
    "deep groups": (b"\x1b" * 5000, "expected at most 100 nested groups, found more"),
    "length past the end": (
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        "byte 11 of the record: expected 18446744073709551615 bytes, found 0 to the end of their",
    ),
    "odd floats": (
        spoil(
            segment_start_times=int_list(0),
            segment_labels=int_list(1),
            segment_scores=field(2, field(1, b"\x00\x00\x80")),
        ),
        "expected floats of 4 bytes, found 3 bytes",
    ),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_bad_frames(engine, write, name):
    payload, expected = BAD_FRAMES[name]
    good = spoil()
    path = write(framed(good, payload, good))
    found, error = outcome(read_frames, path, SMALL)
    assert len(found) == 1
    assert error.startswith(f"{path}: record 1 at byte {len(good) + 16}: ")
    assert expected in error

    report = ReadReport()
    found = list(read_frames(path, SMALL, on_error="skip", report=report))
    assert len(found) == 2
    assert same(*found)
    assert report == ReadReport(records=2, skipped=1, first_error=error)


@pytest.mark.parametrize(
    ("starts", "classes", "scores", "ends", "expected"),
    [
        ([0, 5], [1], [1, 1], None, "in context feature 'segment_labels' as in 'segment_start_tim"),
        ([0, 5], [1, 1], [1], None, "in context feature 'segment_scores' as in 'segment_start_tim"),
        (
            [0, 5],
            [1, 1],
            [1, 1],
            [5],
            "'segment_end_times' as in 'segment_start_times' (2), found 1",
        ),
        ([-1], [1], [1], None, "at least 0 in context feature 'segment_start_times', found -1"),
        ([0], [-7], [1], None, "at least 0 in context feature 'segment_labels', found -7"),
        ([0], [1], [1.5], None, "expected scores from 0 to 1 in 'segment_scores', found 1.5"),
        ([0], [1], [-0.25], None, "expected scores from 0 to 1 in 'segment_scores', found -0.25"),
        ([0], [1], [1e20], None, "expected scores from 0 to 1 in 'segment_scores', found 1e+20"),
        ([0], [1], [np.nan], None, "expected scores from 0 to 1 in 'segment_scores', found nan"),
        ([0], [1], [-np.nan], None, "expected scores from 0 to 1 in 'segment_scores', found nan"),
        ([0], [1], [-np.inf], None, "expected scores from 0 to 1 in 'segment_scores', found -inf"),
    ],
)
def test_bad_ratings(engine, write, starts, classes, scores, ends, expected):
    payload = sequence(*rated_parts(starts, classes, scores, ends=ends))
    found, error = outcome(read_frames, write(framed(payload)), SMALL)
    assert not found
    assert expected in error


def test_ratings(engine, write):
    """Pitfalls 22 and 26: past the end, cut by the end, and rated twice."""
    starts = [0, 5, 12, 5, 9, 5, 400, 12, 7, 8, 9]
    classes = [3, 3, 3, 4, 3, 3, 9, 8, 1, 1, 3]
    scores = [1, 0, 1, 1, 0, 0.5, 1, 1, 1, 1, 1]
    payload = sequence(*rated_parts(starts, classes, scores, frames=12))
    path = write(framed(payload))
    report = ReadReport()
    [record] = read_frames(path, SMALL, report=report)
    # (5, 3) and (9, 3) are rated twice; 12 and 400 are past the end; 8 and 9 end after it.
    assert record.ratings.starts.tolist() == [0, 5, 5, 9, 7, 8]
    assert record.ratings.classes.tolist() == [3, 3, 4, 3, 1, 1]
    assert record.ratings.scores.tolist() == [1, 0.5, 1, 1, 1, 1]
    assert [x.dtype for x in record.ratings] == [np.int64, np.int64, np.float32]
    assert report == ReadReport(records=1, dropped_segments=2, cut_segments=2, duplicate_ratings=2)
    with pytest.warns(RecordWarning) as caught:
        list(read_frames(path, SMALL))
    [warning] = caught
    assert str(warning.message) == (
        f"{path}: dropped 2 rated segments past the end of the video,"
        " overwrote 2 ratings by later ones"
    )
    assert warning.filename == __file__


def test_segments_that_are_cut_are_no_reason_to_warn(engine, write):
    payload = sequence(*rated_parts([11], [3], [1], frames=12))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        [record] = read_frames(write(framed(payload)), SMALL)
    assert record.ratings.starts.tolist() == [11]


@pytest.mark.parametrize(
    ("start", "end", "fits"),
    [
        *((0, 5, True), (0, 4, False), (0, 6, False), (0, 0, False)),
        *((5, 3, False), (8, -(2**63), False)),
        # In 12 frames, at the end of the video; past it nothing counts.
        *((9, 14, True), (9, 12, True), (9, 13, True), (9, 11, False), (9, 15, False)),
        (12, 1, True),
    ],
)
def test_ends_of_segments(engine, write, start, end, fits):
    payload = sequence(*rated_parts([2, start], [3, 3], [1, 1], frames=12, ends=[7, end]))
    path = write(framed(payload))
    assert len(list(read_frames(path, SMALL, report=ReadReport()))) == 1
    if fits:
        assert len(list(read_frames(path, SMALL, check_ends=True, report=ReadReport()))) == 1
        return
    found = f"of 5 frames, found one of {end - start}, from frame {start} to {end}$"
    with pytest.raises(RecordError, match=found):
        list(read_frames(path, SMALL, check_ends=True))


def test_ratings_that_are_there_but_empty(engine, write):
    payload = sequence(*rated_parts([], [], []))
    [record] = read_frames(write(framed(payload)), SMALL)
    assert [x.shape for x in record.ratings] == [(0,), (0,), (0,)]
    dropped = sequence(*rated_parts([100], [1], [1]))
    [record] = read_frames(write(framed(dropped)), SMALL, report=ReadReport())
    assert [x.shape for x in record.ratings] == [(0,), (0,), (0,)]


def test_many_ratings_take_no_quadratic_time(engine, write):
    count = 100_000
    payload = sequence(*rated_parts([0] * count, range(count), [1] * count))
    [record] = read_frames(write(framed(payload)), SMALL, report=ReadReport())
    assert len(record.ratings.classes) == count


@pytest.mark.parametrize("message", ["Example", "SequenceExample"])
def test_videos(engine, write, message):
    """The public shards come as either message."""
    payload = field(1, feature_map(video_parts())) + (field(2, b"") if "Seq" in message else b"")
    [block] = read_videos(write(framed(payload, payload)), TINY)
    assert block.ids == ["06xy", "06xy"]
    expected = np.array([[1, 2, 3, -1, np.nan]] * 2, dtype=np.float32)
    np.testing.assert_array_equal(block.features, expected)
    assert block.features.dtype == np.float32
    assert block.label_offsets.dtype == block.labels.dtype == np.int64
    assert block.label_offsets.tolist() == [0, 2, 4]
    assert block.labels.tolist() == [4, 9, 4, 9]


@pytest.mark.parametrize("block", [1, 3, 7, 8, 1000])
def test_video_blocks(engine, write, block):
    names = [f"{i:04d}".encode() for i in range(7)]
    path = write(framed(*[field(1, feature_map(video_parts(name))) for name in names]))
    blocks = list(read_videos(path, TINY, block=block))
    assert [len(videos.ids) for videos in blocks][:-1] == [block] * (len(blocks) - 1)
    assert all(len(videos.ids) == len(videos.features) for videos in blocks)
    assert [name.encode() for videos in blocks for name in videos.ids] == names


def test_videos_before_a_bad_one_come_first(engine, write):
    good = field(1, feature_map(video_parts()))
    bad = field(1, feature_map(video_parts() | {"mean_audio": float_list(1)}))
    path = write(framed(good, good, good, bad, good))
    found, error = outcome(read_videos, path, TINY, block=2)
    assert [len(block.ids) for block in found] == [2, 1]
    assert "record 3 at byte" in error
    assert "expected 2 values in context feature 'mean_audio', found 1" in error
    with pytest.warns(RecordWarning, match="skipped 1 record "):
        found = list(read_videos(path, TINY, block=2, on_error="skip"))
    assert [len(block.ids) for block in found] == [2, 2]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"mean_rgb": int_list(1, 2, 3)},
            "expected float in context feature 'mean_rgb', found int",
        ),
        ({"mean_rgb": float_list()}, "expected 3 values in context feature 'mean_rgb', found 0"),
        ({"id": bytes_list(b"\xed\xa0\x80")}, "expected UTF-8 text in context feature 'id', found"),
        (
            {"labels": int_list(-1)},
            "expected numbers of at least 0 in context feature 'labels', fo",
        ),
    ],
)
def test_bad_videos(engine, write, changes, expected):
    path = write(framed(field(1, feature_map(video_parts() | changes))))
    found, error = outcome(read_videos, path, TINY)
    assert not found
    assert expected in error


def test_frames_read_as_videos(engine, write):
    path = write(framed(*sample_frames()))
    with pytest.raises(RecordError, match=r"'mean_rgb', found .*; feature lists: 'audio', 'rgb'"):
        list(read_videos(path, TINY))


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (
            lambda path: read_records(path, on_error="ignore"),
            "on_error: expected 'raise' or 'skip'",
        ),
        (lambda path: read_frames(path, shard=(2, 2)), "shard: expected"),
        (lambda path: read_frames(path, shard=(-1, 2)), "shard: expected"),
        (lambda path: read_frames(path, max_frames=0), "max_frames: expected a whole number of at"),
        (lambda path: read_frames(path, max_frames=2.5), "at least 1, or None, found 2.5"),
        (lambda path: read_videos(path, block=0), "block: expected at least 1"),
        (lambda path: FrameSchema(features=()), "features: expected different names"),
        (lambda path: FrameSchema(features=(("a", 1), ("a", 1))), "features: expected different"),
        (lambda path: VideoSchema(features=(("a", 0),)), "features: expected different names"),
        (lambda path: FrameSchema(id_key=""), "id_key and labels_key: expected names"),
        (lambda path: FrameSchema(segment_size=0), "segment_size: expected at least 1"),
    ],
)
def test_arguments_are_checked_at_once(engine, call, expected):
    with pytest.raises(ValueError, match=expected):
        call("nowhere")


def test_youtube8m_frames(engine, shared):
    [record] = read_frames(shared / "data/yt8m/frame_level_example.tfrecord")
    assert (record.id, record.frames.shape, record.labels.tolist()) == ("SjJ3", (170, 1152), [11])
    assert record.ratings is None


def test_youtube8m_videos(engine, shared):
    report = ReadReport()
    ids, labels = set(), 0
    for path in sorted((shared / "data/yt8m").glob("video_level_validate*.tfrecord.gz")):
        for block in read_videos(path, report=report):
            assert np.isfinite(block.features).all()
            assert np.abs(block.features).max() < 3  # dequantised: -2 to 2, and some rounding
            assert block.labels.max() < 3862
            ids.update(block.ids)
            labels += len(block.labels)
    assert report == ReadReport(records=len(ids))
    assert len(ids) == 7719
    assert 2.9 < labels / len(ids) < 3.1


def test_audioset(engine, shared):
    report = ReadReport()
    ids = set()
    for path in sorted((shared / "data/audioset").glob("eval*.tfrecord.gz")):
        keys = ("start_time_seconds", "end_time_seconds")
        for record in read_frames(path, AUDIOSET, report=report, context_keys=keys):
            ids.add(record.id)
            assert 1 <= len(record.frames) <= 10
            assert record.labels.max() < 527
            start, end = (record.context[key] for key in keys)
            assert 0 <= start < end <= start + 10
    assert report == ReadReport(records=10_000)
    assert len(ids) == 10_000
