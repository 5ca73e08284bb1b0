from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyseg._files import atomic_write, remove_unfinished, sole_owner
from pyseg.errors import UserError


def write(path: Path) -> None:
    with atomic_write(path) as file:
        file.write(b"new")


def test_the_file_appears_at_the_end(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with atomic_write(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_symbolic_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    link, there = tmp_path / "link", tmp_path / "far" / "file"
    link.symlink_to("far/file")
    for content in (b"first", b"second"):
        with atomic_write(link) as file:
            file.write(content)
        assert link.is_symlink()
        assert there.read_bytes() == content


def test_only_regular_files_are_replaced(tmp_path):
    pipe, device = tmp_path / "pipe", tmp_path / "device"
    os.mkfifo(pipe)
    device.symlink_to(os.devnull)
    for path in (pipe, device):
        with pytest.raises(UserError, match=f"{path}: expected a regular file, found a device, a"):
            write(path)
    with pytest.raises(UserError, match=f"{tmp_path}: expected a file, found a folder"):
        write(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"a/b: expected a folder {tmp_path}/a, found none"):
        write(tmp_path / "a" / "b")
    assert pipe.is_fifo()
    assert Path(os.devnull).is_char_device()
    assert sorted(tmp_path.iterdir()) == [device, pipe]


def test_nothing_is_left_where_the_block_raises(tmp_path):
    def interrupted() -> None:
        with atomic_write(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [None, "other"])
def test_a_full_disk_is_told_with_the_file(tmp_path, name):
    def full() -> None:
        with atomic_write(tmp_path / "file"):
            raise OSError(errno.ENOSPC, "No space left on device", name)

    with pytest.raises(OSError, match=f"No space left on device: '.*{name or 'file'}'") as raised:
        full()
    assert raised.value.filename == (name or str(tmp_path / "file"))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_removed(tmp_path):
    path = tmp_path / "a[1].npz"
    mine = tmp_path / ".a[1].npz.0123abcd.part"
    others = [tmp_path / name for name in (".b.npz.0123abcd.part", "c.part", ".a1.npz.x.part")]
    for left in (mine, *others):
        left.write_bytes(b"half")
    with atomic_write(path) as file:
        assert not mine.exists()
        file.write(b"new")
        child = os.fork()
        if child == 0:  # for another process this file is still being written
            remove_unfinished(tmp_path)
            os._exit(0)
        os.waitpid(child, 0)
    assert sorted(tmp_path.iterdir()) == sorted([path, *others[1:]])
    assert path.read_bytes() == b"new"


def test_only_a_created_folder_is_removed_at_the_end(tmp_path):
    given, made = tmp_path / "given", tmp_path / "made"
    given.mkdir()
    for folder in (given, made):
        with sole_owner(folder):
            assert [path.name for path in folder.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == [given]
    with sole_owner(made):
        (made / "result").touch()
    assert [path.name for path in made.iterdir()] == ["result"]
