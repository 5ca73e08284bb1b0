"""Every preset on bytes with ranges, mean and deviation: the fused path against plain PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pyseg import models
from pyseg.data import FeatureSet
from pyseg.nn import FrameClassifier
from tests.models.test_models import (
    SMALL_PRESETS,
    assert_compiles_whole,
    make_batch,
    unlike_presets,
)

FEATURES = FeatureSet((("a", 12), ("b", 6)), ranges=((-0.2, 0.3), (0.0, 30.0)))
# Far from 0, and from the middle of the ranges, relative to the deviation.
MEAN = torch.cat((torch.linspace(-0.15, 0.28, 12), torch.linspace(0.2, 29.0, 6)))
DEVIATION = torch.cat((torch.linspace(0.01, 0.2, 12), torch.linspace(0.3, 9.0, 6)))
OPTIONS = {
    "dequantize": {"normalization": "dequantize", "ranges": FEATURES.ranges},
    "standardize": {
        "normalization": "standardize",
        "ranges": FEATURES.ranges,
        "mean": MEAN,
        "deviation": DEVIATION,
    },
}


def make_preset(name: str, **overrides: Any) -> FrameClassifier:
    torch.manual_seed(0)
    small = SMALL_PRESETS[name] | overrides
    model = models.create(name, num_classes=4, **small)
    for module in model.modules():  # zeros would hide what the first product reads
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return model


def values_of(frames: Tensor) -> Tensor:
    """Returns the exact values of bytes, in float64."""
    limits = torch.tensor(FEATURES.ranges, dtype=torch.float64)
    low, high = limits.repeat_interleave(torch.tensor(FEATURES.feature_sizes), dim=0).T
    return frames.double() * (high - low) / 255 + low + (high - low) / 512


def normalized(frames: Tensor, convention: str, dtype: torch.dtype) -> Tensor:
    """Returns plain PyTorch's normalisation in a dtype."""
    x = values_of(frames).to(dtype)
    return x if convention == "dequantize" else (x - MEAN.to(dtype)) / DEVIATION.to(dtype)


def outputs(
    model: FrameClassifier, frames: Tensor, num_frames: Tensor, autocast: bool
) -> list[Tensor]:
    """Returns logits in training and eval mode, and the gradients, in float64."""
    found = []
    for training in (True, False):
        model.train(training)
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(frames, num_frames)
        found.append(logits)
        parameters = list(model.parameters())
        loss = (logits.double() * torch.linspace(-1, 1, 4)).sum()
        found.extend(torch.autograd.grad(loss, parameters, allow_unused=True))
    return [torch.zeros(1) if value is None else value.detach().double() for value in found]


@pytest.mark.parametrize("convention", OPTIONS)
@pytest.mark.parametrize("name", unlike_presets())
def test_bytes_are_read_as_accurately_as_by_plain_pytorch(name: str, convention: str) -> None:
    frames, num_frames = make_batch()
    for autocast in (False, True):
        own = make_preset(name, **OPTIONS[convention])
        raw = {"normalization": "dequantize", "ranges": ((-1e6, 1e6), (-1e6, 1e6))}
        plain = make_preset(name, **raw)  # which takes any floats as they are
        exact = make_preset(name, **raw).double()
        actual = outputs(own, frames, num_frames, autocast)
        rounded = normalized(frames, convention, torch.float32)
        reference = outputs(plain, rounded, num_frames, autocast)
        truth = outputs(exact, normalized(frames, convention, torch.float64), num_frames, False)
        norms = []
        for results in (actual, reference):
            pairs = zip(results, truth, strict=True)
            norms.append(
                sum(((a - b).norm() / b.norm().clamp(min=1e-3)).square() for a, b in pairs).sqrt()
            )
        assert norms[0] <= 2 * norms[1] + 1e-6


@pytest.mark.parametrize("name", unlike_presets())
def test_bytes_are_their_values(name: str) -> None:
    model = make_preset(name, **OPTIONS["standardize"])
    frames, num_frames = make_batch()
    model(frames, num_frames)
    model.eval()
    values = torch.from_numpy(FEATURES.dequantize(frames.numpy()))
    expected = model(frames, num_frames)
    torch.testing.assert_close(model(values, num_frames), expected, rtol=1e-3, atol=1e-4)
    others = model(torch.where(frames < 255, frames + 1, frames), num_frames)
    assert not torch.allclose(others, expected, rtol=1e-3, atol=1e-4)  # it can tell a step
    padded = torch.arange(6) >= num_frames[:, None]
    changed = frames.clone()
    changed[padded] = 255 - changed[padded]
    assert torch.equal(model(changed, num_frames), expected)


@pytest.mark.parametrize("name", unlike_presets())
def test_travels_with_the_weights(name: str, tmp_path: Path) -> None:
    model = make_preset(name, **OPTIONS["standardize"])
    frames, num_frames = make_batch()
    model(frames, num_frames)
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    assert again.config == model.config
    assert again.config.overrides["ranges"] == [[-0.2, 0.3], [0.0, 30.0]]
    assert again.config.tensors["mean"] == [18]
    expected = model.eval()(frames, num_frames)
    assert torch.equal(again(frames, num_frames), expected)
    some = models.select_classes(again, [2, 0])
    torch.testing.assert_close(some(frames, num_frames), expected[:, [2, 0]])
    count = models.count_parameters(
        name, num_classes=4, **SMALL_PRESETS[name], **OPTIONS["standardize"]
    )
    assert count == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["attention-gru", "dbof", "linear", "nextvlad-small"])
def test_bytes_stay_bytes(name: str) -> None:
    model = make_preset(name, **OPTIONS["standardize"])
    frames, num_frames = make_batch()
    assert model.prepare(frames, num_frames)[0] is frames


@pytest.mark.parametrize("name", ["attention-gru", "linear"])
def test_compiles_whole(name: str) -> None:
    assert_compiles_whole(lambda: make_preset(name, **OPTIONS["standardize"]))
