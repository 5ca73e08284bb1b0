"""The files of the backbone ``youtube8m`` in a folder of the user's."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pyseg._containers import read_array
from pyseg.backbones.youtube8m.frozen_graph import read_frozen_graph
from pyseg.backbones.youtube8m.inception import CLASSES, WIDTH, Inception
from pyseg.backbones.youtube8m.projection import Projection, whitening
from pyseg.backbones.youtube8m.tensors import load, read_tensors
from pyseg.backbones.youtube8m.vggish import WIDTH as AUDIO_WIDTH
from pyseg.backbones.youtube8m.vggish import VGGish
from pyseg.errors import ArgumentError, DataError, MissingFileError

RGB_WIDTH = 1024

_PATTERNS = {
    "inception": ("*inception*.pth", "*inception*.safetensors", "classify_image_graph_def.pb"),
    "mean": ("mean.npy",),
    "eigenvals": ("eigenvals.npy",),
    "eigenvecs": ("eigenvecs.npy",),
    "vggish": ("vggish*.pth", "vggish*.safetensors"),
    "vggish_pca": tuple(f"vggish_pca_params*.{kind}" for kind in ("pth", "safetensors", "npz")),
}
_AUDIO = ("vggish", "vggish_pca")


class Files(NamedTuple):
    """The files; the last two are None where features of sound are not wanted."""

    inception: Path
    mean: Path
    eigenvals: Path
    eigenvecs: Path
    vggish: Path | None
    vggish_pca: Path | None

    @property
    def paths(self) -> list[Path]:
        """All files that are there."""
        return [path for path in self if path is not None]


def find_files(folder: str | os.PathLike[str]) -> Files:
    """Finds the files by their names.

    Raises:
        pyseg.errors.ArgumentError: `folder` is none, or holds several files for one use.
        pyseg.errors.MissingFileError: A file is missing, or one of VGGish's two.
    """
    place = Path(folder)
    if not place.is_dir():
        found = "a file" if place.exists() else "no folder"
        raise ArgumentError(
            f"weights: expected a folder with the files of youtube8m, found {found} at {place}"
        )
    found_files = {use: _find(place, use) for use in _PATTERNS}
    wanted = [use for use in _PATTERNS if use not in _AUDIO]
    if any(found_files[use] for use in _AUDIO):
        wanted += _AUDIO
    for use in wanted:
        if found_files[use] is None:
            raise MissingFileError(
                f"{place}: expected a file {' or '.join(_PATTERNS[use])}, found none"
            )
    return Files(**found_files)  # type: ignore[arg-type]


def _find(folder: Path, use: str) -> Path | None:
    others = folder.glob("vggish_pca_params*") if use == "vggish" else ()
    found = {path for pattern in _PATTERNS[use] for path in folder.glob(pattern)} - set(others)
    if len(found) > 1:
        names = ", ".join(sorted(path.name for path in found))
        raise ArgumentError(f"weights: expected one file of {use} in {folder}, found {names}")
    return found.pop() if found else None


def load_inception(path: Path) -> Inception:
    """Returns the network with the weights of a state dict, or of the published graph.

    Raises:
        pyseg.errors.DataError: They are damaged, or of another network, such as torchvision's.
        OSError: The file cannot be read.
    """
    tensors = read_frozen_graph(path) if path.suffix == ".pb" else read_tensors(path)
    classifier = tensors.get("fc.weight")
    found = "none" if classifier is None else str(tuple(classifier.shape))
    if found != str((CLASSES, WIDTH)):
        raise DataError(
            f"{path}: fc.weight: expected shape {(CLASSES, WIDTH)}, of Inception of 2015-12-05, "
            f"found {found}"
        )
    with torch.device("meta"):  # the values come from the file: do not draw them
        network = Inception()
    load(network, tensors, str(path))
    return network


def load_rgb_projection(files: Files) -> Projection:
    """Returns the projection of Inception's values.

    Raises:
        pyseg.errors.DataError: An array is damaged, or of another shape.
        OSError: A file cannot be read.
    """
    mean = _read(files.mean, (WIDTH, 1))[:, 0]
    variances = _read(files.eigenvals, (RGB_WIDTH, 1))[:RGB_WIDTH, 0]
    vectors = _read(files.eigenvecs, (RGB_WIDTH, WIDTH)).T[:, :RGB_WIDTH]
    if mean.shape != (WIDTH,) or vectors.shape[0] != WIDTH:
        raise DataError(
            f"{files.mean}: expected {WIDTH} values here and in each row of "
            f"{files.eigenvecs.name}, found {len(mean)} and {len(vectors)}"
        )
    if variances.min() < 0:
        raise DataError(f"{files.eigenvals}: expected values >= 0, found {variances.min()}")
    return whitening(mean, vectors, variances)


def _read(path: Path, least: tuple[int, int]) -> npt.NDArray[np.float32]:
    array = read_array(path)
    if array.ndim != 2 or array.shape[0] < least[0] or array.shape[1] < least[1]:
        raise DataError(f"{path}: expected shape {least} or more, found {array.shape}")
    return array.astype(np.float32)


def load_vggish(path: Path) -> VGGish:
    """Returns the network with the weights of a state dict.

    Raises:
        pyseg.errors.DataError: They are damaged, or of another network.
        OSError: The file cannot be read.
    """
    with torch.device("meta"):
        network = VGGish()
    load(network, read_tensors(path), str(path))
    return network


def load_audio_projection(path: Path) -> Projection:
    """Returns the projection of VGGish's values.

    Raises:
        pyseg.errors.DataError: The file is damaged, or holds others.
        OSError: The file cannot be read.
    """
    tensors = read_tensors(path)
    shapes = {"pca_eigen_vectors": (AUDIO_WIDTH, AUDIO_WIDTH), "pca_means": (AUDIO_WIDTH,)}
    arrays = {}
    for name, shape in shapes.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise DataError(f"{path}: expected the tensor {name}, found none of this name")
        if tensor.numel() != np.prod(shape) or tensor.shape[0] != AUDIO_WIDTH:
            raise DataError(f"{path}: {name}: expected shape {shape}, found {tuple(tensor.shape)}")
        if not tensor.isfinite().all():
            raise DataError(f"{path}: {name}: expected finite numbers, found others")
        arrays[name] = tensor.reshape(shape).numpy()
    vectors, mean = arrays["pca_eigen_vectors"], arrays["pca_means"]
    return Projection(mean, vectors.T, np.ones(AUDIO_WIDTH))  # an eigenvector in each row
