"""Backbones in ONNX files, run by ONNX Runtime: ``--backbone network.onnx``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pyseg._containers import text_error
from pyseg._extras import requires_package
from pyseg.backbones.base import Backbone
from pyseg.backbones.files import check_file, companions, read_beside
from pyseg.backbones.module import FEATURE, file_digest
from pyseg.backbones.registry import Request, register_backbone
from pyseg.errors import ArgumentError, DataError

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


@register_backbone(".onnx")
class OnnxBackbone(Backbone):
    """A network in an ONNX file.

    It takes images of one size, as (B, 3, H, W) or (B, H, W, 3), and returns features (B, N) as the
    first output that has two dimensions. ``network.json`` beside the file tells its preprocessing
    (`pyseg.backbones.preprocessing.Preprocessing`). An input of bytes gets the pixels as they are.

    Args:
        request: What names the file.

    Raises:
        pyseg.errors.DataError: The file is damaged, or such a network is not in it.
        pyseg.errors.UserError: ONNX Runtime is missing.
    """

    def __init__(self, request: Request) -> None:
        path = self._path = check_file(request)
        self._session = _session(path, request.device)
        [given, *others] = self._session.get_inputs()
        if others or given.type not in _TYPES or len(given.shape) != 4:
            found = ", ".join(f"{i.name} {i.type} {i.shape}" for i in (given, *others))
            raise DataError(f"{path}: expected one input of images (B, 3, H, W), found {found}")
        self._input, self._dtype = given.name, _TYPES[given.type]
        batch, *shape = (n if isinstance(n, int) else None for n in given.shape)
        self._last = shape[0] != 3 and shape[2] == 3  # the axis of the colors
        height, width = shape[:2] if self._last else shape[1:]
        size = None if height is None or width is None else (height, width)
        self._prepare = read_beside(path, size)
        if size not in (None, self._prepare.size):
            raise DataError(
                f"{path.with_suffix('.json')}: size: expected {list(size or ())} as {path.name} "
                f"has, found {list(self._prepare.size)}"
            )
        self._batch = batch
        self.size, self.crop = self._prepare.image_size, self._prepare.crop
        self.preprocessing = self._prepare.described()
        if self._dtype is np.uint8:
            for name in ("mean", "std", "scale"):
                self.preprocessing.pop(name)
        self.sha256 = file_digest(path, *companions(path))
        outputs = self._session.get_outputs()
        self._output = next((o.name for o in outputs if len(o.shape) == 2), outputs[0].name)
        rows = self(np.zeros((1, *self.size, 3), np.uint8))
        if rows.ndim != 2:
            raise DataError(
                f"{path}: expected an output of shape (B, N), found {self._output} of shape "
                f"{rows.shape}"
            )
        self.features = ((FEATURE, rows.shape[1]),)

    def __call__(
        self, images: npt.NDArray[np.uint8], windows: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Returns the features (B, N) of images (B, H, W, 3)."""
        if self._dtype is np.uint8:
            pixels = self._prepare.cut(images).transpose(0, 3, 1, 2)
        else:
            pixels = self._prepare(images).numpy().astype(self._dtype, copy=False)
        if self._last:
            pixels = pixels.transpose(0, 2, 3, 1)
        most = self._batch or len(pixels)
        rows = [self._run(pixels[at : at + most]) for at in range(0, len(pixels), most)]
        return np.concatenate(rows).astype(np.float32, copy=False)

    def _run(self, pixels: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Returns the features of images in the input's form, at most a fixed batch of them."""
        count = len(pixels)
        if self._batch is not None and count < self._batch:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], self._batch - count, 0)])
        try:
            [rows] = self._session.run([self._output], {self._input: np.ascontiguousarray(pixels)})
        except Exception as error:  # errors of ONNX Runtime have no common base
            raise DataError(f"{self._path}: the network fails: {text_error(error)}") from error
        return np.asarray(rows)[:count]


def _session(path: Path, device: torch.device) -> Any:
    """Returns the network, ready to run with as many threads as torch uses."""
    with requires_package("onnxruntime", f"--backbone {path}"):
        import onnxruntime
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.type)
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ArgumentError(
            f"device: expected one that ONNX Runtime has here ({', '.join(available)}), found "
            f"{device}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    chosen = provider if device.index is None else (provider, {"device_id": device.index})
    try:
        return onnxruntime.InferenceSession(path, options, providers=[chosen])
    except Exception as error:  # errors of ONNX Runtime have no common base
        raise DataError(f"{path}: expected an ONNX network, found: {text_error(error)}") from error
