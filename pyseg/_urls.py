"""URLs of files: what is one, its parts, and its name without the secrets in it.

A URL is called by a name that hides a user, a password and the signature of a query. Messages,
logs and files have only such names; `revealed` returns the URL that a name stands for in this
process.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Schemes as fsspec chains them: what precedes the path, the path, and what it is a part of, as in
# simplecache::s3://bucket/a.tfrecord and zip://a.tfrecord::s3://bucket/b.zip.
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*"
_SCHEMES = re.compile(rf"(?:^|(?<=::)){_SCHEME}(?=::|://)")
_URL = re.compile(rf"((?:{_SCHEME}::)*{_SCHEME}://)(.*?)(::{_SCHEME}(?:::|://).*)?", re.DOTALL)
_QUERY = re.compile(r"\?(?=[^?/]*=).*", re.DOTALL)
# A name alone is an account, as in sftp://ann@host, or a container; of HTTP it may be a token.
# A password with an unescaped / is told from a port, which is a number.
_UNESCAPED = (
    r"(?:(?<=http://)|(?<=https://)|(?<=ftp://))"
    r"[^/?#@:\s\[]*:(?!\d*[/?#])[^/?#@\s]*[/?#]\S*@"
)
_USER = re.compile(
    rf"{_UNESCAPED}|(?:(?<=http://)|(?<=https://))/*[^/?#\s]+@|(?<=://)[^/?#@:\s]*:[^/?#\s]*@",
    re.IGNORECASE,
)
_MISTYPED = re.compile(r"^((?:https?|s?ftp)(?::/{0,2}|//))[^/\s]*:\S*@", re.IGNORECASE)
_PROBLEMS = {
    _UNESCAPED: "/, # and ? in a password as %2F, %23 and %3F, found one as it is",
    r"(?:^|::)https?://(?:[^/?#]*@)?(?:[:/?#]|$)": "a host after ://, found none",
    r"(?:^|::)(?:file|local)://(?!/)": "file:///absolute/path, found a relative one",
}
_HOST = re.compile(r"https?://(?:[^/?#]*@)?([^/?#]*)", re.IGNORECASE)
_BARE_HOST = re.compile(r"\[[^\]/]*\]|[^/?#:]*")  # without the port
_ADDRESS = re.compile(r"(?:(?<=://\[)|(?<=@\[))[0-9A-Fa-f:.]*::[0-9A-Fa-f:.]*(?=\])")
_VALUE = re.compile(r"(?<=[?&;#])([^?&;#=:\s'\"]+)=([^&#\s'\">]*)")
_SECRET = re.compile(
    "x-(amz|goog)-|sig|token|key|secret|pass|pwd|cred|auth|policy|expires|session|jwt|hmac|^(code|pw|sas)$",
    re.IGNORECASE,
)
_LONG = 20  # characters of a value that may be a secret, whatever it is called
# A query or a fragment of HTTP without a name.
_BARE = re.compile(
    rf"(https?://[^\s'\"]*?[?#])([^=&#\s'\">]{{{_LONG},}}=*)(?=[&#\s'\">]|$)", re.IGNORECASE
)
_HIDDEN = "***"
_HIDES = re.compile(r"://\*{3}@|=\*{3}|https?://.*[?#]\*{3}", re.DOTALL)

_users: dict[str, str] = {}  # by host
_urls: dict[str, str] = {}  # by name


def is_url(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a URL.

    Example:
        >>> is_url("s3://bucket/yt8m/*.tfrecord"), is_url("simplecache::s3://bucket"), is_url("a/b")
        (True, True, False)
    """
    return isinstance(path, str) and "://" in path and _URL.match(path) is not None


def parts(url: str) -> tuple[str, str, str]:
    """Returns what precedes the path of a URL, the path, and the rest of a chain."""
    found = _URL.fullmatch(url)
    assert found is not None
    return found[1], found[2], found[3] or ""


def split(path: str) -> tuple[str, str]:
    """Returns the folder of a path or a URL, and the name in it, without a query.

    Example:
        >>> split("https://host/yt8m/a.tfrecord?x=1"), split("yt8m/a.tfrecord")
        (('https://host/yt8m', 'a.tfrecord'), ('yt8m', 'a.tfrecord'))
    """
    if not is_url(path):
        return os.path.split(path)
    start, place, rest = parts(path)
    folder, _, name = _QUERY.sub("", place).rpartition("/")
    return start + folder + rest, name


def parents(path: str) -> Sequence[Path | str]:
    """Returns the folder of a file and the folder above it, as far as there are any."""
    if not is_url(path):
        return [*Path(path).parents][:2]
    near = split(path)[0]
    _, place, _ = parts(near)
    return [near, split(near)[0]] if "/" in place.strip("/") else [near]


def beside(folder: Path | str, name: str) -> Path | str:
    """Returns the path or the URL of a file in a folder."""
    if isinstance(folder, Path) or not is_url(folder):
        return Path(folder) / name
    start, place, rest = parts(folder)
    place = _QUERY.sub("", place).rstrip("/")
    return f"{start}{place}{'/' if place else ''}{name}{rest}"


