"""Where features to import lie: Parquet files. Needs pyarrow."""

from __future__ import annotations

import contextlib
import functools
import itertools
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow
from pyarrow import compute, parquet, types

from pyseg._containers import Shapes, text_error
from pyseg.data.importing_files import Arrays, Found, Source
from pyseg.errors import DataError

_IDS = ("video", "id")
_ORDERS = ("frame", "time")


def in_parquet(path: Path) -> Found:
    """Returns the videos of a Parquet file.

    A row has a video, if it has lists of lists or tensors of two axes, or else a frame, and then
    the rows of a video follow each other. Columns of anything but floating point numbers or uint8
    are ignored.

    Raises:
        pyseg.errors.DataError: It is no such file.
        OSError: It cannot be read.
    """
    with _expected_parquet(f"{path}"), _open(path) as file:
        schema = file.schema_arrow
        axes = {column.name: _axes(column.type) for column in schema}
        per_video = 2 in axes.values()
        features = [name for name, found in axes.items() if found == (2 if per_video else 1)]
        id_column = _id_column(path, schema)
        if not features:
            raise DataError(f"{path}: {_without_features(schema)}")
        order = None if per_video else next((name for name in _ORDERS if axes.get(name) == 0), None)
        columns = tuple([*features, order] if order else features)
        groups = (file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))
        ends = tuple(itertools.accumulate(groups))
        rows = _Rows(path, columns, order, per_video, ends)
        ids = itertools.chain.from_iterable(
            batch.column(0).to_pylist() for batch in file.iter_batches(columns=[id_column])
        )
        sources, start = [], 0
        for id, same in ((id, [id]) for id in ids) if per_video else itertools.groupby(ids):
            stop = start + sum(1 for _ in same)
            video = rows._replace(start=start, stop=stop)
            sources.append(Source(path, video.name, id, video.shapes, video.read))
            start = stop
        if start != file.metadata.num_rows:
            raise ValueError(f"{start} ids in {file.metadata.num_rows} rows")
    return Found(sources, [])


def _id_column(path: Path, schema: Any) -> str:
    """Returns the name of the column of ids.

    Raises:
        pyseg.errors.DataError: There is none, or more than one could be it.
    """
    there = {column.name: column.type for column in schema if column.name in _IDS}
    texts = [name for name, kind in there.items() if _is_text(kind)]
    if len(texts) > 1:
        raise DataError(
            f"{path}: expected the ids of videos in the column video or id, found text in both: "
            "leave one out, or give it another name"
        )
    if not texts:
        found = ", ".join(f"{name} of {kind}" for name, kind in there.items()) or "neither"
        raise DataError(f"{path}: expected a column video or id of text, found {found}")
    return texts[0]


def _without_features(schema: Any) -> str:
    """Returns what is wrong with a table that has no column of features."""
    expected = "lists of floating point numbers or uint8 (a frame), or lists of these (a video)"
    for column in schema:
        if _is_list(column.type) or isinstance(column.type, pyarrow.FixedShapeTensorType):
            return f"expected {expected} in the column {column.name}, found {column.type}"
    names = shorten(", ".join(column.name for column in schema), 100, placeholder=" ...")
    return f"expected a column of {expected}, found only {names}"


def _axes(kind: Any) -> int:
    """Returns how many axes the numbers in a cell have; 0 where it has no numbers in lists."""
    axes = 0
    if isinstance(kind, pyarrow.FixedShapeTensorType):
        kind, axes = kind.value_type, len(kind.shape)
    while _is_list(kind):
        kind, axes = kind.value_type, axes + 1
    return axes if types.is_floating(kind) or types.is_uint8(kind) else 0


def _is_text(kind: Any) -> bool:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return str(kind) in ("string", "large_string", "string_view")


def _is_list(kind: Any) -> bool:
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


