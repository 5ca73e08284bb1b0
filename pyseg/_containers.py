"""Reading JSON and NumPy files that may hold anything."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from pyseg.errors import DataError


def parse_json(content: str | bytes, name: str, *, finite: bool = True) -> Any:
    """Returns what JSON text says.

    Args:
        content: The text, UTF-8.
        name: What to call it in errors.
        finite: Whether NaN and infinite numbers are errors; JSON has none, Python writes them.

    Raises:
        DataError: It is not JSON or nested too deeply.

    Example:
        >>> parse_json('{"a": [1, 2.5]}', "it")
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
            json.dumps(value, ensure_ascii=False).encode()  # refuses halves of surrogate pairs
        return value
    except RecursionError:
        raise DataError(f"{name}: expected JSON, found too many levels of it") from None
    except ValueError as error:
        raise DataError(
            f"{name}: expected JSON, found {content[:60]!r}: {text_error(error)}"
        ) from error


def text_error(error: Exception) -> str:
    """Returns the first line of an error, short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def read_json(path: str | os.PathLike[str]) -> Any:
    """Returns what a JSON file says.

    Raises:
        DataError: See `parse_json`; the message names the file.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        return parse_json(file.read(), os.fspath(path))


def read_arrays(path: str | os.PathLike[str], name: str | None = None) -> dict[str, np.ndarray]:
    """Returns the arrays of an ``.npz`` file, or the one of an ``.npy`` file under the name "".

    Nothing in the file is executed.

    Args:
        path: The file.
        name: What to call it in errors; default: its path.

    Raises:
        DataError: It is neither, damaged, or holds Python objects; the message names it.
        OSError: It cannot be opened.
    """
    name = name or os.fspath(path)
    with open(path, "rb") as file:
        start = file.read(6)
        file.seek(0)
        if start != b"\x93NUMPY" and start[:2] != b"PK":  # the rest numpy takes for pickles
            found = f"a file that starts with {start!r}" if start else "an empty file"
            raise DataError(f"{name}: expected a NumPy file, found {found}")
        try:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        except Exception as error:  # whatever a damaged file leads zipfile and NumPy to
            told = text_error(error)
            if "allow_pickle" in told:
                told = "an array of Python objects"
            raise DataError(f"{name}: expected a NumPy file, found: {told}") from error
    for key, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{name}: expected arrays, found {key!r}, which is none")
    return arrays


def read_array(path: str | os.PathLike[str], name: str | None = None) -> np.ndarray:
    """Returns the array of finite numbers in an ``.npy`` file.

    Args:
        path: The file.
        name: What to call it in errors; default: its path.

    Raises:
        DataError: The file is something else, has no number in it, or one that is not finite.
        OSError: It cannot be opened.
    """
    name = name or os.fspath(path)
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
        OSError: It cannot be opened.
    """
    arrays = read_arrays(path)
    for name in names:
        if name not in arrays:
            raise DataError(
                f"{os.fspath(path)}: expected the array {name}, found "
                f"{', '.join(filter(None, arrays)) or 'none by a name'}"
            )
    return [arrays[name] for name in names]
