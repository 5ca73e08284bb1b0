"""What is decided by the id of a video."""

from __future__ import annotations

import hashlib

import pytest

from pyseg.data import (
    held_out,
)
from pyseg.data.hashing import stable_hash


def test_held_out_is_a_property_of_the_id() -> None:
    names = [f"{number:04d}" for number in range(5000)]
    test = {name for name in names if held_out(name)}
    assert 900 < len(test) < 1100
    assert {name for name in names if held_out(name, 0.1)} < test  # a larger part only adds
    assert test != {name for name in names if held_out(name, seed=1)}
    # Never Python's own hash(), which differs between processes.
    digest = hashlib.blake2b(b"0:1e10", digest_size=8).digest()
    assert stable_hash("1e10", 0) == int.from_bytes(digest, "little") == 4988866014025950649
    assert not any(held_out(name, 0) for name in names)
    assert all(held_out(name, 1) for name in names)
    with pytest.raises(ValueError, match=r"fraction: expected a number in \[0, 1\], found 20"):
        held_out("abcd", 20)
