"""Initial weights: those of slim and of the starter code."""

from __future__ import annotations

import math

import pytest
import torch

from pyseg.nn.init import he_linear, he_truncated_normal_, normal_linear, xavier_linear


def test_he_initialization_has_its_deviation_before_truncation() -> None:
    torch.manual_seed(0)
    weight = he_truncated_normal_(torch.empty(400, 500), fan_in=50)
    bound = 2 * math.sqrt(1.3 * 2 / 50)
    assert weight.abs().max() <= bound
    assert weight.abs().max() > 0.99 * bound
    # Truncation at two standard deviations reduces the deviation to 0.8796 of its value.
    assert weight.std().item() == pytest.approx(0.8796 * bound / 2, rel=0.01)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / 50), rel=0.01)
    with pytest.raises(ValueError, match=r"fan_in: expected at least 1, found 0"):
        he_truncated_normal_(weight, fan_in=0)


def test_linear_layers() -> None:
    torch.manual_seed(0)
    he, xavier, normal = he_linear(300, 200), xavier_linear(300, 200), normal_linear(300, 200)
    assert he.weight.std().item() == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    bound = math.sqrt(6 / 500)
    assert 0.99 * bound < xavier.weight.abs().max() <= bound
    assert xavier.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert normal.weight.std().item() == pytest.approx(1 / math.sqrt(300), rel=0.02)
    assert normal.weight.abs().max() > 3.5 / math.sqrt(300)  # not truncated
    assert normal.bias is None
    for layer in (he, xavier):
        assert (layer.bias == 0).all()
    assert he_linear(3, 2, bias=False).bias is None
    assert xavier_linear(3, 2, bias=False).bias is None
