"""The perceptron on mean frames against its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyseg.nn import MLP
from pyseg.ops.frames import dequantize

SIZES = (12, 6)
NUM_FRAMES = torch.tensor([7, 3, 1])


def make_model(**options: object) -> MLP:
    torch.manual_seed(0)
    model = MLP(5, feature_sizes=SIZES, hidden_size=8, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        model.hidden_norm.running_mean.normal_()
        model.hidden_norm.running_var.uniform_(0.5, 2.0)
        model.head.linear.bias.normal_()
    return model


def make_frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 7, sum(SIZES)), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("normalization", ["dequantize", "l2", "unwhiten"])
def test_is_its_formula(normalization: str) -> None:
    eigenvalues = np.linspace(2.0, 0.1, SIZES[0]) if normalization == "unwhiten" else None
    model = make_model(normalization=normalization, eigenvalues=eigenvalues).eval().double()
    frames = make_frames()
    means = []
    for video, length in zip(frames, NUM_FRAMES.tolist(), strict=True):
        x = dequantize(video[None, :length], None, torch.float64)
        means.append(model.normalization(x, dtype=torch.float64)[0].mean(0))
    norm = model.hidden_norm
    hidden = torch.stack(means) @ model.hidden.weight.T
    hidden = (hidden - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
    expected = model.head(torch.relu(hidden * norm.weight + norm.bias))
    torch.testing.assert_close(model(frames, NUM_FRAMES), expected, rtol=1e-9, atol=1e-9)
    whole = model(frames[:, :1], torch.tensor([1, 1, 1]))
    torch.testing.assert_close(model(frames[:, :1]), whole)


def test_dropout_is_for_training() -> None:
    model = make_model(input_dropout=0.5, dropout=0.5)
    frames = make_frames()
    model.eval()
    assert torch.equal(model(frames, NUM_FRAMES), model(frames, NUM_FRAMES))
    model.train()
    assert not torch.equal(model(frames, NUM_FRAMES), model(frames, NUM_FRAMES))
    for name in ("input_dropout", "dropout"):
        with pytest.raises(ValueError, match=rf"^{name}: expected a number in \[0, 1\), found 1"):
            make_model(**{name: 1.0})
    with pytest.raises(ValueError, match="hidden_size: expected at least 1, found 0"):
        MLP(5, hidden_size=0)
