"""VGGish up to its embedding before the last ReLU, and the log-mel spectrogram that it takes.

Sources: Hershey et al., "CNN Architectures for Large-Scale Audio Classification" (2017);
MediaPipe's graph of YouTube-8M's features. Modules have the names of torchvggish's state dict.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

RATE = 16_000
HOP_SECONDS = 1.0  # of YouTube-8M; AudioSet's is 0.96
WIDTH = 128

BANDS = 64
STEPS = 96
_WINDOW, _STEP, _FFT = 400, 160, 512  # samples: 25 ms, 10 ms
SAMPLES = _WINDOW + (STEPS - 1) * _STEP
_LOWEST, _HIGHEST = 125.0, 7500.0  # Hz
_OFFSET = 0.01


class VGGish(nn.Module):
    """The network, from 0.96 s of a log-mel spectrogram to 128 values of either sign."""

    def __init__(self) -> None:
        """Makes the network with random weights, in inference mode."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for widths in ((64,), (128,), (256, 256), (512, 512)):
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(channels * (STEPS // 16) * (BANDS // 16), 4096),
            nn.ReLU(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, WIDTH),
        )
        self.eval().requires_grad_(False)

    def forward(self, spectra: Tensor) -> Tensor:
        """Returns the embeddings (B, 128) of log-mel spectra (B, 96, 64)."""
        maps = self.features(spectra[:, None])
        return self.embeddings(maps.permute(0, 2, 3, 1).flatten(1))  # the order of TensorFlow


def log_mel(windows: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Returns the log-mel spectra (B, 96, 64) of windows of sound.

    The magnitudes of the spectrum of 25 ms every 10 ms, under a periodic Hann window, are summed
    into 64 mel bands from 125 to 7500 Hz; the logarithm is that of the sum + 0.01.

    Args:
        windows: (B, 15600) samples in [-1, 1] at 16 kHz: 0.96 s, and what the last 25 ms need.

    Example:
        >>> log_mel(np.zeros((2, SAMPLES), np.float32)).shape
        (2, 96, 64)
    """
    frames = np.lib.stride_tricks.sliding_window_view(windows, _WINDOW, axis=1)[:, ::_STEP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi / _WINDOW * np.arange(_WINDOW))
    magnitudes = np.abs(np.fft.rfft(frames.astype(np.float64) * hann, _FFT))
    return np.log(magnitudes @ mel_weights() + _OFFSET).astype(np.float32)


def mel_weights() -> npt.NDArray[np.float64]:
    """Returns the weights (257, 64) of the spectrum's frequencies in the mel bands.

    Bands are triangles over the mel scale, each from the center of the one before to that of the
    one after; 0 Hz is in none.
    """
    mels = _mel(np.arange(_FFT // 2 + 1) * (RATE / _FFT))[:, None]
    edges = np.linspace(_mel(_LOWEST), _mel(_HIGHEST), BANDS + 2)
    low, center, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (mels - low) / (center - low), (high - mels) / (high - center)
    weights = np.maximum(0, np.minimum(rising, falling))
    weights[0] = 0
    return weights


def _mel(hertz: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return 1127 * np.log1p(np.asarray(hertz, np.float64) / 700)
