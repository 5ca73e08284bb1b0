"""Finding shards, and dividing them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyseg.data import (
    find_shards,
    write_records,
)
from pyseg.data.shards import divide
from pyseg.errors import ArgumentError, MissingFileError

from .conftest import Frames, ids


def test_paths_as_folder_glob_file_and_list(frame_shards, tmp_path: Path) -> None:
    shards = [str(path) for path in frame_shards([1, 1, 1])]
    (tmp_path / "vocabulary.csv").write_text("Index\n0\n")
    deep = tmp_path / "more"
    deep.mkdir()
    extra = Path(shards[0]).rename(deep / "train0000.tfrecord")
    everything = [str(extra), *shards[1:]]
    assert find_shards(tmp_path) == everything
    assert find_shards(f"{tmp_path}/train*.tfrecord") == shards[1:]
    assert find_shards(f"{tmp_path}/**/train*.tfrecord") == everything
    assert find_shards(shards[2]) == [shards[2]]
    assert find_shards([shards[2], shards[1]]) == [shards[2], shards[1]]


def test_a_shard_that_comes_up_twice_is_read_once(frame_shards, tmp_path: Path) -> None:
    [shard] = frame_shards([3])
    link = tmp_path / "link.tfrecord"
    link.symlink_to(shard)
    assert ids(Frames([tmp_path, shard, str(shard), link])) == ["s0v0", "s0v1", "s0v2"]


def test_a_folder_of_videos_is_to_be_extracted_first(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(MissingFileError, match=r"or holds records$"):
        find_shards(tmp_path)
    (tmp_path / "a.MP4").touch()
    with pytest.raises(MissingFileError, match=r"run python -m pyseg\.extract --videos .* first"):
        find_shards(tmp_path)


def test_a_name_with_glob_characters_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "shard[0].tfrecord"
    write_records(path, [b"payload"])
    assert find_shards(path) == [str(path)]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ("none/*.tfrecord", r"none/\*\.tfrecord: no file matches"),
        ("none.tfrecord", "none.tfrecord: no such file or folder"),
        ([], "paths: expected at least one file"),
    ],
)
def test_nothing_to_read_names_the_pattern(paths, message: str) -> None:
    with pytest.raises((MissingFileError, ArgumentError), match=message):
        Frames(paths)


def test_a_folder_without_records(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file in this folder ends in \.tfrecord or"):
        Frames(tmp_path)


@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=9),
    consumers=st.integers(1, 20),
)
def test_shares_cover_every_record_once_and_evenly(counts: list[int], consumers: int) -> None:
    read: Counter[tuple[int, int]] = Counter()
    shards = []
    for consumer in range(consumers):
        shares = divide(len(counts), consumers, consumer)
        shards.append(sum(1 / share.part[1] for share in shares))
        for shard, (index, count) in shares:
            read.update(
                (shard, number) for number in range(counts[shard]) if number % count == index
            )
    assert read == {(shard, n): 1 for shard, count in enumerate(counts) for n in range(count)}
    assert max(shards) - min(shards) < 1e-9
