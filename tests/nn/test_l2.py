"""l2_penalty: s * sum(w^2) / 2 over the parameters that the reference regularises."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from pyseg.nn import (
    DBoF,
    LabelGCN,
    LogisticHead,
    MixtureOfExperts,
    NeXtVLADClassifier,
    l2_penalty,
)

SMALL = {"feature_sizes": (8,), "clusters": 4, "hidden_size": 16}


@pytest.mark.parametrize(
    ("head", "names"),
    [
        (LogisticHead, ["linear.weight", "linear.bias"]),  # the bias too
        (MixtureOfExperts, ["gates.weight", "experts.weight"]),
        (partial(LabelGCN, node_size=3, gcn_size=4, bias=True), ["first", "second"]),
    ],
)
@pytest.mark.parametrize("classifier", [NeXtVLADClassifier, DBoF])
def test_the_head_is_regularised_and_nothing_else(classifier, head, names: list[str]) -> None:
    torch.manual_seed(0)
    model = classifier(3, head=head, **SMALL)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    penalty = l2_penalty(model, 0.01)
    weights = [model.head.get_parameter(name) for name in names]
    expected = 0.01 / 2 * sum(weight.detach().square().sum() for weight in weights)
    torch.testing.assert_close(penalty, expected)
    penalty.backward()
    for weight in weights:
        torch.testing.assert_close(weight.grad, 0.01 * weight.detach())
    regularised = {id(weight) for weight in weights}
    assert all(p.grad is None for p in model.parameters() if id(p) not in regularised)


def test_it_is_a_scalar_of_float32_or_better() -> None:
    assert l2_penalty(nn.Linear(2, 2), 1.0).item() == 0
    head = LogisticHead(200, 100).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        penalty = l2_penalty(head, 2.0)
    assert penalty.dtype == torch.float32
    expected = head.linear.weight.double().square().sum()
    torch.testing.assert_close(penalty.double(), expected, rtol=1e-5, atol=0)
    assert l2_penalty(head.double(), 2.0).dtype == torch.float64
    assert l2_penalty(head, 0.0).item() == 0
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="strength: expected a finite number of at least 0"):
            l2_penalty(head, wrong)
