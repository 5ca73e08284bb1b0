"""ContextGate: which products have a bias and what is normalised."""

from __future__ import annotations

import math

import pytest
import torch

from pyseg.nn import ContextGate


def test_gate_is_the_formula() -> None:
    torch.manual_seed(0)
    gate = ContextGate(12, reduction=4).double().eval()
    with torch.no_grad():
        gate.norm.bias.normal_()
        gate.norm.running_mean.normal_()
    x = torch.randn(5, 12, dtype=torch.float64)
    inner = (x @ gate.squeeze.weight.T - gate.norm.running_mean) / math.sqrt(1 + 1e-3)
    inner = (inner + gate.norm.bias).clamp(min=0)
    torch.testing.assert_close(gate(x), x / (1 + torch.exp(-inner @ gate.excite.weight.T)))


def test_gate_has_no_bias_and_one_batch_norm() -> None:
    gate = ContextGate(12, reduction=5)
    assert {key: tuple(value.shape) for key, value in gate.named_parameters()} == {
        "squeeze.weight": (2, 12),
        "norm.weight": (2,),
        "norm.bias": (2,),
        "excite.weight": (12, 2),
    }
    assert gate.norm.unbiased  # the one place where the reference uses the fused kernel


@pytest.mark.parametrize("reduction", [0, 13])
def test_gate_refuses_a_reduction_to_no_features(reduction: int) -> None:
    with pytest.raises(ValueError, match=rf"reduction: expected 1\.\.12, found {reduction}"):
        ContextGate(12, reduction)
