"""Where features to import lie: NumPy files, and samples in WebDataset's tar files."""

from __future__ import annotations

import functools
import io
import os
import posixpath
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeVar

import numpy.typing as npt

from pyseg._containers import Shapes, arrays_in, read_arrays, read_shapes, shapes_in, text_error
from pyseg.data.records import is_line_of_text
from pyseg.errors import DataError

SUFFIXES = (".npy", ".npz")
"""The names of NumPy files, and of the members of a tar file, end so."""

Arrays = dict[str, npt.NDArray[Any]]
_CHUNK = 1 << 20  # bytes
_T = TypeVar("_T")


class Source(NamedTuple):
    """The features of a video, before they are read.

    Attributes:
        path: The file.
        name: The file and the place in it, for messages.
        id: The id of the video.
        shapes: Returns shape and type of the features, by name.
        read: Returns the features, by name.
    """

    path: Path
    name: str
    id: str
    shapes: Callable[[], Shapes]
    read: Callable[[], Arrays]


class Found(NamedTuple):
    """What a file has.

    Attributes:
        sources: Its videos, in order.
        left_out: A line for each sample without features.
    """

    sources: list[Source]
    left_out: list[str]


def in_numpy(path: Path, folder: Path, feature_name: str) -> Found:
    """Returns the video of an ``.npy`` or ``.npz`` file, whose name is the id.

    Args:
        path: The file.
        folder: Subfolders of it are a part of the id.
        feature_name: The name of the feature in an ``.npy`` file.
    """

    def named(read: Callable[[str], dict[str, _T]]) -> dict[str, _T]:
        return {name or feature_name: found for name, found in read(os.fspath(path)).items()}

    id = path.relative_to(folder).with_suffix("").as_posix()
    shapes, read = functools.partial(named, read_shapes), functools.partial(named, read_arrays)
    shown = f"{path}" if is_line_of_text(f"{path}") else repr(f"{path}")
    return Found([Source(path, shown, id, shapes, read)], [])


def in_tar(path: Path, feature_name: str) -> Found:
    """Returns the videos of a tar file as of WebDataset. Nothing is unpacked.

    The members of a sample have the same name up to the first dot after the last slash, which is
    the id of the video. ``ID.npy`` has the feature ``feature_name``, ``ID.clip.npy`` the feature
    clip, and ``ID.npz`` several by name.

    A sample that has a member twice, or one that is no regular file, raises when it is looked at.

    Raises:
        pyseg.errors.DataError: It is no tar file, damaged, cut short or compressed.
        OSError: It cannot be read.
    """
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    wrong: dict[str, DataError] = {}
    for member in _members(path):
        if member.isdir():
            continue
        head, base = posixpath.split(member.name.removeprefix("./"))
        base, _, rest = base.partition(".")
        if not base or not rest:
            continue  # hidden, or no sample
        id = posixpath.join(head, base)
        members = samples.setdefault(id, {})
        if not f".{rest}".endswith(SUFFIXES):
            continue
        name = f"{path}, {member.name!r}"
        if not member.isreg() or member.issparse():
            wrong[id] = DataError(
                f"{name}: expected a regular file, found a link or a special file"
            )
        if rest in members:
            wrong[id] = DataError(f"{name}: expected every member once, found it again")
        members[rest] = member
    found = Found([], [])
    for id, members in samples.items():
        name = f"{path}, {id!r}"
        if not members:
            found.left_out.append(f"{name}: no member ends in {' or '.join(SUFFIXES)}")
            continue
        read = functools.partial(_of_members, path, members, feature_name)
        look, take = functools.partial(read, shapes_in), functools.partial(read, _read_member)
        if id in wrong:
            look = functools.partial(_fail, wrong[id])
        found.sources.append(Source(path, name, id, look, take))
    return found


def _fail(error: DataError) -> dict[str, Any]:
    raise error


def _members(path: Path) -> list[tarfile.TarInfo]:
    """Returns all members, having seen that the file is whole.

    `tarfile` takes whatever is no header for the end. So what follows has to be zeros, which end a
    tar file, and a negative size must not lead back.
    """
    members: list[tarfile.TarInfo] = []
    with open(path, "rb") as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if members and member.offset <= members[-1].offset:
                        raise tarfile.ReadError("a member of negative size")
                    members.append(member)
                file.seek(tar.offset)
            if not (chunk := file.read(_CHUNK)):
                raise tarfile.ReadError("no end of the archive")
            while chunk:
                if chunk.count(0) < len(chunk):
                    raise tarfile.ReadError("neither a member nor the end of the archive")
                chunk = file.read(_CHUNK)
        except OSError:
            raise
        except Exception as error:  # tarfile raises anything on a damaged file
            after = f" after {members[-1].name!r}" if members else ""
            raise DataError(
                f"{path}: expected a whole tar file that is not compressed, found{after}: "
                f"{text_error(error)}"
            ) from error
    return members


def _of_members(
    path: Path,
    members: Mapping[str, tarfile.TarInfo],
    feature_name: str,
    read: Callable[[IO[bytes], str], dict[str, _T]],
) -> dict[str, _T]:
    """Returns what a function finds in the members of a sample, by the name of the feature."""
    found: dict[str, _T] = {}
    name = f"{path}"
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for rest, member in members.items():
                name = f"{path}, {member.name!r}"
                content = tar.extractfile(member)
                assert content is not None  # of a regular file
                for key, value in read(content, name).items():
                    feature = key or (feature_name if rest == "npy" else rest.removesuffix(".npy"))
                    if feature in found:
                        raise DataError(f"{name}: expected {feature} once, found it again")
                    found[feature] = value
    except tarfile.TarError as error:
        raise DataError(f"{name}: expected the same member as before, found: {error}") from error
    return found


def _read_member(content: IO[bytes], name: str) -> Arrays:
    return arrays_in(io.BytesIO(content.read()), name)
