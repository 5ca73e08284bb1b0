"""Heads: LogisticHead and MixtureOfExperts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pyseg.nn import LabelGCN, LogisticHead, MixtureOfExperts


def test_head_is_linear() -> None:
    head = LogisticHead(4, 3)
    x = torch.randn(2, 4)
    torch.testing.assert_close(head(x), x @ head.linear.weight.T)
    with pytest.raises(ValueError, match=r"num_classes: expected at least 1, found 0"):
        LogisticHead(4, 0)


def test_initial_biases_give_the_prior() -> None:
    torch.testing.assert_close(
        LogisticHead(4, 3, prior=0.01)(torch.zeros(2, 4)).sigmoid(), torch.full((2, 3), 0.01)
    )
    head = LabelGCN(4, 3, bias=True, prior=0.01)
    torch.testing.assert_close(head(torch.zeros(2, 4)).sigmoid(), torch.full((2, 3), 0.01))
    with pytest.raises(ValueError, match=r"prior: expected .* above 0 and below 1, found 1\.0"):
        LogisticHead(4, 3, prior=1.0)


def probability(head: MixtureOfExperts, x: Tensor) -> tuple[Tensor, Tensor]:
    """p and 1 - p by the starter code's formula, one class and expert at a time, in float64."""
    gates = x.double() @ head.gates.weight.double().T
    experts = x.double() @ head.experts.weight.double().T + head.experts.bias.double()
    p, q = [], []
    for c in range(head.num_classes):
        gate = gates[:, c * (head.mixtures + 1) : (c + 1) * (head.mixtures + 1)].softmax(1)
        expert = experts[:, c * head.mixtures : (c + 1) * head.mixtures]
        p.append(sum(gate[:, m] * expert[:, m].sigmoid() for m in range(head.mixtures)))
        q.append(sum(gate[:, m] * (-expert[:, m]).sigmoid() for m in range(head.mixtures)))
        q[-1] = q[-1] + gate[:, -1]  # the constant 0
    return torch.stack(p, 1), torch.stack(q, 1)


def make_moe(mixtures: int = 2, scale: float = 1.0, seed: int = 0) -> MixtureOfExperts:
    torch.manual_seed(seed)
    head = MixtureOfExperts(6, num_classes=5, mixtures=mixtures)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(0, scale)
    return head


@pytest.mark.parametrize("mixtures", [1, 2, 4])
def test_moe_is_its_definition(mixtures: int) -> None:
    head = make_moe(mixtures).double()
    x = torch.randn(7, 6, dtype=torch.float64)
    p, q = probability(head, x)
    logits = head(x)
    torch.testing.assert_close(logits, p.log() - q.log(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(logits.sigmoid(), p, rtol=1e-12, atol=1e-12)


def test_moe_has_the_reference_parameters() -> None:
    head = MixtureOfExperts(6, num_classes=5)
    assert {key: tuple(value.shape) for key, value in head.named_parameters()} == {
        "gates.weight": (15, 6),
        "experts.weight": (10, 6),
        "experts.bias": (10,),
    }
    bound = math.sqrt(6 / (6 + 15))
    assert 0.9 * bound < head.gates.weight.abs().max() <= bound
    assert (head.experts.bias == 0).all()


def test_moe_gradient() -> None:
    head = make_moe(scale=3.0).double()
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    names, values = zip(*head.named_parameters(), strict=True)

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(head, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *values))


@pytest.mark.parametrize("mixtures", [1, 2])
def test_moe_of_rare_and_certain_classes_keeps_its_value(mixtures: int) -> None:
    """Even where p itself, in float32, is 0 or 1."""
    head = make_moe(mixtures, scale=15.0)
    x = torch.randn(50, 6)
    p, q = probability(head, x)
    expected = p.log() - q.log()
    assert expected.min() < -50
    assert expected.max() > 20
    torch.testing.assert_close(head(x).double(), expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mixtures", [1, 3])
def test_moe_of_extreme_inputs_is_finite_and_learns(mixtures: int) -> None:
    """Gates and experts of +-1e4, in every combination: no inf, no NaN, no vanishing gradient."""
    head = MixtureOfExperts(1, num_classes=1, mixtures=mixtures)
    size = 2 * mixtures + 1
    signs = torch.cartesian_prod(*[torch.tensor([-1e4, 0.0, 1e4])] * size)
    gates, experts = signs.split((mixtures + 1, mixtures), dim=1)
    gates, experts = gates.clone().requires_grad_(), experts.clone().requires_grad_()
    head.gates, head.experts = (Given(t) for t in (gates, experts))
    logits = head(torch.zeros(len(signs), 1))
    assert logits.isfinite().all()
    assert logits.abs().max() > 5e3
    logits.sum().backward()
    assert gates.grad.isfinite().all()
    assert experts.grad.isfinite().all()
    certain = (experts.detach() == -1e4).all(1) & (gates.detach()[:, -1] == -1e4)
    certain &= (gates.detach()[:, :-1] > -1e4).any(1)
    # The step between two float32 numbers near 1e4 is 1e-3.
    slopes = experts.grad[certain].sum(1)
    torch.testing.assert_close(slopes, torch.ones_like(slopes), rtol=0, atol=1e-3)


class Given(torch.nn.Module):
    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return self.value


def test_moe_in_autocast_mixes_in_float32() -> None:
    head = make_moe(scale=4.0)
    x = torch.randn(50, 6)
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(x)
        gates, experts = head.gates(x).float(), head.experts(x).float()
    assert logits.dtype == torch.bfloat16
    head.gates, head.experts = Given(gates), Given(experts)
    torch.testing.assert_close(logits, head(x).bfloat16(), rtol=0, atol=0)


def test_moe_compiles_whole() -> None:
    torch._dynamo.reset()
    head = make_moe()
    compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch in (3, 5):
        x = torch.randn(batch, 6)
        torch.testing.assert_close(compiled(x), head(x))


def test_moe_checks_its_arguments() -> None:
    with pytest.raises(ValueError, match=r"num_classes: expected at least 1, found 0"):
        MixtureOfExperts(4, 0)
    with pytest.raises(ValueError, match=r"mixtures: expected at least 1, found 0"):
        MixtureOfExperts(4, 2, mixtures=0)
