"""What the backbones in files of their own have in common."""

from __future__ import annotations

import logging
from pathlib import Path

from pyseg._containers import read_json
from pyseg.backbones.preprocessing import Preprocessing, Size, parse_preprocessing
from pyseg.backbones.registry import Request
from pyseg.errors import ArgumentError, DataError, MissingFileError

_LOG = logging.getLogger("pyseg")


def check_file(request: Request) -> Path:
    """Returns the file that a request names.

    Raises:
        pyseg.errors.ArgumentError: There are weights besides.
        pyseg.errors.MissingFileError: There is no such file.
    """
    path = Path(request.argument)
    if not path.is_file():
        raise MissingFileError(f"--backbone {path}: expected a network, found no such file")
    if request.weights is not None:
        raise ArgumentError(
            f"weights: expected none, as {path} holds them; found {request.weights}"
        )
    return path


def companions(path: Path) -> list[Path]:
    """Returns the files beside an ONNX file that hold its weights where they are large."""
    names = [f"{path.name}.data", f"{path.name}_data"]
    return [other for name in names if (other := path.with_name(name)).is_file()]


def read_beside(path: Path, size: Size | None) -> Preprocessing:
    """Returns the preprocessing in the .json file beside a network, or else ImageNet's.

    Args:
        path: The network.
        size: (H, W) of its input, if it is fixed.

    Raises:
        pyseg.errors.DataError: The file has another content, or the size is unknown without it.
    """
    beside = path.with_suffix(".json")
    if beside.is_file():
        return parse_preprocessing(read_json(beside), str(beside), size)
    if size is None:
        raise DataError(
            f"{path}: expected the size of its images, as the network takes any, in a file "
            f'{beside}, such as {{"size": [224, 224]}}; found none'
        )
    _LOG.info(
        "%s: images are stretched to %d x %d and scaled with ImageNet's mean and deviation, as "
        "there is no %s",
        *(path, *size, beside),
    )
    return Preprocessing(size)