class _Rows(NamedTuple):
    """The rows of a video in a file.

    Attributes:
        path: The file.
        columns: Those of the features, and that of the order.
        order: The name of the latter, if there is one.
        per_video: Whether the only row has a list of frames.
        ends: The rows at which the groups of the file end.
        start: The first row.
        stop: The row after the last one.
    """

    path: Path
    columns: tuple[str, ...]
    order: str | None
    per_video: bool
    ends: tuple[int, ...]
    start: int = 0
    stop: int = 0

    @property
    def name(self) -> str:
        """The file and the rows, counted from 0."""
        rows = f"row {self.start}" if self.per_video else f"rows {self.start} to {self.stop - 1}"
        return f"{self.path}, {rows}"

    def shapes(self) -> Shapes:
        """Returns shape and type of the features; their values are read and forgotten."""
        return {name: (array.shape, array.dtype) for name, array in self.read().items()}

    def read(self) -> Arrays:
        """Returns the features, frames in order.

        Raises:
            pyseg.errors.DataError: A value is missing, or lists are of several lengths.
        """
        status = self.path.stat()
        version = (status.st_size, status.st_mtime_ns)
        first, last = bisect_right(self.ends, self.start), bisect_right(self.ends, self.stop - 1)
        parts, begin = [], self.ends[first - 1] if first else 0
        with _expected_parquet(self.name):
            for group in range(first, last + 1):
                rows = _row_group(self.path, version, group, self.columns)
                low = max(self.start - begin, 0)
                parts.append(rows.slice(low, self.stop - begin - low))
                begin += len(rows)
            table = pyarrow.concat_tables(parts)
            if len(table) != self.stop - self.start:
                raise ValueError(f"{len(table)} rows where its metadata has others")
            arrays = {
                name: self._array(table.column(name).combine_chunks(), name)
                for name in self.columns
            }
            if self.order is not None:
                rank = self._rank(arrays.pop(self.order))
                arrays = {name: array[rank] for name, array in arrays.items()}
        if self.stop == self.ends[last]:
            _row_group.cache_clear()
        return {name: array[0] for name, array in arrays.items()} if self.per_video else arrays

    def _array(self, cells: Any, name: str) -> npt.NDArray[Any]:
        """Returns the cells of a column: the first axis is that of the rows, others follow."""
        tensors = cells if isinstance(cells.type, pyarrow.FixedShapeTensorType) else None
        level = cells if tensors is None else cells.storage
        shape = [len(level)]
        while True:
            if level.null_count:
                null = compute.index(level.is_null(), True).as_py() * shape[0] // len(level)
                raise DataError(
                    f"{self.path}, row {self.start + null}: expected no missing value in {name}, "
                    "found null"
                )
            if not _is_list(level.type):
                break
            lengths = compute.unique(compute.list_value_length(level)).to_pylist()
            if len(lengths) > 1:
                raise DataError(
                    f"{self.name}: expected lists of one length in {name}, found {lengths[0]} and "
                    f"{lengths[1]}"
                )
            shape.append(*lengths or [0])
            level = level.flatten()
        if tensors is not None:
            return np.asarray(tensors.to_numpy_ndarray())
        return np.asarray(level.to_numpy(zero_copy_only=False).reshape(shape))

    def _rank(self, numbers: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
        """Returns the rows in the order of their numbers or times."""
        if numbers.dtype.kind not in "iufmM":
            raise DataError(
                f"{self.name}: expected numbers or times in {self.order}, found {numbers[0]!r}"
            )
        rank = np.argsort(numbers)
        if not (rising := numbers[rank[:-1]] < numbers[rank[1:]]).all():
            found = numbers[rank[1:]][~rising][0]
            raise DataError(
                f"{self.name}: expected every frame at another {self.order}, found {found} again"
            )
        return rank


@functools.lru_cache(maxsize=1)
def _row_group(
    path: Path, version: tuple[int, int], group: int, columns: tuple[str, ...]
) -> pyarrow.Table:
    """Returns the columns of a row group, the last one of which is kept for its next video."""
    with _open(path) as file:
        return file.read_row_group(group, columns=list(columns))


@contextlib.contextmanager
def _open(path: Path) -> Iterator[parquet.ParquetFile]:
    with (
        open(path, "rb") as content,
        parquet.ParquetFile(content, page_checksum_verification=True) as file,
    ):
        yield file


@contextlib.contextmanager
def _expected_parquet(name: str) -> Iterator[None]:
    """Turns what pyarrow raises on a damaged file into an error that names it."""
    try:
        yield
    except (DataError, FileNotFoundError, PermissionError):
        raise
    except Exception as error:
        raise DataError(f"{name}: expected a Parquet file, found: {text_error(error)}") from error
