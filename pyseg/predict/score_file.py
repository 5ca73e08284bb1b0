"""The file of all scores, one row per segment."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pyseg._copies import Download
from pyseg._files import atomic_write
from pyseg.errors import DataError

_CHUNK = 1 << 22  # bytes read at once


class ScoreFile:
    """An .npz file of scores, whose rows are collected in another file until all are known.

    Args:
        path: The .npz file.
        folder: Where the rows are collected.
        num_classes: The number of classes C.

    Attributes:
        path: The .npz file.
        rows: The file of the rows so far.
        digest: The digest of these rows.
    """

    _last: Download | None = None

    def __init__(self, path: Path, folder: Path, num_classes: int) -> None:
        self.path = path
        self.rows = folder / "scores.raw"
        self.digest = hashlib.sha256()
        self._row_bytes = 4 * num_classes
        folder.mkdir(parents=True, exist_ok=True)

    def truncate(self, rows: int, digest: str) -> None:
        """Drops all rows after those of the saved state.

        Args:
            rows: How many rows to keep.
            digest: The digest that they should have.

        Raises:
            pyseg.errors.DataError: They are missing or damaged.
        """
        left = rows * self._row_bytes
        with open(self.rows, "a+b") as file:
            file.truncate(min(left, file.tell()))
            file.seek(0)
            while chunk := file.read(_CHUNK):
                self.digest.update(chunk)
                left -= len(chunk)
        if left or (rows and self.digest.hexdigest() != digest):
            raise DataError(
                f"{self.rows}: expected {rows} rows of the digest {digest}, found "
                f"{'fewer' if left else self.digest.hexdigest()}: delete the folder to start anew"
            )

    def add(self, scores: Tensor, candidates: Tensor | None) -> None:
        """Adds rows of scores (S, C); pairs that are not candidates (False) become -inf.

        They are written with the next rows, so that a GPU need not wait for their copy.
        """
        if candidates is not None:
            scores = scores.masked_fill(~candidates, -torch.inf)
        last, self._last = self._last, Download(scores)
        self._write(last)

    def _write(self, copy: Download | None) -> None:
        if copy is None:
            return
        rows = np.ascontiguousarray(copy.array(), np.float32).data
        self.digest.update(rows)
        with open(self.rows, "ab") as file:
            file.write(rows)

    def written(self) -> str:
        """Returns the digest of all rows, after writing the last ones."""
        last, self._last = self._last, None
        self._write(last)
        return self.digest.hexdigest()

    def append(self, other: ScoreFile) -> None:
        """Adds the rows of another file."""
        self.written()
        with open(self.rows, "ab") as file, open(other.rows, "rb") as rows:
            shutil.copyfileobj(rows, file, _CHUNK)

    def finish(self, segments: Sequence[str], classes: Sequence[int]) -> None:
        """Writes the .npz file, with the names of its rows and the numbers of its columns."""
        self.written()
        shape = (len(segments), len(classes))
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        with atomic_write(self.path) as file, zipfile.ZipFile(file, "w") as archive:
            for name, array in (
                ("segments", np.array(segments, str)),
                ("classes", np.array(classes, np.int64)),
            ):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
            with archive.open("scores.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_2_0(member, header)
                with open(self.rows, "rb") as rows:
                    shutil.copyfileobj(rows, member, _CHUNK)
