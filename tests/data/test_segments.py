"""read_segments: every frame of every video once, with blocks of any size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyseg.data import FrameSchema, ReadReport, RecordError, encode_frames, write_records
from pyseg.data.segments import read_segments

SCHEMA = FrameSchema(features=(("rgb", 3), ("audio", 1)), labels_key=None)
LENGTHS = (12, 5, 1, 40, 4, 6)


@pytest.fixture
def shards(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    paths = []
    for shard in range(3):
        records = [
            encode_frames(
                f"{shard}{number}",
                rng.integers(1, 256, (length, 4), dtype=np.uint8),
                [],
                schema=SCHEMA,
            )
            for number, length in enumerate(LENGTHS[2 * shard : 2 * shard + 2])
        ]
        paths.append(str(tmp_path / f"{shard}.tfrecord"))
        write_records(paths[-1], records)
    return paths


def by_video(blocks) -> dict[str, list[tuple[int, int, bytes]]]:
    """Start, valid frames and bytes of each segment."""
    found = {}
    for block in blocks:
        for v, id in enumerate(block.ids):
            rows = range(block.offsets[v], block.offsets[v + 1])
            found[id] = [
                (int(block.starts[r]), int(block.num_frames[r]), block.frames[r].tobytes())
                for r in rows
            ]
        assert len(block.frames) == len(block.starts) == len(block.num_frames)
        assert block.offsets[-1] == len(block.frames)
    return found


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_segments_cover_the_videos(shards: list[str], size: int) -> None:
    blocks = list(read_segments(shards, SCHEMA, size))
    assert [id for block in blocks for id in block.ids] == ["00", "01", "10", "11", "20", "21"]
    assert all(len(block.frames) >= size for block in blocks[:-1])
    videos = {id: v for block in blocks for id, v in zip(block.ids, block.videos, strict=True)}
    for (id, segments), length in zip(by_video(blocks).items(), LENGTHS, strict=True):
        assert len(videos[id]) == length
        assert [start for start, _, _ in segments] == list(range(0, length, 5))
        assert [n for _, n, _ in segments] == [5] * (length // 5) + [length % 5] * (length % 5 > 0)
        joined = b"".join(frames for _, _, frames in segments)
        expected = videos[id].tobytes()
        assert joined[: len(expected)] == expected
        assert not any(joined[len(expected) :])  # padding is 0


def test_skipped_ends(shards: list[str]) -> None:
    found = by_video(read_segments(shards, SCHEMA, 1000, skip=(2, 1)))
    everything = by_video(read_segments(shards, SCHEMA, 1000))
    assert {id: len(segments) for id, segments in found.items() if segments} == {"11": 5}
    for id, segments in found.items():
        assert segments == everything[id][2 : max(2, len(everything[id]) - 1)]


@pytest.mark.parametrize("size", [1, 3])
def test_resuming_from_a_position(shards: list[str], size: int) -> None:
    blocks = list(read_segments(shards, SCHEMA, size))
    for number, block in enumerate(blocks):
        rest = list(read_segments(shards, SCHEMA, size, start=block.position))
        assert by_video(rest) == by_video(blocks[number + 1 :])


def test_chosen_videos(shards: list[str]) -> None:
    found = by_video(read_segments(shards, SCHEMA, 1, keep=lambda id: id in ("01", "20")))
    assert list(found) == ["01", "20"]


def test_damaged_records(shards: list[str]) -> None:
    damaged = bytearray(Path(shards[1]).read_bytes())
    damaged[20] ^= 1  # in the payload of the first record
    Path(shards[1]).write_bytes(damaged)
    with pytest.raises(RecordError, match=r"1\.tfrecord"):
        list(read_segments(shards, SCHEMA, 1))
    report = ReadReport()
    blocks = list(read_segments(shards, SCHEMA, 1, on_error="skip", report=report))
    assert report.skipped == 1
    assert [id for block in blocks for id in block.ids] == ["00", "01", "11", "20", "21"]


def test_a_bad_id_is_reported_with_its_record_number(shards, monkeypatch) -> None:
    test_damaged_records(shards)  # record 0 of the second file
    messages: list[str] = []
    report = ReadReport()
    monkeypatch.setattr(report, "skip", messages.append)
    skipping = {"on_error": "skip", "report": report}
    blocks = list(read_segments(shards, SCHEMA, 1, sound=lambda id: id != "11", **skipping))
    assert [id for block in blocks for id in block.ids] == ["00", "01", "20", "21"]
    assert [error.partition(": ")[2].partition(" at ")[0] for error in messages] == [
        "record 0", "record 1",
    ]  # fmt: skip
    assert messages[1].endswith("expected an id of one line without control characters, found '11'")
    with pytest.raises(RecordError, match=r"record 0 at byte 0: .*found '20'"):
        list(read_segments(shards[2:], SCHEMA, 1, sound=lambda id: id != "20"))
