"""Plans, malformed ones too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyseg.data import DataError
from pyseg.data.download import read_plan
from pyseg.errors import UserError

from .servers import PLAN, Fetch, Server, md5, names


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"<html>", "expected JSON, found b'<html>'"),
        (b"[" * 100_000, "expected JSON, found"),
        (b"\xff", "expected JSON, found"),
        (b"[]", "expected a plan"),
        (b'{"files": []}', "expected a plan"),
        (b'{"files": {}}', "expected a plan"),
        (b'{"files": {"a.tfrecord": 3}}', "a.tfrecord: expected an MD5 checksum, found '3'"),
        (b'{"files": {"a.tfrecord": "12"}}', "expected an MD5 checksum, found '12'"),
        *(
            (json.dumps({"files": {name: "0" * 32}}).encode(), "expected names of files in one")
            for name in (
                "../a",
                "/a",
                "a/b",
                "..",
                "",
                ".a",
                "a\n",
                "a\0",
                "a\\b",
                "a.part",
                "a" * 300,
            )
        ),
        (
            json.dumps(
                {"files": dict.fromkeys(["trainaa.tfrecord", "train0000.tfrecord"], "0" * 32)}
            ).encode(),
            "expected different names, found trainaa.tfrecord and train0000.tfrecord, both of",
        ),
    ],
)
def test_malformed_plans(
    server: Server, fetch: Fetch, tmp_path: Path, content: bytes, problem: str
) -> None:
    with pytest.raises(DataError, match=f"^here: .*{problem}"):
        read_plan(content, "here")
    server.files[PLAN] = content
    with pytest.raises(DataError, match=f"^{server.url}{PLAN}: "):
        fetch()
    assert not list(tmp_path.iterdir())


def test_parts_are_those_of_the_published_script(
    server: Server, fetch: Fetch, folder: Path
) -> None:
    server.publish(*(f"traina{letter}.tfrecord" for letter in "abcdefgh"), size=10)
    taken = [fetch(shard=f"{i},3").files for i in (1, 2, 3)]
    assert sum(taken) == 8
    assert len(names(folder)) == 8
    first = sum(int(md5(f"traina{letter}.tfrecord".encode()), 16) % 3 == 0 for letter in "abcdefgh")
    assert taken[0] == first
    with pytest.raises(UserError, match=r"^shard: expected a part .*, found none in 1,999999"):
        fetch(shard="1,999999")