def is_http(url: str) -> bool:
    """Returns whether a URL is one of HTTP, if need be through a cache of fsspec."""
    return parts(url)[0].lower().endswith(("http://", "https://"))


def query(url: str) -> str:
    """Returns the query of a URL of HTTP, with the ``?`` that begins it.

    Example:
        >>> query("https://host/yt8m/?token=x"), query("s3://bucket/train?.tfrecord")
        ('?token=x', '')
    """
    return "".join(parts(url)[1].partition("?")[1:]) if is_http(url) else ""


def has_magic(url: str) -> bool:
    """Returns whether a URL is a glob.

    Of HTTP a ``?`` begins a query instead, and brackets may be those of an address, ``[::1]``.
    """
    place = parts(url)[1]
    if is_http(url):
        return glob.has_magic(place.partition("?")[0].partition("/")[2])
    return glob.has_magic(_QUERY.sub("", place).removeprefix(f"{_HIDDEN}@"))


def host(url: str) -> str:
    """Returns the host of a URL of HTTP, which may be the last of a chain, with its port.

    Example:
        >>> host("zip://a.tfrecord::https://ann@host:80/b.zip")
        'host:80'
    """
    found = _HOST.search(url)
    return found[1] if found else ""


def redacted(text: str) -> str:
    """Returns a text in which users, passwords and secrets of the URLs in it are hidden.

    Example:
        >>> redacted("https://ann:pw@host/a.tfrecord?part=1&X-Amz-Signature=0f3a")
        'https://***@host/a.tfrecord?part=1&X-Amz-Signature=***'
    """

    def hidden(found: re.Match[str]) -> str:
        if _SECRET.search(found[1]):  # it may have a ; of its own
            return f"{found[1]}={_HIDDEN}"
        value, semicolon, rest = found[2].partition(";")
        rest = _VALUE.sub(hidden, semicolon + rest)
        return f"{found[1]}={_digest(value)}{rest}"

    if "://" not in text:
        return text
    text = _BARE.sub(lambda found: found[1] + _digest(found[2]), text)
    return _VALUE.sub(hidden, _USER.sub(f"{_HIDDEN}@", text))


def _digest(value: str) -> str:
    """Returns a value of a query, hidden if it is long, with digits that tell it from others."""
    if len(value) < _LONG or value.startswith(_HIDDEN):
        return value
    return _HIDDEN + hashlib.sha256(value.encode()).hexdigest()[:8]


def problem(url: str) -> str | None:
    """Returns what is wrong with a URL, as "what was expected, found ..."; None: nothing is.

    Example:
        >>> problem("http:///a.tfrecord"), problem("http://host/a.tfrecord")
        ('a host after ://, found none', None)
    """
    found = (text for wrong, text in _PROBLEMS.items() if re.search(wrong, url))
    return next(found, None)


def _bare_host(place: str) -> str:
    """Returns the host at the beginning of what follows the user in a URL."""
    found = _BARE_HOST.match(place)
    return found[0] if found else ""


def _in_full(found: re.Match[str]) -> str:
    """Returns an IPv6 address without a ``::``, which fsspec takes for that of a chain."""
    with contextlib.suppress(ValueError):
        words = ipaddress.IPv6Address(found[0]).exploded.split(":")
        return ":".join(f"{int(word, 16):x}" for word in words)
    return found[0]


def named(path: Any) -> Any:
    """Returns the name of a URL, which `revealed` takes from now on, and anything else as it is.

    Except that the password of a URL whose scheme is mistyped is hidden. A scheme has no case.
    """
    if not is_url(path):
        return _MISTYPED.sub(rf"\1{_HIDDEN}@", path) if isinstance(path, str) else path
    path = _SCHEMES.sub(lambda found: found[0].lower(), _ADDRESS.sub(_in_full, path))
    name = redacted(path)
    if name != path and f"{_HIDDEN}@" not in path:
        for user in _USER.finditer(path):
            _users[_bare_host(path[user.end() :])] = user[0]
        _urls[name] = path
    return name


def revealed(name: str) -> str | None:
    """Returns the URL that a name stands for; None: this process does not know its secrets.

    Other files of a host have the user and the password that a URL of that host had.
    """
    if name in _urls:
        return _urls[name]
    at = f"://{_HIDDEN}@"
    before, found, place = name.partition(at)
    if found:
        user = _users.get(_bare_host(place))
        if user is None:
            return None
        name = f"{before}://{user}{place}"
    return None if _HIDES.search(name) else name


def hides(name: object) -> bool:
    """Returns whether a secret is hidden in the name of a URL, so that no other process opens it.

    Example:
        >>> hides("https://***@host/a"), hides("https://host/a?sig=***"), hides("s3://bucket/***")
        (True, True, False)
    """
    return isinstance(name, str) and is_url(name) and _HIDES.search(name) is not None


def secrets() -> tuple[dict[str, str], dict[str, str]]:
    """Returns what `revealed` knows, for `learn` in another process."""
    return _users, _urls


def learn(known: tuple[dict[str, str], dict[str, str]]) -> None:
    """Takes over the `secrets` of the process that started this one."""
    users, urls = known
    _users.update(users)
    _urls.update(urls)
