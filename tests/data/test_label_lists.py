"""Label lists from tables and records, and every error in a table."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyseg.data import DataError, label_lists, read_label_records, read_label_table
from pyseg.data.records import RecordError, encode_frames, encode_video, write_records

TABLE = "a1b2,3 5\nc3d4,\ne5f6,0\né,10 11 12\n"
LISTS = [[3, 5], [], [0], [10, 11, 12]]


def read(path: Path, **options: object) -> tuple[list[list[int]], int]:
    found, left_out = [], 0
    for block in read_label_table(path, **options):
        left_out += block.left_out
        for begin, end in zip(block.offsets[:-1], block.offsets[1:], strict=True):
            found.append(block.labels[begin:end].tolist())
    return found, left_out


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "lists.csv"


@pytest.mark.parametrize("block", [2**24, 1, 7, 10])
@pytest.mark.parametrize("packed", [False, True])
def test_lists_are_read(
    table: Path, packed: bool, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_lists, "_BLOCK", block)
    data = TABLE.encode()
    table.write_bytes(gzip.compress(data) if packed else data)
    assert read(table) == (LISTS, 0)
    done: list[int] = []
    read(table, progress=done.append)
    assert sum(done) == table.stat().st_size
    assert read(table, exclude=["c3d4", "é", "absent"]) == ([[3, 5], [0]], 2)
    assert read(table, exclude=["a1b2", "c3d4", "e5f6", "é"]) == ([], 4)


@pytest.mark.parametrize(
    "text",
    [
        TABLE.removesuffix("\n"),
        TABLE.replace("\n", "\r\n"),
        TABLE.replace("\n", "\n\n"),
        TABLE.replace("\n", " \n").replace("3 5", "3   5"),
        "\ufeff" + TABLE,
        "id,labels\n" + TABLE,
        "VideoId,LabelIds\r\n" + TABLE,
        TABLE.replace("\n", "\r"),
        TABLE.replace("c3d4", '"c3d4"').replace("10 11 12", '"10 11 12"'),
        "   \n" + TABLE.replace("c3d4", " c3d4 "),
        '"id","labels"\n' + TABLE,
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("block", [2**24, 5])
def test_variations_make_no_difference(
    table: Path, text: str, encoding: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_lists, "_BLOCK", block)
    table.write_bytes(text.removeprefix("\ufeff" * (encoding != "utf-8")).encode(encoding))
    assert read(table) == (LISTS, 0)
    assert read(table, exclude=["a1b2"]) == (LISTS[1:], 1)
    assert read(table, exclude=["c3d4"]) == ([LISTS[0], *LISTS[2:]], 1)
    done: list[int] = []
    read(table, progress=done.append)
    assert sum(done) == table.stat().st_size


def test_ids_with_the_same_hash_are_told_apart(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.write_text(TABLE)
    original = label_lists._parse

    def parse(name: str, text: bytes, before: int, ids: set, hashes: np.ndarray) -> object:
        from pyseg.data import _label_kernels

        everything = [
            _label_kernels.hash_id(np.frombuffer(i.encode(), np.uint8)) for i in ("a1b2", "é")
        ]
        return original(name, text, before, ids, np.sort(np.array(everything, np.uint64)))

    monkeypatch.setattr(label_lists, "_parse", parse)
    assert read(table, exclude=["é"]) == (LISTS[:3], 1)


def test_an_empty_table(table: Path) -> None:
    table.write_text("")
    assert read(table) == ([], 0)
    table.write_text("id,labels\n")
    assert read(table) == ([], 0)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a1b2 3 5", "id,label label .*, found 'a1b2 3 5'"),
        ("a1b2,3,5", "labels to be whole numbers with spaces between, found 'a1b2,3,5'"),
        ("a1b2,3 x", "labels to be whole numbers"),
        ("a1b2,-3", "labels to be whole numbers"),
        ("a1b2,3.0", "labels to be whole numbers"),
        ("a1b2,1234567890", "labels of at most 9 digits"),
        ("a1b2," + "1 " * 60 + "x", r"labels to be whole numbers .*\.\.\.'$"),
    ],
)
@pytest.mark.parametrize("block", [2**24, 16])
def test_errors_name_file_and_line(
    table: Path, line: str, expected: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_lists, "_BLOCK", block)
    table.write_text(f"id,labels\n{TABLE}{line}\n{TABLE}")
    with pytest.raises(DataError, match=rf"lists\.csv, line 6: expected {expected}"):
        read(table)


def test_binary_files_are_named(table: Path) -> None:
    for content, found in (
        (TABLE.encode("utf-32"), "UTF-32"),
        (zlib.compress(TABLE.encode()), "what looks like zlib-compressed data"),
    ):
        table.write_bytes(content)
        with pytest.raises(DataError, match=rf"lists\.csv, line 1: expected .*text, found {found}"):
            read(table)


def outcome(path: Path, exclude: list[str]) -> object:
    try:
        return read(path, exclude=exclude)
    except DataError as error:
        return str(error)


@settings(max_examples=150, deadline=None)
@given(
    text=st.lists(
        st.sampled_from(["a", "é", "1", "20", ",", " ", "\n", "\r\n", "\0", "x"]), max_size=24
    ).map("".join),
    block=st.sampled_from([3, 2**24]),
)
def test_the_parser_and_the_reader_of_rows_agree(text: str, block: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder, "lists.csv")
        path.write_bytes(text.encode())
        patch.setattr(label_lists, "_BLOCK", block)
        fast = outcome(path, ["a"])
        patch.setattr(label_lists, "_is_plain", lambda text: False)
        assert outcome(path, ["a"]) == fast


def test_damaged_gzip(table: Path) -> None:
    table.write_bytes(gzip.compress(TABLE.encode() * 100)[:-20])
    with pytest.raises(
        DataError,
        match=r"lists\.csv, line 35: expected more text, found damaged gzip data: Comp",
    ):
        read(table)


def test_records_of_both_levels(tmp_path: Path) -> None:
    path = tmp_path / "records.tfrecord"
    frames = np.zeros((3, 1152), np.uint8)
    write_records(
        path,
        [
            encode_frames("aa", frames, [3, 5]),
            encode_video("bb", np.zeros(1152, np.float32), [2]),
            encode_frames("cc", frames, [7]),
        ],
    )
    [block] = read_label_records(path)
    assert (block.offsets.tolist(), block.labels.tolist()) == ([0, 2, 3, 4], [3, 5, 2, 7])
    [block] = read_label_records(path, keep=lambda id: id != "bb")
    assert (block.offsets.tolist(), block.labels.tolist()) == ([0, 2, 3], [3, 5, 7])
    assert block.left_out == 1
    damaged = bytearray(path.read_bytes())
    damaged[40] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(RecordError, match="record 0"):
        list(read_label_records(path))


def test_real_records(shared: Path) -> None:
    folder = shared / "data" / "yt8m"
    [frames] = read_label_records(folder / "frame_level_example.tfrecord")
    assert frames.labels.tolist() == [11]
    [videos] = read_label_records(folder / "video_level_validate0000.tfrecord.gz")
    assert len(videos.offsets) == 285
    assert 2.5 < len(videos.labels) / 284 < 3.5
