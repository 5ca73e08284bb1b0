"""Reading JSON and NumPy files that are not trusted."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Iterable
from typing import IO, Any

import numpy as np

from pyseg import _remote
from pyseg._paths import path_text
from pyseg.errors import DataError

Shapes = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Shape and type of arrays, by name."""


def parse_json(content: str | bytes, name: str, *, finite: bool = True) -> Any:
    """Returns the value of a JSON text.

    Args:
        content: The text, UTF-8.
        name: Its name in errors.
        finite: Whether NaN and infinite numbers, which Python writes against the standard, raise.

    Raises:
        DataError: It is not JSON or nested too deeply.

    Example:
        >>> parse_json('{"a": [1, 2.5]}', "config.json")
        {'a': [1, 2.5]}
    """

    def number(text: str) -> float:
        value = float(text)
        if finite and not math.isfinite(value):
            raise ValueError(f"the number {text}")
        return value

    try:
        text = content.decode() if isinstance(content, bytes) else content
        value = json.loads(text, parse_constant=number, parse_float=number)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # refuses lone surrogates
        return value
    except RecursionError:
        raise DataError(f"{name}: expected JSON, found it nested too deeply") from None
    except ValueError as error:
        raise DataError(
            f"{name}: expected JSON, found {content[:60]!r}: {text_error(error)}"
        ) from error


def text_error(error: Exception) -> str:
    """Returns the first line of an error, at most 200 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def is_number(value: object) -> bool:
    """Returns whether a value of a JSON text is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def read_json(path: str | os.PathLike[str]) -> Any:
    """Returns the value of a JSON file.

    Raises:
        DataError: See `parse_json`; the message names the file.
        OSError: The file cannot be read.
    """
    name = path_text(path, remote=True)
    with _remote.open_file(name) as file:
        return parse_json(file.read(), name)


def read_arrays(path: str | os.PathLike[str], name: str | None = None) -> dict[str, np.ndarray]:
    """Returns the arrays of an ``.npz`` file, or the one of an ``.npy`` file under the name "".

    Nothing in the file is executed.

    Args:
        path: The file.
        name: Its name in errors; default: its path.

    Raises:
        DataError: The file is of another kind, damaged, or holds Python objects.
        OSError: The file cannot be opened.
    """
    path = path_text(path)
    with open(path, "rb") as file:
        return arrays_in(file, name or path)


def arrays_in(file: IO[bytes], name: str) -> dict[str, np.ndarray]:
    """Returns what `read_arrays` does, from an open file at its beginning.

    Raises:
        DataError: See `read_arrays`; the message begins with ``name``.
    """
    _check_start(file, name)
    try:
        loaded = np.load(file, allow_pickle=False)
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except Exception as error:  # zipfile and NumPy raise anything on a damaged file
        reason = text_error(error)
        if "allow_pickle" in reason:
            reason = "an array of Python objects"
        raise DataError(f"{name}: expected a NumPy file, found: {reason}") from error
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{name}: expected arrays, found {key!r}, which is not one")
    return arrays


def read_shapes(path: str | os.PathLike[str]) -> Shapes:
    """Returns shape and type of the arrays that `read_arrays` returns, without reading them.

    Raises:
        DataError: See `read_arrays`.
        OSError: The file cannot be opened.

    Example:
        >>> import tempfile
        >>> path = os.path.join(tempfile.mkdtemp(), "clip.npy")
        >>> np.save(path, np.zeros((12, 512), np.float16))
        >>> read_shapes(path)
        {'': ((12, 512), dtype('float16'))}
    """
    name = path_text(path)
    with open(name, "rb") as file:
        return shapes_in(file, name)


def shapes_in(file: IO[bytes], name: str) -> Shapes:
    """Returns what `read_shapes` does, from an open file at its beginning.

    Raises:
        DataError: See `read_arrays`; the message begins with ``name``.
    """
    _check_start(file, name)
    try:
        if file.read(2) != b"PK":
            file.seek(0)
            return {"": _header(file)}
        with zipfile.ZipFile(file) as archive:
            shapes = {}
            for member in archive.namelist():
                with archive.open(member) as array:
                    shapes[member.removesuffix(".npy")] = _header(array)
            return shapes
    except Exception as error:  # zipfile and NumPy raise anything on a damaged file
        raise DataError(f"{name}: expected a NumPy file, found: {text_error(error)}") from error


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:  # of types with names that are not Latin
        raise ValueError(f"an array of the format's version {version[0]}.{version[1]}")
    if dtype.hasobject:
        raise ValueError("an array of Python objects")
    return shape, dtype


def _check_start(file: IO[bytes], name: str) -> None:
    """Checks that a file begins as .npy and .npz files do, and returns to its beginning."""
    start = file.read(6)
    file.seek(0)
    if start != b"\x93NUMPY" and start[:2] != b"PK":  # NumPy takes all else for pickles
        found = f"a file that starts with {start!r}" if start else "an empty file"
        raise DataError(f"{name}: expected a NumPy file, found {found}")


def read_array(path: str | os.PathLike[str], name: str | None = None) -> np.ndarray:
    """Returns the array of finite numbers in an ``.npy`` file.

    Args:
        path: The file.
        name: Its name in errors; default: its path.

    Raises:
        DataError: The file is of another kind, holds no number, or one that is not finite.
        OSError: The file cannot be opened.
    """
    name = name or path_text(path)
    arrays = read_arrays(path, name)
    if "" not in arrays:
        raise DataError(f"{name}: expected an .npy file of one array, found an .npz file")
    array = arrays[""]
    if array.dtype.kind not in "fiu" or not array.size:
        found = f"the type {array.dtype}" if array.size else "none"
        raise DataError(f"{name}: expected numbers, found {found}")
    if not (good := np.isfinite(array)).all():
        raise DataError(f"{name}: expected finite numbers, found {array[~good][0]}")
    return array


def read_named_arrays(path: str | os.PathLike[str], names: Iterable[str]) -> list[np.ndarray]:
    """Returns the named arrays of an ``.npz`` file.

    Raises:
        DataError: See `read_arrays`; or an array is missing.
        OSError: The file cannot be opened.
    """
    arrays = read_arrays(path)
    for name in names:
        if name not in arrays:
            raise DataError(
                f"{os.fspath(path)}: expected the array {name}, found "
                f"{', '.join(filter(None, arrays)) or 'no named array'}"
            )
    return [arrays[name] for name in names]
