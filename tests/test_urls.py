"""What is a URL, its parts, and names that hide secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyseg import _urls

SIGNED = "https://host/a.tfrecord?X-Amz-Credential=AKIA/x&X-Amz-Date=1&X-Amz-Signature=0f3a&part=2"


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_urls, "_users", {})
    monkeypatch.setattr(_urls, "_urls", {})


@pytest.mark.parametrize(
    ("path", "is_url"),
    [
        ("s3://bucket", True),
        ("simplecache::s3://bucket/x", True),
        ("zip://a.tfrecord::s3://bucket/x.zip", True),
        ("memory://", True),
        ("yt8m/train0000.tfrecord", False),
        ("/yt8m://x", False),
        ("s3:/bucket", False),
        ("a:b", False),
        (Path("s3://bucket"), False),
        (None, False),
        (["s3://bucket"], False),
    ],
)
def test_what_is_a_url(path: object, is_url: bool) -> None:
    assert _urls.is_url(path) is is_url  # type: ignore[arg-type]


def test_parts_of_a_url() -> None:
    chained = "zip://in/a.tfrecord::simplecache::s3://bucket/x.zip"
    assert _urls.split(chained) == ("zip://in::simplecache::s3://bucket/x.zip", "a.tfrecord")
    assert _urls.parents(chained) == [
        "zip://in::simplecache::s3://bucket/x.zip",
    ]
    assert _urls.parents("s3://bucket/a/b/c.tfrecord") == ["s3://bucket/a/b", "s3://bucket/a"]
    assert _urls.parents("s3://bucket/c.tfrecord") == ["s3://bucket"]
    assert _urls.parents("a/b/c.tfrecord") == [Path("a/b"), Path("a")]
    assert _urls.beside("s3://bucket/", "x.csv") == "s3://bucket/x.csv"
    assert _urls.beside("memory://", "x.csv") == "memory://x.csv"
    assert _urls.beside("zip://::s3://x.zip", "x.csv") == "zip://x.csv::s3://x.zip"
    assert _urls.beside(Path("a"), "x.csv") == Path("a/x.csv")
    assert _urls.split("http://[::1]:80/a/b?c=d") == ("http://[::1]:80/a", "b")


def test_globs() -> None:
    assert _urls.has_magic("s3://bucket/*.tfrecord")
    assert _urls.has_magic("s3://bucket/train?.tfrecord")
    assert not _urls.has_magic("s3://bucket/a.tfrecord?versionId=3")
    assert not _urls.has_magic("https://host/a?b")
    assert _urls.has_magic("https://host/train[0-2].tfrecord")
    assert _urls.has_magic("https://***@host/*.tfrecord?token=***")
    assert not _urls.has_magic("https://host/a?b[]=*")
    assert not _urls.has_magic("https://ann:pw@[0:0:0:0:0:0:0:1]:80/a.tfrecord")
    assert _urls.has_magic("simplecache::http://[0:0:0:0:0:0:0:1]/a[01].tfrecord")


def test_addresses_are_no_chains() -> None:
    """fsspec takes ``::`` for what joins the links of a chain."""
    assert _urls.named("http://[::1]:80/a[0-2]") == "http://[0:0:0:0:0:0:0:1]:80/a[0-2]"
    assert _urls.named("s3://bucket/[::]") == "s3://bucket/[::]"
    assert _urls.named("http://[::g]/a") == "http://[::g]/a"
    name = _urls.named("http://ann:pw@[fe80::2]:80/a")
    assert name == "http://***@[fe80:0:0:0:0:0:0:2]:80/a"
    assert _urls.revealed(name) == "http://ann:pw@[fe80:0:0:0:0:0:0:2]:80/a"
    assert _urls.revealed(name.replace(":2]:80/a", ":2]/b")) is not None
    assert _urls.revealed(name.replace(":2]", ":3]")) is None  # another host


@pytest.mark.parametrize(
    "url",
    [
        "https://ann:pw@host/a.tfrecord",
        "https://ann@host/a.tfrecord",
        "https://ann:pw@pw@host:80/a.tfrecord",
        "simplecache::https://ann:pw@host/a.tfrecord",
        "ftp://ann:p%40w@host:21/a",
        SIGNED,
        "https://host/a?token=pw",
        "https://host/a?sig=pw,pw)pw",
        "https://host/a?id=3&access_key=pw",
        "https://acc.blob.net/a?sv=2024&sig=pw%3D",
        "https://host/a?q=0123456789abcdef0123456789",
        "http://ann:p/pw@host/x",
        "https://ann:p#pw@host:80/x?part=1",
        "ftp://ann:w?pw/@host/x",
        "http:///ann:pw@host/x",
        "https://host/a?PW=ann",
        "https://host/a?sas=ann",
        "https://host/a?X-Amz-Signature=0f3a;pw&part=2",
        "https://host/a?part=2;sig=0f3a;pw",
        "https://host/a?0123456789abcdef0123456789abc/==",
        "zip://b::https://host/a?part=2#token=pw",
        "https://host/a?part=2#0123456789abcdef0123456789abc",
    ],
)
def test_secrets_are_hidden_and_found_again(url: str) -> None:
    name = _urls.named(url)
    assert name != url
    assert _urls.hides(name)
    assert not _urls.hides(url)
    assert not any(secret in name for secret in ("pw", "ann", "AKIA", "0f3a", "p%40w", "789abc"))
    assert _urls.redacted(f"cannot open url='{url}' (x)") == f"cannot open url='{name}' (x)"
    assert _urls.named(name) == name
    assert _urls.revealed(name) == url


def test_names_of_other_files_of_a_host() -> None:
    _urls.named("https://ann:pw@host/a/b.tfrecord")
    assert (
        _urls.revealed("https://***@host/a/vocabulary.csv")
        == "https://ann:pw@host/a/vocabulary.csv"
    )
    assert _urls.revealed("https://***@other/a") is None
    assert _urls.revealed("https://host/a?sig=***") is None


def test_other_files_have_other_names() -> None:
    first, second = (_urls.named(f"https://host/get?id={digit * 30}&token=pw") for digit in "12")
    assert first != second
    again = SIGNED.replace("0f3a", "77aa").replace("Date=1", "Date=2")
    assert _urls.named(again) == _urls.named(SIGNED)  # signed anew


@pytest.mark.parametrize("scheme", ["http//", "http:/", "https:", "sftp//"])
@pytest.mark.parametrize("password", ["pw", "p/w"])
def test_a_mistyped_scheme(scheme: str, password: str) -> None:
    assert _urls.named(f"{scheme}ann:{password}@host/x") == f"{scheme}***@host/x"


def test_schemes_have_no_case() -> None:
    assert _urls.named("HTTP://Host/A") == "http://Host/A"
    name = _urls.named("ZIP://A::SimpleCache::HTTPS://Ann:PW@Host/B")
    assert name == "zip://A::simplecache::https://***@Host/B"
    assert _urls.revealed(name) == "zip://A::simplecache::https://Ann:PW@Host/B"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://ann:p/w@host/x", "/, # and ? in a password as %2F, %23 and %3F, found one as it"),
        ("http://", "a host after ://, found none"),
        ("simplecache::https:///x", "a host after ://, found none"),
        ("http://ann:pw@/x", "a host after ://, found none"),
        ("http://:80/x", "a host after ://, found none"),
        ("file://root/s", "file:///absolute/path, found a relative one"),
        ("zip://a::file://x.zip", "file:///absolute/path, found a relative one"),
        ("http://ann:pw@host:80/a:b/c@d?e=f@g", ""),
        ("http://ann:p@w@host/a@b", ""),
        ("http://host:80/a@b", ""),
        ("http://[0:0:0:0:0:0:0:1]:80/a@b", ""),
        ("zip://a::https://ann@host/x/y@z", ""),
        ("file:///a", ""),
        ("memory://a:b/c@d", ""),
    ],
)
def test_problems_of_urls(url: str, problem: str) -> None:
    found = _urls.problem(url)
    assert found is not None and found.startswith(problem) if problem else found is None


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/train?.tfrecord",
        "s3://bucket/train?-of-many-more-shards.tfrecord",
        "https://host/a?id=3",
        "http://host:80/a@b?c#d=e",
        "memory://a:b/c@d",
        "sftp://joe@host/a",
        "a?b=c",
        "http/ann:b@c",
        3,
    ],
)
def test_what_has_no_secrets_stays(text: object) -> None:
    assert _urls.named(text) == text


def test_another_process_learns_the_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    name = _urls.named("https://ann:pw@host/a?sig=x")
    known = _urls.secrets()
    monkeypatch.setattr(_urls, "_users", {})
    monkeypatch.setattr(_urls, "_urls", {})
    assert _urls.revealed(name) is None
    _urls.learn(known)
    assert _urls.revealed(name) == "https://ann:pw@host/a?sig=x"
