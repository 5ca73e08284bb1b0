from __future__ import annotations

import errno
import os
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from pyseg.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from pyseg.errors import DataError


def test_the_last_ones_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert list_checkpoints(folder) == []
    for number in (1, 20, 3, 100):
        save_checkpoint(folder, number, {"number": number, "x": torch.arange(number)}, keep=2)
    found = list_checkpoints(folder)
    assert [load_checkpoint(path)["number"] for path in found] == [20, 100]
    assert torch.equal(load_checkpoint(found[-1])["x"], torch.arange(100))
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("fault", ["write", "fsync", "replace"])
def test_a_full_disk_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    save_checkpoint(tmp_path, 1, {"number": 1}, keep=1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if fault == "write":
            patch.setattr("pyseg.checkpoint.atomic_write", _failing_at_write)
        else:
            patch.setattr(os, fault, full)
        with pytest.raises(
            OSError, match=r"cannot be written: No space left.*checkpoint-000000002"
        ):
            save_checkpoint(tmp_path, 2, {"number": 2}, keep=1)
    assert [load_checkpoint(path)["number"] for path in list_checkpoints(tmp_path)] == [1]
    assert len(list(tmp_path.iterdir())) == 1


class _Full:
    def write(self, _: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _failing_at_write(_: Path) -> _Full:
    return _Full()


def test_random_numbers_continue(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 0, {"random": random_state()}, keep=1)
    expected = torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist()
    set_random_state(load_checkpoint(path)["random"])
    assert (torch.rand(3).tolist(), random.random(), np.random.rand(3).tolist()) == expected


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, {"x": torch.arange(10)}, keep=1)
    content = path.read_bytes()
    for at in [*range(0, len(content), 97), *range(len(content) - 45, len(content))]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        with pytest.raises(DataError, match=r"checkpoint-000000001\.pt: expected a checkpoint"):
            load_checkpoint(path)
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match="found no digest at its end"):
        load_checkpoint(path)


class _Evil:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("evil",)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save_checkpoint(tmp_path, 1, {"x": _Evil()}, keep=1)  # with the right digest
    with pytest.raises(DataError, match=r"checkpoint-000000001\.pt: .*Weights only load failed"):
        load_checkpoint(path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps([1, 2])])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "checkpoint-000000001.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint-000000001\.pt: expected a checkpoint"):
        load_checkpoint(path)
