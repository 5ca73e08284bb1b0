"""The label lists of videos, read from tables and records."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from pyseg._paths import path_text
from pyseg._remote import size_of
from pyseg.data._tables import (
    DAMAGED_GZIP,
    MAX_LINE,
    open_unpacked,
    read_rows,
    shown,
    whole_number,
)
from pyseg.data.records import ReadReport, VideoSchema, read_videos
from pyseg.errors import DataError

_BLOCK = 2**24  # bytes of a table read at a time
_ROWS = 2**16  # or rows


class LabelLists(NamedTuple):
    """The label lists of a block of videos.

    Attributes:
        offsets: (V + 1,) int64: video v has the labels ``labels[offsets[v]:offsets[v + 1]]``.
        labels: (L,) int64.
        left_out: The number of the block's videos that were excluded by id.
    """

    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    left_out: int = 0


def read_label_table(
    path: str | os.PathLike[str],
    *,
    exclude: Collection[str] = (),
    progress: Callable[[int], object] | None = None,
) -> Iterator[LabelLists]:
    r"""Reads a table of lines ``id,label label ...`` as CSV; gzip is recognised by content.

    A first line without a number after its comma is a header. Empty lines
    and spaces at the end of a line or around an id are ignored; a video may have no labels.

    Args:
        path: The table, UTF-8, or UTF-16 with a byte order mark.
        exclude: Ids to leave out.
        progress: Called with the number of bytes read since the last call.

    Yields:
        The label lists, a block at a time.

    Raises:
        DataError: A line is malformed; the message names file and line.
        OSError: The file cannot be read.

    Example:
        >>> import os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "lists.csv")
        >>> with open(path, "w") as file:
        ...     _ = file.write('a1b2,3 5\n"c3d4",0\n')
        >>> [lists] = read_label_table(path, exclude=["c3d4"])
        >>> lists.offsets.tolist(), lists.labels.tolist(), lists.left_out
        ([0, 2], [3, 5], 1)
    """
    from pyseg.data import _label_kernels

    name = path_text(path, remote=True)
    size = size_of(name)
    ids = set(exclude)
    encoded = {id.encode("utf-8", "surrogateescape") for id in ids}
    hashed = (_label_kernels.hash_id(np.frombuffer(id, np.uint8)) for id in encoded)
    hashes = np.sort(np.fromiter(hashed, np.uint64, len(encoded)))
    lines = done = 0
    for text, read in _plain_blocks(name):
        if text is None:
            break
        if progress is not None:
            progress(read - done)
            done = read
        before = lines
        lines += text.count(b"\n")
        if before == 0:
            text = text.removeprefix(b"\xef\xbb\xbf")
            head, _, rest = text.partition(b"\n")
            if _names_columns(head.decode().split(",")):
                before, text = 1, rest
        yield _parse(name, text, before, encoded, hashes)
    else:
        return
    if progress is not None:
        progress(size - done)
    rows = (  # lines that the parser cannot read
        row
        for row in read_rows(path)
        if row[0] > lines and not (row[0] == 1 and _names_columns(row[1]))
    )
    for first in rows:
        yield _of_rows(name, itertools.chain([first], itertools.islice(rows, _ROWS)), ids)


def read_label_records(
    path: str | os.PathLike[str],
    *,
    keep: Callable[[str], bool] | None = None,
    id_key: str = "id",
    on_error: str = "raise",
    report: ReadReport | None = None,
) -> Iterator[LabelLists]:
    """Reads the labels of TFRecords, frame-level or video-level; features are not decoded.

    Args:
        path: A TFRecord file, plain or gzip-compressed, or its URL.
        keep: Returns whether to keep a video, by id; default: all.
        id_key: Context feature with the id.
        on_error: See `pyseg.data.read_frames`.
        report: See `pyseg.data.read_frames`.

    Yields:
        The label lists, a block at a time.

    Raises:
        RecordError: The file cannot be read, or a record is damaged or not as expected.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from pyseg.data.records import encode_frames, write_records
        >>> path = os.path.join(tempfile.mkdtemp(), "frames.tfrecord")
        >>> write_records(path, [encode_frames("06xy", np.zeros((2, 1152), np.uint8), [4, 1])])
        1
        >>> [lists] = read_label_records(path)
        >>> lists.labels.tolist()
        [4, 1]
    """
    schema = VideoSchema(features=(), id_key=id_key)
    for videos in read_videos(path, schema, on_error=on_error, report=report):
        offsets, labels, left_out = videos.label_offsets, videos.labels, 0
        if keep is not None:
            kept = np.fromiter((keep(id) for id in videos.ids), np.bool_, len(videos.ids))
            left_out = int((~kept).sum())
            if left_out:
                offsets, labels = _only(offsets, labels, kept)
        yield LabelLists(offsets, labels, left_out)


def _plain_blocks(name: str) -> Iterator[tuple[bytes | None, int]]:
    """Yields blocks of complete lines, and the bytes of the file read so far.

    None is the last block if the next lines are not plain, too long or damaged.
    """
    rest = b""
    with open_unpacked(name) as file:
        raw = getattr(file, "fileobj", file)
        while True:
            try:
                block = file.read(_BLOCK)
            except DAMAGED_GZIP:
                break
            rest += block
            cut = rest.rfind(b"\n") + 1 if block else len(rest)
            text, rest = rest[:cut], rest[cut:]
            if not _is_plain(text or block) or len(rest) > MAX_LINE:
                break
            if text:
                yield text, raw.tell()
            if not block:
                return
    yield None, 0


def _is_plain(text: bytes) -> bool:
    """Returns whether a text is UTF-8 without quotes, with lines that end with LF."""
    if b'"' in text or b"\0" in text:
        return False
    if b"\r" in text and text.count(b"\r") != text.count(b"\r\n"):
        return False
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            return False
    return True


def _names_columns(fields: Sequence[str]) -> bool:
    """Returns whether a first line is a header such as ``id,labels``."""
    return len(fields) > 1 and fields[1][:1].isalpha()


def _parse(
    name: str, text: bytes, before: int, ids: set[bytes], hashes: NDArray[np.uint64]
) -> LabelLists:
    from pyseg.data import _label_kernels

    size = text.count(b"\n") + 1
    starts, offsets = np.empty(size, np.int64), np.zeros(size + 1, np.int64)
    labels = np.empty(len(text) // 2 + 1, np.int64)
    marked = np.zeros(size, np.bool_)
    data = np.frombuffer(text, np.uint8)
    count, wrong = _label_kernels.parse(data, hashes, starts, offsets, labels, marked)
    if wrong:
        start = int(starts[count - 1])
        line = text[start:].partition(b"\n")[0].decode().removesuffix("\r")
        _refuse(name, before + text.count(b"\n", 0, start) + 1, line, wrong)
    offsets = offsets[: count + 1]
    labels = labels[: offsets[-1]]
    candidates = np.flatnonzero(marked[:count])
    begins = starts[candidates].tolist()
    found = [text[begin : text.index(b",", begin)].strip(b" ") in ids for begin in begins]
    if not any(found):
        return LabelLists(offsets, labels)
    keep = np.ones(count, np.bool_)
    keep[candidates] = ~np.array(found)
    return LabelLists(*_only(offsets, labels, keep), sum(found))


def _of_rows(name: str, rows: Iterable[tuple[int, list[str]]], ids: set[str]) -> LabelLists:
    """Returns the label lists of rows that were read as CSV, as `_parse` does."""
    from pyseg.data import _label_kernels

    sizes, left_out = [0], 0
    labels: list[int] = []
    for line, (id, *fields) in rows:
        if not fields:
            _refuse(name, line, id, _label_kernels.NO_COMMA)
        words = [word for word in ",".join(fields).split(" ") if word]
        for word in words:
            if whole_number(word) is None:
                digits = word.isascii() and word.isdigit()
                wrong = _label_kernels.TOO_LARGE if digits else _label_kernels.NO_NUMBER
                _refuse(name, line, ",".join([id, *fields]), wrong)
        if id.strip(" ") in ids:
            left_out += 1
        else:
            sizes.append(len(words))
            labels += map(int, words)
    return LabelLists(np.cumsum(sizes), np.array(labels, np.int64), left_out)


def _refuse(name: str, line: int, found: str, wrong: int) -> NoReturn:
    from pyseg.data import _label_kernels

    expected = {
        _label_kernels.NO_COMMA: "id,label label ...",
        _label_kernels.NO_NUMBER: "labels to be whole numbers with spaces between",
        _label_kernels.TOO_LARGE: "labels of at most 9 digits",
    }[wrong]
    raise DataError(f"{name}, line {line}: expected {expected}, found {shown(found)}")


def _only(
    offsets: NDArray[np.int64], labels: NDArray[np.int64], keep: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the lists of some videos."""
    sizes = np.diff(offsets)
    kept = np.concatenate(([0], np.cumsum(sizes[keep])))
    return kept, labels[np.repeat(keep, sizes)]
