"""Options out of range."""

from __future__ import annotations

import pytest

from pyseg.data.download import DownloadConfig


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"subset": "segment"},
            "partition: expected validate or test of the subset segment, found",
        ),
        ({"subset": "all"}, "subset: expected one of frame, video, segment, found all"),
        ({"partition": "dev"}, "partition: expected train, validate or test, found dev"),
        ({"mirror": "mars"}, "mirror: expected us, eu or asia, found mars"),
        ({"server": "file:///etc"}, "server: expected an http or https URL, found file:///etc"),
        ({"server": "ftp://host"}, "server: expected an http"),
        ({"server": "host"}, "server: expected an http"),
        ({"server": "http://host/?a"}, r"server: expected a URL without \? and #"),
        ({"shard": "0,3"}, "shard: expected i,n with 1 <= i <= n, found 0,3"),
        ({"shard": "4,3"}, "shard: expected"),
        ({"shard": "3"}, "shard: expected"),
        ({"jobs": 0}, "jobs: expected at least 1, found 0"),
        ({"retries": -1}, "retries: expected at least 0, found -1"),
        ({"timeout": 0.0}, "timeout: expected more than 0 seconds, found 0.0"),
        ({"timeout": float("nan")}, "timeout: expected more than 0 seconds"),
    ],
)
def test_bad_options(options: dict[str, object], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        DownloadConfig(**({"subset": "frame", "partition": "train"} | options))  # type: ignore[arg-type]
