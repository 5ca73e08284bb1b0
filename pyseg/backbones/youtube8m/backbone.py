"""The backbone ``youtube8m``: the features that YouTube-8M publishes, of videos of one's own."""

from __future__ import annotations

import contextlib

import numpy as np
import numpy.typing as npt
import torch

from pyseg.backbones.base import AudioWindows, Backbone
from pyseg.backbones.module import file_digest
from pyseg.backbones.registry import Request, register_backbone
from pyseg.backbones.youtube8m import files as _files
from pyseg.backbones.youtube8m import vggish
from pyseg.backbones.youtube8m.inception import prepare
from pyseg.errors import ArgumentError
from pyseg.ops.frames import RANGE


class YouTube8M(Backbone):
    """YouTube-8M's features: rgb, of 1,024 values, and audio, of 128.

    rgb is the last pooling of the Inception of 2015-12-05, audio is the embedding of VGGish before
    its last ReLU; both are projected onto principal components, rgb is whitened besides. Without
    files of VGGish there is no audio. A video without sound has 0 for all its audio: after the
    projection, that is the mean.
    """

    def __init__(self, folder: str, device: str | torch.device = "cpu") -> None:
        """Reads the networks.

        Args:
            folder: Holds the files; `docs/youtube8m_features.md` has their names.
            device: The device to compute on.

        Raises:
            pyseg.errors.ArgumentError: `folder` is none, or files are ambiguous.
            pyseg.errors.MissingFileError: A file is missing.
            pyseg.errors.DataError: A file is damaged, or of another network.
            OSError: A file cannot be read.
        """
        files = _files.find_files(folder)
        self.device = torch.device(device)
        self.sha256 = file_digest(*files.paths)
        self.features = (("rgb", _files.RGB_WIDTH),)
        self._inception = _files.load_inception(files.inception).to(self.device)
        self._rgb = _files.load_rgb_projection(files).to(self.device)
        self.preprocessing = {
            "resize": "ResizeBilinear of TensorFlow 1 to 299x299",
            "scale": "(x - 128) / 128",
        }
        if files.vggish is not None and files.vggish_pca is not None:
            self.features += (("audio", vggish.WIDTH),)
            self.audio = AudioWindows(
                seconds=vggish.SAMPLES / vggish.RATE, hop=vggish.HOP_SECONDS, rate=vggish.RATE
            )
            self._vggish = _files.load_vggish(files.vggish).to(self.device)
            self._audio = _files.load_audio_projection(files.vggish_pca).to(self.device)
            self.preprocessing["audio"] = "log-mel of 0.96 s each 1.00 s, 16 kHz"
        self.ranges = (RANGE,) * len(self.features)

    def __call__(
        self, images: npt.NDArray[np.uint8], windows: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.float32]:
        """Returns the features (B, 1024) or, with audio, (B, 1152)."""
        with torch.inference_mode(), _full_precision(self.device):
            frames = torch.from_numpy(np.require(images, requirements=["C", "W"])).to(self.device)
            parts = [self._rgb(self._inception(prepare(frames))).cpu().numpy()]
            if self.audio is not None:
                parts.append(self._sound(windows, len(images)))
        return np.concatenate(parts, axis=1)

    def _sound(
        self, windows: npt.NDArray[np.float32] | None, count: int
    ) -> npt.NDArray[np.float32]:
        if windows is None:
            return np.zeros((count, vggish.WIDTH), np.float32)
        spectra = torch.from_numpy(vggish.log_mel(windows)).to(self.device)
        return self._audio(self._vggish(spectra)).cpu().numpy()


def _full_precision(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Lets CUDA's convolutions compute in float32, not in TF32, while the block runs."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)


@register_backbone("youtube8m")
def _make(request: Request) -> YouTube8M:
    if request.argument:
        raise ArgumentError(f"backbone: expected youtube8m, found {request.name!r}")
    if request.weights is None:
        raise ArgumentError(
            "weights: expected a folder with the files of youtube8m, such as mean.npy (see "
            "docs/youtube8m_features.md), found none"
        )
    return YouTube8M(request.weights, request.device)
