"""The features of single videos in full precision, each in a file that is whole or not there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pyseg._containers import read_json
from pyseg._files import LOCK, atomic_write, remove_unfinished, sole_owner, write_file
from pyseg.data import features as feature_set
from pyseg.errors import DataError, UserError
from pyseg.extract.manifest import Outcome, Video

_REQUEST = "request.json"


@dataclass(frozen=True)
class Parts:
    """The folder of the parts.

    Attributes:
        folder: The folder.
        width: The number of values of a row.
    """

    folder: Path
    width: int

    @property
    def features(self) -> Path:
        """The file that describes the features of the collection."""
        return self.folder / feature_set.FILE

    @contextlib.contextmanager
    def owned(self, request: Mapping[str, Any]) -> Iterator[None]:
        """Keeps other processes out while the block runs; then nothing is left if there is no part.

        Args:
            request: What the parts are of.

        Raises:
            pyseg.errors.UserError: Another process is at work there, or the parts belong to another
                request.
        """
        with sole_owner(self.folder):
            self._begin(request)
            try:
                yield
            finally:
                if not any(self.folder.glob("*.npy")):
                    self.remove()

    def _begin(self, request: Mapping[str, Any]) -> None:
        """Checks that the parts are those of a request, or makes them so where there are none.

        Raises:
            pyseg.errors.UserError: They belong to another one; the message says what differs.
        """
        remove_unfinished(self.folder)
        path = self.folder / _REQUEST
        text = json.dumps(request, sort_keys=True, indent=1)
        if path.is_file():
            before, now = read_json(path), json.loads(text)
            before = before if isinstance(before, dict) else {}
            for name in now:
                if before.get(name) != now[name]:
                    raise UserError(
                        f"{self.folder.parent}: its features have another {name}: expected "
                        f"{before.get(name)}, found {now[name]}; delete the folder or choose "
                        "another --out"
                    )
            return
        write_file(path, text.encode())

    def find(self, video: Video) -> Outcome | None:
        """Returns what became of a video, None where that is unknown or its file has changed."""
        try:
            found = read_json(self._state(video))
            stamp, outcome = found["stamp"], Outcome(**found["outcome"])
            if stamp == [video.size, video.mtime] and len(self.rows(video)) == outcome.frames:
                return outcome
        except (OSError, DataError, ValueError, KeyError, TypeError):
            pass
        return None

    def has(self, video: Video) -> bool:
        """Returns whether there are features of a video, perhaps of its file before a change."""
        return self._state(video).is_file()

    def rows(self, video: Video) -> npt.NDArray[np.float32]:
        """Returns the features of a video, (T, width), mapped from the file.

        Raises:
            pyseg.errors.DataError: The file is damaged.
            OSError: It cannot be read.
        """
        path = self._values(video)
        try:
            rows = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise DataError(f"{path}: expected the features of a video, found: {error}") from error
        if rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != self.width:
            raise DataError(
                f"{path}: expected float32 values of shape (T, {self.width}), found {rows.dtype} "
                f"of {rows.shape}"
            )
        return rows

    @contextlib.contextmanager
    def writer(self, video: Video) -> Iterator[PartWriter]:
        """Opens the part of a video; call `PartWriter.finish` at the end of the block."""
        self._state(video).unlink(missing_ok=True)
        with atomic_write(self._values(video)) as file:
            yield PartWriter(file, self.width)

    def finish(self, video: Video, outcome: Outcome) -> None:
        """Notes that the part of a video is complete."""
        with atomic_write(self._state(video)) as file:
            state = {"stamp": [video.size, video.mtime], "outcome": asdict(outcome)}
            file.write(json.dumps(state).encode())

    def remove(self) -> None:
        """Removes all parts."""
        for path in self.folder.iterdir():
            if path.name != LOCK:
                path.unlink()

    def _values(self, video: Video) -> Path:
        return self.folder / f"{video.key}.npy"

    def _state(self, video: Video) -> Path:
        return self.folder / f"{video.key}.json"


class PartWriter:
    """Writes rows to an .npy file, as they come.

    Args:
        file: The file.
        width: The number of values of a row.

    Attributes:
        rows: The rows so far.
    """

    def __init__(self, file: BinaryIO, width: int) -> None:
        self._file, self._width, self.rows = file, width, 0
        self._write_header()

    def _write_header(self) -> None:
        """Writes the header; NumPy pads it, so that the number of rows does not change its size."""
        shape = (self.rows, self._width)
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, header)

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Adds rows (B, width)."""
        self._file.write(np.ascontiguousarray(rows, "<f4").data)
        self.rows += len(rows)

    def finish(self) -> None:
        """Completes the header."""
        self._file.seek(0)
        self._write_header()
