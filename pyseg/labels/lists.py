"""Label lists of videos, from tables and from records, without anything else that these hold."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from pyseg.data.records import ReadReport, VideoSchema, read_videos
from pyseg.errors import DataError

_BLOCK = 2**24  # bytes of a table that are read at a time


class LabelLists(NamedTuple):
    """The label lists of a block of videos.

    Attributes:
        offsets: (V + 1,) int64: video v has the labels ``labels[offsets[v]:offsets[v + 1]]``.
        labels: (L,) int64.
        left_out: How many videos of the block were left out because of their ids.
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
    r"""Reads a table of lines ``id,label label ...``, plain or gzip-compressed.

    A first line without a number after its comma is taken as the columns' names. Empty lines and
    spaces at the end of a line make no difference; a video may have no labels.

    Args:
        path: The table, UTF-8.
        exclude: Ids to leave out.
        progress: Called with the number of bytes of the file read since it was last called.

    Yields:
        Blocks of the file.

    Raises:
        DataError: A line is malformed; the message names file and line.
        OSError: The file cannot be read.

    Example:
        >>> import os, tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "lists.csv")
        >>> with open(path, "w") as file:
        ...     _ = file.write("a1b2,3 5\nc3d4,0\n")
        >>> [lists] = read_label_table(path, exclude=["c3d4"])
        >>> lists.offsets.tolist(), lists.labels.tolist(), lists.left_out
        ([0, 2], [3, 5], 1)
    """
    from pyseg.labels import _kernels

    name = os.fspath(path)
    ids = {id.encode() for id in exclude}
    hashed = (_kernels.hash_id(np.frombuffer(id, np.uint8)) for id in ids)
    hashes = np.sort(np.fromiter(hashed, np.uint64, len(ids)))
    lines, first = 0, True
    for text in _whole_lines(name, progress):
        if first:
            text = text.removeprefix(b"\xef\xbb\xbf")
            head, _, rest = text.partition(b"\n")
            if _names_columns(head):
                text, lines = rest, 1
            first = False
        yield _parse(name, text, lines, ids, hashes)
        lines += text.count(b"\n")


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
        path: A TFRecord file, plain or gzip-compressed.
        keep: Whether the video with an id counts. ``None``: all do.
        id_key: Context feature with the id.
        on_error: See `pyseg.data.read_frames`.
        report: See `pyseg.data.read_frames`.

    Yields:
        Blocks of the file.

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


def _whole_lines(name: str, progress: Callable[[int], object] | None) -> Iterator[bytes]:
    """Yields a file in blocks that end where a line does."""
    with open(name, "rb") as file:
        source: BinaryIO | Any = file
        if file.peek(2)[:2] == b"\x1f\x8b":
            source = gzip.GzipFile(fileobj=file)
        done, rest = 0, b""
        try:
            while block := source.read(_BLOCK):
                if progress is not None:
                    progress(file.tell() - done)
                    done = file.tell()
                cut = block.rfind(b"\n") + 1
                if cut:
                    yield rest + block[:cut]
                    rest = block[cut:]
                else:
                    rest += block
        except (EOFError, gzip.BadGzipFile) as error:
            raise DataError(f"{name}: not a text table: {error}") from error
        if rest:
            yield rest


def _names_columns(line: bytes) -> bool:
    """Whether a first line is ``id,labels`` or the like."""
    _, comma, labels = line.partition(b",")
    return bool(comma) and labels[:1].isalpha()


def _parse(
    name: str, text: bytes, before: int, ids: set[bytes], hashes: NDArray[np.uint64]
) -> LabelLists:
    from pyseg.labels import _kernels

    size = text.count(b"\n") + 1
    starts, offsets = np.empty(size, np.int64), np.zeros(size + 1, np.int64)
    labels = np.empty(len(text) // 2 + 1, np.int64)
    marked = np.zeros(size, np.bool_)
    data = np.frombuffer(text, np.uint8)
    count, wrong = _kernels.parse(data, hashes, starts, offsets, labels, marked)
    if wrong:
        _refuse(name, text, int(starts[count - 1]), before, wrong)
    offsets = offsets[: count + 1]
    labels = labels[: offsets[-1]]
    candidates = np.flatnonzero(marked[:count])
    begins = starts[candidates].tolist()
    found = [text[begin : text.index(b",", begin)] in ids for begin in begins]
    if not any(found):
        return LabelLists(offsets, labels)
    keep = np.ones(count, np.bool_)
    keep[candidates] = ~np.array(found)
    return LabelLists(*_only(offsets, labels, keep), sum(found))


def _refuse(name: str, text: bytes, start: int, before: int, wrong: int) -> NoReturn:
    from pyseg.labels import _kernels

    end = text.find(b"\n", start)
    line = text[start : end if end >= 0 else len(text)].decode(errors="replace").rstrip("\r")
    expected = {
        _kernels.NO_COMMA: "id,label label ...",
        _kernels.NO_NUMBER: "labels to be whole numbers with spaces between",
        _kernels.TOO_LARGE: "labels of at most 9 digits",
    }[wrong]
    number = before + text.count(b"\n", 0, start) + 1
    shown = line if len(line) <= 60 else line[:60] + "..."
    raise DataError(f"{name}, line {number}: expected {expected}, found {shown!r}")


def _only(
    offsets: NDArray[np.int64], labels: NDArray[np.int64], keep: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the lists of some videos."""
    sizes = np.diff(offsets)
    kept = np.concatenate(([0], np.cumsum(sizes[keep])))
    return kept, labels[np.repeat(keep, sizes)]
